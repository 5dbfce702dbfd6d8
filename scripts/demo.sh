#!/usr/bin/env bash
# Generate text, train a fast weight translator on it, translate and score; see --help.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash scripts/demo.sh [--fresh] [--out DIR]
       bash scripts/demo.sh lm [--fresh] [--out DIR]    the same for language models, see lm --help

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

# shellcheck source-path=SCRIPTDIR source=lib/demo_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/demo_common.sh"

out=runs/demo
fresh=0
updates=2000

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
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  if [[ ${1-} == lm ]]; then
    shift
    exec bash scripts/demo_lm.sh "$@"
  fi
  parse_arguments "$@"
  set_up
  prepare_directory scripts/demo.sh fairseq_fwm/data/*.py
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
