import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.check_tree import NAME, PACKAGE, build_repository, save
from tools.check import RULES, check, problems


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    build_repository(tmp_path)
    return tmp_path


Edit = Callable[[Path], object]


def write(file: str, text: str) -> Edit:
    return lambda folder: save(folder / file, text)


def swap(file: str, old: str, new: str, times: int = 1) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, times))

    return edit


def rename(name: str) -> Edit:
    return lambda folder: folder.rename(folder.with_name(name))


def same_package(folder: Path) -> None:
    other = folder.parent / "beta_ct"
    for path in other.rglob("*.*"):
        path.write_text(path.read_text().replace("beta", PACKAGE))
    (other / "beta").rename(other / PACKAGE)
    other.rename(other.with_name("alpha_ct"))


def foreign_name(folder: Path) -> None:
    for path in folder.glob("configs/*.yaml"):
        path.write_text(path.read_text().replace(PACKAGE, "scripts"))
    (folder / PACKAGE).rename(folder / "scripts")


def many_configs(folder: Path) -> None:
    for number in range(5):
        save(folder / f"configs/x{number}.yaml", "a: 1" + "\n" * 120)


def clone(folder: Path) -> None:
    lines = [f"x{i} = {i}" for i in range(6)]
    write("alpha/extra.py", '"""Extra."""\n' + "\n".join(lines))(folder)
    write("beta/extra.py", '"""More."""\nimport math\n\n# why\n' + "  # note\n\n".join(lines))(
        folder.parent / "beta_ct"
    )


def big_file(folder: Path) -> None:
    root = folder.parent.parent
    with (root / "big.bin").open("wb") as file:
        file.truncate(26 * 2**20)
    for arguments in (["init", "--quiet"], ["add", "--intent-to-add", "big.bin"]):
        subprocess.run(["git", "-C", root, *arguments], check=True)


class Case(NamedTuple):
    """An edit of the valid bundle and the problem it makes."""

    rule: str
    file: str
    reason: str
    edit: Edit
    bundle: str = NAME


