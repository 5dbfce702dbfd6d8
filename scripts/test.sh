#!/usr/bin/env bash
# Set up if needed, then run every check and the tests; see --help.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash scripts/test.sh [--all] [PYTEST ARGUMENTS]

Sets the environment up (scripts/setup.sh), checks style (ruff) and shell scripts (shellcheck) and
runs the tests on two processes. Everything runs even if an earlier check failed; the exit status
is 0 only if all of them passed.

  --all   also the tests marked slow (builds, trainings)

Other arguments go to pytest, such as -k delta, -x or tests/test_doctor.py.
FWM_TEST_PROCESSES=N runs the tests on N processes (default: 2).
EOF
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
slow=0
# Tests marked with one xdist_group run in one process: what they share is made once.
arguments=(-n "${FWM_TEST_PROCESSES:-2}" --dist loadgroup)
for argument in "$@"; do
  case "$argument" in
    -h | --help)
      usage
      exit 0
      ;;
    --all) slow=1 ;;
    *) arguments+=("$argument") ;;
  esac
done
[[ $slow == 1 ]] || arguments=(-m "not slow" "${arguments[@]}")

bash scripts/setup.sh
bin=${FWM_VENV:-.venv}/bin
failed=()
check() {
  local name=$1
  shift
  if "$@"; then printf 'ok      %s\n' "$name"; else failed+=("$name"); fi
}

shellcheck=$bin/shellcheck
[[ -x $shellcheck ]] || shellcheck=shellcheck # in a container's own site-packages
check "ruff check" "$bin/python" -m ruff check --no-cache --quiet .
check "ruff format" "$bin/python" -m ruff format --quiet --check .
check "shellcheck" "$shellcheck" scripts/*.sh scripts/lib/*.sh .ci/run

# One thread a process: two processes share two cores, and a float sum does not depend on the host.
export OMP_NUM_THREADS=1
# pytest leaves with 5 if it found no test: that is a failure too.
"$bin/python" -m pytest "${arguments[@]}" || failed+=("pytest (exit status $?)")

if ((${#failed[@]})); then
  printf 'FAILED  %s\n' "${failed[@]}" >&2
  exit 1
fi
