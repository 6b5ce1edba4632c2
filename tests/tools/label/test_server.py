"""A MONAI Label server with all bundles: what its client asks for, gets, corrects and trains."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.conftest import NAMES, each_bundle, label_values, recipe
from tests.support.label_server import (
    ABSENT,
    CASES,
    STACK,
    LabelServer,
    ask,
    beside,
    facts,
    image_of,
    label_environment,
    make_studies,
    small_bundle,
    voxels,
)
from tools import REPO

pytestmark = pytest.mark.label
nightly = pytest.mark.nightly

SEQUENCES = [bundle for bundle in NAMES if "stack" in facts(bundle)]
PLAIN, OTHER, *_ = (bundle for bundle in NAMES if bundle not in SEQUENCES)
IMAGES = [(bundle, image_of(bundle)) for bundle in NAMES]
IMAGES += [(bundle, beside(bundle, image_of(bundle), facts(bundle)["sibling"])) for bundle in SEQUENCES]
IMAGES += [(bundle, STACK.format(bundle)) for bundle in SEQUENCES]
INVALID = [(PLAIN, "nobody", 404, "there is no image nobody in")]
INVALID += [("nothing", image_of(PLAIN), 404, f"there is no model nothing; there are: ['{NAMES[0]}', ")]
INVALID += [(PLAIN, STACK.format(SEQUENCES[0]), 400, "image must be a 3D volume")]
INVALID += [(bundle, image_of(bundle, ABSENT), 400, f"{facts(bundle)['missing']} is missing") for bundle in SEQUENCES]
INVALID += [
    (bundle, STACK.format(other), 400, f"channels, has {len(facts(other)['stack'])}")
    for bundle in SEQUENCES
    for other in SEQUENCES
    if len(facts(other)["stack"]) < len(facts(bundle)["stack"])
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """A server with all bundles and scans of every kind in one folder; the fixture ends when it is gone."""
    label_environment()
    folder = tmp_path_factory.mktemp("label")
    make_studies(folder / "studies", folder / "labels", folder / "phantoms")
    bundles = [small_bundle(bundle, folder / "bundles") for bundle in NAMES]
    running = LabelServer(folder, studies=str(folder / "studies"), bundles=bundles)
    try:
        yield running
    finally:
        running.stop()


def names_and_values(bundle: str) -> dict[str, int]:
    metadata = json.loads((REPO / "bundles" / bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    named = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return {name.lower(): int(value) for value, name in named.items() if name.lower() != "background"}


def test_lists_all_bundles_with_their_labels(server: LabelServer) -> None:
    info = server.client.info()
    assert {name: model["labels"] for name, model in info["models"].items()} == {
        name: names_and_values(name) for name in NAMES
    }
    assert sorted(info["trainers"]) == sorted(NAMES)
    assert all(model["config"]["model_filename"][0] == "model.pt" for model in info["models"].values())


@pytest.mark.parametrize(("bundle", "image"), [IMAGES[0], *(pytest.param(*pair, marks=nightly) for pair in IMAGES[1:])])
def test_mask_is_that_of_the_bundle(bundle: str, image: str, server: LabelServer, tmp_path: Path) -> None:
    """On the scan's grid, voxel by voxel what the bundle's own inference writes, whichever sequence is asked for."""
    mask, answer = server.mask(bundle, image)
    scan = nibabel.load(Path(server.studies) / f"{image}.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == scan.shape[:3]
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    assert answer["label_names"] == names_and_values(bundle)
    assert set(np.unique(voxels(mask)).tolist()) <= label_values(bundle)
    assert len(np.unique(voxels(mask))) > 1, "a mask of one value proves little"
    np.testing.assert_array_equal(voxels(mask), voxels(server.expected(bundle, image, tmp_path)))


@pytest.fixture
def corrected(bundle: str, server: LabelServer) -> Iterator[list[str]]:
    """Images of the bundle's kind with labels as an annotator submits them; no other image has one meanwhile."""
    images = [image_of(bundle, case) for case in CASES]
    for image in images:
        server.client.save_label(image, str(server.folder / "labels" / f"{image}.nii.gz"), "final")
    yield images
    for image in images:
        assert ask("DELETE", f"{server.url}/datastore/label?id={image}&tag=final")[0] == 200


@nightly
@each_bundle
def test_corrected_labels_train_the_next_mask(
    bundle: str, server: LabelServer, corrected: list[str], tmp_path: Path
) -> None:
    """Labels arrive as drawn; an epoch on them writes new weights, used next, and the old ones beside them."""
    stored = Path(server.studies) / "labels/final" / f"{corrected[0]}.nii.gz"
    np.testing.assert_array_equal(
        voxels(nibabel.load(stored)), voxels(nibabel.load(server.folder / "labels" / stored.name))
    )
    models = server.bundle(bundle) / "models"
    before, (old, _) = (models / "model.pt").read_bytes(), server.mask(bundle, corrected[0])
    status = server.train(bundle)
    assert status["status"] == "DONE", "\n".join(status["details"])
    assert (models / "model.pt").read_bytes() != before
    assert (models / "model_previous.pt").read_bytes() == before

    new, _ = server.mask(bundle, corrected[0])
    np.testing.assert_array_equal(voxels(new), voxels(server.expected(bundle, corrected[0], tmp_path)))
    assert (voxels(new) != voxels(old)).any()
    again, _ = server.mask(bundle, corrected[0], model_filename="model_previous.pt")
    np.testing.assert_array_equal(voxels(again), voxels(old))


