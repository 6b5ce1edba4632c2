"""Locator, augmentation, metrics and the whole way of a scan in vnet_atrial_mri against those of the reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import itk
import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, Flip, RandGaussianNoise, SpatialPad
from torch import nn

from tests.bundles.vnet_atrial.reference import GOLDEN, config, ellipsoid
from vnet_atrial import reference
from vnet_atrial.handlers import scores
from vnet_atrial.locator import find_box, patch_size_for, patch_start
from vnet_atrial.shared.validation import InputError
from vnet_atrial.transforms import LocateAtriumd

CANVAS = (640, 640, 96)
SCENARIOS: dict[str, dict[str, Any]] = json.loads(GOLDEN["locator.patch_builder_json"].tobytes())
CASES = {"first": ((88, 576, 576), (40, 280, 300)), "second": ((88, 640, 640), (50, 330, 310))}


def volume(array: np.ndarray) -> MetaTensor:
    """The reference's `(z, y, x)` array as a volume `(1, x, y, z)`."""
    return MetaTensor(torch.as_tensor(np.ascontiguousarray(array.T))[None], affine=np.eye(4))


def array(tensor: torch.Tensor) -> np.ndarray:
    """The `(z, y, x)` array of a volume `(1, x, y, z)`."""
    return np.ascontiguousarray(tensor[0].numpy().T)


def coarse_label(mask: np.ndarray) -> np.ndarray:
    """The reference's rule for labels, whose coarse grid is not its images': nearest voxel, corner to corner."""
    return mask[np.ix_(*[label_index(size, size // step) for size, step in zip(mask.shape, (2, 4, 4), strict=True)])]


def label_index(size: int, coarse: int) -> np.ndarray:
    return np.floor(np.arange(coarse) * (size - 1) / (coarse - 1) + 0.5).astype(int)


def test_coarse_grid() -> None:
    canvas = GOLDEN["locator.input"].shape[::-1]
    image = reference.Downscale(canvas)(volume(GOLDEN["locator.input"]))
    np.testing.assert_array_equal(array(image), GOLDEN["locator.image_down"])
    np.testing.assert_array_equal(coarse_label(GOLDEN["locator.label"]), GOLDEN["locator.label_down"])
    for axis, size in enumerate((640, 640, 96)):
        index = torch.arange(size).reshape(-1, 1, 1).expand(-1, 8, 4).movedim(0, axis)[None]
        coarse = reference.Downscale(index.shape[1:], smooth=False)(MetaTensor(index, affine=np.eye(4)))
        ours = coarse[0].movedim(axis, 0)[:, 0, 0]
        np.testing.assert_array_equal(ours, GOLDEN[f"locator.image_index_{size}"])
        np.testing.assert_array_equal(label_index(size, len(ours)), GOLDEN[f"locator.label_index_{size}"])


@pytest.mark.parametrize(("value", "size", "rule"), [(256, 64, "from 0 to 255"), (9, 68, "larger than the canvas")])
def test_coarse_grid_refuses(value: int, size: int, rule: str) -> None:
    scan = MetaTensor(torch.full((1, 64, size, 32), value), meta={"filename_or_obj": "scan.nrrd"})
    with pytest.raises(InputError, match=rf"scan\.nrrd: .*{rule}"):
        reference.Downscale((64, 64, 32))(scan)


@cache
def probability(corners: str, outside: float) -> torch.Tensor:
    """Coarse probability `(160, 160, 48)` of a block of atrium in a flat background."""
    logits = torch.full((160, 160, 48), outside)
    (z0, z1), (y0, y1), (x0, x1) = json.loads(corners)
    logits[x0:x1, y0:y1, z0:z1] = 20
    return logits.sigmoid()


def found_boxes(scenario: dict[str, Any], threshold: float | None) -> Iterator[np.ndarray | None]:
    for corners in scenario["boxes"]:
        yield find_box(probability(json.dumps(corners), scenario.get("outside", -20.0)), threshold=threshold)


def start_of(box: np.ndarray, size: list[int]) -> list[int]:
    """First voxel of a patch on the canvas along x, y, z."""
    coarse = torch.diag(torch.tensor([*reference.STEP, 1.0]))
    return patch_start(box, coarse, affine=torch.eye(4), patch_size=size, shape=CANVAS)


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if "patch" in scenario])
def test_patches(name: str) -> None:
    scenario = SCENARIOS[name]
    boxes = [box for box in found_boxes(scenario, None) if box is not None]
    size = patch_size_for(boxes, scale=reference.STEP, buffer=scenario["pad"][0], limit=CANVAS)
    if scenario["given"]:  # rounded up like a found size
        given = np.array([[0, extent] for extent in scenario["given"][::-1]])
        size = patch_size_for([given], scale=(1, 1, 1), buffer=0, limit=CANVAS)
    assert size[::-1] == scenario["patch"]
    starts = [start_of(box, size) for box in boxes]
    assert [start[::-1] for start in starts] == [[a for a, _ in slices] for slices in scenario["slices"]]


@pytest.mark.parametrize("name", ["soft_bg_minus6", "soft_bg_minus7", "soft_bg_minus8"])
def test_soft_background_is_harmless_above_a_threshold(name: str) -> None:
    boxes = [box for box in found_boxes(SCENARIOS[name], 0.5) if box is not None]
    assert patch_size_for(boxes, scale=reference.STEP, buffer=30, limit=CANVAS) == [192, 160, 80]


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if "assertion" in scenario])
def test_no_atrium(name: str, threshold: float | None) -> None:
    assert list(found_boxes(SCENARIOS[name], threshold)) == [None]


