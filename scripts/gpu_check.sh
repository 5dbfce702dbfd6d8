#!/usr/bin/env bash
# On a machine with a GPU: build, test, sanitize, measure, and write one report; see --help.
set -euo pipefail

STEPS=(machine build tests memcheck racecheck synccheck benchmark report)
usage() {
  cat <<'EOT'
usage: bash scripts/gpu_check.sh [--steps LIST] [--dir DIR] [--page FILE] [--quick] [--dry-run]

Everything that can only be known on a GPU, on one of compute capability 8.0 or later (A100, RTX 30,
L4, H100, ...). The steps, in this order:

  machine    GPU, driver, torch, and what the doctor says
  build      compile the extension for this GPU (FWM_BUILD=cuda) and install it, editable
  tests      the tests of the CUDA kernels with FWM_TEST_CUDA_IMPL=cuda, then all others
  memcheck   some of them under compute-sanitizer: accesses out of bounds, misaligned
  racecheck  the same: races in shared memory
  synccheck  the same: barriers that not all threads reach
  benchmark  scripts/benchmark_cuda.py against flash-linear-attention, if installed, and SDPA
  report     all of it as one page

A step whose log is there from the same commit and GPU is not repeated, so that an interrupted check
goes on; --force repeats. A step that fails does not stop the others; the exit status is 0 only if
none failed. Without compute-sanitizer (of the CUDA toolkit) its steps are skipped, saying so.

  --steps LIST  only these, with commas
  --dir DIR     logs and measurements (default: runs/gpu_check)
  --page FILE   the report (default: docs/results/gpu.md)
  --quick       few tests, few and short benchmark cases
  --force       repeat what was done
  --dry-run     print the commands, run nothing; needs no GPU

The Python environment: the active one, else .venv (FWM_VENV), which scripts/setup.sh makes; its
torch has to be a CUDA build: FWM_TORCH_INDEX=cu130 bash scripts/setup.sh. For the peers:
pip install flash-linear-attention.
EOT
}

# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

chosen=("${STEPS[@]}")
dir=$root/runs/gpu_check
page=$root/docs/results/gpu.md
quick=0 force=0 dry=0
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --quick) quick=1 ;;
    --force) force=1 ;;
    --dry-run) dry=1 ;;
    --steps | --dir | --page)
      (($# > 1)) || die "$1 wants a value; --help tells which"
      case $1 in
        --steps) IFS=, read -ra chosen <<<"$2" ;;
        --dir) dir=$2 ;;
        *) page=$2 ;;
      esac
      shift
      ;;
    *) die "unknown argument '$1'; --help lists them" ;;
  esac
  shift
done
for step in "${chosen[@]}"; do
  [[ " ${STEPS[*]} " == *" $step "* ]] || die "no step '$step': choose of ${STEPS[*]}"
done

# What a sanitizer, which slows everything down a hundred times, is given of the tests.
few=(-k "sizes or option or layout or gather")
cases=()
if [[ $quick == 1 ]]; then
  few=(-k "odd_sizes")
  cases=(--steps 256 1024 --sizes 64 --rounds 5)
fi

# The tests of the kernels: those that tests/cuda_impl.py makes run on a GPU.
kernel_tests() { (cd "$root" && grep -lE '^(from|import) cuda_impl' tests/test_*.py); }

sanitizer() {
  local home folder
  home=$(python "$root/scripts/lib/cuda_home.py" 2>/dev/null) || home=
  for folder in "" "${home:+$home/bin/}" "${home:+$home/compute-sanitizer/}"; do
    if command -v "${folder}compute-sanitizer"; then return; fi
  done
  return 1
}

# run NAME=VALUE... COMMAND...: in the project's folder, or only print it.
run() {
  if [[ $dry == 1 ]]; then
    printf ' %q' "$@"
    echo
  else
    (cd "$root" && env "$@")
  fi
}

step_machine() {
  run nvidia-smi
  run python -m fairseq_fwm.doctor
}
step_build() {
  local capability='GPU_CAPABILITY'
  [[ $dry == 1 ]] || capability=$(python - <<'PYTHON'
import torch

print(".".join(map(str, torch.cuda.get_device_capability())))
PYTHON
  )
  run FWM_BUILD=cuda "TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}" \
    bash -c "time python -m pip install --no-build-isolation --no-deps -e ."
}
step_tests() {
  local files failed=0
  mapfile -t files < <(kernel_tests)
  run FWM_TEST_CUDA_IMPL=cuda python -m pytest "${files[@]}" || failed=1
  if [[ $quick == 0 ]]; then
    run python -m pytest -m 'not slow' "${files[@]/#/--ignore=}" tests || failed=1
  fi
  return $failed
}
sanitize() {
  local tool=$1 files checker
  mapfile -t files < <(kernel_tests)
  checker=$(sanitizer) || checker=compute-sanitizer
  # Every tensor an allocation of its own, or an access beyond it would hit another tensor's memory.
  run FWM_TEST_CUDA_IMPL=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$checker" --tool "$tool" --error-exitcode 9 --launch-timeout 600 \
    python -m pytest -x "${few[@]}" "${files[@]}"
}
step_memcheck() { sanitize memcheck; }
step_racecheck() { sanitize racecheck; }
step_synccheck() { sanitize synccheck; }
step_benchmark() {
  run python scripts/benchmark_cuda.py --json "$dir/benchmark.json" "${cases[@]}"
}

# perform STEP: unless it is done; its log tells its status in the last line.
perform() {
  local step=$1 log=$dir/$1.log status=0
  if [[ $dry == 1 ]]; then
    say "$step would run"
    "step_$step"
    return
  fi
  if [[ $force == 0 && -f $log && "$(head -1 "$log")" == "$stamp" ]] &&
    tail -1 "$log" | grep -q '^status 0'; then
    say "$step: done before, see $log"
    return
  fi
  if [[ $step == *check ]] && ! sanitizer >/dev/null; then
    say "$step: skipped, there is no compute-sanitizer (install the CUDA toolkit's)"
    printf '%s\nno compute-sanitizer here\nstatus skipped\n' "$stamp" >"$log"
    return
  fi
  say "$step; log: $log"
  printf '%s\n' "$stamp" >"$log"
  "step_$step" 2>&1 | tee -a "$log" || status=${PIPESTATUS[0]}
  printf 'status %s, %s\n' "$status" "$(date -u +%FT%TZ)" >>"$log"
  [[ $status == 0 ]] || failed+=("$step")
}

if [[ $dry == 0 ]]; then
  if ! nvidia-smi -L >/dev/null 2>&1; then
    say "no GPU here (nvidia-smi finds none). On a machine with one, this would run: ${chosen[*]}." \
      "'--help' tells what they do, '--dry-run' shows their commands." >&2
    exit 3
  fi
  use_python torch pytest tqdm
  python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    die "torch finds no GPU: 'python -m fairseq_fwm.doctor' tells why." \
      "A CUDA build of torch: FWM_TORCH_INDEX=cu130 bash scripts/setup.sh in a new environment"
  mkdir -p "$dir"
  stamp="commit $(git -C "$root" describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
  stamp+=" on $(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)"
fi

failed=()
for step in "${chosen[@]}"; do
  [[ $step == report ]] || perform "$step"
done
if [[ " ${chosen[*]} " == *" report "* ]]; then
  [[ $dry == 0 ]] || say "report would run"
  run python scripts/lib/gpu_report.py "$dir" --page "$page"
fi
if ((${#failed[@]})); then die "failed: ${failed[*]}; see the logs in $dir"; fi
