"""A real browser without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from skimage.io import imread

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
# For viewers of volumes, without a graphics card.
WEBGL = (
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
    "--window-size=1400,900",
)


@contextmanager
def chromium(profile: Path, *flags: str, logs: bool = False) -> Iterator[webdriver.Chrome]:
    """Opens Chromium or Chrome; without one the test is skipped, or fails if BROWSER_REQUIRED or LABEL_REQUIRED is set.

    Args:
        profile: folder for what the browser keeps.
        flags: further arguments of its command line.
        logs: record the console and every request.
    """
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None:
        required = {"BROWSER_REQUIRED", "LABEL_REQUIRED"} & os.environ.keys()
        (pytest.fail if required else pytest.skip)("needs Chromium and its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if logs:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def text_of(browser: webdriver.Chrome) -> str:
    """What a page says."""
    return str(browser.find_element(By.TAG_NAME, "body").text)


def viewport(browser: webdriver.Chrome, screenshot: Path) -> Any:
    """Pixels `(H, W, 3)` of the first viewport, as the browser shows them."""
    browser.find_elements(By.TAG_NAME, "canvas")[0].screenshot(str(screenshot))
    return imread(screenshot)[..., :3].astype(int)


def colours(pixels: Any) -> int:
    """How many pixels are neither grey nor nearly so."""
    return int(np.sum(np.ptp(pixels, axis=-1) > 40))
