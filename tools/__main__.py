"""The command line: `python -m tools <verb>`; every verb has `--help`."""

from __future__ import annotations

import csv
import importlib
import logging
import sys
import zipfile

from tools.arguments import check_known, check_options, typed

VERBS = {
    "check": "check every bundle against the rules of the collection",
    "sync": "write the copies of tools/shared that every bundle has",
    "demo": "train, infer, evaluate and draw one bundle, on phantoms or on your own scans",
    "phantoms": "write a phantom data set in the layout of a bundle's real data",
    "split": "divide a data folder into training and validation cases",
    "label": "serve bundles and scans to annotators with MONAI Label",
    "registry": "build, verify, publish and fetch from a registry of all bundles",
    "dicom": "make a DICOM SEG of a mask, fetch series from and store files to a DICOMweb server",
    "convert": "turn a reference checkpoint into a bundle's weights, and back",
    "results": "write the JSON behind a figure, from the table of an evaluation",
    "figure": "draw a method with phantoms, or all of them",
    "report": "write one HTML page about the runs in a folder of results",
    "benchmark": "measure speed and memory, beside another implementation if given",
}

MODULES = {
    "demo": "tools.demo.cli",
    "phantoms": "tools.data.phantoms",
    "split": "tools.data.split",
    "dicom": "tools.dicom.cli",
    "registry": "tools.registry.cli",
    "results": "tools.experiments.results",
    "figure": "tools.figure.cli",
    "report": "tools.report.cli",
}


def main() -> None:
    """Runs the verb that the command line names; its module is imported only then."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb not in VERBS:
        lines = [f"  {name:<11}{text}" for name, text in VERBS.items()]
        usage = "\n".join(["usage: python -m tools <verb> [--help]", "", *lines, ""])
        sys.stdout.write(usage)
        sys.exit(0 if verb in ("--help", "-h") else f"there is no verb {verb!r}")
    _run(verb)


def _run(verb: str) -> None:
    import fire
    import yaml

    function = getattr(importlib.import_module(MODULES.get(verb, f"tools.{verb}")), verb)
    command = sys.argv[2:] or (["--help"] if isinstance(function, dict) else [])
    try:
        if isinstance(function, dict):
            check_known(command[:1] if command[0][:1] != "-" else [], function, what=f"there is no verb {verb} {{}}")
            check_options(function.get(command[0], main), command[1:])
        else:
            check_options(function, command)
        verbs = (
            {name: typed(part) for name, part in function.items()} if isinstance(function, dict) else typed(function)
        )
        fire.Fire(verbs, command=command, name=f"python -m tools {verb}", serialize=lambda _: None)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, zipfile.BadZipFile, yaml.YAMLError) as error:
        sys.exit(f"python -m tools {verb}: {error}")


if __name__ == "__main__":
    main()
