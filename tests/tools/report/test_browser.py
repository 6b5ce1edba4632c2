"""The page in a real browser: nothing is fetched, nothing goes wrong, tables sort, settings are found."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import chromium
from tests.support.report_files import write_cases, write_events, write_record
from tools.report.cli import report

EPOCHS = 30
ROWS = ["case,dice,hd95", "b,0.50,12.0", "a10,0.90,", "a9,0.70,3.5", "c,0.10,inf"]
DICE = [(epoch, 1 - math.exp(-epoch / 8)) for epoch in range(5, EPOCHS + 1, 5)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium"), "--window-size=1280,1000", logs=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The browser, with a page about a training and its evaluation."""
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, "training", config={"max_epochs": EPOCHS, "network_def": {"channels": [16, 32]}})
    losses = [(epoch, 1 / epoch) for epoch in range(1, EPOCHS + 1)]
    write_events(folder, {"train_loss": losses, "learning_rate": [(e, 0.01) for e, _ in losses], "val_dice": DICE})
    cases = write_cases(folder, [row.partition(",")[0] for row in ROWS[1:]])
    write_record(folder, "evaluating", time=1_800_000_000, cases=cases)
    (folder / "metrics.csv").write_text("\n".join(ROWS) + "\n")
    browser.get(report(str(folder), cases=1).as_uri())
    return browser


def column(page: Any, index: int) -> list[str]:
    cells: list[str] = page.execute_script(
        "return [...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[arguments[0]].textContent)",
        index,
    )
    return cells


def test_nothing_is_fetched_and_nothing_fails(page: Any) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file://") and url.endswith("report.html") for url in asked)
    assert [url for url in asked if not url.startswith(("file://", "data:", "chrome://"))] == []
    assert len([url for url in asked if url.startswith("file://")]) == 1


def test_figures_are_there(page: Any) -> None:
    sizes = page.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    assert len(sizes) == 2
    assert all(complete and width > 500 and height > 300 for complete, width, height in sizes)


def test_curve_goes_through_its_values(page: Any) -> None:
    """Marks lie where the ticks of the axes say, and inside the figure."""
    script = """
      const svg = document.querySelector('g[data-tag="val_dice"]').ownerSVGElement;
      const at = (parent, query) => [...parent.querySelectorAll(query)];
      return [at(svg, 'g circle').map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')]),
              at(svg, ':scope > text').map(t => [t.textContent, +t.getAttribute('x'), +t.getAttribute('y')])]"""
    marks, texts = page.execute_script(script)
    up = {float(text): y - 4 for text, x, y in texts if x < 58}
    across = {float(text): x for text, x, _ in texts if x >= 58 and text != "epoch"}
    zero, one = up[0.0], up[1.0]
    first, last = across[5.0], across[float(EPOCHS)]
    assert len(marks) == len(DICE)
    assert all(58 <= x <= 560 and 0 < y < 230 for x, y in [*marks, (first, one)])
    for (x, y), (epoch, value) in zip(marks, DICE, strict=True):
        assert (y - zero) / (one - zero) == pytest.approx(value, abs=0.01)
        assert (x - first) / (last - first) == pytest.approx((epoch - 5) / (EPOCHS - 5), abs=0.01)


def test_tables_sort(page: Any) -> None:
    name, dice, distance = page.find_elements("css selector", "table.sortable th button")
    assert column(page, 0) == ["b", "a10", "a9", "c"]
    name.click()
    assert column(page, 0) == ["a9", "a10", "b", "c"]
    dice.click()
    assert column(page, 1) == ["0.100", "0.500", "0.700", "0.900"]
    dice.click()
    assert column(page, 0) == ["a10", "a9", "b", "c"]
    for expected in (["a9", "b", "c", "a10"], ["c", "b", "a9", "a10"]):  # without a number: last, both ways
        distance.click()
        assert column(page, 0) == expected
    heads = page.find_elements("css selector", "table.sortable th")
    assert [head.get_attribute("aria-sort") for head in heads] == ["none", "none", "descending"]


def test_settings_are_searched(page: Any) -> None:
    page.execute_script("document.querySelectorAll('details.run').forEach(part => part.open = true)")
    field = page.find_element("css selector", "input[type=search]")
    field.send_keys("MAX epoch")
    rows = page.find_elements("css selector", "details.run:first-of-type table.settings tr")
    assert [row.text for row in rows if row.is_displayed()] == [f"max_epochs {EPOCHS}"]
    page.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", field)
    assert all(row.is_displayed() for row in rows)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_fits_the_window(page: Any, width: int, scheme: str, tmp_path: Path) -> None:
    """Nothing sticks out sideways, and text stands out from the paper; the figure is kept."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    wide, ink, paper = page.execute_script(
        "const style = getComputedStyle(document.body);"
        "return [document.documentElement.scrollWidth, style.color, style.backgroundColor]"
    )
    assert wide <= width
    brightness = [sum(map(int, text.strip("rgb()").split(","))) / 3 for text in (ink, paper)]
    assert brightness[0] < 80 < 200 < brightness[1] if scheme == "light" else brightness[1] < 80 < 200 < brightness[0]
    shot = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    kept = Path(os.environ.get("SCREENSHOTS", tmp_path), f"report_{scheme}_{width}.png")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(base64.b64decode(shot["data"]))
    assert kept.stat().st_size > 20_000