def patch() -> dict[str, torch.Tensor]:
    normal = ((GOLDEN["aug.image"] - 101.5) / 37.25).astype(np.float32)
    return {"image": volume(normal), "label": volume(GOLDEN["aug.label"])}


@pytest.mark.parametrize(
    ("kind", "name", "drawn", "golden"),
    [
        (reference.RandRotateInPlaned, "rot", lambda t: t.degrees, "aug.rot_degrees"),
        (reference.RandTranslated, "tra", lambda t: list(t.shift), "aug.shifts"),
    ],
)
def test_rotation_and_translation(kind: Any, name: str, drawn: Callable[[Any], Any], golden: str) -> None:
    transform = kind(["image", "label"])
    expected = GOLDEN[golden] if name == "rot" else GOLDEN[golden][GOLDEN["aug.tra_index"]]
    for i, seed in enumerate(GOLDEN["aug.seeds"]):
        moved = transform.set_random_state(int(seed))(patch())
        assert drawn(transform) == expected[i].tolist()
        np.testing.assert_allclose(array(moved["image"]), GOLDEN[f"aug.{name}_raw"][i], atol=1e-5)
        np.testing.assert_array_equal(array(moved["label"]), GOLDEN[f"aug.{name}_label"][i])


def fixed_samples(image: torch.Tensor) -> list[torch.Tensor]:
    """The image, flipped, with noise: MONAI's own transforms after one unused draw of the reference, on its axes."""
    state = np.random.RandomState(123)
    state.uniform()
    noise = RandGaussianNoise(prob=1, std=1, sample_std=True)
    noise.set_random_state(state=state)
    noisy = noise(image.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
    return [image, Flip(spatial_axis=1)(image), noisy]


def test_fixed_samples() -> None:
    image, label = patch().values()
    for sample, golden in zip(fixed_samples(image), GOLDEN["aug.train_raw"][:, 0], strict=True):
        np.testing.assert_allclose(array(sample), golden, atol=1e-5)
    for sample, golden in zip((label, Flip(spatial_axis=1)(label), label), GOLDEN["aug.train_label"], strict=True):
        np.testing.assert_array_equal(array(sample), golden[0])


def test_six_samples_per_case_and_epoch() -> None:
    """Per case one each as it is, flipped, with noise, rotated, and two shifted; level sets follow what moves."""
    parser = config("train", "reference", hybrid=True, patch_size=[24, 20, 12])
    parser["train::patches"] = Dataset([patch() | {"level_set": torch.zeros(1, 24, 20, 12)} for _ in range(2)])
    dataset = parser.get_parsed_content("train::dataset")
    dataset.data.datasets[3].transform.set_random_state(0)  # two degrees
    kinds = [[not torch.equal(item["image"], patch()["image"]), item["label"][1].any()] for item in dataset]
    assert len(kinds) == 12
    assert kinds == [[False, False]] * 2 + [[True, False]] * 4 + [[True, True]] * 6


@pytest.mark.parametrize(("name", "spacing"), [("none", 1.0), ("iso", 0.625), ("aniso", (1.25, 0.625, 0.625))])
def test_metrics(name: str, spacing: Any) -> None:
    shape = (20, 32, 48)
    first = ellipsoid(shape, (10, 16, 24), (6, 9, 12))
    second = ellipsoid(shape, (11, 18, 26), (7, 8, 11)) | ellipsoid(shape, (4, 6, 8), (2, 2, 3))
    spacings = [*np.broadcast_to(spacing, 3)]
    found = scores(torch.from_numpy(first), torch.from_numpy(second), spacing=[float(size) for size in spacings])
    ratios = GOLDEN["metric.jaccard_precision_recall_specificity"]
    assert [found["iou"], found["precision"], found["recall"]] == pytest.approx(ratios[:3].tolist(), rel=1e-12)
    hd, _, hd95, there, back, count, count_back = GOLDEN[f"metric.surf.conn1.sp{name}"].tolist()
    asd = (there * count + back * count_back) / (count + count_back)
    assert [found["hd"], found["hd95"], found["asd"]] == pytest.approx([hd, hd95, asd], rel=1e-6)


def test_intensity_must_have_been_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"intensity\.json: does not exist: run `statistics`"):
        reference.read_intensity(tmp_path / "intensity.json")