@nightly
@pytest.mark.parametrize(("bundle", "image", "status", "text"), INVALID)
def test_refusal_says_why(bundle: str, image: str, status: int, text: str, server: LabelServer) -> None:
    told = server.rejection(bundle, image)
    assert told.startswith(f"Status: {status};")
    assert text in told


@nightly
def test_pages_of_other_sites_read_nothing(server: LabelServer) -> None:
    """They are rejected; the server's own may read."""
    assert ask("GET", f"{server.url}/info/", Origin="http://elsewhere.example")[0] == 403
    request = urllib.request.Request(f"{server.url}/info/", headers={"Origin": server.url})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == server.url


def test_label_that_does_not_fit_is_not_stored(server: LabelServer) -> None:
    """The good one that is there stays; grid and values are compared, and the scan must be known."""
    client, image = server.client, image_of(NAMES[0])
    good = nibabel.load(server.folder / "labels" / f"{image}.nii.gz")
    stored = Path(server.studies) / f"labels/final/{image}.nii.gz"
    client.save_label(image, str(server.folder / "labels" / f"{image}.nii.gz"), "final")
    before, moved = stored.read_bytes(), good.affine.copy()
    moved[0, 3] += 1
    bad = {
        "differs from the image's": nibabel.Nifti1Image(voxels(good)[:-1], good.affine),
        "it is on another grid": nibabel.Nifti1Image(voxels(good), moved),
        "label values must be among [0, 1, 2, 3] or ": nibabel.Nifti1Image(voxels(good) + np.uint8(50), good.affine),
        "found [0.5": nibabel.Nifti1Image(voxels(good).astype(np.float32) + 0.5, good.affine),
    }
    for text, volume in bad.items():
        nibabel.save(volume, server.folder / "bad.nii.gz")
        with pytest.raises(server.api.MONAILabelClientException) as caught:
            client.save_label(image, str(server.folder / "bad.nii.gz"), "final")
        assert "Status: 400" in caught.value.msg
        assert text in caught.value.msg
        assert stored.read_bytes() == before
    with pytest.raises(server.api.MONAILabelClientException, match=r"Status: 404.*there is no image nobody"):
        client.save_label("nobody", str(server.folder / "bad.nii.gz"), "final")
    assert ask("DELETE", f"{server.url}/datastore/label?id={image}&tag=final")[0] == 200


def multipart(url: str, method: str, params: str, field: str = "", name: str = "", content: bytes = b"") -> Any:
    """Status and text of the answer to a form with `params` and perhaps a file."""
    parts = [b'Content-Disposition: form-data; name="params"\r\n\r\n' + params.encode()]
    if field:
        parts.append(f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content)
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
    return ask(method, url, body, **{"Content-Type": "multipart/form-data; boundary=x"})


