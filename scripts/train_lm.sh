#!/usr/bin/env bash
# Train one variant of a small language model and evaluate it; see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/train_arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/train_arguments.sh"

usage() {
  cat <<'TEXT'
Usage: bash scripts/train_lm.sh VARIANT --data DIR [--seed N] [--name NAME] [--runs DIR]
                                [--updates N] [--tokens-per-sample N] [--batch-size N]
                                [--sliding-limit N] [FAIRSEQ-TRAIN FLAGS]

Trains a language model of 4 layers, width 128, FFN 512, 4 heads (fwm_transformer_lm_tiny or
transformer_xl_lm_tiny) on data of a scripts/prepare_*.sh, then evaluates the checkpoint with the
best validation loss on the test split, by the ways that fit it (scripts/eval_lm.py):
  without carry-over  segments, the whole split; its first tokens also by sliding window
  with carry-over     streaming, the whole split and its first tokens

  VARIANT              attention and context; 'bash scripts/train_lm.sh --list' prints them with
                       their flags
  --data               data directory: dict.txt and {train,valid,test}.{bin,idx}
  --seed               random seed (default 1)
  --name               name of the run (default VARIANT-seedN)
  --runs               where runs are kept (default runs/lm/NAME-OF-DIR)
  --updates            how many, more than those of the warm-up (default 3000)
  --tokens-per-sample  length of a segment, and Transformer-XL's memory (default 256)
  --batch-size         streams side by side (default 16)
  --sliding-limit      how many first tokens to score by sliding window, for comparison in the
                       other ways, too; 0: none (default 20000)

Any other flag goes to fairseq-train and overrides the recipe; give such a run its own --name. The
recipe: Adam (0.9, 0.98), --lr 1e-3 after 200 updates of warm-up, cosine to 0 at the last update,
gradient norm at most 0.25, dropout 0.1, validation and a checkpoint every 250 updates. All
variants read the same batches: text in order, as streams.

Run it again to go on where it stopped; finished steps are skipped. The run's directory gets
train.log, checkpoints, eval-*.json and result.json. scripts/results_lm.py makes tables of them.
TEXT
}

truncated=(softmax elu-sum elu-delta dpfp-sum dpfp-delta favor-sum favor-delta)
variants=("${truncated[@]}" "${truncated[@]/%/-no-positions}" elu-sum-streaming
  elu-sum-no-attn-norm-streaming elu-delta-streaming dpfp-delta-streaming transformer-xl)

variant_flags() { # VARIANT: architecture, attention and context, one word a line
  local attention=${1%-streaming}
  attention=${attention%-no-positions}
  if [[ $1 == transformer-xl ]]; then
    printf '%s\n' --arch transformer_xl_lm_tiny --mem-len "$tokens"
    return
  fi
  printf '%s\n' --arch fwm_transformer_lm_tiny --fwm-no-projection-bias
  case $1 in
    *-streaming) printf '%s\n' --no-token-positional-embeddings ;;
    *-no-positions) printf '%s\n' --no-token-positional-embeddings --no-carry-over ;;
    *) printf '%s\n' --fwm-positions reversed --no-carry-over ;;
  esac
  attention_flags "$attention"
}

attention_flags() { # ATTENTION: softmax, or MAP-RULE with or without -no-attn-norm
  if [[ $1 == softmax ]]; then
    printf '%s\n' --fwm-decoder-self softmax
    return
  fi
  local map=${1%%-*} rule=${1#*-}
  printf '%s\n' --fwm-decoder-self "${rule%%-*}" --fwm-feature-map "$map" \
    --fwm-output-scale rsqrt
  case $map in
    # Both 64 key features for heads of 32, twice what elu has.
    dpfp) printf '%s\n' --fwm-dpfp-nu 1 ;;
    favor) printf '%s\n' --fwm-favor-features 32 --fwm-favor-variant toolkit ;;
  esac
  [[ $rule != *-no-attn-norm ]] || printf '%s\n' --fwm-attn-norm none
}

seed=1 name='' data='' runs='' updates=3000 tokens=256 batch=16 sliding=20000 extra=()

take() { # OPTION VALUE
  whole_number "$@"
  case $1 in
    --updates) updates=$2 ;;
    --tokens-per-sample) tokens=$2 ;;
    --batch-size) batch=$2 ;;
    --sliding-limit) sliding=$2 ;;
  esac
}

check_data() {
  local file
  [[ -n $data ]] || die "which data? Name a directory that a scripts/prepare_*.sh made: --data DIR"
  for file in dict.txt {train,valid,test}.{bin,idx}; do
    [[ -f $data/$file ]] || die "$data holds no $file: make a data directory with one of" \
      "scripts/prepare_*.sh, and name it with --data"
  done
}

set_command() { # sets command and dir from the arguments
  local flags
  [[ -n $name ]] || name=$variant-seed$seed
  [[ -n $runs ]] || runs=$root/runs/lm/${data##*/}
  set_paths
  mapfile -t flags < <(variant_flags "$variant")
  command=(
    fairseq-train "$data" --user-dir fairseq_fwm --task streaming_language_modeling
    "${flags[@]}" --fwm-init normal --dropout 0.1 --activation-dropout 0.1
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.25
    --lr 1e-3 --lr-scheduler cosine --warmup-updates 200 --max-update "$updates"
    --criterion cross_entropy --tokens-per-sample "$tokens" --batch-size "$batch"
    --seed "$seed" --save-dir "$dir"
    # Every 250 updates and at the end, not at the ends of epochs.
    --validate-interval-updates 250 --validate-interval 1000000
    --save-interval-updates 250 --save-interval 1000000 --keep-interval-updates 1
    --log-format simple --log-interval 50 --num-workers 0 "${extra[@]}"
  )
}

main() {
  parse_training '--updates --tokens-per-sample --batch-size --sliding-limit' '' "$@"
  check_data
  set_command
  cd "$root"
  use_python fairseq torch tqdm
  lock_run "$dir"
  train_run "$dir" --variant "$variant" --seed "$seed" -- "${command[@]}" \
    || record diverged "$dir" || exit
  python scripts/lib/lm_run.py "$dir" --data "$data" --sliding-limit "$sliding"
}

# A function and an exit: bash has read all of this before the hours of training begin.
main "$@"
exit
