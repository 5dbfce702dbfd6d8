#!/usr/bin/env bash
# Train one variant on Multi30k, then average, translate and score it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/train_arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/train_arguments.sh"

usage() {
  cat <<'TEXT'
Usage: bash scripts/train_multi30k.sh VARIANT [--seed N] [--budget reduced|full] [--name NAME]
                                      [--data DIR] [--runs DIR] [--average N]
                                      [FAIRSEQ-TRAIN FLAGS]

Trains fwm_transformer_tiny on Multi30k, English to German, averages the last 10 epochs,
translates test 2016 and scores it. Prepare the data first: scripts/prepare_multi30k.sh.

  VARIANT   which attention becomes a fast weight memory; 'bash scripts/train_multi30k.sh --list'
  --seed    random seed (default 1)
  --budget  reduced: 3,000 updates of 4,096 tokens (default)
            full:    8,000 updates of 2 x 4,096 tokens, the published recipe
  --name    name of the run (default VARIANT-seedN, -full added for the full budget)
  --data    what prepare_multi30k.sh wrote (default runs/multi30k/data-bin)
  --runs    where runs are kept (default runs/multi30k)
  --average how many of the last epochs to average (default 10)

Any other flag goes to fairseq-train; give such a run its own --name.
Run it again to go on where it stopped; finished steps are skipped. The run's directory gets
train.log, checkpoints, gen.out, hyp.tok.de, hyp.detok.de and result.json.
TEXT
}

variant_flags() { # VARIANT: the sites and the feature map, one word a line
  local encoder=softmax decoder cross=softmax map=${1%%-*}
  case $1 in
    softmax) map='' decoder=softmax ;;
    elu-sum | favor-sum | dpfp-sum) decoder=sum ;;
    elu-delta | dpfp-delta) decoder='delta' ;;
    sum-everywhere) map=dpfp encoder=sum decoder=sum cross=sum ;;
    elu-sum-everywhere) encoder=sum decoder=sum cross=sum ;;
    *) return 1 ;;
  esac
  printf '%s\n' --fwm-encoder-self "$encoder" --fwm-decoder-self "$decoder" --fwm-cross "$cross"
  [[ -z $map ]] || printf '%s\n' --fwm-feature-map "$map"
  [[ $map != dpfp ]] || printf '%s\n' --fwm-dpfp-nu 1
}

variants=(softmax elu-sum favor-sum dpfp-sum elu-delta dpfp-delta sum-everywhere
  elu-sum-everywhere)

seed=1 budget=reduced name='' data=$root/runs/multi30k/data-bin runs=$root/runs/multi30k
average=10 extra=()

take() { # OPTION VALUE
  case $1 in
    --budget) budget=$2 ;;
    --average) average=$2 ;;
  esac
}

set_command() { # sets command from the arguments
  local sites budget_flags
  case $budget in
    reduced) budget_flags=(--lr 0.004 --warmup-updates 1000 --update-freq 1 --max-update 3000) ;;
    full) budget_flags=(--lr 0.005 --warmup-updates 2000 --update-freq 2 --max-update 8000) ;;
    *) die "--budget must be reduced or full, not '$budget'" ;;
  esac
  [[ -n $name ]] || name=$variant-seed$seed$([[ $budget == reduced ]] || echo "-$budget")
  set_paths
  mapfile -t sites < <(variant_flags "$variant")
  command=(
    fairseq-train "$data" -s en -t de --user-dir fairseq_fwm --arch fwm_transformer_tiny
    "${sites[@]}" --share-all-embeddings --dropout 0.3
    --optimizer adam --adam-betas '(0.9, 0.98)'
    --lr-scheduler inverse_sqrt --warmup-init-lr 1e-7 "${budget_flags[@]}"
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --max-tokens 4096 --seed "$seed" --save-dir "$dir" --keep-last-epochs 10
    --log-format simple --log-interval 50 --num-workers 0 "${extra[@]}"
  )
}

main() {
  parse_training '--budget --average' '' "$@"
  set_command
  cd "$root"
  [[ -f $data/dict.de.txt && -f $data/data.json ]] \
    || die "$data holds no prepared data: run 'bash scripts/prepare_multi30k.sh' first," \
      "or name its directory with --data"
  use_python fairseq sacremoses sacrebleu torch tqdm
  lock_run "$dir"
  train_run "$dir" --variant "$variant" --seed "$seed" --note budget="$budget" \
    -- "${command[@]}"
  bash scripts/score_multi30k.sh "$dir" --data "$data" --average "$average"
}

# A function and an exit: bash has read all of this before the hours of training begin.
main "$@"
exit
