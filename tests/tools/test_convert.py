from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
import yaml

from tests.support.golden_rule import reference_state
from tools import REPO
from tools import convert as module
from tools.convert import KeyMap, convert, load_key_map, load_role

BUNDLE = "toy"
KEY_MAPS = {path.parent.name: path for path in (REPO / "tools" / "per_bundle").glob("*/keys.yaml")}
ROLES = [(bundle, role) for bundle, path in sorted(KEY_MAPS.items()) for role in yaml.safe_load(path.read_text())]
DEAD, DEAD2 = {"key": "dead.{p}", "value": 0.25}, {"key": "beside", "value": 1.0}
CONFIG = {
    "width": 2,
    "network_def": "$torch.nn.Sequential(torch.nn.Conv3d(1, @width, (1, 2, 3)), torch.nn.PReLU(@width))",
    "several_def": "$torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(2, 3, bias=False))",
    "other_def": "$torch.nn.Sequential(torch.nn.PReLU())",
}
KEYS = {
    "main": {
        "config": ["configs/inference.json"],
        "id": "network_def",
        "file": "models/model.pt",
        "checkpoint_keys": ["model_state"],
        "reversed_axes": True,
        "names": {"stage": {"0": "first", "1": "second"}},
        "rename": {"{stage}.weight": "{stage}.w", "{stage}.bias": "{stage}.b"},
        "dropped": {"1.weight": {"key": "dead.w", "times": 2, "value": 0.5}},
    },
}
KEYS["other"] = KEYS["main"] | {"id": "other_def", "file": "models/other.pt"}
KEYS["wide"] = KEYS["main"] | {"override": {"width": 3}}
KEYS["several"] = {
    "config": "configs/inference.json",
    "id": "several_def",
    "file": "models/several.pt",
    "parts": ["0", "1"],
    "checkpoint_keys": ["model_state"],
    "permuted": {"{k}.weight": {"axis": 0, "order": [2, 0, 1]}},
    "later": {"{k}.bias": 0.5},
}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one bundle of two small networks and its key map."""
    configs, recipe = tmp_path / "bundles" / BUNDLE / "configs", tmp_path / "tools" / "per_bundle" / BUNDLE
    configs.mkdir(parents=True)
    recipe.mkdir(parents=True)
    (configs / "inference.json").write_text(json.dumps(CONFIG))
    (recipe / "keys.yaml").write_text(yaml.safe_dump(KEYS, sort_keys=False))
    monkeypatch.setattr(module, "REPO", tmp_path)
    return tmp_path


@pytest.fixture
def theirs() -> dict[str, torch.Tensor]:
    return {
        "first.w": torch.arange(12.0).reshape(2, 1, 3, 2, 1),
        "first.b": torch.tensor([1.0, 2.0]),
        "second.w": torch.tensor([0.1, 0.2]),
        "dead.w": torch.full((4,), 0.5),
    }


@pytest.fixture
def key_map(repo: Path) -> KeyMap:
    return load_key_map(BUNDLE)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_names_and_axes(key_map: KeyMap, theirs: dict[str, torch.Tensor]) -> None:
    ours = key_map.to_ours(theirs)
    assert set(ours) == {"0.weight", "0.bias", "1.weight"}
    assert ours["0.weight"].shape == (2, 1, 1, 2, 3)
    assert ours["0.weight"][1, 0, 0].tolist() == [[6, 8, 10], [7, 9, 11]]  # theirs[1, 0, z, y, 0] = 6 + 2z + y
    assert ours["0.weight"].is_contiguous()
    assert same(key_map.to_reference(ours), theirs)


def test_dropped_kernels_and_the_log(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dead kernel beside ours of (2, 1, 1, 2, 3), with three times the channels in and out."""
    keys = {"main": KEYS["main"] | {"reversed_axes": False, "dropped": {"0.{p}": {**DEAD, "times": 3}, "1.{p}": DEAD2}}}
    (repo / "tools" / "per_bundle" / BUNDLE / "keys.yaml").write_text(yaml.safe_dump(keys))
    key_map = load_key_map(BUNDLE)
    shapes = {name: tuple(value.shape) for name, value in key_map.dropped.items()}
    assert shapes == {"dead.weight": (6, 3, 1, 2, 3), "dead.bias": (6,), "beside": (2,)}
    theirs = key_map.to_reference({key: torch.zeros(shape) for key, shape in key_map.shapes.items()})
    assert (theirs["dead.weight"] == 0.25).all()
    with caplog.at_level("INFO"):
        assert key_map.to_ours(theirs).keys() == key_map.shapes.keys()
    assert "toy: dropped, as the reference never uses them: dead.weight, dead.bias, beside" in caplog.text
    with pytest.raises(ValueError, match=r"missing keys \(1\): beside"):
        key_map.to_ours({key: value for key, value in theirs.items() if key != "beside"})


