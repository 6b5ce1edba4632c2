"""Outputs of a demo for further use: the bundle as it was trained, and its phantoms as a study folder."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from tools.arguments import check_known
from tools.files import read_json
from tools.registry.index import DEMO_VERSION
from tools.registry.pack import release_files
from tools.shared.files import PARTIAL

__all__ = ["check_settings", "write_bundle", "write_studies"]

Settings = Mapping[str, Any]


def check_settings(names: Iterable[str], folder: Path, *, stages: Sequence[Settings], others: Sequence[Any]) -> None:
    """Rejects names of settings that no stage of a bundle's demo has.

    Args:
        names: of the settings.
        folder: folder of the bundle.
        stages: the stages, each with its config files under `config`.
        others: config files that are added to stages, as lists, perhaps with settings, or under `config`.

    Raises:
        ValueError: the message has the nearest name.
    """
    added = [part if isinstance(part, list) else part.get("config", []) for part in others]
    files = {
        file for part in [*(stage["config"] for stage in stages), *added] for file in part if isinstance(file, str)
    }
    known = {key for file in files for key in ConfigParser.load_config_file(folder / "configs" / file)}
    first = [re.split("#|::", name)[0] for name in names]
    check_known(first, {*known, "data", "output"}, what=f"{folder.name}: no stage of its demo has a setting {{}}")


def write_bundle(
    folder: Path, target: Path, *, models: Path, overlays: Sequence[str], settings: Mapping[str, Settings]
) -> Path:
    """Writes a copy of a bundle whose configs have the settings of a demo, with the weights that it trained.

    The copy needs no option to segment as the demo did: MONAI Label serves it, `tools registry build` releases it.

    Args:
        folder: the bundle.
        target: folder of the copy, replaced as a whole.
        models: folder of the weights; training states are left out.
        overlays: names of config files that go over both configs.
        settings: of each of the configs `inference` and `train`, by id; those of ids that it lacks have no part.

    Returns:
        `target`.
    """
    files = release_files(folder, weights=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
        copy = Path(scratch) / target.name
        for name, content in files.items():
            is_copy = name.endswith(".json") and f"{name.removesuffix('.json')}.yaml" in files
            if not (name.startswith("models/") or is_copy):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(content)
        for stem, chosen in settings.items():
            _write_config(folder / "configs", copy / f"configs/{stem}.yaml", overlays=overlays, settings=chosen)
        metadata = copy / "configs/metadata.json"
        content = read_json(metadata)
        content["version"] = DEMO_VERSION
        content["changelog"] = {DEMO_VERSION: "Trained by a demo, no release"}
        content["description"] = f"Trained by a demo, its settings are those of the demo. {content['description']}"
        metadata.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copytree(models, copy / "models", ignore=shutil.ignore_patterns("*state.pt", "*_previous.pt", PARTIAL))
        shutil.rmtree(target, ignore_errors=True)
        copy.replace(target)
    return target


def _write_config(configs: Path, target: Path, *, overlays: Sequence[str], settings: Settings) -> None:
    """Writes the config of the target's name with overlays and settings."""
    parser = ConfigParser()
    parser.read_config([str(configs / name) for name in (target.name, *overlays)])
    parser.update({key: value for key, value in settings.items() if re.split("#|::", key)[0] in parser.config})
    parser.update({"ckpt_dir": "$@bundle_root + '/models'"})  # overlays have folders of their own
    config = {key: value for key, value in parser.config.items() if key != "_meta_"}
    ConfigParser.export_config_file(config, str(target), fmt="yaml", sort_keys=False)


def write_studies(data: Path, target: Path, *, labels: str) -> Path:
    """Writes the scans of a data folder as a study folder of MONAI Label: flat, NIfTI, without label maps.

    Args:
        data: folder with a sub-folder for each case.
        target: the study folder; files of the same name are replaced.
        labels: pattern of the names of label maps.

    Returns:
        `target`.
    """
    import itk

    target.mkdir(parents=True, exist_ok=True)
    for case in sorted(path for path in data.iterdir() if path.is_dir()):
        volumes = [path for path in sorted(case.iterdir()) if path.name.endswith((".nii.gz", ".nrrd"))]
        scans = [path for path in volumes if not path.match(labels)]
        for scan in scans:
            name = case.name if len(scans) == 1 else _name_of_sequence(scan)
            with tempfile.TemporaryDirectory(dir=target, prefix=".") as scratch:
                partial = Path(scratch) / f"{name}.nii.gz"
                itk.imwrite(itk.imread(str(scan)), str(partial), compression=True)
                partial.replace(target / partial.name)
    return target


def _name_of_sequence(scan: Path) -> str:
    case, stem = scan.parent.name, scan.name.removesuffix(".gz").rpartition(".")[0]
    return stem if stem.startswith(case) else f"{case}_{stem}"
