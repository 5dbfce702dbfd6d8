# shellcheck shell=bash
# Sourced by other scripts: messages, the Python environment, the memory setting.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
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
  # shellcheck source-path=SCRIPTDIR source=keep_memory.sh
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