META, TRAINING, INFER = "configs/metadata.json", "configs/train.yaml", "configs/inference.yaml"
NET, README, LARGE, TOO_LONG = "alpha/networks.py", "docs/README.md", "large_files.yml", "    1\n" * 60
ENGINES = "imports: [$import torch_tensorrt]"
EMPTY = "dataset: {_target_: Dataset, data: []}"
ENTRY = "large_files: [{path: models/model.pt, url: u, hash_type: %s, hash_val: %s}]"
CASES = [
    Case("files", "docs/data_license.txt", "missing", lambda f: (f / "docs/data_license.txt").unlink()),
    Case("files", TRAINING, "missing", lambda f: (f / TRAINING).unlink()),
    Case("readable", INFER, "parsed.*line", write(INFER, "a: [")),
    Case("readable", META, "no mapping", write(META, "[]")),
    Case("readable", "docs/result.json", "parsed", write("docs/result.json", "{")),
    Case("nothing_else", "notes.txt", "root", write("notes.txt", "")),
    Case("nothing_else", "configs/train.json", "MONAI Label", write("configs/train.json", "{}")),
    Case("bundle_name", "", "_v", rename("alpha_vnet"), "alpha_vnet"),
    Case("bundle_name", "", "'detection'", rename("alpha_detection"), "alpha_detection"),
    Case("bundle_name", "", "lowercase", rename("alpha_MRI"), "alpha_MRI"),
    Case("licence", "LICENSE", "Apache", swap("LICENSE", "perpetual", "temporary")),
    Case("weight_names", "models/t.pt", "shortest", write("models/t.pt", "")),
    Case("large_files", LARGE, "sha256", write(LARGE, ENTRY % ("md5", "0" * 32))),
    Case("large_files", LARGE, "lacks hash_val", write(LARGE, "large_files: [{path: p, url: u, hash_type: sha256}]")),
    Case("large_files", LARGE, "no list", write(LARGE, "files: []")),
    Case("identical_files", "configs/logging.conf", NAME, swap("configs/logging.conf", "s", "S"), "beta_ct"),
    Case("identical_files", "alpha/shared/same.py", "make sync", swap("alpha/shared/same.py", "y1", "z1")),
    Case("identical_files", "alpha/shared/more.py", "make sync", write("alpha/shared/more.py", '"""More."""\n')),
    Case("file_size", "big.bin", "26 MB", big_file, "."),
    Case("one_package", "", "2 Python", write("alpha_mri/__init__.py", '"""Second."""\n')),
    Case("one_package", "scripts/__init__.py", "first words", foreign_name),
    Case("unique_package", "alpha/__init__.py", "alpha_ct", same_package),
    Case("self_contained", NET, "tools", swap(NET, "import torch", "import tools.check")),
    Case("self_contained", NET, "beta", swap(NET, "import torch", "from beta import same")),
    Case("self_contained", TRAINING, "beta", swap(TRAINING, "SimpleInferer", "beta.X")),
    Case("self_contained", TRAINING, "tests", swap(TRAINING, "bundle_root", "imports: [$import tests]\nbundle_root")),
    Case("listed_requirements", NET, "scikit-image", swap(NET, "import torch", "import skimage.measure")),
    Case("listed_requirements", TRAINING, "tensorboard", swap(TRAINING, "StatsHandler", "TensorBoardStatsHandler")),
    Case("listed_requirements", TRAINING, "tensorrt", swap(TRAINING, "bundle_root", f"{ENGINES}\nbundle_root")),
    Case("metadata_schema", META, "authors", swap(META, '"authors": "text"', '"authors": ["me"]')),
    Case("metadata_schema", META, "'task' is a required", swap(META, '"task"', '"job"')),
    Case("metadata_schema", META, "inputs.image", swap(META, '"format": "raw",', "")),
    Case("metadata_schema", META, "URL", swap(META, "20240725", "20220324")),
    Case("version", META, "single", swap(META, "0.1.0", "0.10.0", -1)),
    Case("version", META, "changelog", swap(META, '"0.1.0": "first"', '"0.0.1": "first"')),
    Case("exact_pins", META, "exact", swap(META, '"0.5.5"', '">=0.5.5"')),
    Case("exact_pins", META, "outside", swap(META, '"0.5.5"', '"0.6.0"')),
    Case("exact_pins", META, "numpy 2.3.0", swap(META, '"2.4.6"', '"2.3.0"')),
    Case("exact_pins", META, "torch", swap(META, "2.13.0", "2.12.0")),
    Case("exact_pins", META, "not in", swap(META, '"pytorch-ignite"', '"pytorch-ignite": "0.5.5", "itk"')),
    Case("image_and_pred", META, "'image'", swap(META, '"image": {', '"mri": {')),
    Case("image_and_pred", META, "'pred'", swap(META, '"pred": {', '"logits": {')),
    Case("channel_def", META, "outputs.pred", swap(META, '"1": "atrium"', '"atrium": "1"')),
    Case("keys", TRAINING, "val_interval", swap(TRAINING, "val_interval: 1", "")),
    Case("keys", TRAINING, "validate#dataset#data", swap(TRAINING, f"validate:\n  {EMPTY}", "validate:")),
    Case("keys", TRAINING, "train#dataset#data", swap(TRAINING, "{_target_: Dataset, data: []}", "{}")),
    Case("keys", INFER, "inferer", swap(INFER, "inferer:", "infer:")),
    Case("run_ids", TRAINING, "training", swap(TRAINING, "training:", "go:")),
    Case("run_ids", "configs/evaluate.yaml", "no id run", swap("configs/evaluate.yaml", "run:", "go:")),
    Case("same_network", INFER, "'channels': 3", swap(INFER, "channels: 2", "channels: 3")),
    Case("no_file_macros", TRAINING, "common", swap(TRAINING, "{_target_: SimpleInferer}", '"%common.yaml::inferer"')),
    Case(
        "references", TRAINING, "val_interval refers to step", swap(TRAINING, "interval: 1", 'interval: "$@step + 1"')
    ),
    Case("references", TRAINING, "train::loss", swap(TRAINING, '"%train#inferer"', '"%train#loss"')),
    Case("overlays", "configs/x.yaml", "train::loss", write("configs/x.yaml", 'a: "@train#loss"')),
    Case("overlays", "configs/x.yaml", "trial", write("configs/x.yaml", "trial#trainer#max_epochs: 1")),
    Case("overlays", "configs/x.yaml", "merged", write("configs/x.yaml", "+train: []")),
    Case("config_length", TRAINING, "2\\d\\d lines", swap(TRAINING, "channels: 2", "channels: 2" + "\n" * 200)),
    Case("config_length", "configs/x.yaml", "121 lines", write("configs/x.yaml", "a: 1" + "\n" * 121)),
    Case("config_length", "configs/x.yaml", "line 2 has 127", write("configs/x.yaml", "a: 1\n# " + "b" * 125)),
    Case("config_length", "configs", "6\\d\\d lines in all", many_configs),
    Case("named_items", "configs/x.yaml", "handlers::0", write("configs/x.yaml", "train#handlers#0#_disabled_: true")),
    Case("named_items", "configs/x.yaml", "handlers::0", write("configs/x.yaml", 'a: ["%train::handlers::0"]')),
    Case("named_items", "configs/x.yaml", "handlers::0", write("configs/x.yaml", 'a: "$@train#handlers#0 or 1"')),
    Case("no_spacingd", INFER, "transforms#1", swap(INFER, "alpha.transforms.Spacingd", "Spacingd")),
    Case("writable_prediction", INFER, "AsDiscreted", swap(INFER, "torch.uint8", "torch.int64")),
    Case("writable_prediction", INFER, "Activationsd", swap(INFER, "AsDiscreted", "Activationsd")),
    Case("writable_prediction", INFER, "int16", swap(INFER, "np.uint8", "np.int16")),
    Case("card_sections", README, "missing", swap(README, "## Licence", "## License")),
    Case("card_sections", README, "order", swap(README, "## Data\n", "## References\nx\n## Data\n")),
    Case("card_sections", README, "title", swap(README, "# Title", "Title")),
    Case("card_length", README, "151 lines", swap(README, "Dice", "\n" * 96 + "Dice")),
    Case("card_links", README, "links to x.md", swap(README, "Dice", "[x](x.md#y) Dice")),
    Case("card_links", README, "names tests/x.py", swap(README, "Dice", "`tests/x.py` Dice")),
    Case("card_links", README, "config x.yaml", swap(README, "Dice", "`x.yaml` Dice")),
    Case("page_links", "docs/x.md", "module tools.x.y", write("../../docs/x.md", "python -m tools.x.y"), "."),
    Case("page_links", "docs/x.md", "tools dance", write("../../docs/x.md", "python -m tools dance"), "."),
    Case("page_links", "docs/x.md", "no release has", write("../../docs/x.md", "[x](../pyproject.toml)"), "."),
    Case("card_figures", README, "published.dice", swap(META, "0.91", "0.92")),
    Case("card_figures", META, "no figure", swap(META, "0.91", '"high"')),
    Case("no_personal_paths", README, "/home/me/x", swap(README, "Dice", "/home/me/x Dice")),
    Case("parses", NET, "parsed", swap(NET, "import torch", "import")),
    Case("file_length", NET, "3\\d\\d lines", swap(NET, "import torch", "import torch\n" * 300)),
    Case("function_length", NET, "f has 61", swap(NET, "import torch", f'def f():\n    """F."""\n{TOO_LONG}')),
    Case("public_docstrings", NET, "C.f", swap(NET, "import torch", 'class C:\n    """C."""\n    def f(self): ...')),
    Case("public_docstrings", NET, "module", swap(NET, '"""Networks."""', "")),
    Case("keyword_only", NET, "f takes 3", swap(NET, "import torch", 'def f(a, b, c, *, d):\n    """F."""')),
    Case(
        "keyword_only", "verb.py", "f takes 3", write("../../tools/verb.py", '"""V."""\ndef f(a, b, c): "F"'), "tools"
    ),
    Case("clone_limit", "alpha/extra.py", "beta_ct", clone),
]


