"""The web viewer that MONAI Label serves, in a headless browser, with a CT from a DICOMweb store."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from skimage.io import imread

from tests.conftest import NAMES, recipe
from tests.support.browser import chromium
from tests.support.distributed import free_port
from tests.support.label_server import (
    LabelServer,
    ask,
    convert,
    facts,
    label_environment,
    needed,
    small_bundle,
    voxels,
    wait_until_answering,
)
from tools.data.phantoms import phantoms as make_phantoms

pytestmark = [pytest.mark.label, pytest.mark.nightly]

(BUNDLE,) = (bundle for bundle in NAMES if "viewer" in facts(bundle))
STUDY = "1.2.826.0.1.3680043.2.1125.77.1"
SERIES = f"{STUDY}.1"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
WEBGL = (
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
    "--window-size=1400,900",
)
sitk: Any = importlib.import_module("SimpleITK")  # its functions have no types


def write_dicom(scan: Path, folder: Path) -> list[Path]:
    """Writes a CT as a DICOM series, a file per slice."""
    volume = sitk.Cast(sitk.ReadImage(str(scan)), sitk.sitkInt16)
    axes = volume.GetDirection()
    common = {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
        "0008|0020": "20260101",
        "0008|0030": "120000",
        "0008|0050": "1",
        "0008|0060": "CT",
        "0008|103e": "phantom",
        "0010|0010": "Phantom^Kidney",
        "0010|0020": "PHANTOM1",
        "0020|000d": STUDY,
        "0020|000e": SERIES,
        "0020|0010": "1",
        "0020|0011": "1",
        "0020|0037": "\\".join(f"{axes[i]:g}" for i in (0, 3, 6, 1, 4, 7)),
        "0020|0052": f"{STUDY}.9",
        "0028|1050": "40",
        "0028|1051": "400",
    }
    writer, files = sitk.ImageFileWriter(), []
    writer.KeepOriginalImageUIDOn()
    for number in range(volume.GetDepth()):
        position = volume.TransformIndexToPhysicalPoint((0, 0, number))
        own = {"0008|0018": f"{SERIES}.{number + 1}", "0020|0013": str(number + 1)}
        own["0020|0032"] = "\\".join(f"{value:.6f}" for value in position)
        single = volume[:, :, number]
        for tag, value in (common | own).items():
            single.SetMetaData(tag, value)
        files.append(folder / f"{number:03}.dcm")
        writer.SetFileName(str(files[-1]))
        writer.Execute(single)
    return files


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a phantom CT and its label map as NIfTI."""
    folder = tmp_path_factory.mktemp("ct")
    data = make_phantoms(BUNDLE, str(folder / "phantoms"), cases=1, **recipe(BUNDLE)["phantoms"])
    convert(next(data.glob(facts(BUNDLE)["scans"])), folder / "image.nii.gz")
    convert(next(data.glob(facts(BUNDLE)["labels"])), folder / "label.nii.gz")
    return folder


@pytest.fixture(scope="module")
def store(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a DICOMweb store on loopback that holds the CT."""
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    needed(program and PLUGIN.is_file(), "Orthanc with its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb)")
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {"HttpPort": port, "RemoteAccessAllowed": False, "DicomServerEnabled": False, "Plugins": [str(PLUGIN)]}
    settings |= {"StorageDirectory": str(folder), "IndexDirectory": str(folder), "AuthenticationEnabled": False}
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen([str(program), str(folder / "orthanc.json")], stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_answering(f"{url}/system", process, log)
        for file in write_dicom(scan / "image.nii.gz", folder):
            assert ask("POST", f"{url}/instances", file.read_bytes())[0] == 200
        yield f"{url}/dicom-web"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    label_environment()
    folder = tmp_path_factory.mktemp("label")
    running = LabelServer(folder, studies=store, bundles=[small_bundle(BUNDLE, folder / "bundles")])
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "profile", *WEBGL) as opened:
        yield opened


def text_of(browser: webdriver.Chrome) -> str:
    return str(browser.find_element(By.TAG_NAME, "body").text)


def viewport(browser: webdriver.Chrome, screenshot: Path) -> Any:
    """Pixels `(H, W, 3)` of the first viewport, as the browser shows them."""
    browser.find_elements(By.TAG_NAME, "canvas")[0].screenshot(str(screenshot))
    return imread(screenshot)[..., :3].astype(int)


def colours(pixels: Any) -> int:
    """How many pixels are neither grey nor nearly so."""
    return int(np.sum(np.ptp(pixels, axis=-1) > 40))


def test_viewer_shows_a_scan_and_the_mask_of_a_bundle(
    server: LabelServer, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    """The study list has the patient, the viewport the scan, the panel the bundle, and after a run the mask."""
    kept = Path(os.environ.get("SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    wait = WebDriverWait(browser, 120)
    browser.get(f"{server.url}/ohif/")
    wait.until(lambda page: "PHANTOM1" in text_of(page))
    browser.save_screenshot(str(kept / "studies.png"))

    browser.get(f"{server.url}/ohif/monai-label?StudyInstanceUIDs={STUDY}")
    wait.until(lambda page: len(page.find_elements(By.TAG_NAME, "canvas")) == 3)
    wait.until(lambda page: np.ptp(viewport(page, tmp_path / "canvas.png")) > 200)
    browser.find_element(By.XPATH, "//*[text()='Confirm and Hide']").click()
    address = browser.find_element(By.ID, "monailabelServerURL")
    address.send_keys(Keys.CONTROL, "a")
    address.send_keys(f"{server.url}/")
    browser.find_element(By.CSS_SELECTOR, ".monaiLabelPanel button.actionButton").click()
    wait.until(lambda page: BUNDLE in text_of(page))
    Select(browser.find_element(By.CSS_SELECTOR, ".modelSelector select")).select_by_value(BUNDLE)
    plain = colours(viewport(browser, tmp_path / "canvas.png"))
    browser.find_element(By.CSS_SELECTOR, "button[title='Run Segmentation']").click()
    wait.until(lambda page: colours(viewport(page, tmp_path / "canvas.png")) > plain + 5000)
    browser.save_screenshot(str(kept / "mask.png"))


def test_corrected_label_becomes_dicom_seg(server: LabelServer, scan: Path) -> None:
    """A mask comes as DICOM SEG; a corrected label is stored as such in the DICOM store, and as NIfTI for training."""
    params = {"label_info": [{"name": name} for name in facts(BUNDLE)["viewer"]]}
    mask, _ = server.mask(BUNDLE, SERIES)
    np.testing.assert_allclose(mask.affine, nibabel.load(scan / "image.nii.gz").affine, atol=1e-3)
    server.client.save_label(SERIES, str(scan / "label.nii.gz"), "final", params)
    series = json.loads(ask("GET", f"{server.studies}/studies/{STUDY}/series")[1])
    assert sorted(entry["00080060"]["Value"][0] for entry in series) == ["CT", "SEG"]
    status, text = ask("GET", f"{server.url}/datastore/?output=train")
    assert status == 200
    (case,) = json.loads(text)
    np.testing.assert_array_equal(voxels(nibabel.load(case["label"])), voxels(nibabel.load(scan / "label.nii.gz")))
