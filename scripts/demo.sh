#!/usr/bin/env bash
# Generate text, train a fast weight translator on it, translate and score; see --help.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash scripts/demo.sh [--fresh] [--out DIR]

Teaches a small fwm_transformer (delta rule and DPFP in the decoder) to translate dates, times,
prices and quantities from English to German, on the CPU, and scores it on sentences whose dates,
times and numbers it has never seen. Sets the environment up first (scripts/setup.sh), then takes
about four minutes. Run it again to go on where it stopped: finished steps are kept.

  --fresh    throw away what is there and start over
  --out DIR  where everything goes (default: runs/demo)

DIR gets {train,valid,test}.{en,de}, hyp.de (the translations), bleu.json (score and signature),
loss.png, checkpoints/, tensorboard/ and a log of every step. OMP_NUM_THREADS sets the number of
threads (default: 1); another number can change the score a little.
EOF
}

say() { printf 'demo: %s\n' "$*"; }
die() {
  printf 'demo: error: %s\n' "$*" >&2
  exit 1
}

out=runs/demo
fresh=0
updates=2000

parse_arguments() {
  while (($#)); do
    case "$1" in
      --fresh) fresh=1 ;;
      --out)
        [[ -n ${2-} ]] || die "--out needs a directory"
        out=$(realpath -m "$2")
        shift
        ;;
      -h | --help)
        usage
        exit
        ;;
      *) die "unknown argument '$1'; --help lists them" ;;
    esac
    shift
  done
}