def test_what_a_request_may_not_say(server: LabelServer) -> None:
    """Paths out of the study folder, files that are no volumes, values that configs would compute, broken options."""
    image, url, ran = image_of(PLAIN), server.url, server.folder / "ran"
    scan = (Path(server.studies) / f"{image}.nii.gz").read_bytes()
    before = {path: path.read_bytes() for path in Path(server.studies).rglob("*.n*")}  # all but the store's own list
    label, infer = f"{url}/datastore/label?image={image}", f"{url}/infer/{PLAIN}?image={image}&output=json"
    add = f"{url}/datastore/image?image="
    code = json.dumps({"device": f"$__import__('os').mkdir({str(ran)!r})"})
    as_json = {"Content-Type": "application/json"}
    stored: dict[str, Any] = {
        "tag '../../x' is no name": multipart(f"{label}&tag=..%2F..%2Fx", "PUT", "{}", "label", "a.nii.gz", scan),
        "image '../x' is no name": multipart(f"{add}..%2Fx", "PUT", "{}", "file", "a.nii", scan),
        "file 'main.py' must be a plain": multipart(f"{add}m", "PUT", "{}", "file", "main.py"),
        "file 'a.txt' must be a plain": multipart(f"{label}&tag=final", "PUT", "{}", "label", "a.txt", b"no label"),
        "the label cannot be read": multipart(f"{label}&tag=final", "PUT", "{}", "label", "a.nrrd", b"no label"),
        "stays as it is": multipart(f"{add}{image.upper()}", "PUT", "{}", "file", "a.nii.gz", scan),
        "the scan cannot be read": multipart(f"{add}n", "PUT", "{}", "file", "a.nii.gz", b"no"),
        "device may not be": multipart(infer, "POST", code),
        "params is not JSON": multipart(infer, "POST", "{"),
        "no option 'image'": multipart(infer, "POST", '{"image": "/etc/passwd"}'),
        "image '/etc/passwd' is no name": multipart(f"{url}/infer/{PLAIN}?image=/etc/passwd", "POST", "{}"),
        "session_id '../x' is none": multipart(f"{url}/infer/{PLAIN}?session_id=../x", "POST", "{}"),
        "archives are not unpacked": multipart(f"{url}/session/?uncompress=1", "PUT", "{}", "files", "a.nii.gz", scan),
        "$__import__('os').mkdir(": ask("POST", f"{url}/train/{PLAIN}?run_sync=true", code.encode(), **as_json),
        "no option 'bundle_root'": ask("POST", f"{url}/train/{PLAIN}", b'{"bundle_root": "/tmp"}', **as_json),
    }
    for reason, (status, text) in stored.items():
        assert status == 400, text
        assert reason in text
    page = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    for method, path in (("POST", f"train/{PLAIN}"), ("PUT", "datastore/label"), ("POST", "infer/a"), ("GET", "info/")):
        assert ask(method, f"{url}/{path}", b"{}" if method != "GET" else None, **page)[0] == 403
    assert ask("GET", f"{url}/info/", Host="evil.example:8000")[0] == 403
    assert ask("DELETE", f"{url}/datastore/image?id={image}")[0] == 403
    status, text = ask("GET", f"{url}/datastore/image/info?image=nobody")
    assert status < 500, text
    assert not ran.exists()
    assert {path: path.read_bytes() for path in Path(server.studies).rglob("*.n*")} == before
    assert not list(server.folder.glob("x*"))


@nightly
@pytest.mark.parametrize("bundle", [bundle for bundle in NAMES if "too_large" in facts(bundle)])
def test_a_scan_larger_than_the_network_sees_is_refused(bundle: str, server: LabelServer) -> None:
    """MONAI Label runs transforms alone, which would cut it; the bundle's check is run before them."""
    first = recipe(bundle)["image"]
    for sequence in (first, *recipe(bundle)["beside"]):
        small = nibabel.load(Path(server.studies) / f"{beside(bundle, image_of(bundle), sequence)}.nii.gz")
        large = nibabel.Nifti1Image(np.pad(voxels(small), ((40, 40),) * 3, mode="edge") + 1, small.affine)
        nibabel.save(large, Path(server.studies) / f"large_{sequence}.nii.gz")
    end = time.monotonic() + 30
    while "there is no image" in (told := server.rejection(bundle, f"large_{first}")) and time.monotonic() < end:
        time.sleep(0.3)  # the server sees new files a moment later
    for sequence in (first, *recipe(bundle)["beside"]):
        (Path(server.studies) / f"large_{sequence}.nii.gz").unlink()
    assert facts(bundle)["too_large"] in told


@nightly
def test_batch_goes_on_after_a_refused_scan(server: LabelServer) -> None:
    """Every scan of a mixed folder has a result, without a GPU too: a stored mask, or why there is none."""
    url = f"{server.url}/batch/infer/{PLAIN}?run_sync=true"
    stack, image = STACK.format(SEQUENCES[0]), image_of(PLAIN, CASES[1])
    body = json.dumps({"images": [image, stack]}).encode()
    status, text = ask("POST", url, body, **{"Content-Type": "application/json"})
    assert status == 200, text
    results: dict[str, Any] = json.loads(text)
    assert "image must be a 3D volume" in results[stack]["error"]
    stored = nibabel.load(Path(server.studies) / f"labels/original/{image}.nii.gz")
    np.testing.assert_array_equal(voxels(stored), voxels(server.mask(PLAIN, image)[0]))


@nightly
@pytest.mark.parametrize("bundle", [bundle for bundle in NAMES if "few" in facts(bundle)])
def test_training_that_cannot_start_says_why(bundle: str, server: LabelServer, corrected: list[str]) -> None:
    """Two of three labelled scans are kept to validate on; the one that is left fills no batch of two."""
    body = json.dumps({"max_epochs": 1, "val_split": 0.67}).encode()
    url = f"{server.url}/train/{bundle}?run_sync=true"
    status, text = ask("POST", url, body, **{"Content-Type": "application/json"})
    assert status == 400
    assert facts(bundle)["few"] in text


@nightly
def test_weights_of_another_network_are_refused(server: LabelServer) -> None:
    """MONAI Label alone would segment with random numbers."""
    file = server.bundle(PLAIN) / "models/model.pt"
    before = file.read_bytes()
    file.write_bytes((server.bundle(OTHER) / "models/model.pt").read_bytes())
    try:
        assert "does not fit the chosen " in server.rejection(PLAIN, image_of(PLAIN))
    finally:
        file.write_bytes(before)
