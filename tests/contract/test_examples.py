"""What lies in `examples/`: what scripts run exists, with the options that are given; the notebook and rounds run."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from torch.distributed.run import parse_args

from examples.federated import SITES, average, federate
from tools import REPO

SCRIPTS = sorted(path for path in (REPO / "examples").iterdir() if path.suffix in (".sh", ".sbatch"))
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
STUBS = {
    "python": 'printf "%s\\037" "$@" >> "$RECORD"; echo >> "$RECORD"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "echo machine1; echo machine2",
}


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder of programs that stand in for Slurm's, and for Python, which only notes its command line."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def commands(script: str, *words: str, stubs: Path, **variables: str) -> list[list[str]]:
    """The command lines of Python in a run of a script."""
    record = stubs / "record"
    record.write_text("")
    places = {"PYTHON": str(stubs / "python"), "RECORD": str(record), "PATH": f"{stubs}:{os.environ['PATH']}"}
    environment = {**os.environ, **SLURM, **places, **variables}
    subprocess.run(["bash", f"examples/{script}", *words], cwd=REPO, env=environment, check=True, timeout=60)
    return [line.split("\037")[:-1] for line in record.read_text().splitlines()]


def checked(words: list[str]) -> dict[str, str]:
    """The options of `monai.bundle run`, after a look whether the configs have them and what is to be run."""
    assert words[:3] == ["-m", "monai.bundle", "run"]
    run_id, options = words[3], dict(zip(words[4::2], words[5::2], strict=True))
    files = yaml.safe_load(options["--config_file"])
    config = ConfigParser.load_config_files(
        [str(REPO / file) for file in ([files] if isinstance(files, str) else files)]
    )
    assert run_id in config
    assert {name.removeprefix("--") for name in options} - {"config_file"} <= set(config)
    return options


def launch(words: list[str]) -> Namespace:
    """What `torchrun` makes of its command line."""
    assert words[:2] == ["-m", "torch.distributed.run"]
    found: Namespace = parse_args(words[2:])  # type: ignore[no-untyped-call]
    return found


@each_script
def test_script_is_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
        assert done.stdout == ""


@pytest.mark.parametrize("configs", ["train", "train train_locator"])
@pytest.mark.parametrize(
    ("script", "endpoint", "run"),
    [("two_nodes.sh", "one:1", "vnet_atrial_mri"), ("slurm_train.sbatch", "machine1:29400", "7")],
)
def test_several_machines(script: str, endpoint: str, run: str, configs: str, stubs: Path) -> None:
    """Every machine starts as many processes as it has GPUs, and they meet at one place."""
    given = {"HEAD": "one:1", "CONFIGS": configs, "PROCESSES": "3"}
    (words,) = commands(script, "--dataset_dir", "D", "--ckpt_dir", "M", stubs=stubs, **given)
    found = launch(words)
    assert (found.nnodes, found.nproc_per_node, found.rdzv_backend) == ("2", "3", "c10d")
    assert (found.rdzv_endpoint, found.rdzv_id, found.module) == (endpoint, run, True)
    options = checked(["-m", found.training_script, *found.training_script_args])
    stems = [Path(file).stem for file in yaml.safe_load(options["--config_file"])]
    assert stems == [*configs.split(), "multi_gpu_train"]
    assert (options["--dataset_dir"], options["--ckpt_dir"]) == ("D", "M")


def test_processes_of_a_machine_by_default(stubs: Path) -> None:
    (here,) = commands("two_nodes.sh", stubs=stubs, HEAD="one:1")
    (there,) = commands("slurm_train.sbatch", stubs=stubs)
    assert launch(here).nproc_per_node == "gpu"
    assert launch(there).nproc_per_node == SLURM["SLURM_GPUS_ON_NODE"]


def test_array_of_members(stubs: Path) -> None:
    """Every network, seed and split once; no two tasks write to one file; students find what their members left."""
    work = {"DATA": "D", "WORK": str(stubs / "work")}
    trained, targets, folders = set(), set(), set()
    for task in range(42):
        (words,) = commands("slurm_members.sbatch", "members", stubs=stubs, SLURM_ARRAY_TASK_ID=str(task), **work)
        options = checked(words)
        files = yaml.safe_load(options["--config_file"])
        loss = options.get("--hard_loss")
        trained.add((Path(files[-1]).stem, loss, options["--seed"], options["--split_file"]))
        parser = ConfigParser(ConfigParser.load_config_files([str(REPO / file) for file in files]))
        parser["ckpt_dir"] = options["--ckpt_dir"]
        parser["hard_loss"] = loss or parser["hard_loss"]
        targets |= {parser.get_parsed_content(name) for name in ("state_file", "weights")}
        folders.add(options["--ckpt_dir"])
    assert len(trained) == 42
    assert len(targets) == 2 * 42
    assert len({seed for _, _, seed, _ in trained}) == 2
    assert len({split for _, _, _, split in trained}) == 3
    of_students = set()
    for task in range(6):
        here = {**work, "SLURM_ARRAY_TASK_ID": str(task)}
        for folder in folders:
            Path(folder).mkdir(parents=True, exist_ok=True)  # the members are in it
        lines = commands("slurm_members.sbatch", "student", "--val_interval", "2", stubs=stubs, **here)
        assert [words[3] for words in lines] == ["annotating", "training", "evaluating"]
        annotating, training, evaluating = (checked(words[:-2]) for words in lines)
        assert annotating["--output_dir"] == training["--soft_labels"]
        assert annotating["--ckpt_dir"] == training["--ckpt_dir"] == evaluating["--ckpt_dir"]
        of_students.add(training["--ckpt_dir"])
        assert all(words[-2:] == ["--val_interval", "2"] for words in lines)
        again = commands("slurm_members.sbatch", "student", "--val_interval", "2", stubs=stubs, **here)
        assert again == lines  # of which the bundle does what is left to do
    assert of_students == folders


def test_machines_must_have_a_place_to_meet(stubs: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        commands("two_nodes.sh", stubs=stubs)


def test_unknown_step(stubs: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        commands("slurm_members.sbatch", "ensemble", stubs=stubs, SLURM_ARRAY_TASK_ID="0", DATA="D", WORK=str(stubs))


def test_mean_of_sites() -> None:
    """1/4 of one site and 3/4 of the other; a counter is not averaged."""
    sites = [
        {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(5)},
        {"w": torch.tensor([0.0, 8.0]), "n": torch.tensor(9)},
    ]
    mean = average(sites, shares=[1, 3])
    assert (mean["w"].tolist(), mean["n"].item()) == ([1.0, 6.0], 5)


@pytest.mark.nightly
def test_federated_rounds_on_phantoms(tmp_path: Path) -> None:
    """Both sites train, the server has a network that inference takes, and it is not the one that it began with."""
    first = federate(tmp_path / "one", rounds=1)
    last = federate(tmp_path / "three")
    assert {site for site in SITES if (tmp_path / "three" / site / "models/model.pt").is_file()} == set(SITES)
    assert all(torch.isfinite(value).all() for value in last.values())
    assert any(not torch.equal(first[name], last[name]) for name in first)
    loaded = torch.load(tmp_path / "three/model.pt", weights_only=True)
    parser = ConfigParser(ConfigParser.load_config_file(str(REPO / "bundles/vnet_atrial_mri/configs/train.yaml")))
    parser["network_def#channels"] = [4, 8, 16, 32, 64]
    parser.get_parsed_content("network_def").load_state_dict(loaded)


def test_notebook_is_stored_with_its_outputs() -> None:
    """Every cell of code ran, in order and without an error, and the file is small."""
    file = REPO / "examples/notebook.ipynb"
    cells = [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) == 3
    assert file.stat().st_size < 1.5e6


@pytest.mark.nightly
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy, in another folder; the first cell that fails ends it with an error."""
    nbformat, client = importlib.import_module("nbformat"), importlib.import_module("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    notebook = nbformat.read(REPO / "examples/notebook.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert (tmp_path / "notebook_output/retrained/model.pt").is_file()