def test_result_shares_no_memory(key_map: KeyMap, theirs: dict[str, torch.Tensor]) -> None:
    ours = key_map.to_ours(theirs)
    ours["0.bias"].zero_()
    assert theirs["first.b"].tolist() == [1, 2]


def test_all_problems_are_listed(key_map: KeyMap, theirs: dict[str, torch.Tensor]) -> None:
    wrong = theirs | {"new.w": torch.ones(1), "second.w": torch.ones(3)}
    del wrong["first.b"], wrong["dead.w"]
    with pytest.raises(ValueError, match="does not fit toy") as caught:
        key_map.to_ours(wrong)
    for part in ("missing keys (2): dead.w, first.b", "unknown keys (1): new.w", "second.w (3,) not (2,)"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"missing keys \(3\): 0.bias, 0.weight, 1.weight"):
        key_map.to_reference(theirs)


@pytest.mark.parametrize(
    ("rename", "reason"),
    [
        ({"{stage}.weight": "{stage}.w"}, r"no name in the reference \(1\): 0.bias"),
        ({"{stage}.{p}": "{stage}.{p}", "0.bias": "b"}, r"more than one name \(1\): 0.bias"),
        ({"0.{p}": "first.{p}", "1.{p}": "first.{p}"}, r"name given twice \(1\): first.weight"),
    ],
)
def test_key_map_must_be_one_to_one(repo: Path, rename: dict[str, str], reason: str) -> None:
    keys = {"main": KEYS["main"] | {"rename": rename}}
    (repo / "tools" / "per_bundle" / BUNDLE / "keys.yaml").write_text(yaml.safe_dump(keys))
    with pytest.raises(ValueError, match=reason):
        load_key_map(BUNDLE)


def test_unknown_bundle_and_role(repo: Path) -> None:
    with pytest.raises(ValueError, match=r"nobody: no key map tools/per_bundle/nobody/keys.yaml"):
        load_role("nobody")
    with pytest.raises(ValueError, match=r"toy: no network 'teacher', .* has main, other, wide, several"):
        load_role(BUNDLE, "teacher")


def test_override_builds_a_variant(repo: Path) -> None:
    assert load_key_map(BUNDLE, "wide").shapes["0.bias"] == (3,)


def test_state_of_a_variant_replaces_the_config(repo: Path) -> None:
    assert load_key_map(BUNDLE, state={"0.bias": torch.ones(5)}).shapes == {"0.bias": (5,)}


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "model_state": state}])
def test_convert_writes_the_file_of_the_role(repo: Path, theirs: dict[str, torch.Tensor], wrap: object) -> None:
    torch.save(wrap(theirs), repo / "in.pt")  # type: ignore[operator]
    written = convert(BUNDLE, str(repo / "in.pt"))
    assert Path(written) == repo / "bundles" / BUNDLE / "models" / "model.pt"
    assert torch.load(written, weights_only=True)["0.bias"].tolist() == [1, 2]
    back = convert(BUNDLE, written, output=str(repo / "back.pt"), reverse=True)
    assert same(torch.load(back, weights_only=True), theirs)
    assert sorted(path.name for path in Path(written).parent.iterdir()) == ["model.pt"]


def test_convert_takes_parallel_networks(repo: Path, theirs: dict[str, torch.Tensor]) -> None:
    """DataParallel puts a prefix before every name."""
    torch.save({"model_state": {f"module.{key}": value for key, value in theirs.items()}}, repo / "in.pt")
    written = convert(BUNDLE, str(repo / "in.pt"))
    assert same(torch.load(written, weights_only=True), load_key_map(BUNDLE).to_ours(theirs))


def test_convert_writes_the_same_bytes_under_any_name(repo: Path, theirs: dict[str, torch.Tensor]) -> None:
    torch.save(theirs, repo / "in.pt")
    names = ("a.pt", "other.pt")
    first, second = (Path(convert(BUNDLE, str(repo / "in.pt"), output=str(repo / name))) for name in names)
    assert first.read_bytes() == second.read_bytes()


def test_convert_takes_the_role(repo: Path) -> None:
    state = {"first.w": torch.tensor([0.25])}  # other_def has one parameter, 0.weight
    torch.save(state, repo / "in.pt")
    assert Path(convert(BUNDLE, str(repo / "in.pt"), network="other")).name == "other.pt"


def test_convert_names_bundle_and_file(repo: Path, theirs: dict[str, torch.Tensor]) -> None:
    torch.save(theirs | {"extra": torch.ones(1)}, repo / "in.pt")
    with pytest.raises(ValueError, match=rf"toy, {repo / 'in.pt'}: (.|\n)*unknown keys \(1\): extra"):
        convert(BUNDLE, str(repo / "in.pt"))
    assert not (repo / "bundles" / BUNDLE / "models").exists()
    torch.save({"epoch": 1, "teacher_state": theirs}, repo / "in.pt")
    with pytest.raises(ValueError, match="nor under model_state; the file holds epoch, teacher_state"):
        convert(BUNDLE, str(repo / "in.pt"))


