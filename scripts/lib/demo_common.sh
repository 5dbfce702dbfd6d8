#!/usr/bin/env bash
# What the demos share: arguments, resumable steps, logs. Sourced, with these set before:
#   out      default output directory
#   updates  of a training
#   fresh=0  and the function usage

say() { printf 'demo: %s\n' "$*"; }
die() {
  printf 'demo: error: %s\n' "$*" >&2
  exit 1
}

parse_arguments() { # sets out and fresh
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

# prepare_directory FILE...: make the output directory. What other versions of these files left
# there does not count as done.
prepare_directory() {
  local recipe
  recipe=$(cat "$@" | cksum)
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

# The lines of fairseq's log that tell how the training goes; $1: what to put in front of them.
# shellcheck disable=SC2154 # updates, see above
summarise() {
  local train='.*train_inner.* loss=([0-9.]+),.* wps=([0-9.]+),.* num_updates=([0-9]+),.*'
  local valid='.*valid on.* loss ([0-9.]+) .* num_updates ([0-9]+).*'
  sed -nuE -e "s|$train|$1  update \3 of $updates: loss \1 (\2 tokens/s)|p" \
    -e "s|$valid|$1  update \2 of $updates: loss \1 on the validation set|p"
}

# Everything that a demo runs with: the environment, threads, kept memory, no foreign warnings.
set_up() {
  bash scripts/setup.sh
  SECONDS=0
  PATH=$(cd "${FWM_VENV:-.venv}/bin" && pwd):$PATH
  # Enough for batches this small. Two threads wait for each other: where other programs want the
  # cores too, they were ten times slower than one.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  # shellcheck source-path=SCRIPTDIR source=../keep_memory.sh
  source scripts/keep_memory.sh
  # fairseq's libraries warn of each other's deprecations, two screens of it.
  export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::UserWarning,ignore::FutureWarning}
}
