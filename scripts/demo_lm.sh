#!/usr/bin/env bash
# Train two small language models on Python's own library, score and compare them; see --help.
set -euo pipefail

usage() {
  cat <<'EOT'
usage: bash scripts/demo.sh lm [--fresh] [--out DIR]

Trains two small language models on the sources of Python's standard library, on the CPU and at
the same time: one with softmax attention, one with the delta rule and DPFP. Prints the perplexity
of both on files that they have not seen; of the fast weights also with a sliding window and with
the state carried through the whole text, in far less time; and lets them go on with a program.
Sets the environment up first (scripts/setup.sh), then takes about five minutes on two cores. Run
it again to go on where it stopped: finished steps are kept.

  --fresh    throw away what is there and start over
  --out DIR  where everything goes (default: runs/demo_lm)

DIR gets data/ (see scripts/prepare_stdlib.sh), softmax/ and delta/ (checkpoints, train.log),
scores/*.json, sample.txt and a log of every step.
EOT
}

# shellcheck source-path=SCRIPTDIR source=lib/demo_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/demo_common.sh"

out=runs/demo_lm
fresh=0
updates=900
segment=128
scored=6000 # tokens of the test files: a sliding window reads them 128 times

# A carried state needs a model without positions; softmax gets fairseq's sinusoids. Both read the
# text in order, in the same batches.
declare -A flags=(
  [softmax]="--fwm-decoder-self softmax --no-carry-over"
  [delta]="--fwm-decoder-self delta --fwm-feature-map dpfp --no-token-positional-embeddings"
)

prepare() {
  quiet data bash scripts/prepare_stdlib.sh --out "$out/data"
}

train() { # MODEL
  # shellcheck disable=SC2086 # several flags
  fairseq-train "$out/data" --cpu --user-dir fairseq_fwm \
    --task streaming_language_modeling --tokens-per-sample "$segment" --batch-size 8 \
    --arch fwm_transformer_lm ${flags[$1]} --decoder-layers 3 --decoder-attention-heads 4 \
    --decoder-embed-dim 128 --decoder-input-dim 128 --decoder-output-dim 128 \
    --decoder-ffn-embed-dim 512 --share-decoder-input-output-embed --dropout 0 \
    --criterion cross_entropy --clip-norm 0.25 --seed 1 --num-workers 0 --disable-validation \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 0.003 --warmup-updates 100 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" --max-update "$updates" \
    --save-dir "$out/$1" --no-epoch-checkpoints \
    --save-interval-updates 300 --keep-interval-updates 1 \
    --log-file "$out/$1/train.log" --log-interval 100 --log-format simple
}

# Both at the same time: one thread each.
train_both() {
  mkdir -p "$out/softmax" "$out/delta"
  train softmax >"$out/softmax/output.log" 2>&1 &
  local softmax=$!
  train delta 2>&1 | tee "$out/delta/output.log" | summarise ""
  wait "$softmax" || {
    tail -n 20 "$out/softmax/output.log" >&2
    return 1
  }
}

score() { # MODEL METHOD
  python scripts/eval_lm.py "$out/$1/checkpoint_last.pt" "$out/data" --method "$2" \
    --length "$segment" --limit "$scored" --json "$out/scores/$1-$2.json"
}

score_all() {
  mkdir -p "$out/scores"
  local run
  for run in "softmax segments" "softmax sliding" "delta segments" "delta sliding" \
    "delta streaming"; do
    # shellcheck disable=SC2086 # two words
    quiet "score-${run/ /-}" score $run
  done
}

sample() {
  python scripts/sample_lm.py "$out/delta/checkpoint_last.pt" "$out/data" --tokens 120 \
    --temperature 0.7 --prompt $'import os\n\ndef read(path):\n    """Return' \
    >"$out/sample.txt" 2>"$out/sample.log"
}

report() {
  python - "$out" "$SECONDS" <<'EOP'
import json
import sys
from pathlib import Path

out, seconds = Path(sys.argv[1]), int(sys.argv[2])
print("\nthe delta model goes on with a program, a step of the same cost for every token:\n")
print("    " + (out / "sample.txt").read_text("utf-8").rstrip().replace("\n", "\n    "))
print(f"\n{'model':10}{'context':12}{'perplexity':>11}{'tokens/s':>10}{'numbers kept a layer':>22}")
for path in sorted((out / "scores").glob("*.json"), reverse=True):
    r = json.loads(path.read_text())
    speed, kept = f"{r['tokens_per_second']:,.0f}", f"{r['state_per_layer']:,}"
    print(f"{path.stem.split('-')[0]:10}{r['method']:12}{r['perplexity']:11.2f}{speed:>10}{kept:>22}")
print(f"\n{r['tokens']:,} tokens of unseen files, contexts of {r['length']} tokens; streaming forgets")
print("nothing but what the state cannot hold.")
print(f"{seconds // 60}:{seconds % 60:02} minutes after set-up; all of it is in {out}")
EOP
}

main() {
  parse_arguments "$@"
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  set_up
  prepare_directory scripts/demo_lm.sh scripts/prepare_stdlib.sh
  step data prepare
  step train train_both
  step score score_all
  step sample sample
  report
}

main "$@"
