"""A MONAI Label server with the bundles: an app folder for it, and its start."""

from __future__ import annotations

import filecmp
import inspect
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tools import BUNDLES, REPO
from tools.arguments import check_known, names, require_text
from tools.registry.pack import bundle_folder
from tools.shared.files import atomic_write

__all__ = ["label", "prepare"]

logger = logging.getLogger(__name__)

ENVIRONMENT = Path(os.environ.get("LABEL_ENVIRONMENT", REPO / ".venv-label")).absolute()
LEFT_OUT = ("__pycache__", "eval", "cache", "*state.pt", "*_previous.pt", ".*", "monailabel_train.json")
SETTINGS = (
    "skip_trainers",
    "preload",
    *(f"epistemic_{name}" for name in ("model", "max_samples", "simulation_size", "dropout")),
)


def label(
    data: str,
    *,
    output: str = "label_app",
    bundles: str | Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    origins: str | Sequence[str] = (),
    token: str | None = None,
    **conf: object,
) -> None:
    """Start a MONAI Label server for the scans in the folder DATA, with every bundle that has weights.

    The bundles are copied to the folder OUTPUT at the first start; later starts use what lies there, retrained weights
    included. `make label` installs the server.

    Args:
        data: folder of scans as NIfTI (*.nii.gz), or the address of a DICOMweb store. Labels go to its `labels`.
        output: folder of the server's own: copies of the bundles, logs.
        bundles: names or folders of bundles, for example vnet_atrial_mri,hadnet_brats_mri. Default: those in bundles/
            that have weights.
        host: address to listen at; 0.0.0.0 lets other machines in.
        port: port to listen at.
        origins: other sites whose pages may use the server, for example http://viewer:3000, and other names of its own.
            Default: its own viewer.
        token: what every request must have, at least 8 letters, digits, `-` or `_`: `Authorization: Bearer TOKEN`, or
            `?token=TOKEN` in the address of the web viewer, or the password that 3D Slicer asks for. Default: the
            environment variable LABEL_TOKEN, else none.
        conf: settings of MONAI Label's bundle app: skip_trainers, preload, epistemic_model, epistemic_max_samples,
            epistemic_simulation_size, epistemic_dropout; for example --skip_trainers true.

    Raises:
        ValueError: an option does not exist, the token is too simple, the server is not installed, there are no scans,
            or a bundle is none or lacks its weights.
    """
    require_text(data=data, output=output, host=host, token=token)
    token = _checked_token(token)
    check_known(conf, {*SETTINGS, *inspect.signature(label).parameters} - {"data", "conf"})
    python = _python_of(ENVIRONMENT)
    if not data.startswith(("http://", "https://")) and not Path(data).is_dir():
        raise ValueError(f"{data}: is no folder of scans and no http address")
    served = prepare(output, bundles=names(bundles))
    command = [str(python), "-m", "monailabel.main", "start_server", "--app", output, "--studies", data]
    command += ["--host", host, "--port", str(port)]
    own = [f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")]
    settings = {"models": ",".join(served), "origins": ",".join([*own, *names(origins)])}
    settings["hosts"] = ",".join([host, socket.gethostname(), socket.getfqdn()])
    for name, value in {**settings, **conf}.items():
        command += ["--conf", name, str(value)]
    if not token and host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("WARNING: whoever reaches %s:%s sees all scans and changes labels: give --token", host, port)
    logger.info("Starting MONAI Label at http://%s:%s/ (stop it with Ctrl+C)\n%s", host, port, " ".join(command))
    sys.stdout.flush()
    # Its own programs (torchrun, itkimage2segimage) are found by name.
    search_path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    os.execve(command[0], command, {**os.environ, "PATH": search_path, "LABEL_TOKEN": token})


def _checked_token(token: str | None) -> str:
    token = os.environ.get("LABEL_TOKEN", "") if token is None else token
    if not re.fullmatch(r"[\w-]{8,}" if token else "", token, re.ASCII):
        raise ValueError("the token must be at least 8 letters, digits, - or _")
    return token


def _python_of(environment: Path) -> Path:
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.is_file():
        raise ValueError(f"{python}: MONAI Label is not installed there, run `make label` first")
    return python


def prepare(app: str, *, bundles: Sequence[str] = ()) -> list[str]:
    """Makes the folder of a MONAI Label app, or completes it.

    A bundle that is in the app already stays as it is; only weights that are missing there are copied again, if they
    are of the same version and training.

    Args:
        app: the folder.
        bundles: names or folders of bundles; none: those in bundles/ that have weights.

    Returns:
        Names of the bundles that were asked for.

    Raises:
        ValueError: if one of them is no bundle or has no models/model.pt, or none has.
    """
    target = Path(app)
    sources = [bundle_folder(name) for name in bundles] or _all_with_weights(target)
    for folder in sources:
        if not _has_weights(folder, target):
            raise ValueError(f"{folder}/models/model.pt: there are no such weights, train, convert or download them")
    for folder in sources:
        _copy_bundle(folder, target / "model" / folder.name)
    own = Path(__file__).parent
    for source, name in [(own / "app.py", "main.py"), *((file, f"lib/{file.name}") for file in own.glob("lib/*.py"))]:
        with atomic_write(target / name) as partial:
            shutil.copyfile(source, partial)
    return [folder.name for folder in sources]


def _has_weights(folder: Path, app: Path) -> bool:
    """Whether a bundle, or its copy in the app, has weights."""
    return any((place / "models/model.pt").is_file() for place in (folder, app / "model" / folder.name))


def _all_with_weights(app: Path) -> list[Path]:
    """The bundles of the collection that have weights, here or in the app."""
    found = [folder for folder in BUNDLES if _has_weights(folder, app)]
    for folder in BUNDLES:
        if folder not in found:
            logger.warning("%s: left out, models/model.pt does not exist", folder.name)
    if not found:
        raise ValueError("no bundle has weights in its folder models: train, convert or download them first")
    return found


def _copy_bundle(source: Path, target: Path) -> None:
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
            Path(shutil.copytree(source, Path(scratch) / source.name, ignore=ignore)).replace(target)
        logger.info("%s: copied to %s", source.name, target)
        return
    old, new = (
        json.loads((folder / "configs/metadata.json").read_text(encoding="utf-8"))["version"]
        for folder in (target, source)
    )
    served, own = (folder / "models/model.pt" for folder in (target, source))
    if old == new and (not served.is_file() or (own.is_file() and filecmp.cmp(served, own, shallow=False))):
        _complete(source / "models", target / "models", left_out=ignore)
    elif not served.is_file():
        raise ValueError(f"{served}: there are no such weights, and {own} are of version {new}; remove {target}")
    else:
        logger.warning(
            "%s: served is %s, version %s with its own weights, not %s, version %s%s; "
            "to take the latter, remove the former",
            source.name,
            target,
            old,
            source,
            new,
            "" if own.is_file() else " without weights",
        )


def _complete(source: Path, target: Path, *, left_out: Callable[[str, list[str]], set[str]]) -> None:
    """Copies the weights that a folder lacks and another one has, which are of the same training."""
    missing = [path.name for path in source.glob("*") if path.is_file() and not (target / path.name).exists()]
    for name in sorted({*missing} - left_out(str(source), missing)):
        with atomic_write(target / name) as partial:
            shutil.copyfile(source / name, partial)
        logger.info("%s copied to %s", source / name, target)
