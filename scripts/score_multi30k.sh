#!/usr/bin/env bash
# Average, translate and score a training run on Multi30k.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
  cat <<'TEXT'
Usage: bash scripts/score_multi30k.sh RUN [--data DIR] [--average N]

Averages the last N epoch checkpoints of RUN (default 10), translates test 2016 with beam 5 and
scores it: average.pt, gen.out, hyp.tok.de, hyp.detok.de, ref.tok.de and result.json in RUN.
Steps whose output is newer than its input are skipped.

  --data DIR   what prepare_multi30k.sh wrote (default runs/multi30k/data-bin)
  --average N  how many of the last epochs to average
TEXT
}

[[ $# -gt 0 ]] || { usage >&2; die "which RUN?"; }
case $1 in -h | --help) usage; exit ;; esac
run=$1 data=$root/runs/multi30k/data-bin average=10
shift
while (($#)); do
  case $1 in
    --data | --average)
      [[ -n ${2:-} ]] || die "$1 needs a value"
      case $1 in --data) data=$2 ;; --average) average=$2 ;; esac
      shift 2
      ;;
    -h | --help) usage; exit ;;
    *) usage >&2; die "unknown argument: $1" ;;
  esac
done
[[ -f $run/checkpoint_last.pt ]] || die "$run holds no checkpoint_last.pt: train first"
[[ -f $data/data.json ]] \
  || die "$data holds no prepared data: run 'bash scripts/prepare_multi30k.sh' first"
use_python fairseq sacremoses sacrebleu torch tqdm

if [[ $run/average.pt -nt $run/checkpoint_last.pt ]]; then
  say "averaging: already done"
else
  say "averaging the last $average epoch checkpoints"
  python "$root/scripts/average_checkpoints.py" --inputs "$run" \
    --num-epoch-checkpoints "$average" --output "$run/average.pt"
fi
if [[ $run/gen.out -nt $run/average.pt ]]; then
  say "translating: already done"
else
  say "translating test 2016"
  # The batch size multiple: fairseq drops a last batch that is no multiple of it (default 8).
  fairseq-generate "$data" -s en -t de --user-dir "$root/fairseq_fwm" \
    --path "$run/average.pt" --gen-subset test --beam 5 --remove-bpe --batch-size 128 \
    --required-batch-size-multiple 1 --log-format simple --log-interval 1 \
    2>&1 >"$run/.gen.out.tmp" | tee "$run/gen.log"
  mv "$run/.gen.out.tmp" "$run/gen.out"
fi
python "$root/scripts/lib/multi30k_run.py" "$run" --data "$data"
