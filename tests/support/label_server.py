"""What the tests of the MONAI Label server share: small bundles, a study folder, the server and its own client."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from SimpleITK import ReadImage, WriteImage

from tests.conftest import NAMES, random_weights, recipe, small
from tests.support.distributed import free_port
from tests.support.runs import run
from tools import REPO
from tools.data.phantoms import phantoms as make_phantoms
from tools.label import ENVIRONMENT, LEFT_OUT

CASES = (1, 2, 3)
ABSENT = 4  # the case that lacks a sequence
STACK = "stack_for_{}"


def facts(bundle: str) -> dict[str, Any]:
    """What the tests of MONAI Label must know of a bundle."""
    found: dict[str, Any] = recipe(bundle)["label"]
    return found


def image_of(bundle: str, case: int = CASES[0]) -> str:
    """Name of a bundle's scan in the study folder."""
    return str(facts(bundle)["name"].format(case))


def beside(bundle: str, name: str, sequence: str) -> str:
    """Name of another sequence of a scan."""
    return name.replace(str(recipe(bundle)["image"]), sequence)


def needed(present: object, what: str) -> None:
    """Skips a test where this machine lacks something, or fails it where LABEL_REQUIRED says that all must run."""
    if not present:
        end = pytest.fail if os.environ.get("LABEL_REQUIRED") else pytest.skip
        end(f"needs {what}")


def label_environment() -> Path:
    """The interpreter of the server's environment."""
    python = ENVIRONMENT / "bin/python"
    needed(python.is_file(), f"MONAI Label: {python} does not exist, run `make label`")
    needed(sys.version_info < (3, 13), "the module cgi for MONAI Label's client, which Python 3.13 has no longer")
    return python


def small_bundle(bundle: str, target: Path) -> Path:
    """Copies a bundle, with small settings written into its configs and random weights for tiny networks."""
    ignored = shutil.ignore_patterns("models", *LEFT_OUT)
    folder = Path(shutil.copytree(REPO / "bundles" / bundle, target / bundle, ignore=ignored))
    (folder / "models").mkdir()
    random_weights(bundle, folder / "models", **recipe(bundle)["tiny"])
    for workflow in ("inference", "train"):
        file = folder / f"configs/{workflow}.yaml"
        parser = ConfigParser()
        parser.read_config(file)
        tiny = {key: value for key, value in recipe(bundle)["tiny"].items() if key.partition("#")[0] in parser.config}
        parser.update(small(bundle, workflow) | tiny)
        parser.update(facts(bundle).get("train", {}) if workflow == "train" else {})
        if workflow == "inference" and "seed" in facts(bundle):
            torch.manual_seed(facts(bundle)["seed"])
            for network in ("locator", "network"):
                state = parser.get_parsed_content(f"{network}_def").state_dict()
                torch.save(state, folder / "models" / f"{network.replace('network', 'model')}.pt")
        ConfigParser.export_config_file(parser.config, str(file), fmt="yaml")
    return folder


def make_studies(scans: Path, labels: Path, scratch: Path, *, bundles: Sequence[str] = NAMES) -> None:
    """Writes phantoms of every kind as NIfTI into one flat folder, and their label maps into another.

    The sequences of a brain lie side by side; the first case is there as a 4D volume too, the last lacks a sequence.
    """
    labels.mkdir()
    for bundle in bundles:
        known = facts(bundle)
        data = make_phantoms(bundle, str(scratch / bundle), cases=len(CASES) + 1, **recipe(bundle)["phantoms"])
        files = zip(
            (*CASES, ABSENT), sorted(data.glob(known["scans"])), sorted(data.glob(known["labels"])), strict=True
        )
        for case, source, label in files:
            name = image_of(bundle, case)
            convert(source, scans / f"{name}.nii.gz")
            convert(label, labels / f"{name}.nii.gz")
            for other in recipe(bundle).get("beside", ()):
                convert(
                    source.with_name(beside(bundle, source.name, other)),
                    scans / f"{beside(bundle, name, other)}.nii.gz",
                )
        if "missing" in known:
            (scans / f"{beside(bundle, image_of(bundle, ABSENT), known['missing'])}.nii.gz").unlink()
        if "stack" in known:
            names = [beside(bundle, image_of(bundle), sequence) for sequence in known["stack"]]
            volumes = [nibabel.load(scans / f"{name}.nii.gz") for name in names]
            voxels = np.stack([np.asanyarray(volume.dataobj) for volume in volumes], axis=-1)
            nibabel.save(nibabel.Nifti1Image(voxels, volumes[0].affine), scans / f"{STACK.format(bundle)}.nii.gz")


