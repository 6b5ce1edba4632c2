#!/usr/bin/env bash
# Trains a bundle on two machines at once. Start it on both, with the same arguments (more machines: see the variables):
#   BUNDLE=vnet_atrial_mri HEAD=machine1:29400 examples/two_nodes.sh --dataset_dir /shared/scans --ckpt_dir /shared/models
# Scans have the same paths on both machines. ckpt_dir is a folder that they share: a run that was stopped resumes from it
# when the command is given again on both.
set -euo pipefail
REPOSITORY=$(cd "$(dirname "$0")/.." && pwd)

BUNDLE=${BUNDLE:-vnet_atrial_mri}
CONFIGS=${CONFIGS:-train}         # and overlays of the stage, for example "train train_locator"
HEAD=${HEAD:?name and free port of one of the machines, where the processes meet, such as machine1:29400}
NODES=${NODES:-2}                 # machines
PROCESSES=${PROCESSES:-gpu}       # on each: as many as it has GPUs, or a number
PYTHON=${PYTHON:-$REPOSITORY/.venv/bin/python}

files=""
for name in $CONFIGS multi_gpu_train; do
  files+="'$REPOSITORY/bundles/$BUNDLE/configs/$name.yaml',"
done
exec "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc_per_node "$PROCESSES" \
  --rdzv_backend c10d --rdzv_endpoint "$HEAD" --rdzv_id "$BUNDLE" \
  -m monai.bundle run training --config_file "[${files%,}]" "$@"
