import json
from pathlib import Path

import pytest

from tools.data.split import find_cases, split


def make_cases(root: Path, number: int) -> list[str]:
    names = [f"case{i:02d}" for i in range(number)]
    for name in names:
        (root / name).mkdir(parents=True)
    return names


@pytest.mark.parametrize(("validation", "held_out"), [(0.02, 1), (0.2, 2), (0.25, 2), (0.5, 5), (1, 1), (3, 3), (9, 9)])
def test_sides_are_disjoint_and_complete(tmp_path: Path, validation: float, held_out: int) -> None:
    names = make_cases(tmp_path / "data", 10)
    content = json.loads(split(str(tmp_path / "data"), str(tmp_path / "s.json"), validation=validation).read_text())
    assert set(content) == {"seed", "training", "validation"}
    assert content["seed"] == 123
    assert len(content["validation"]) == held_out
    assert sorted(content["training"] + content["validation"]) == names
    assert content["training"] == sorted(content["training"])
    assert content["validation"] == sorted(content["validation"])


def test_bytes_depend_on_names_and_seed_alone(tmp_path: Path) -> None:
    for folder, order in (("a", 1), ("b", -1)):
        for name in [f"case{i}" for i in range(12)][::order]:
            (tmp_path / folder / name).mkdir(parents=True)
    first = split(str(tmp_path / "a"), str(tmp_path / "a.json")).read_bytes()
    assert split(str(tmp_path / "b"), str(tmp_path / "b.json")).read_bytes() == first
    others = {split(str(tmp_path / "a"), str(tmp_path / "c.json"), seed=s).read_bytes() for s in range(5)}
    assert len(others) == 5


def test_known_draw(tmp_path: Path) -> None:
    """A stored split must be repeatable: numpy's generator 123 permutes 0..4 to 4 0 2 3 1."""
    make_cases(tmp_path / "data", 5)
    content = json.loads(split(str(tmp_path / "data"), str(tmp_path / "s.json"), validation=2).read_text())
    assert content["validation"] == ["case00", "case04"]


def test_cases_of_a_flat_folder_are_file_names_without_endings(tmp_path: Path) -> None:
    for name in ("b.nrrd", "a.nii.gz", "c.1.nii", ".hidden"):
        (tmp_path / name).touch()
    assert find_cases(tmp_path) == ["a", "b", "c.1"]


def test_sub_folders_win_over_files(tmp_path: Path) -> None:
    make_cases(tmp_path, 2)
    (tmp_path / "README.md").touch()
    assert find_cases(tmp_path) == ["case00", "case01"]


@pytest.mark.parametrize("validation", [0, 5, 6, -1, 0.95, 1.5])
def test_impossible_share(tmp_path: Path, validation: float) -> None:
    make_cases(tmp_path / "data", 5)
    with pytest.raises(ValueError, match=rf"data: validation.*{validation}"):
        split(str(tmp_path / "data"), str(tmp_path / "s.json"), validation=validation)
    assert not (tmp_path / "s.json").exists()


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        split(str(tmp_path / "nowhere"), str(tmp_path / "s.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no case"):
        split(str(tmp_path / "empty"), str(tmp_path / "s.json"))


def make_patients(root: Path, groups: str) -> dict[str, str]:
    """One folder per letter, which is the patient's group."""
    names = make_cases(root, len(groups))
    for name, letter in zip(names, groups, strict=True):
        (root / name / "Info.cfg").write_text(f"ED: 1\nGroup: {letter}\nWeight: 7\n")
    return dict(zip(names, groups, strict=True))


def test_three_parts(tmp_path: Path) -> None:
    names = make_cases(tmp_path / "data", 10)
    content = json.loads(split(str(tmp_path / "data"), str(tmp_path / "s.json"), validation=2, test=0.5).read_text())
    assert [len(content[part]) for part in ("training", "validation", "test")] == [3, 2, 5]
    assert sorted(content["training"] + content["validation"] + content["test"]) == names
    assert content["command"] == "python -m tools split DATA OUTPUT --validation 2 --test 0.5 --seed 123"


def test_every_part_has_its_share_of_every_group(tmp_path: Path) -> None:
    """Twenty patients, ten of A, six of B and four of C: half of each validate, a quarter of them are tested."""
    groups = make_patients(tmp_path / "data", "ABACABACABACABACBBAA")
    assert sorted(groups.values()) == sorted("A" * 10 + "B" * 6 + "C" * 4)
    draws = set()
    for seed in range(6):
        path = split(
            str(tmp_path / "data"), str(tmp_path / "s.json"), validation=0.5, test=4, seed=seed, group="Info.cfg:Group"
        )
        content = json.loads(path.read_text())
        parts = {name: [groups[case] for case in content[name]] for name in ("training", "validation", "test")}
        assert sorted(parts["validation"]) == sorted("AAAAABBBCC")
        assert sorted(parts["test"]) == sorted("AABC")
        assert sum(map(len, parts.values())) == len(groups)
        draws.add(tuple(content["validation"]))
    assert len(draws) == 6


def test_groups_without_a_test_part(tmp_path: Path) -> None:
    groups = make_patients(tmp_path / "data", "AAAAAABBBBBB")
    path = split(str(tmp_path / "data"), str(tmp_path / "s.json"), validation=2, seed=3, group="Info.cfg:Group")
    content = json.loads(path.read_text())
    assert sorted(groups[case] for case in content["validation"]) == ["A", "B"]
    assert content["test"] == []
    assert content["command"].endswith("--validation 2 --test 0 --seed 3 --group Info.cfg:Group")


def test_folder_testing_is_the_test_part(tmp_path: Path) -> None:
    make_cases(tmp_path / "data/training", 5)
    for name in ("x", "y"):
        (tmp_path / "data/testing" / name).mkdir(parents=True)
    content = json.loads(split(str(tmp_path / "data"), str(tmp_path / "s.json")).read_text())
    assert (len(content["training"]), len(content["validation"]), content["test"]) == (4, 1, ["x", "y"])
    with pytest.raises(ValueError, match="its folder testing is the test part, test=1 cannot be drawn"):
        split(str(tmp_path / "data"), str(tmp_path / "s.json"), test=1)
    (tmp_path / "data/testing/case01").mkdir()
    with pytest.raises(ValueError, match=r"case01: the case is in .*testing/case01 too"):
        split(str(tmp_path / "data"), str(tmp_path / "s.json"))


def test_group_that_is_not_there(tmp_path: Path) -> None:
    make_patients(tmp_path / "data", "AABB")
    data, output = str(tmp_path / "data"), str(tmp_path / "s.json")
    with pytest.raises(ValueError, match=r"case\d\d/Info.cfg: has no line 'Height: ...'"):
        split(data, output, group="Info.cfg:Height")
    with pytest.raises(FileNotFoundError, match=r"note\.txt"):
        split(data, output, group="note.txt:Group")
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(("validation", "test"), [(2, 3), (1, -1), (0, 2), (1, 1.5), (1, 4)])
def test_impossible_parts(tmp_path: Path, validation: float, test: float) -> None:
    make_cases(tmp_path / "data", 5)
    with pytest.raises(ValueError, match=f"validation={validation} and test={test} of 5 cases"):
        split(str(tmp_path / "data"), str(tmp_path / "s.json"), validation=validation, test=test)
    assert not (tmp_path / "s.json").exists()