def test_reverse_needs_an_output(repo: Path) -> None:
    with pytest.raises(ValueError, match="--reverse needs --output"):
        convert(BUNDLE, "model.pt", reverse=True)


def test_missing_checkpoint(repo: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        convert(BUNDLE, str(repo / "absent.pt"))


@pytest.mark.parametrize(("bundle", "role"), ROLES)
def test_key_maps_of_the_bundles(bundle: str, role: str) -> None:
    key_map = load_key_map(bundle, role)
    ours = {key: torch.randn(shape) for key, shape in key_map.shapes.items()}
    theirs = key_map.to_reference(ours)
    assert len(theirs) == len(ours) + len(key_map.dropped)
    assert same(key_map.to_ours(theirs), ours)


@pytest.fixture
def several() -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint of two parts."""
    weights = torch.tensor([[10.0], [20.0], [30.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    return {"0": {"weight": weights[0], "bias": torch.tensor([7.0, 8.0, 9.0])}, "1": {"weight": weights[1]}}


def save_parts(parts: dict[str, dict[str, torch.Tensor]], folder: Path) -> Path:
    folder.mkdir()
    for part, state in parts.items():
        torch.save(state, folder / f"{part}.pth")
    return folder


@pytest.mark.parametrize("key", [None, "model_state"])
def test_several_parts_become_one_state(
    repo: Path, several: dict[str, dict[str, torch.Tensor]], key: str | None
) -> None:
    if key is None:
        source = save_parts(several, repo / "in")
    else:
        torch.save({"epoch": 3, key: several}, source := repo / "in.pkl")
    written = Path(convert(BUNDLE, str(source), network="several"))
    ours = torch.load(written, weights_only=True)
    assert {name: value.tolist() for name, value in ours.items()} == {
        "0.weight": [[30], [10], [20]],  # order [2, 0, 1]: ours 0 is the reference's 2
        "0.bias": [7, 8, 9],
        "1.weight": [[5, 6], [1, 2], [3, 4]],
    }
    back = Path(convert(BUNDLE, str(written), network="several", output=str(repo / "back"), reverse=True))
    assert sorted(path.name for path in back.iterdir()) == ["0.pth", "1.pth"]
    assert all(same(torch.load(back / f"{part}.pth", weights_only=True), several[part]) for part in several)


def test_early_checkpoint_is_filled_up(repo: Path, several: dict[str, dict[str, torch.Tensor]]) -> None:
    del several["0"]["bias"]
    written = convert(BUNDLE, str(save_parts(several, repo / "in")), network="several")
    assert torch.load(written, weights_only=True)["0.bias"].tolist() == [0.5, 0.5, 0.5]
    del several["0"]["weight"]
    several["0"]["other"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"missing keys \(1\): 0.weight"):
        convert(BUNDLE, str(save_parts(several, repo / "worse")), network="several")


def test_incomplete_parts_are_refused(repo: Path, several: dict[str, dict[str, torch.Tensor]]) -> None:
    folder = save_parts(several, repo / "in")
    (folder / "1.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.pth"):
        convert(BUNDLE, str(folder), network="several")
    torch.save({"model_state": several | {"2": several["1"]}}, repo / "in.pkl")
    with pytest.raises(
        ValueError, match=r"no state dict for each of 0, 1, neither .* model_state; the file holds model"
    ):
        convert(BUNDLE, str(repo / "in.pkl"), network="several")


def test_golden_rule() -> None:
    names = ["a.conv.weight", "a.conv.bias", "a.relu1.weight", "a.bn.weight", "a.bn.running_mean", "a.bn.running_var"]
    state = reference_state([(name, (1, 1, 1, 1, 2) if name == "a.conv.weight" else (2,)) for name in names])
    first = [np.random.RandomState(crc32(name.encode())).standard_normal() for name in names]
    scaled = [first[0] * 2**-0.5, 0.05 * first[1], 0.25 + 0.05 * first[2], 1 + 0.1 * first[3], 0.1 * first[4]]
    expected = [*scaled, 1 + 0.25 * abs(first[5])]
    assert [state[name].flatten()[0].item() for name in names] == pytest.approx(expected, rel=1e-6)
    assert reference_state([("a.bn.num_batches_tracked", ())])["a.bn.num_batches_tracked"].dtype == torch.int64


def test_weights_that_are_no_finite_real_numbers(key_map: KeyMap, theirs: dict[str, torch.Tensor]) -> None:
    wrong = {"first.b": torch.tensor([1, torch.nan]), "second.w": torch.ones(2, dtype=torch.int64)}
    wrong["dead.w"] = torch.ones(4, dtype=torch.complex64)
    for name, tensor in wrong.items():
        with pytest.raises(ValueError, match=rf"no finite numbers of the right kind \(1\): {name} \({tensor.dtype}\)"):
            key_map.to_ours(theirs | {name: tensor})
    halves = {name: tensor.half() for name, tensor in theirs.items()}
    assert key_map.to_ours(halves)["0.bias"].dtype == torch.float16
