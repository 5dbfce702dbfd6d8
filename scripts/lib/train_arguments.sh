# shellcheck shell=bash
# Sourced by scripts that train a VARIANT: their command line. They have variants, variant_flags VARIANT, usage,
# and take, for options of their own.
# shellcheck disable=SC2034,SC2154 # what is set here they read, and the reverse

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

list_variants() {
  local one width=0
  for one in "${variants[@]}"; do ((${#one} < width)) || width=$((${#one} + 1)); done
  for one in "${variants[@]}"; do
    printf '%-*s %s\n' "$width" "$one" "$(variant_flags "$one" | tr '\n' ' ')"
  done
}

whole_number() { # FLAG VALUE
  [[ $2 =~ ^[0-9]+$ ]] || die "$1 must be a whole number, not '$2'"
}

among() { # WORD WORD...: whether the first is one of the others
  local one
  for one in "${@:2}"; do [[ $1 != "$one" ]] || return 0; done
  return 1
}

# parse_training 'OPTION...' 'SWITCH...' ARGUMENT...: set variant, seed, name, data and runs, give the script's
# own options to 'take OPTION VALUE' and its switches to 'take SWITCH'; all else is for fairseq-train, in extra.
parse_training() {
  local options switches
  read -ra options <<<"--seed --name --data --runs $1"
  read -ra switches <<<"$2"
  shift 2
  [[ $# -gt 0 ]] || { usage >&2; die "which VARIANT? One of: ${variants[*]}"; }
  case $1 in
    --list) list_variants; exit ;;
    -h | --help) usage; exit ;;
  esac
  variant=$1
  shift
  among "$variant" "${variants[@]}" || die "unknown variant '$variant'. Valid ones: ${variants[*]}"
  while (($#)); do
    if [[ $1 == -h || $1 == --help ]]; then
      usage
      exit
    elif among "$1" "${switches[@]}"; then
      take "$1"
    elif among "$1" "${options[@]}"; then
      [[ -n ${2:-} ]] || die "$1 needs a value"
      case $1 in
        --seed) whole_number "$@"; seed=$2 ;;
        --name) name=$2 ;;
        --data) data=$(realpath -m "$2") ;;
        --runs) runs=$(realpath -m "$2") ;;
        *) take "$1" "$2" ;;
      esac
      shift
    else
      extra+=("$1")
    fi
    shift
  done
}

# Paths from the project's root: the recorded command can be given again elsewhere.
set_paths() { # sets dir, and data anew
  dir=$(realpath -m --relative-to="$root" "$runs/$name")
  data=$(realpath -m --relative-to="$root" "$data")
}

# For scripts that train on GPUs. They take '--gpus' and '--cpu --print' by take_device.
gpus=1 cpu='' only_print=''

take_device() { # SWITCH, or OPTION VALUE
  case $1 in
    --cpu) cpu=1 ;;
    --print) only_print=1 ;;
    --gpus) whole_number "$@"; gpus=$2 ;;
  esac
}

share_among_gpus() { # COUNT WHAT: how many each GPU gets
  [[ -z $cpu || $gpus == 1 ]] || die "--cpu and --gpus do not go together"
  ((gpus > 0 && $1 % gpus == 0)) || die "--gpus must divide $2, $1; $gpus does not"
  echo $(($1 / gpus))
}

if_only_printed() { # print the command and stop, if that is wanted
  [[ -n $only_print ]] || return 0
  printf '%s\n' "${command[*]@Q}"
  exit
}

train_only() { # a run that is not scored here
  lock_run "$dir"
  train_run "$dir" --variant "$variant" --seed "$seed" -- "${command[@]}" \
    || record diverged "$dir" || exit
  say "done: $dir/checkpoint_best.pt"
}
