#!/usr/bin/env bash
# Multi30k task 1, English to German: fetch, check, tokenise, BPE, binarise.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
  cat <<'TEXT'
Usage: bash scripts/prepare_multi30k.sh [--form FORM] [--from DIR] [--raw DIR] [--out DIR]
                                        [--no-verify] [--bpe-codes N] [--workers N]

Makes a fairseq data directory of Multi30k (task 1, English to German, test 2016).

  --form FORM  moses-bpe (default): lower case, words by Moses's rules, 10,000 joint BPE merges
               sentencepiece: raw text, joint SentencePiece model of 10,000 pieces; --from names
               the raw files. The rest is as for scripts/prepare_wmt14_ende.sh
  --from DIR   take the files from DIR instead of downloading them: either the raw files
               ({train,val,test_2016_flickr}.{en,de}) or the lower-cased, tokenised, BPE'd ones
               ({train,valid,test.2016}.{en,de}, bpe_codes), each plain or .gz
  --raw DIR    with a BPE'd --from: also take the raw test_2016_flickr.de from DIR, to score
               detokenised output against the published text
  --out DIR    where to write (default runs/multi30k/data-bin, or runs/multi30k/data-bin-sp)
  --no-verify  accept files that differ from the published ones
  --bpe-codes N, --workers N  number of pieces and of processes (sentencepiece)

Writes: DIR/dict.*.txt and *.bin, *.idx (binarised), text/ (BPE'd text and bpe_codes),
ref/test.tok.de and ref/test.detok.de (references), data.json (what the references are).
Run it again to go on where it stopped. MULTI30K_URL names another mirror of the raw files.
TEXT
}

url=${MULTI30K_URL:-https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw}
from='' raw_from='' out='' form=moses-bpe verify=() wishes=()
while (($#)); do
  case $1 in
    --form | --bpe-codes | --workers)
      [[ -n ${2:-} ]] || die "$1 needs a value"
      case $1 in --form) form=$2 ;; *) wishes+=("$1" "$2") ;; esac
      shift 2
      ;;
    --from | --raw | --out)
      [[ -n ${2:-} ]] || die "$1 needs a directory"
      case $1 in
        --from) from=$2 ;;
        --raw) raw_from=$2 ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    --no-verify) verify=(--no-verify); shift ;;
    -h | --help) usage; exit ;;
    *) usage >&2; die "unknown argument: $1" ;;
  esac
done
case $form in
  moses-bpe) modules=(sacremoses subword_nmt) suffix='' ;;
  sentencepiece) modules=(sentencepiece) suffix=-sp ;;
  *) die "--form must be moses-bpe or sentencepiece, not '$form'" ;;
esac
[[ $form == sentencepiece || ${#wishes[@]} -eq 0 ]] \
  || die "${wishes[0]} goes with --form sentencepiece: the merges of moses-bpe are the published ones"
[[ $form == moses-bpe || -z $raw_from ]] || die "--raw goes with a BPE'd --from"
out=${out:-$root/runs/multi30k/data-bin$suffix}

files() { python "$root/scripts/lib/multi30k_files.py" "$@"; }

encode() { # raw text -> tokenised -> BPE'd, in $out/text
  say "tokenising (lower case, Moses)"
  files tokenise "$out/raw" "$work/tok"
  say "learning 10,000 joint BPE merges"
  subword-nmt learn-joint-bpe-and-vocab --symbols 10000 \
    --input "$work"/tok/train.{en,de} --output "$work/text/bpe_codes" \
    --write-vocabulary "$work"/vocab.{en,de}
  local name
  for name in {train,valid,test.2016}.{en,de}; do
    say "applying BPE to $name"
    subword-nmt apply-bpe --codes "$work/text/bpe_codes" \
      --input "$work/tok/$name" --output "$work/text/$name"
  done
  files check "$work/text" --form bpe "${verify[@]}"
  rm -rf "$out/text"
  mv "$work/text" "$out/text"
}

take_text() { # fills $out/text from --from or the network
  local form=raw
  if [[ -n $from ]]; then
    form=$(files form "$from")
  else
    from=$out/download
    say "downloading from $url, unless the files are there"
    files fetch "$url" "$from"
  fi
  say "checking the $form files in $from"
  if [[ $form == bpe ]]; then
    files take "$from" "$work/text" --form bpe "${verify[@]}"
    files check "$work/text" --form bpe "${verify[@]}"
    rm -rf "$out/text"
    mv "$work/text" "$out/text"
  else
    if ! files take "$from" "$out/raw" --form raw "${verify[@]}"; then
      rm -rf "$out/download" # so that the next run fetches afresh
      exit 1
    fi
    files check "$out/raw" --form raw "${verify[@]}"
    encode
  fi
}

binarise() {
  say "binarising with fairseq-preprocess"
  fairseq-preprocess -s en -t de --joined-dictionary --destdir "$work/bin" \
    --trainpref "$out/text/train" --validpref "$out/text/valid" \
    --testpref "$out/text/test.2016"
  mv "$work"/bin/* "$out/"
  touch "$out/.binarised"
}

make_pieces() { # the sentencepiece form: the raw files, checked, as text of one's own
  if [[ ! -f $out/data.json ]]; then
    if [[ -z $from ]]; then
      from=$out/download
      say "downloading from $url, unless the files are there"
      files fetch "$url" "$from"
    fi
    say "checking the raw files in $from"
    files take "$from" "$work/text" --form raw "${verify[@]}"
    local lang
    for lang in en de; do
      mv "$work/text/test_2016_flickr.$lang" "$work/text/test.$lang"
    done
  fi
  python "$root/scripts/lib/mt_files.py" --name multi30k --langs en de --form sentencepiece \
    --licence "for research (captions of Flickr30k's pictures)" --from "$work/text" --out "$out" \
    --max-length 250 --max-ratio 1000 --bpe-codes 10000 --workers "$(processes)" "${wishes[@]}"
}

use_python fairseq "${modules[@]}" tqdm
mkdir -p "$out"
work=$out/.work
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work/text" "$work/tok"

if [[ $form == sentencepiece ]]; then
  make_pieces
  exit
fi
if [[ -n $from && -f $out/data.json ]]; then
  files form "$from" >/dev/null # a wrong --from is an error even when there is nothing to do
fi
if [[ -d $out/text ]] && files check "$out/text" --form bpe "${verify[@]}"; then
  say "text: already in $out/text"
else
  rm -f "$out/.binarised"
  take_text
fi
if [[ -n $raw_from ]]; then
  files take-reference "$raw_from" "$out/raw" "${verify[@]}"
fi
if [[ -f $out/.binarised ]]; then
  say "binarised: already in $out"
else
  binarise
fi
files references "$out/text" "$out/raw" "$out"
say "done: $out"
