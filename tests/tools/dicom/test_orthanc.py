"""A study goes in, is segmented, and comes back as DICOM SEG: from and to Orthanc, seen in the OHIF viewer."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import NAMES, recipe
from tests.support.browser import WEBGL, chromium, colours, text_of, viewport
from tests.support.dicom_files import uid, write_scan
from tests.support.label_server import LabelServer, facts, label_environment, small_bundle
from tests.support.orthanc import orthanc
from tests.support.runs import run
from tools.data.phantoms import phantoms as make_phantoms
from tools.dicom.seg import seg
from tools.dicom.web import fetch, store

sitk: Any = importlib.import_module("SimpleITK")  # its functions have no types

pytestmark = [pytest.mark.label, pytest.mark.nightly]

(BUNDLE,) = (bundle for bundle in NAMES if "viewer" in facts(bundle))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of everything: a phantom CT as DICOM and as NIfTI, and a small bundle."""
    folder = tmp_path_factory.mktemp("dicom")
    data = make_phantoms(BUNDLE, str(folder / "phantoms"), cases=1, **recipe(BUNDLE)["phantoms"])
    write_scan(next(data.glob(facts(BUNDLE)["scans"])), folder / "source", folder / "nifti/P1.nii.gz", modality="CT")
    small_bundle(BUNDLE, folder / "bundles")
    return folder


@pytest.fixture(scope="module")
def archive(folder: Path) -> Iterator[str]:
    (folder / "orthanc").mkdir()
    with orthanc(folder / "orthanc") as url:
        yield f"{url}/dicom-web"


@pytest.fixture(scope="module")
def masks(folder: Path, archive: str) -> dict[str, Any]:
    """Stores the study, fetches, segments it and the NIfTI file, stores the SEG; returns both masks."""
    store(archive, *map(str, sorted((folder / "source").iterdir())))
    fetch(archive, str(folder / "fetched"), study=uid("P1"))
    found = {}
    for name in ("fetched", "nifti"):
        bundle, output = folder / "bundles" / BUNDLE, folder / "out" / name
        run(BUNDLE, "inference", data=folder / name, folder=bundle, output_dir=str(output))
        (found[name],) = output.rglob("*.nii.gz")
    seg(str(found["fetched"]), str(folder / "fetched"), output=str(folder / "seg.dcm"))
    store(archive, str(folder / "seg.dcm"))
    return {name: nibabel.load(file) for name, file in found.items()}


def test_seg_from_the_archive_is_the_mask_of_the_nifti_file(folder: Path, archive: str, masks: dict[str, Any]) -> None:
    series = dcmread(folder / "seg.dcm").SeriesInstanceUID
    fetch(archive, str(folder / "back"), study=uid("P1"), series=series)
    (file,) = (folder / "back" / series).iterdir()
    found = highdicom.seg.segread(file)
    voxels = {name: np.asarray(mask.dataobj) for name, mask in masks.items()}
    assert voxels["nifti"].any()
    np.testing.assert_array_equal(voxels["fetched"], voxels["nifti"])
    sources = [dcmread(source) for source in (folder / "fetched" / uid("P1 scan")).iterdir()]
    sources.sort(key=lambda source: float(source.ImagePositionPatient[2]))
    names = [source.SOPInstanceUID for source in sources]
    pixels = found.get_pixels_by_source_instance(
        names, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    expected = voxels["nifti"].transpose(2, 1, 0)
    np.testing.assert_array_equal(pixels, expected if masks["nifti"].affine[2, 2] > 0 else expected[::-1])


def test_viewer_shows_a_seg_where_the_structures_are(folder: Path, tmp_path: Path) -> None:
    """OHIF opens the SEG of the phantom's own label map, in the colours of the structures."""
    label_environment()
    kept = Path(os.environ.get("SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    labels = sitk.ReadImage(str(next((folder / "phantoms").rglob("segmentation.nii.gz"))))
    scan = sitk.ReadImage(str(folder / "nifti/P1.nii.gz"))
    placed = sitk.Resample(labels, scan, sitk.Transform(), sitk.sitkNearestNeighbor)
    sitk.WriteImage(placed, str(tmp_path / "label.nii.gz"))
    seg(str(tmp_path / "label.nii.gz"), str(folder / "source"), output=str(tmp_path / "seg.dcm"), bundle=BUNDLE)
    (tmp_path / "orthanc").mkdir()
    with orthanc(tmp_path / "orthanc") as url:
        store(f"{url}/dicom-web", *map(str, sorted((folder / "source").iterdir())), str(tmp_path / "seg.dcm"))
        running = LabelServer(tmp_path, studies=f"{url}/dicom-web", bundles=[folder / "bundles" / BUNDLE])
        try:
            with chromium(tmp_path / "profile", *WEBGL) as browser:
                look(browser, running.url, kept)
        finally:
            running.stop()


def look(browser: webdriver.Chrome, url: str, kept: Path) -> None:
    """Opens the study, then its SEG; two screenshots are kept."""
    wait = WebDriverWait(browser, 120)

    def coloured(page: webdriver.Chrome) -> int:
        canvases = page.find_elements(By.TAG_NAME, "canvas")  # none while the viewer changes what it shows
        return colours(viewport(page, kept / "canvas.png")) if canvases else -1

    browser.get(f"{url}/ohif/viewer?StudyInstanceUIDs={uid('P1')}")
    wait.until(lambda page: len(page.find_elements(By.TAG_NAME, "canvas")) > 0)
    wait.until(lambda page: np.ptp(viewport(page, kept / "canvas.png")) > 200)
    browser.find_element(By.XPATH, "//*[text()='Confirm and Hide']").click()
    browser.save_screenshot(str(kept / "study.png"))
    plain = coloured(browser)
    thumbnail = browser.find_element(By.CSS_SELECTOR, "[data-cy='study-browser-thumbnail-no-image']")
    ActionChains(browser).double_click(thumbnail).perform()
    wait.until(lambda page: page.find_elements(By.XPATH, "//button[.='Yes']"))[0].click()
    end = time.monotonic() + 120
    while coloured(browser) < plain + 5000 and time.monotonic() < end:  # the kidneys lie in slices farther on
        ActionChains(browser).send_keys(Keys.ARROW_DOWN).perform()
        time.sleep(0.5)
    browser.save_screenshot(str(kept / "seg.png"))
    assert coloured(browser) >= plain + 5000
    assert "RecommendedDisplayCIELabValue" not in text_of(browser)
