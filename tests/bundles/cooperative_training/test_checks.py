"""Checks of short-axis stacks: patients, headers, meaning of the labels."""

from __future__ import annotations

import gzip
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImaged
from numpy.typing import NDArray

from cooperative_training.checks import check_stacks, patient_of_case
from cooperative_training.data import read_split
from cooperative_training.shared.validation import InputError, check_cases
from tools import REPO

BUNDLE = "bundles/cooperative_training_acdc_mri"
AXES = np.diag([1.5, 1.5, 8, 1])


def heart(values: tuple[int, int, int] = (1, 2, 3), *, depth: int = 3) -> NDArray[np.uint8]:
    """Left ventricle as a disc within a ring of myocardium, the right one as a crescent beside it."""
    x, y = np.mgrid[:32, :32]
    ventricle, other = np.hypot(x - 18, y - 16), np.hypot(x - 9, y - 16)
    rv, myo, lv = values
    labels = np.select([ventricle < 5, ventricle < 8, other < 7], [lv, myo, rv], 0).astype(np.uint8)
    return np.repeat(labels[..., None], depth, axis=2)


def case(folder: Path, label: NDArray[Any], affine: NDArray[Any] = AXES) -> dict[str, str]:
    paths = {"image": folder / "patient001_frame01.nii.gz", "label": folder / "patient001_frame01_gt.nii.gz"}
    for path in paths.values():
        nibabel.save(nibabel.Nifti1Image(label, affine), path)
    return {"case": "patient001_ED", **{key: str(path) for key, path in paths.items()}}


def overwrite(path: str, *, offset: int, values: NDArray[Any]) -> None:
    """Replaces bytes of a NIfTI header, which nibabel would not write."""
    content = bytearray(gzip.decompress(Path(path).read_bytes()))
    content[offset : offset + values.nbytes] = values.tobytes()
    Path(path).write_bytes(gzip.compress(bytes(content)))


