"""A scan's way to the networks and back with the shipped configs against that of the reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.bundles.hadnet.files import SEQUENCES, write
from tests.bundles.hadnet.reference import GOLDEN, STUDENT, Array, config, statistics, uniform

CASE = "BraTS19_X_1"
SHAPE = (240, 240, 155)
WITHOUT = [SEQUENCES[channel] for channel in STUDENT]  # what the student has: all but T1ce


def placed(block: Array, start: Sequence[int], shape: Sequence[int] = SHAPE) -> Array:
    """The block in a volume of zeros."""
    volume = np.zeros(shape, block.dtype)
    volume[tuple(slice(first, first + size) for first, size in zip(start, block.shape, strict=True))] = block
    return volume


def golden_volumes() -> dict[str, Array]:
    names = zip((*SEQUENCES, "seg"), (*GOLDEN["data/block"], GOLDEN["data/seg_block"]), strict=True)
    return {name: placed(block, GOLDEN["data/block_lo"]) for name, block in names}


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden case as NIfTI; read only."""
    root = tmp_path_factory.mktemp("golden")
    for name, volume in golden_volumes().items():
        path = root / CASE / f"{CASE}_{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, GOLDEN["data/affine"]), path)
    return root


def turned(volume: Array) -> Array:
    """On the reference's axes: x, y, z in reverse order, then y backwards."""
    return volume.transpose(2, 1, 0)[:, ::-1]


def box_of(brain: Array) -> tuple[slice, ...]:
    indices = brain.nonzero()
    return tuple(slice(index.min(), index.max() + 1) for index in indices)


