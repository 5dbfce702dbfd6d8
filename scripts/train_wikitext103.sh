#!/usr/bin/env bash
# Train one row of the paper's WikiText-103 tables.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/train_arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/train_arguments.sh"

usage() {
  cat <<'TEXT'
Usage: bash scripts/train_wikitext103.sh ROW [--seed N] [--name NAME] [--data DIR] [--runs DIR]
            [--gpus N | --cpu] [--print] [KEY=VALUE ...]

Trains one row of the language model tables of arXiv 2102.11174 with fairseq-hydra-train, as
configs/language_modeling/ROW.yaml says. Prepare the data first: scripts/prepare_wikitext103.sh.

  ROW      'bash scripts/train_wikitext103.sh --list' prints all
  --seed   random seed (default 1111, the published one)
  --name   name of the run (default ROW-seedN)
  --data   data directory (default data/wikitext103)
  --runs   where runs are kept (default runs/wikitext103)
  --gpus   how many of this machine, a divisor of the row's streams (default 1): they share them
  --cpu    without a GPU, to rehearse
  --print  print the command and stop

KEY=VALUE overrides a setting of the row, as in 'optimization.max_update=1000'; give such a run
its own --name. Run it again to go on where it stopped. The run's directory gets train.log and
checkpoints; score them with scripts/eval_lm.py, or let scripts/reproduce.py do all of it.
TEXT
}

configs=$root/configs/language_modeling
mapfile -t variants < <(cd "$configs" && printf '%s\n' *.yaml | sed 's/\.yaml$//')

variant_flags() { sed -n '1s/^# //p' "$configs/$1.yaml"; }

seed=1111 name='' data=$root/data/wikitext103 runs=$root/runs/wikitext103 extra=()

take() { take_device "$@"; }

streams() { # the row's batch size, from its base
  sed -n 's/^  batch_size: //p' "$configs/base/${variant%%_*}.yaml"
}

set_command() { # sets command and dir from the arguments
  local share device=(distributed_training.distributed_world_size="$gpus") one
  for one in "${extra[@]}"; do
    [[ $one == *=* ]] || die "'$one' is neither an option nor KEY=VALUE"
  done
  share=$(share_among_gpus "$(streams)" 'the streams of this row') || exit
  [[ -z $cpu ]] || device=(common.cpu=true)
  [[ -n $name ]] || name=$variant-seed$seed
  set_paths
  command=(
    fairseq-hydra-train --config-dir configs/language_modeling --config-name "$variant"
    hydra.run.dir="$dir" hydra.output_subdir=null hydra.job.chdir=false
    common.user_dir=fairseq_fwm common.seed="$seed" task.data="$data"
    checkpoint.save_dir="$dir" dataset.batch_size="$share" "${device[@]}" "${extra[@]}"
  )
}

main() {
  parse_training '--gpus' '--cpu --print' "$@"
  set_command
  if_only_printed
  cd "$root"
  local file
  for file in dict.txt {train,valid,test}.{bin,idx}; do
    [[ -f $data/$file ]] || die "$data holds no $file: make it with" \
      "'bash scripts/prepare_wikitext103.sh', or name a data directory with --data"
  done
  use_python fairseq torch tqdm
  train_only
}

# A function and an exit: bash has read all of this before the days of training begin.
main "$@"
exit