def test_valid_tree_has_no_problem(tree: Path) -> None:
    assert problems(tree) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.reason}")
def test_broken_rule_names_bundle_file_and_reason(tree: Path, case: Case) -> None:
    case.edit(tree / "bundles" / NAME)
    found = problems(tree)
    assert {problem.rule for problem in found} == {case.rule}, found
    reasons = [problem.reason for problem in found if (problem.bundle, problem.file) == (case.bundle, case.file)]
    assert any(re.search(case.reason, reason) for reason in reasons), found


def test_every_rule_is_broken_once() -> None:
    assert {case.rule for case in CASES} == {rule.name for rule in RULES}


def test_clones_count_from_six_lines_and_three_per_cent_on(tree: Path) -> None:
    bundle = tree / "bundles" / NAME
    clone(bundle)
    write("alpha/own.py", '"""Own."""\n' + "".join(f"z{i} = {i}\n" for i in range(194)))(bundle)
    assert [problem.bundle for problem in problems(tree)] == ["beta_ct"]
    swap("alpha/extra.py", "x2 = 2", "x2 = 3")(bundle)
    assert problems(tree) == []


def test_docstring_does_not_lengthen_a_function(tree: Path) -> None:
    text = '"""F.\n\n' + "    Text.\n" * 99 + '    """'
    write("alpha/long.py", f'"""Long."""\n\n\ndef f():\n    {text}\n' + "    1\n" * 59)(tree / "bundles" / NAME)
    assert problems(tree) == []


def test_all_problems_are_listed_at_once(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.check.REPO", tree)
    check()
    assert capsys.readouterr().out == f"{len(RULES)} rules over alpha_mri, beta_ct: no problems\n"
    swap(README, "# Title", "Title")(tree / "bundles" / NAME)
    write("notes.txt", "")(tree / "bundles" / "beta_ct")
    with pytest.raises(SystemExit) as stop:
        check()
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "card_sections: alpha_mri/docs/README.md: does not start with a title",
        "nothing_else: beta_ct/notes.txt: does not belong in the root of a bundle",
        f"{len(RULES)} rules over alpha_mri, beta_ct: 2 problems",
    ]
    with pytest.raises(SystemExit, match="1"):
        check("beta_ct")
    assert "alpha_mri" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no bundle named 'gamma' among alpha_mri, beta_ct"):
        check("gamma")


def test_this_repository_has_no_problem() -> None:
    assert problems() == []
