#!/usr/bin/env bash
#SBATCH --job-name=fwm-wmt14
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --requeue
# Train a variant of the WMT14 table on several nodes, one task per GPU:
#   sbatch [--nodes N] scripts/slurm_wmt14.sh VARIANT [FLAGS OF train_wmt14.sh]
# from the project's root, with what is missing on your cluster (partition, account) as sbatch's
# own flags. The batches of an update, 48, must divide by the number of GPUs. A job that was
# requeued goes on from its last checkpoint. FWM_PORT: a free port of the first node.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit it with sbatch}"
PATH=$PWD/.venv/bin:$PATH
gpus=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE))
printed=$(bash scripts/train_wmt14.sh "$@" --gpus "$gpus" --print)
command=()
eval "command=($printed)" # printed as shell words

# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source scripts/lib/common.sh

value_of() { # FLAG: its last value
  local i value=
  for i in "${!command[@]}"; do [[ ${command[i]} != "$1" ]] || value=${command[i + 1]}; done
  echo "$value"
}

dir=$(value_of --save-dir)
[[ -f ${command[1]}/dict.de.txt ]] || die "${command[1]} holds no data: prepare them first" \
  "(scripts/prepare_wmt14_ende.sh), or name a directory with --data"
mkdir -p "$dir"
# fairseq takes rank, device and address from Slurm's variables.
launcher=(srun) launched=(--distributed-port "${FWM_PORT:-29500}")
train_run "$dir" --variant "$1" --seed "$(value_of --seed)" -- "${command[@]}" \
  || record diverged "$dir"