def windows(brain: Array, size: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where on its axes the network looks at a scan, and where in its input of `size` it sees that."""
    there, here = [], []
    for box, wanted in zip(box_of(brain), size, strict=True):
        held = box.stop - box.start
        kept, skipped, padded = min(held, wanted), max(held - wanted + 1, 0) // 2, max(wanted - held, 0) // 2
        there.append(slice(box.start + skipped, box.start + skipped + kept))
        here.append(slice(padded, padded + kept))
    return tuple(there), tuple(here)


def network_input(volumes: Sequence[Array], masks: Sequence[Array], size: Sequence[int]) -> Array:
    """Sections 3.1 to 3.3 of the specification in numpy; the brain is where all masks are not 0."""
    brain = turned(np.all([mask != 0 for mask in masks], 0))
    there, here = windows(brain, size)
    result = np.zeros((len(volumes), *size))
    for channel, volume in zip(result, map(turned, volumes), strict=True):
        inside = volume[brain].astype(float)
        scores = np.minimum((volume - inside.mean()) / inside.std(), 3)
        lowest = scores[box_of(brain)].min()
        channel[here] = ((scores - lowest) / (3 - lowest))[there]
    return result


def restored(answer: Array, masks: Sequence[Array]) -> Array:
    """Section 4: classes on the network's grid as a label map on the scan's own."""
    brain = turned(np.all([mask != 0 for mask in masks], 0))
    there, here = windows(brain, answer.shape)
    volume = np.zeros(brain.shape, np.uint8)
    volume[there] = np.array([0, 1, 2, 4])[answer[here]]
    return volume[:, ::-1].transpose(2, 1, 0)


class Answer(nn.Module):
    """Stands in for a trained network: has one answer, and keeps what it was asked."""

    def __init__(self, name: str, size: Sequence[int]) -> None:
        super().__init__()
        self.classes = np.digitize(uniform(f"lab/{name}", (1, *size)), [0.4, 0.6, 0.8])
        self.seen = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.as_subclass(torch.Tensor)
        return 10 * functional.one_hot(torch.from_numpy(self.classes), 4).movedim(-1, 1).float()


def segmented(root: Path, output: Path, answer: Answer, **overrides: Any) -> Any:
    """The label map that inference.yaml writes for the only case."""
    size = list(answer.classes.shape[1:])
    paths: dict[str, Any] = {"dataset_dir": str(root), "output_dir": str(output)}
    parser = config("inference", network=answer, size=size, handlers=[], **paths, **overrides)
    parser.get_parsed_content("evaluator").run()
    return nibabel.load(output / CASE / f"{CASE}_tumour.nii.gz")


def assert_map(written: Any, expected: Array, affine: Array) -> None:
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), expected)
    np.testing.assert_array_equal(written.affine, affine)


@pytest.mark.parametrize(("part", "channels"), [("train", [0, 1, 2, 3]), ("validate", STUDENT)])
def test_training_and_validation(part: str, channels: list[int], dataset_dir: Path) -> None:
    """The teacher's and the student's input; every third voxel, and statistics of all."""
    size = GOLDEN["data/sem_size"].tolist()
    parser = config("train", size=size, mask_from="@sequences", augmentation=[], dataset_dir=str(dataset_dir))
    files = {
        key: str(dataset_dir / CASE / f"{CASE}_{name}.nii.gz") for key, name in (("image", "flair"), ("label", "seg"))
    }
    item = parser.get_parsed_content(f"{part}::preprocessing")({"case": CASE, **files})
    x = item["image"]
    assert (x.dtype, item["label"].dtype, item["brain"].dtype) == (torch.float32, torch.uint8, torch.uint8)
    np.testing.assert_allclose(x[:, ::3, ::3, ::3], GOLDEN["data/x_teacher"][channels], rtol=0, atol=1e-6)
    for channel, expected in zip(x, GOLDEN["data/x_statistics"][channels], strict=True):
        np.testing.assert_allclose(statistics(channel)[3:], expected[3:], rtol=0, atol=1e-6)
        np.testing.assert_allclose(statistics(channel)[:3], expected[:3], rtol=1e-6)
    np.testing.assert_array_equal(item["label"][0], GOLDEN["data/y"])
    np.testing.assert_array_equal(item["brain"][0], GOLDEN["data/mask"])


def test_brain_without_what_is_withheld(dataset_dir: Path, tmp_path: Path) -> None:
    """The student of inference.yaml without the file of T1ce, in which 393 voxels of the others' brain are 0."""
    volumes = golden_volumes()
    scan = [volumes[name] for name in WITHOUT]
    for name in WITHOUT:
        path = dataset_dir / CASE / f"{CASE}_{name}.nii.gz"
        (tmp_path / CASE).mkdir(exist_ok=True)
        (tmp_path / CASE / path.name).symlink_to(path)
    parser = config("inference", size=[48, 64, 48], dataset_dir=str(tmp_path))
    (item,) = parser.get_parsed_content("dataset")
    assert int(item["brain"].sum()) == int(GOLDEN["data/mask"].sum()) + 393
    brain = np.all([volume != 0 for volume in scan], 0)
    assert scan[0][brain].mean() == pytest.approx(549.30, abs=0.01)
    assert scan[0][brain].std() == pytest.approx(259.44, abs=0.01)
    np.testing.assert_allclose(item["image"], network_input(scan, scan, (48, 64, 48)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pad", "cut"])
def test_inference_and_back(name: str, dataset_dir: Path, tmp_path: Path) -> None:
    """Voxel by voxel, padded and cut."""
    key, volumes = f"infer/{name}", golden_volumes()
    size = GOLDEN[f"{key}/size"].tolist()
    answer = Answer(name, size)
    written = segmented(dataset_dir, tmp_path, answer, mask_from="@sequences")
    expected = placed(GOLDEN[f"{key}/restored_block"], GOLDEN[f"{key}/restored_lo"])
    assert_map(written, expected, GOLDEN["data/affine"])
    assert sorted(np.unique(expected)) == [0, 1, 2, 4]
    masks = [volumes[sequence] for sequence in SEQUENCES]
    np.testing.assert_array_equal(restored(answer.classes[0], masks), expected)
    rows = GOLDEN["data/x_statistics"][STUDENT] if name == "pad" else GOLDEN["infer/cut/x_statistics"]
    for channel, row in zip(answer.seen[0], rows, strict=True):
        np.testing.assert_allclose(statistics(channel)[3:], row[3:], rtol=0, atol=1e-6)
        np.testing.assert_allclose(statistics(channel)[:3], row[:3], rtol=1e-6)
    rebuilt = network_input([volumes[sequence] for sequence in WITHOUT], masks, size)
    np.testing.assert_allclose(answer.seen[0], rebuilt, rtol=0, atol=1e-6)


def stray_volumes() -> dict[str, Array]:
    """Sequences of the same brain of 17 x 20 x 15 voxels and, in two slices more, of a stray voxel each.

    Each sequence's box reaches these slices, that of their common brain does not.
    """
    volumes = {}
    for seed, name in enumerate(SEQUENCES):
        noise = np.random.default_rng(seed).integers(100, 900, (17, 20, 15)).astype(np.int16)
        noise[8, 9, 7] = 5000  # far above the others, to be cut
        volumes[name] = placed(noise, (6, 5, 4), (30, 34, 26))
        volumes[name][8 + seed, 9, [1, 22]] = 500
    return volumes


@pytest.mark.parametrize("given", [list(SEQUENCES), WITHOUT])
@pytest.mark.parametrize("size", [(32, 32, 32), (16, 16, 16)])
def test_boxes_of_the_sequences_do_not_matter(given: list[str], size: tuple[int, ...], tmp_path: Path) -> None:
    """The reference rejects such a scan, and any without T1ce."""
    volumes = stray_volumes()
    boxes = [[(index.min(), index.max()) for index in volume.nonzero()] for volume in volumes.values()]
    assert {box[2] for box in boxes} == {(1, 22)}
    for name in given:
        write(tmp_path / "scans" / CASE / f"{CASE}_{name}.nii.gz", volumes[name])
    answer, masks = Answer("stray", size), [volumes[name] for name in given]
    overrides = {} if given == WITHOUT else {"mask_from": "@sequences"}
    written = segmented(tmp_path / "scans", tmp_path, answer, **overrides)
    assert_map(written, restored(answer.classes[0], masks), np.diag([-1, -1, 1, 1]))
    rebuilt = network_input([volumes[name] for name in WITHOUT], masks, size)
    np.testing.assert_allclose(answer.seen[0], rebuilt, rtol=0, atol=1e-6)
    assert answer.seen.amax((2, 3, 4)).tolist() == [[1, 1, 1]]
    assert not written.get_fdata()[..., [1, 22]].any()
