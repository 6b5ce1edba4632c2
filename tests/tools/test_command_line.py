"""The command line of the tools ends with a message and a status, whatever is wrong with what it is given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tools.__main__ import main
from tools.arguments import typed
from tools.files import read_json, read_table
from tools.shared.files import PARTIAL, atomic_write

BUNDLE = "vnet_atrial_mri"


def end(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """How the command ends: its message, which becomes status 1, or its status."""
    monkeypatch.setattr(sys, "argv", ["tools", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def bad_table(folder: Path) -> list[str]:
    (folder / "m.csv").write_bytes(b"case,dice\nM\xfcller,0.5\n")
    (folder / "m_summary.csv").write_text("score,mean\n")
    return ["results", BUNDLE, str(folder / "m.csv"), "--name", "x", "--commands", "[]"]


def full(folder: Path) -> list[str]:
    """A data set, and a file where the folder of the output is wanted."""
    for case in range(10):
        (folder / f"data/{case}").mkdir(parents=True)
    (folder / "file").touch()
    return ["split", str(folder / "data"), str(folder / "file/split.json")]


def naive(folder: Path) -> list[str]:
    record = {"run_id": "training", "started": "2020-01-01T10:00:00", "config": {}}
    (folder / "run_training_20200101_100000.json").write_text(json.dumps(record))
    return ["report", str(folder)]


COMMANDS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "convert a folder": (lambda folder: ["convert", BUNDLE, str(folder)], "Is a directory"),
    "convert nothing": (lambda folder: ["convert", BUNDLE, str(folder / "no.pt")], "No such file"),
    "report of a time without zone": (naive, "has no zone"),
    "report of a file": (lambda folder: ["report", __file__], "no such folder"),
    "report into a file": (lambda folder: ["report", str(folder), "--output", f"{__file__}/x"], "no run has left"),
    "results of a damaged table": (bad_table, "m.csv: is no CSV file in UTF-8"),
    "results of nothing": (lambda folder: ["results", BUNDLE, "no.csv", "--name", "x", "--commands", "[]"], "No such"),
    "results of no bundle": (lambda folder: ["results", "no", "a.csv", "--name", "x", "--commands", "[]"], "no bundle"),
    "split into a file": (full, "Not a directory|File exists"),
    "split nothing": (lambda folder: ["split", str(folder / "no"), str(folder / "s.json")], "no"),
    "split with a seed that is none": (lambda _: ["split", "a", "b", "--seed", "x"], "--seed must be a whole number"),
    "split with a share that is none": (
        lambda _: ["split", "a", "b", "--validation", "x"],
        "must be a number, it is 'x'",
    ),
    "a port that is none": (lambda _: ["label", "a", "--port", "8e3"], "--port must be a whole number, it is 8000.0"),
    "neither true nor false": (
        lambda _: ["convert", "a", "b", "--reverse", "no"],
        "--reverse must be true or false",
    ),
    "build nothing": (lambda folder: ["registry", "build", "--bundles", str(folder / "no")], "no bundle"),
    "fetch into a file": (lambda folder: ["registry", "fetch", "a", "--registry", "no", "--output", __file__], "no"),
    "benchmark of nothing": (lambda folder: ["benchmark", "no"], "no"),
    "a mistyped option": (
        lambda _: ["split", "a", "b", "--valdation", "3"],
        "no option --valdation, did you mean",
    ),
    "an option that is another's": (lambda _: ["report", "a", "--seed=3"], "no option --seed, there are: cases, data"),
    "a mistyped option of a verb": (
        lambda _: ["registry", "build", "--bundle", "a"],
        "no option --bundle, did you mean bundles?",
    ),
    "a mistyped verb": (lambda _: ["registry", "bild"], "no verb registry bild, did you mean build?"),
    "an argument as an option": (
        lambda _: ["convert", "--bundle", BUNDLE, "--checkpoint", "a"],
        "BUNDLE is given without --bundle",
    ),
    "phantoms with a mistyped option": (
        lambda folder: ["phantoms", BUNDLE, str(folder / "p"), "--spcing", "1,1,1"],
        "no option --spcing, did you mean spacing?",
    ),
    "demo with a mistyped option of its own": (lambda _: ["demo", BUNDLE, "--outptu", "x"], "did you mean output"),
    "demo of nothing": (lambda folder: ["demo", "no"], "no demo for bundle 'no'"),
    "demo with a mistyped setting": (
        lambda folder: ["demo", BUNDLE, "--output", str(folder / "out"), "--learning_rat", "1"],
        "no stage of its demo has a setting learning_rat, did you mean learning_rate",
    ),
    "demo with a setting of other configs": (
        lambda folder: ["demo", BUNDLE, "--output", str(folder / "out"), "--canvas", "[32,32,16]"],
        "no stage of its demo has a setting canvas",
    ),
    "demo of a file": (lambda folder: ["demo", BUNDLE, "--data", __file__, "--output", str(folder / "out")], ""),
    "demo into a file": (lambda folder: ["demo", BUNDLE, "--output", __file__], "Not a directory|File exists"),
    "label nothing": (lambda folder: ["label", str(folder / "no")], "not installed|no folder of scans"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_ends_with_a_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make, reason = COMMANDS[name]
    message = end(monkeypatch, *make(tmp_path))
    assert isinstance(message, str)
    assert message.startswith("python -m tools ")
    assert any(part in message for part in reason.split("|"))
    assert "Traceback" not in capfd.readouterr().err


def test_false_is_false() -> None:
    """As python-fire hands it over, a text; a number that is none of its kind is rejected."""

    def verb(text: str, *, write: bool = False, share: float | None = None) -> tuple[object, ...]:
        return text, write, share

    assert typed(verb)("false", write="false", share=1) == ("false", False, 1)
    assert typed(verb)("1", write="True") == ("1", True, None)


def test_marks_of_editors_are_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"a": 1}', encoding="utf-8")
    (tmp_path / "a.csv").write_text("\ufeffcase,dice\na,1\n", encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert read_table(tmp_path / "a.csv", columns=("case",)) == [{"case": "a", "dice": "1"}]
    (tmp_path / "a.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"a\.json: is not JSON"):
        read_json(tmp_path / "a.json")


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "made/a.pt"

    def fill() -> None:
        with atomic_write(path) as partial:
            partial.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert list(path.parent.iterdir()) == []
    with atomic_write(path) as partial:
        assert partial.match(PARTIAL)
        torch.save({}, partial)
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]