def convert(source: Path, target: Path) -> None:
    """Writes a volume in the format of another suffix."""
    target.parent.mkdir(parents=True, exist_ok=True)
    WriteImage(ReadImage(str(source)), str(target))


def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of an HTTP answer."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_until_answering(url: str, process: subprocess.Popen[bytes], log: Path, *, seconds: float = 120) -> None:
    """Waits for a server that was just started; fails with the end of its log if it dies or does not answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            if ask("GET", url)[0] == 200:
                return
        except OSError:
            time.sleep(0.3)
    process.kill()
    pytest.fail(f"{url} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


class LabelServer:
    """A MONAI Label server, started by the command of the tools, with its own client.

    Args:
        folder: for the app and all else that the server keeps.
        studies: the study folder, or the address of a DICOMweb store.
        bundles: folders of the bundles to serve.
        settings: further environment variables.
    """

    def __init__(
        self, folder: Path, *, studies: str, bundles: list[Path], settings: Mapping[str, str] | None = None
    ) -> None:
        python = label_environment()
        self.folder, self.studies, self.port = folder, studies, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        words = ["label", studies, "--output", str(folder / "app"), "--port", str(self.port)]
        words += ["--bundles", ",".join(map(str, bundles))]
        kept = {f"MONAI_LABEL_{name}_PATH": str(folder / name.lower()) for name in ("SESSION", "DICOMWEB_CACHE")}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **kept, **(settings or {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools", *words], cwd=REPO, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until_answering(f"{self.url}/info/", self.process, self.log)
        self.api = client_module(python)
        self.client = self.api.MONAILabelClient(self.url, tmpdir=str(folder))

    def stop(self) -> None:
        """Stops the server as Ctrl+C does; nothing listens any more afterwards."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        finally:
            self.process.kill()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0

    def bundle(self, name: str) -> Path:
        """Folder of a bundle in the app."""
        return self.folder / "app/model" / name

    def mask(self, bundle: str, image: str, **params: Any) -> tuple[Any, dict[str, Any]]:
        """The mask of an image as NIfTI, and the JSON that comes with it."""
        file, answer = self.client.infer(bundle, image, params)
        assert file.endswith(".nii.gz")
        return nibabel.load(file), answer

    def expected(self, bundle: str, image: str, target: Path) -> Any:
        """The mask that the bundle writes by itself, from the weights that lie in the app now."""
        scan = Path(self.studies) / f"{image}.nii.gz"
        run(bundle, "inference", data=scan, folder=self.bundle(bundle), output_dir=str(target))
        (mask,) = target.glob("*.nii.gz")
        return nibabel.load(mask)

    def train(self, bundle: str) -> dict[str, Any]:
        """Trains one epoch as a viewer does, with the options that the server offers; returns how it ended."""
        offered = self.client.info()["trainers"][bundle]["config"]
        chosen = {name: value[0] if isinstance(value, list) else value for name, value in offered.items()}
        self.client.train_start(bundle, chosen | {"max_epochs": 1, "val_split": 0.34})
        end = time.monotonic() + 600
        while (status := self.client.train_status())["status"] in ("SUBMITTED", "RUNNING"):
            if time.monotonic() > end:
                pytest.fail(f"{bundle}: training does not end:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.3)
        return dict(status)

    def rejection(self, bundle: str, image: str) -> str:
        """What the client is told about a request that is rejected."""
        with pytest.raises(self.api.MONAILabelClientException) as caught:
            self.client.infer(bundle, image, {})
        return str(caught.value.msg)


def client_module(python: Path) -> ModuleType:
    """MONAI Label's client, which the extension of 3D Slicer uses; it needs nothing of the server's environment."""
    (path,) = python.parents[1].glob("lib/python3*/site-packages/monailabel/client/client.py")
    spec = importlib.util.spec_from_file_location("monailabel_client", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def voxels(volume: Any) -> Any:
    """The voxels of a NIfTI file as they are stored."""
    return np.asanyarray(volume.dataobj)