def rejection(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        check_stacks(*args, **kwargs)
    return str(caught.value)


class TestLabelOrder:
    @pytest.mark.parametrize("values", permutations((1, 2, 3)))
    def test_only_the_order_of_the_labels_passes(self, values: tuple[int, int, int], tmp_path: Path) -> None:
        right = dict(zip(values, ("RV", "MYO", "LV"), strict=True))
        found = case(tmp_path, heart(values))
        for order in permutations(("RV", "MYO", "LV")):
            if list(order) == [right[value] for value in (1, 2, 3)]:
                check_stacks([[found]], label_order=order)
            else:
                message = rejection([[found]], label_order=order)
                assert f"case patient001_ED: {found['label']}: contradicts label_order {list(order)}" in message
                assert f"value {values[2]} is enclosed by value {values[1]}" in message

    def test_missing_structures_are_legal(self, tmp_path: Path) -> None:
        label = heart(depth=5)
        label[..., 0] = np.where(label[..., 0] == 1, 1, 0)  # base: right ventricle alone
        label[..., 1] = np.where(label[..., 1] == 2, 2, 0)  # a ring around nothing
        label[..., 2] = 0
        label[:16, :, 3] = 0  # half of everything
        check_stacks([[case(tmp_path, label)]])
        for structure in (1, 2, 3):
            check_stacks([[case(tmp_path, np.where(label == structure, label, 0))]])
            check_stacks([[case(tmp_path, np.where(label == structure, 0, label))]])

    def test_only_contact_within_slices_counts(self, tmp_path: Path) -> None:
        """A channel between two walls across x, across y, and across z, where the layers never touch in a slice."""
        channel = np.zeros((9, 8, 8), np.uint8)
        channel[[2, 6]], channel[3:6] = 2, 3
        for across in (0, 1):
            found = case(tmp_path, np.moveaxis(channel, 0, across))
            check_stacks([[found]])
            assert "value 3 is enclosed by value 2" in rejection([[found]], label_order=["LV", "MYO", "RV"])
        layers = case(tmp_path, np.moveaxis(channel, 0, 2))
        for order in permutations(("RV", "MYO", "LV")):
            check_stacks([[layers]], label_order=order)

    @pytest.mark.parametrize("order", [["RV", "MYO"], ["RV", "MYO", "MYO"], ["rv", "myo", "lv"]])
    def test_no_order(self, order: list[str]) -> None:
        assert "label_order: must order RV, MYO, LV, got" in rejection([[]], label_order=order)

    def test_inference_reads_no_label(self, tmp_path: Path) -> None:
        check_stacks([[{"case": "x", "image": case(tmp_path, heart())["image"]}]], label=None)


class TestHeader:
    def test_slices_along_another_axis(self, tmp_path: Path) -> None:
        found = case(tmp_path, np.moveaxis(heart(), 2, 0), np.diag([8, 1.5, 1.5, 1]))
        message = rejection([[found]], label=None)
        assert f"case patient001_ED: {found['image']}: slices must lie along the third axis" in message
        assert "they are 8 x 1.5 x 1.5 mm" in message

    def test_oblique_and_isotropic_stacks_and_one_slice(self, tmp_path: Path) -> None:
        turn = np.array([[0.8, 0, 0.6, 0], [0, 1, 0, 0], [-0.6, 0, 0.8, 0], [0, 0, 0, 1]])
        check_stacks([[case(tmp_path, heart(), turn @ AXES)]])
        check_stacks([[case(tmp_path, heart(), np.diag([1.5, 1.5, 1.5, 1]))]])
        check_stacks([[case(tmp_path, heart(depth=1), np.diag([1.5, 1.5, 1, 1]))]])

    @pytest.mark.parametrize("pixdim", [(1.5, 1.5, 0), (np.nan, 1.5, 8), (1.5, np.inf, 8), (0, 0, 0)])
    def test_spacing(self, pixdim: tuple[float, float, float], tmp_path: Path) -> None:
        found = case(tmp_path, heart())
        overwrite(found["image"], offset=80, values=np.array(pixdim, "<f4"))
        message = rejection([[found]])
        assert f"case patient001_ED: {found['image']}: image has no voxel size, pixdim is" in message

    def test_blank_header(self, tmp_path: Path) -> None:
        """No orientation: what a conversion leaves that knows none."""
        found = case(tmp_path, heart())
        image = nibabel.Nifti1Image(heart(), None)
        nibabel.save(image, found["image"])
        assert "image does not say how it lies in the patient" in rejection([[found]])

    def test_all_problems_at_once(self, tmp_path: Path) -> None:
        cases = []
        for name in "ab":
            (tmp_path / name).mkdir()
            cases.append({**case(tmp_path / name, heart((3, 2, 1)), np.diag([8, 1.5, 1.5, 1])), "patient": name})
        assert "4 problem(s)" in rejection([cases])


class TestPatients:
    @pytest.mark.parametrize(
        ("image", "patient"),
        [
            ("data/patient001_frame12.nii.gz", "001"),
            ("001_ED.nii.gz", "001"),
            ("001_ES_img.nii.gz", "001"),
            ("x/A0S9V9/ED_img.nii.gz", "a0s9v9"),
            ("x/scan_7.nii.gz", "scan_7"),
        ],
    )
    def test_name(self, image: str, patient: str) -> None:
        assert patient_of_case({"image": image}) == patient
        assert patient_of_case({"image": image, "patient": "007"}) == "007"

    def test_frames_of_one_patient_in_two_lists(self) -> None:
        names = ("/d/patient001_frame01.nii.gz", "/d/patient001_frame12.nii.gz")
        message = rejection([[{"image": name, "patient": "patient001"}] for name in names])
        assert f"case patient001_frame12.nii.gz: {names[1]}: patient patient001 is in two splits" in message

    def test_frames_as_monai_label_draws_them(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """It hands over paths alone, from a flat folder, split at random."""
        found = case(tmp_path, heart((1, 2, 3)), np.diag([1.5, 1.5, 8, 1]))
        other = shutil.copy(found["image"], tmp_path / "patient001_frame12.nii.gz")
        check_stacks([[{"image": found["image"]}], [{"image": str(other)}]], label=None)
        assert f"{other}: patient 001 is in two splits, the validation is optimistic" in caplog.text


class TestBfloat16:
    @pytest.mark.parametrize(
        ("capabilities", "warned"),
        [({"avx512_f": True, "avx512_bf16": False}, True), ({"avx512_bf16": True}, False), ({"amx_bf16": True}, False)],
    )
    def test_processor(
        self,
        capabilities: dict[str, bool],
        warned: bool,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        parser = ConfigParser()
        parser.read_config([REPO / BUNDLE / f"configs/{name}.yaml" for name in ("train", "bfloat16")])
        network = torch.nn.Linear(2, 2)
        answer = parser.get_parsed_content("train::inferer")(torch.zeros(1, 2), network)
        assert answer.dtype == (torch.float32 if warned else torch.bfloat16)
        assert ("has no bfloat16 instructions" in caplog.text) == warned


class TestRealScans:
    def test_acdc(self, real_data: Path) -> None:
        """All 80 label maps agree with their own order alone."""
        split = read_split(real_data / "acdc")
        cases = [*split["training"], *split["validation"]]
        check_stacks([cases])
        for order in list(permutations(("RV", "MYO", "LV")))[1:]:
            assert f"{len(cases)} problem(s)" in rejection([cases], label_order=order)

    def test_header_as_distributed(self, real_data: Path) -> None:
        """Its sform tells voxels of 1 mm, its pixdim the true size: that is what is loaded and checked."""
        folder = real_data / "acdc_original_headers"
        paths = {"image": folder / "patient001_frame01.nii.gz", "label": folder / "patient001_frame01_gt.nii.gz"}
        found = {key: str(path) for key, path in paths.items()}
        pixdim = nibabel.load(found["image"]).header["pixdim"][1:4]
        assert not np.allclose(np.linalg.norm(nibabel.load(found["image"]).affine[:3, :3], axis=0), pixdim)
        check_cases([[found]], label_values=[[0, 1, 2, 3]])
        check_stacks([[found]])
        loaded = LoadImaged(["image", "label"], ensure_channel_first=True)(found)
        np.testing.assert_allclose(loaded["image"].pixdim, pixdim, rtol=1e-6)
        np.testing.assert_allclose(loaded["label"].pixdim, pixdim, rtol=1e-6)
        assert pixdim[2] == 10
