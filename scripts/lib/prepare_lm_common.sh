# shellcheck shell=bash
# Sourced by the prepare_*.sh scripts of language modelling corpora. They say what a corpus is; what
# all of them share is here and in lm_files.py.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# prepare_lm FACT... -- ARGUMENT...: make the data that a script's arguments ask for. Facts:
#   --name NAME --licence TEXT [--url URL]   URL: the directory of the files, if there are any
#   --title TEXT                             for --help
#   [--switch FLAG | --value FLAG]           another flag, alone or with a value
#   [--usage TEXT]                           lines of --help for that flag
# and flags of lm_files.py.
prepare_lm() {
  local -A about=()
  local facts=() wishes=()
  while [[ $1 != -- ]]; do
    case $1 in
      --name | --licence | --url) about[${1#--}]=$2; facts+=("$1" "$2"); shift 2 ;;
      --title | --switch | --value | --usage) about[${1#--}]=$2; shift 2 ;;
      *) facts+=("$1"); shift ;;
    esac
  done
  shift
  while (($#)); do
    if [[ $1 == -h || $1 == --help ]]; then
      lm_usage
      exit
    elif one_of "$1" --no-verify "${about[switch]-}"; then
      wishes+=("$1")
      shift
    elif one_of "$1" --from --out --workers "${about[url]+--url}" "${about[value]-}"; then
      [[ -n ${2-} ]] || die "$1 needs a value"
      wishes+=("$1" "$2")
      shift 2
    else
      lm_usage >&2
      die "unknown argument: $1"
    fi
  done
  use_python fairseq numpy sentencepiece tqdm
  python "$root/scripts/lib/lm_files.py" "${facts[@]}" --out "$root/data/${about[name]}" \
    --workers "$(processes)" "${wishes[@]}" # the last of two equal flags counts
}

one_of() { # ARGUMENT FLAG...
  local flag
  for flag in "${@:2}"; do
    [[ -n $flag && $1 == "$flag" ]] && return
  done
  return 1
}

lm_usage() {
  printf 'Usage: bash scripts/prepare_%s.sh [OPTIONS]\n\n' "${about[name]}"
  printf 'Makes a fairseq data directory of\n%s.\n' "${about[title]}"
  printf 'licence: %s\n' "${about[licence]}"
  if [[ -n ${about[url]-} ]]; then
    cat <<TEXT
from:    ${about[url]}

  --from DIR   take the files from DIR instead of downloading them: the archive, or the text files
               (plain or .gz), in DIR or one folder below
  --url URL    download the files from this directory
  --no-verify  accept files that differ from the published ones
TEXT
  else
    printf '\n  --from DIR   take the files from DIR (default: where this Python has its library)\n'
  fi
  [[ -z ${about[usage]-} ]] || printf '%s\n' "${about[usage]}"
  cat <<TEXT
  --out DIR    where to write (default data/${about[name]})
  --workers N  number of processes (default: the cores, at most 8)

Writes: DIR/dict.txt and {train,valid,test}.{bin,idx} (binarised), text/ (the text of each split),
data.json (sizes, checksums, versions). Run it again to go on where it stopped; what is there is
checked and kept. 'python scripts/lib/lm_tokens.py DIR SPLIT' prints a binarised split as text.
TEXT
}