def test_training_needs_an_atrium() -> None:
    scan = MetaTensor(torch.zeros(1, 64, 64, 32), meta={"filename_or_obj": "scan.nrrd"})
    kwargs: dict[str, Any] = {"patch_size": (16, 16, 16), "required": True}
    locate = LocateAtriumd("image", nn.Identity(), coarse=reference.Downscale((64, 64, 32)), **kwargs)
    with pytest.raises(InputError, match=r"case c7: scan\.nrrd: the locator finds no left atrium"):
        locate({"case": "c7", "image": scan})


class Replay(nn.Module):
    """Stands in for a trained locator: answers with the coarse labels of `CASES` in turn, keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(array(image[0]).astype(np.uint8))
        mask = padded(list(CASES)[(len(self.seen) - 1) % len(CASES)])
        return volume(coarse_label(mask)).as_tensor().float()[None] * 40 - 20


class Threshold(nn.Module):
    """Stands in for a trained segmentation network: the atrium of `CASES` is brighter than 120."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = GOLDEN["e2e.mean_std"]
        return 10 * (image * std + mean - 120)


def padded(name: str) -> np.ndarray:
    """Mask of a case on the canvas."""
    dims, centre = CASES[name]
    return array(SpatialPad(CANVAS)(volume(ellipsoid(dims, centre, (12, 16, 20)).astype(np.uint8))))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The two scans of the golden file as NRRD."""
    root, cases = tmp_path_factory.mktemp("scans"), []
    for case, (dims, centre) in CASES.items():
        mask = ellipsoid(dims, centre, (12, 16, 20))
        z, y, x = np.ogrid[tuple(slice(0, size) for size in dims)]
        grey = (40 + (7 * z + 3 * y + 5 * x) % 23 + 150 * mask).astype(np.uint8)
        (root / case).mkdir()
        paths = {"image": str(root / case / "lgemri.nrrd"), "label": str(root / case / "laendo.nrrd")}
        for path, content in zip(paths.values(), (grey, (255 * mask).astype(np.uint8)), strict=True):
            image = itk.image_from_array(content)
            image.SetSpacing((0.625, 0.625, 0.625))
            image.SetOrigin((-12.5, 30.25, 7.0))
            itk.imwrite(image, path)
        cases.append({"case": case, **paths})
    return cases


def test_boxes_of_the_scans() -> None:
    masks = [padded(name) for name in CASES]
    assert [int(coarse_label(mask).sum()) for mask in masks] == [GOLDEN[f"e2e.loc{k}.label_sum"] for k in (0, 1)]
    assert [crc32(coarse_label(mask).tobytes()) for mask in masks] == [GOLDEN[f"e2e.loc{k}.label_crc"] for k in (0, 1)]
    labels = [{"case": name, "label": volume(coarse_label(mask))} for name, mask in zip(CASES, masks, strict=True)]
    size = reference.suggest_patch_size(labels, limit=CANVAS)
    assert size[::-1] == GOLDEN["e2e.patch"].tolist()
    for item, slices in zip(labels, GOLDEN["e2e.test_slices"], strict=True):
        box = find_box(item["label"][0])
        assert box is not None
        assert start_of(box, size)[::-1] == slices[:, 0].tolist()


class ReferenceGrid(reference.Downscale):
    """The coarse grid as the reference takes it: two voxels (one along z) off the voxels that it samples."""

    def __call__(self, image: MetaTensor) -> MetaTensor:
        step = torch.diag(torch.tensor([*reference.STEP, 1.0], dtype=torch.float64))
        return MetaTensor(super().__call__(image).as_tensor(), affine=image.affine @ step)


def test_training_patches_end_to_end(scans: list[dict[str, str]], tmp_path: Path) -> None:
    locator = Replay()
    settings: dict[str, Any] = {"patch_size": [64, 64, 64], "locator": locator, "hybrid": True}
    settings["coarse"] = ReferenceGrid(CANVAS)
    parser = config("train", "reference", intensity_file=str(tmp_path / "i.json"), **settings)
    patches = list(Dataset(scans, Compose(parser.get_parsed_content("train::patch_transforms"))))
    seen = parser.get_parsed_content("locator").seen
    for k, image in enumerate(seen):
        assert crc32(image.tobytes()) == GOLDEN[f"e2e.loc{k}.image_crc"]
        stats = [*image.shape, image.mean(), image.min(), image.max()]
        np.testing.assert_allclose(stats, GOLDEN[f"e2e.loc{k}.image_stats"], rtol=1e-9)
    measured = reference.measure_intensity(patches, tmp_path / "i.json")
    assert list(measured.values()) == pytest.approx(GOLDEN["e2e.mean_std"].tolist(), rel=1e-10)
    assert reference.read_intensity(tmp_path / "i.json") == measured
    items = list(map(Compose(parser.get_parsed_content("train::deterministic_transforms")), patches))
    labels = [kind(item["label"]) for item in items for kind in (lambda x: x, Flip(spatial_axis=1), lambda x: x)]
    assert [crc32(array(label).astype(np.uint8).tobytes()) for label in labels] == GOLDEN["e2e.label_crcs"].tolist()
    images = [image for item in items for image in fixed_samples(item["image"])]
    np.testing.assert_allclose([image.double().mean() for image in images], GOLDEN["e2e.item_means"], atol=1e-6)
    phi, label = items[0]["level_set"], items[0]["label"]
    assert [label.sum(), phi.min(), phi.max()] == GOLDEN["e2e.item0.label_sum_map_min_max"].tolist()


def test_inference_end_to_end(scans: list[dict[str, str]], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patch_size": [64, 64, 64], "locator": Replay(), "network": Threshold(), "locate": True}
    mean, std = GOLDEN["e2e.mean_std"].tolist()
    parser = config("inference", "reference_inference", intensity={"mean": mean, "std": std}, **settings)
    parser.update({"output_dir": str(tmp_path), "output_ext": ".nrrd", "dataset::data": scans, "handlers": []})
    parser["dataset_dir"] = str(Path(scans[0]["image"]).parents[1])
    parser.get_parsed_content("evaluator").run()
    for k, scan in enumerate(scans):
        found, given = itk.imread(str(tmp_path / scan["case"] / "lgemri_atrium.nrrd")), itk.imread(scan["image"])
        for geometry in itk.size, itk.spacing, itk.origin:
            assert tuple(geometry(found)) == pytest.approx(tuple(geometry(given)), rel=1e-9)
        np.testing.assert_allclose(np.asarray(found.GetDirection()), np.asarray(given.GetDirection()), atol=1e-9)
        mask = itk.array_from_image(found)
        assert mask.dtype == np.uint8
        assert list(mask.shape) == GOLDEN["e2e.test_dims"][k].tolist()
        np.testing.assert_array_equal(mask, itk.array_from_image(itk.imread(scan["label"])) // 255)
        box = [[index.min(), index.max()] for index in mask.nonzero()]
        assert [*box, [mask.sum(), 0]] == GOLDEN["e2e.reinserted_bbox_and_sum"][k].tolist()
