"""The smallest repository that breaks no rule of `tools.check`: two bundles, one tool, the settings."""

import json
from pathlib import Path

from tools import REPO
from tools.check.docs import SECTIONS
from tools.sync import copies, packages

NAME, PACKAGE = "alpha_mri", "alpha"
TRAIN = """
bundle_root: .
output_dir: "$@bundle_root + '/eval'"
dataset_dir: data
device: "$torch.device('cpu')"
val_interval: 1
channels: 2
network_def: {_target_: alpha.networks.Net, channels: "@channels"}
network: "$@network_def.to(@device)"
train:
  dataset: {_target_: Dataset, data: []}
  inferer: {_target_: SimpleInferer}
  handlers: [{_target_: StatsHandler}]
  trainer: {_target_: SupervisedTrainer, max_epochs: 2, network: "@network", train_handlers: "@##handlers"}
validate:
  dataset: {_target_: Dataset, data: []}
  handlers: []
  evaluator: {_target_: SupervisedEvaluator, network: "@network", inferer: "%train#inferer"}
run: ["$@train#trainer.run()"]
training: "%run"
"""
INFERENCE = """
bundle_root: .
output_dir: "$@bundle_root + '/eval'"
dataset_dir: data
device: "$torch.device('cpu')"
network_def: {_target_: alpha.networks.Net, channels: 2}
preprocessing:
  _target_: Compose
  transforms:
  - {_target_: LoadImaged, keys: image}
  - {_target_: alpha.transforms.Spacingd, keys: image}
postprocessing:
  _target_: Compose
  transforms:
  - {_target_: AsDiscreted, keys: pred, argmax: true, dtype: $torch.uint8}
  - {_target_: SaveImaged, keys: pred, output_dtype: $np.uint8}
inferer: {_target_: SimpleInferer}
dataset: {_target_: Dataset, data: [], transform: "@preprocessing"}
evaluator: {_target_: SupervisedEvaluator, network: "@network_def", postprocessing: "@postprocessing"}
run: ["$@evaluator.run()"]
inference: "%run"
"""
EVALUATE = """
+validate#handlers: [{_target_: MetricsSaver, save_dir: "@output_dir"}]
run: ["$@validate#evaluator.run()"]
evaluating: "%run"
"""
MULTI_GPU = """
network: "$torch.nn.parallel.DistributedDataParallel(@network_def)"
train#trainer#max_epochs: 3
+train#dataset: {transform: null}
"""
TENSOR = {"type": "image", "format": "raw", "num_channels": 1, "spatial_shape": [16, 16], "dtype": "float32"}
METADATA = {
    "schema": "https://example.org/meta_schema_20240725.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "first"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {"pytorch-ignite": "0.5.5"},
    **dict.fromkeys(("task", "description", "authors", "copyright"), "text"),
    "eval_metrics": {"published": {"dice": 0.91}},
    "network_data_format": {
        "inputs": {"image": {**TENSOR, "value_range": [], "channel_def": {"0": "LGE"}}},
        "outputs": {"pred": {**TENSOR, "value_range": [0, 1], "channel_def": {"0": "background", "1": "atrium"}}},
    },
}
CARD = "# Title\n" + "".join(f"\n## {section}\nDice 0.910.\n```\n## none\n```\n" for section in SECTIONS)
PYPROJECT = """# torch==2.13.0 goes first
[dependency-groups]
run = ["monai==1.6.1", "numpy==2.2.6; python_version < '3.11'", "numpy==2.4.6", "pytorch-ignite>=0.5,<0.6"]
"""
FILES = {
    "LICENSE": (REPO / "LICENSE").read_text(),
    "configs/logging.conf": "[loggers]\n",
    "configs/metadata.json": json.dumps(METADATA, indent=1),
    "configs/train.yaml": TRAIN,
    "configs/inference.yaml": INFERENCE,
    "configs/evaluate.yaml": EVALUATE,
    "configs/multi_gpu_train.yaml": MULTI_GPU,
    "docs/README.md": CARD,
    "docs/data_license.txt": "Terms.\n",
    "alpha/__init__.py": '"""Package."""\n',
    "alpha/networks.py": '"""Networks."""\n\nimport ignite\nimport torch\n\nfrom .shared.same import y\n',
}


def build_repository(root: Path) -> None:
    """Write the repository: the bundle `alpha_mri`, and `beta_ct` with the same files in the package `beta`."""
    for bundle, package in (NAME, PACKAGE), ("beta_ct", "beta"):
        for file, text in FILES.items():
            save(root / "bundles" / bundle / file.replace(PACKAGE, package), text.replace(PACKAGE, package))
    save(root / "tools/shared/same.py", '"""Copied."""\n' + "".join(f"y{i} = {i}\n" for i in range(9)))
    for copied in packages(root):
        for name, text in copies(root, copied).items():
            save(copied / "shared" / name, text)
    save(root / "tools" / "verb.py", '"""A verb."""\n')
    save(root / "pyproject.toml", PYPROJECT)
    save(root / "tools/check/metadata_schema.json", (REPO / "tools/check/metadata_schema.json").read_text())


def save(path: Path, text: str) -> None:
    """Write a text, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
