# shellcheck shell=bash
# Sourced by other scripts: messages, the Python environment, the memory setting, trainings.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${FWM_VENV:-$root/.venv} # as scripts/setup.sh

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# use_python MODULE...: the environment that scripts/setup.sh makes, unless one is active already.
use_python() {
  if [[ -z ${VIRTUAL_ENV:-} && -x $venv/bin/python ]]; then
    PATH=$venv/bin:$PATH
  fi
  local missing
  if ! missing=$(missing_modules "$@") && [[ -f $root/scripts/setup.sh && -z ${VIRTUAL_ENV:-} ]]
  then
    say "setting up the Python environment (missing: ${missing:-python})"
    bash "$root/scripts/setup.sh"
    PATH=$venv/bin:$PATH
  fi
  missing=$(missing_modules "$@") || die "this Python lacks: ${missing:-an interpreter}." \
    "Run 'bash scripts/setup.sh', or pip install them into the active environment."
  # shellcheck source-path=SCRIPTDIR source=../keep_memory.sh
  source "$root/scripts/keep_memory.sh"
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
}

missing_modules() {
  python - "$@" <<'PYTHON'
import sys
from importlib.util import find_spec

missing = [name for name in sys.argv[1:] if find_spec(name) is None]
print(*missing)
sys.exit(bool(missing))
PYTHON
}

processes() { # the cores, at most 8: more of them wait for the disk
  local cores
  cores=$(nproc 2>/dev/null || echo 1)
  echo $((cores < 8 ? cores : 8))
}

# own_folder DIR KEEP: make a folder that this script alone uses, removed at the end unless KEEP is 1.
own_folder() {
  local mark=.fwm-${0##*/}
  mkdir -p "$1"
  dir=$(cd "$1" && pwd)
  [[ -f $dir/$mark || -z $(ls -A "$dir") ]] ||
    die "$dir is there and was not made by this script: name another folder with --dir"
  touch "$dir/$mark"
  if [[ $2 == 0 ]]; then trap 'rm -rf "$dir"' EXIT; fi
}

# lock_run DIR: make a run's directory and keep other processes away from it.
lock_run() {
  mkdir -p "$1"
  if type flock &>/dev/null; then
    exec 9>"$1/.lock"
    flock --nonblock 9 || die "$1 is being trained by another process"
  fi
}

record() { python "$root/scripts/lib/run_record.py" "$@"; }

# train_run DIR FLAG... -- COMMAND...: run a command that trains into DIR, or go on with it, unless it
# has come to its end; FLAGs go to 'run_record.py begin'. Returns with an error if the training does.
# What launches it elsewhere, if anything, is in the array launcher, with flags of its own in launched.
launcher=() launched=()
train_run() {
  local dir=$1 about=() state=0
  shift
  while [[ $1 != -- ]]; do
    about+=("$1")
    shift
  done
  shift
  record begin "$dir" "${about[@]}" -- "$@" || exit
  record finished "$dir" || state=$?
  case $state in
    0) say "training: already finished in $dir"; return ;;
    3) ;;
    *) die "cannot read the state of $dir (see above)" ;;
  esac
  say "training; log: $dir/train.log"
  printf '\n=== %s: %s\n' "$(date -u +%FT%TZ)" "${*@Q}" >>"$dir/train.log"
  "${launcher[@]}" "$@" "${launched[@]}" 2>&1 | tee -a "$dir/train.log" && record end "$dir"
}
