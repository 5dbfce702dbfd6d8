# shellcheck shell=bash
# Sourced by the prepare_*.sh scripts of translation corpora. They say what a corpus is; what all of
# them share is here and in mt_files.py.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# prepare_mt FACT... -- ARGUMENT...: make the data that a script's arguments ask for. Facts:
#   --name NAME --title TEXT --licence TEXT --bpe-codes N --max-length N --max-ratio R
#   --usage TEXT   lines of --help about the text and what is done to it
# and flags of mt_files.py.
prepare_mt() {
  local -A about=()
  local facts=() wishes=() form=moses-bpe
  while [[ $1 != -- ]]; do
    case $1 in
      --title | --usage) about[${1#--}]=$2; shift 2 ;;
      --name | --licence | --bpe-codes | --max-length | --max-ratio)
        about[${1#--}]=$2 facts+=("$1" "$2"); shift 2 ;;
      *) facts+=("$1"); shift ;;
    esac
  done
  shift
  while (($#)); do
    case $1 in
      -h | --help) mt_usage; exit ;;
      --tokenised | --no-verify) wishes+=("$1"); shift ;;
      --form | --from | --out | --bpe-codes | --max-length | --max-ratio | --carve | --workers)
        [[ -n ${2-} ]] || die "$1 needs a value"
        [[ $1 != --form ]] || form=$2
        wishes+=("$1" "$2")
        shift 2
        ;;
      *) mt_usage >&2; die "unknown argument: $1" ;;
    esac
  done
  case $form in
    moses-bpe) use_python fairseq sacrebleu sacremoses subword_nmt tqdm ;;
    sentencepiece) use_python fairseq sacrebleu sentencepiece tqdm ;;
    *) die "--form must be moses-bpe or sentencepiece, not '$form'" ;;
  esac
  python "$root/scripts/lib/mt_files.py" "${facts[@]}" --workers "$(processes)" \
    --out "$(default_out "$form")" "${wishes[@]}" # the last of two equal flags counts
}

default_out() { # FORM
  local suffix=''
  [[ $1 != sentencepiece ]] || suffix=_sp
  echo "$root/data/${about[name]}$suffix"
}

mt_usage() {
  cat <<TEXT
Usage: bash scripts/prepare_${about[name]}.sh [OPTIONS]

Makes a fairseq data directory of
${about[title]}.
licence: ${about[licence]}

${about[usage]}

  --form FORM      moses-bpe (default): words by Moses's rules (sacremoses), joint BPE
                   sentencepiece: raw text, joint SentencePiece model
  --from DIR       take the files from DIR, or a folder in it, instead of downloading them: the
                   archives, or the files in them (plain or .gz); or text of your own, raw,
                   {train,valid,test}.LANG (plain or .gz)
  --tokenised      text of your own is split into words and escaped as by Moses already
  --carve N        take valid and test out of train, N pairs each, evenly spaced
  --bpe-codes N    number of BPE merges, or of SentencePiece's pieces (default ${about[bpe-codes]})
  --max-length N   drop training pairs with more tokens on a side (default ${about[max-length]})
  --max-ratio R    drop those with R times as many on one side (default ${about[max-ratio]})
  --no-verify      accept archives that differ from the published ones
  --out DIR        where to write (default data/${about[name]}, or data/${about[name]}_sp)
  --workers N      number of processes (default: the cores, at most 8)

Writes: DIR/dict.*.txt and {train,valid,test}.*.{bin,idx} (binarised, one dictionary for both
languages), text/ (the pieces, with bpe_codes or sentencepiece.model), ref/{valid,test}.detok.LANG
and .tok.LANG (references), data.json (sizes, checksums, versions); raw/, words/ and split/ are
what it went on from. Run it again to go on where it stopped; what is there is checked and kept.
TEXT
}
