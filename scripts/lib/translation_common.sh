# shellcheck shell=bash
# Sourced by train_wmt14.sh and train_iwslt14.sh, which then set what is empty here.

# shellcheck source-path=SCRIPTDIR source=train_arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_arguments.sh"

corpus=''       # names runs/CORPUS
prepared=''     # what its prepare script writes, below data/
languages=()    # the direction, as flags
recipe=()       # fairseq-train's flags for the corpus
micro_batches=1 # of an update, over all GPUs
title=''        # for --help

variants=(softmax linear favor-m32 favor-m128 favor-m192 favor-m256 dpfp-nu2 dpfp-nu3 dpfp-nu4
  elu-delta dpfp-nu1-delta dpfp-nu2-delta dpfp-nu3-delta)

usage() {
  cat <<TEXT
Usage: bash scripts/train_$corpus.sh VARIANT [--seed N] [--name NAME] [--data DIR] [--runs DIR]
            [--gpus N | --cpu] [--print] [FAIRSEQ-TRAIN FLAGS]

$title

  VARIANT   'bash scripts/train_$corpus.sh --list' prints all, with their flags;
            configs/translation has the same as YAML, with published numbers and estimated hours
  --seed    random seed (default 1)
  --name    name of the run (default VARIANT-seedN)
  --data    a directory of fairseq-preprocess (default data/$prepared)
  --runs    where runs are kept (default runs/$corpus)
  --gpus    how many of this machine, a divisor of $micro_batches (default 1): they share the batches
            of an update, so that it stays the same
  --cpu     without a GPU and in fp32, to rehearse
  --print   print the command and stop

Any other flag goes to fairseq-train and overrides the recipe; give such a run its own --name.
Validation BLEU is of Moses tokens with BPE; for SentencePiece data add
'--eval-bleu-remove-bpe sentencepiece --eval-bleu-detok space'.

Run it again to go on where it stopped. The run's directory gets train.log and checkpoints;
checkpoint_best.pt is the best by validation BLEU.
TEXT
}

variant_flags() { # VARIANT: the sites and the feature map, one word a line
  local name=$1 sites=(sum sum sum) norms=(off output) map
  case $name in
    softmax) sites=(softmax softmax softmax) norms=() ;;
    *-delta) sites=(softmax delta softmax) norms=(on none) ;;
  esac
  printf '%s\n' --fwm-encoder-self "${sites[0]}" --fwm-decoder-self "${sites[1]}" \
    --fwm-cross "${sites[2]}"
  [[ $name != softmax ]] || return 0
  name=${name%-delta}
  case $name in
    linear | elu) map=elu ;;
    *) map=${name%%-*} ;;
  esac
  printf '%s\n' --fwm-feature-map "$map"
  case $map in
    dpfp) printf '%s\n' --fwm-dpfp-nu "${name#dpfp-nu}" ;;
    favor) printf '%s\n' --fwm-favor-features "${name#favor-m}" ;;
  esac
  printf '%s\n' --fwm-sum-norm "${norms[0]}" --fwm-attn-norm "${norms[1]}"
}

seed=1 name='' data='' runs='' extra=()

take() { take_device "$@"; }

set_command() { # sets command and dir from the arguments
  local flags device=(--fp16 --distributed-world-size "$gpus") share
  share=$(share_among_gpus "$micro_batches" 'the batches of an update') || exit
  [[ -z $cpu ]] || device=(--cpu)
  [[ -n $name ]] || name=$variant-seed$seed
  [[ -n $runs ]] || runs=$root/runs/$corpus
  [[ -n $data ]] || data=$root/data/$prepared
  set_paths
  mapfile -t flags < <(variant_flags "$variant")
  command=(
    fairseq-train "$data" --user-dir fairseq_fwm --task translation "${languages[@]}"
    "${flags[@]}" "${recipe[@]}" --update-freq "$share" "${device[@]}"
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.3
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0
    --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-7
    --eval-bleu --eval-bleu-detok moses --eval-bleu-remove-bpe
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
    --seed "$seed" --save-dir "$dir" --log-format simple --log-interval 100 "${extra[@]}"
  )
}

train_translation() {
  parse_training '--gpus' '--cpu --print' "$@"
  set_command
  if_only_printed
  cd "$root" || exit
  local file
  for file in dict.{de,en}.txt; do
    [[ -f $data/$file ]] || die "$data holds no $file: make a data directory with" \
      "'bash scripts/prepare_$prepared.sh' or fairseq-preprocess, and name it with --data"
  done
  use_python fairseq sacremoses sacrebleu torch tqdm
  train_only
}