# Make the output directory. What another version of the demo left there does not count as done.
prepare_directory() {
  local recipe
  recipe=$(cat scripts/demo.sh fairseq_fwm/data/*.py | cksum)
  if [[ $fresh == 1 && -d $out ]]; then
    [[ -e $out/.recipe ]] || die "$out was not made by the demo: remove it yourself if you want to"
    rm -rf "$out"
  fi
  mkdir -p "$out"
  [[ -e $out/.recipe ]] || printf '%s\n' "$recipe" >"$out/.recipe"
  [[ $(cat "$out/.recipe") == "$recipe" ]] ||
    die "$out is from another version of the demo: bash scripts/demo.sh --fresh starts over"
}

# step NAME FUNCTION: run FUNCTION unless it succeeded before.
step() {
  local name=$1 since=$SECONDS
  if [[ -e $out/.$name.done ]]; then
    say "$name: done before"
    return
  fi
  say "$name ..."
  "$2" || die "$name failed, see above and $out/$name.log; run the demo again to go on from here"
  touch "$out/.$name.done"
  say "$name: $((SECONDS - since)) s"
}

# quiet NAME COMMAND...: run COMMAND with all that it prints in NAME.log; show the end if it fails.
quiet() {
  local log=$out/$1.log
  shift
  "$@" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    return 1
  }
}

generate_text() {
  python -m fairseq_fwm.data.phrases --out "$out" --train 40000 --valid 500 --test 1000 \
    >"$out/text.log"
}

cut_into_pieces() {
  quiet pieces python -m fairseq_fwm.data.pieces "$out" --size 1000
}

binarise() {
  rm -rf "${out:?}/bin" # what an interrupted run left
  quiet binarise fairseq-preprocess --source-lang en --target-lang de \
    --trainpref "$out/train.pieces" --validpref "$out/valid.pieces" \
    --testpref "$out/test.pieces" --destdir "$out/bin" --joined-dictionary --workers 2
}

# Two layers a side learn this in half the time of the architecture's four. A sentence has just one
# right translation: no label smoothing, no dropout. Many small updates get further in the same time
# than fewer large ones, and further still when the learning rate ends at 0.
train() {
  fairseq-train "$out/bin" --source-lang en --target-lang de --cpu --user-dir fairseq_fwm \
    --arch fwm_transformer_tiny --encoder-layers 2 --decoder-layers 2 --share-all-embeddings \
    --fwm-decoder-self delta --fwm-feature-map dpfp --fwm-dpfp-nu 1 \
    --criterion cross_entropy --dropout 0 --max-tokens 512 --seed 1 --num-workers 0 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 0.0025 --warmup-updates 250 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" --max-update "$updates" \
    --save-dir "$out/checkpoints" --no-epoch-checkpoints \
    --save-interval-updates 250 --keep-interval-updates 1 \
    --tensorboard-logdir "$out/tensorboard" --log-file "$out/train.log" \
    --log-interval 50 --log-format "$1"
}

# The lines of fairseq's log that tell how the training goes; $1: what to put in front of them.
summarise() {
  local train='.*train_inner.* loss=([0-9.]+),.* wps=([0-9.]+),.* num_updates=([0-9]+),.*'
  local valid='.*valid on.* loss ([0-9.]+) .* num_updates ([0-9]+).*'
  sed -nuE -e "s|$train|$1  update \3 of $updates: loss \1 (\2 tokens/s)|p" \
    -e "s|$valid|$1  update \2 of $updates: loss \1 on the validation set|p"
}

train_visibly() {
  if [[ -t 2 ]]; then
    train tqdm | summarise $'\r\033[K' # over the progress bar
  else
    train simple | summarise ""
  fi
}

translate() {
  fairseq-generate "$out/bin" --source-lang en --target-lang de --cpu --user-dir fairseq_fwm \
    --path "$out/checkpoints/checkpoint_best.pt" --beam 4 --max-tokens 4096 \
    --required-batch-size-multiple 1 \
    --remove-bpe sentencepiece --log-format none >"$out/generate.txt" 2>"$out/translate.log" || {
    tail -n 20 "$out/translate.log" >&2
    return 1
  }
  # fairseq sorts by length; H-NUMBER tells which line of the test set a translation belongs to.
  grep '^H-' "$out/generate.txt" | cut -c 3- | sort -n | cut -f 3 >"$out/hyp.de"
}

score() {
  sacrebleu "$out/test.de" --input "$out/hyp.de" --metrics bleu --width 2 >"$out/bleu.json"
}

draw() {
  quiet draw python scripts/plot_loss.py "$out/tensorboard" --out "$out/loss.png" \
    --title "English to German, decoder with delta rule and DPFP"
}

report() {
  python - "$out" "$SECONDS" <<'EOF'
import json
import sys
from pathlib import Path

out, seconds = Path(sys.argv[1]), int(sys.argv[2])
files = ("test.en", "test.de", "hyp.de")
triples = list(zip(*((out / name).read_text("utf-8").splitlines() for name in files), strict=True))
for english, reference, translation in triples[:: len(triples) // 10][:10]:
    print(f"\n  English    {english}\n  reference  {reference}\n  translated {translation}")
right = sum(reference == translation for _, reference, translation in triples)
bleu = json.loads((out / "bleu.json").read_text("utf-8"))
print(f"\n{right} of {len(triples)} sentences with values never seen in training: exactly right")
print(f"{seconds // 60}:{seconds % 60:02} minutes after set-up; loss curve: {out / 'loss.png'}")
print(f"signature: {bleu['signature']}")
print(f"BLEU = {bleu['score']:.2f}")
EOF
}

main() {
  parse_arguments "$@"
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  bash scripts/setup.sh
  SECONDS=0
  PATH=$(cd "${FWM_VENV:-.venv}/bin" && pwd):$PATH
  # Enough for batches this small. Two threads wait for each other: where other programs want the
  # cores too, they were ten times slower than one.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  # shellcheck source-path=SCRIPTDIR source=keep_memory.sh
  source scripts/keep_memory.sh

  # fairseq's libraries warn of each other's deprecations, two screens of it.
  export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::UserWarning,ignore::FutureWarning}

  prepare_directory
  step text generate_text
  step pieces cut_into_pieces
  step binarise binarise
  step train train_visibly
  step translate translate
  step score score
  step draw draw
  report
}

main "$@"
