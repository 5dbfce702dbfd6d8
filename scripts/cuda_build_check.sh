#!/usr/bin/env bash
# Build the extension with a CUDA torch and check what can be checked without a GPU; see --help.
set -euo pipefail

usage() {
  cat <<'EOT'
usage: bash scripts/cuda_build_check.sh [--archs LIST] [--torch VERSION] [--dir DIR] [--keep]

Makes an environment with a CUDA build of torch (5.5 GB, in a minute or two), builds the extension
with its CUDA kernels and says how long that takes, and checks without a GPU that
  - it loads, and every causal op has a kernel for CUDA;
  - it holds machine code and PTX for what was asked for;
  - the ops know CUDA tensors (fake ones), and the CPU kernels beside them compute as before.
nvcc is found by CUDA_HOME or the PATH; its version has to be that of torch's CUDA. Nothing of this
checkout changes: everything is under DIR, which is removed at the end unless --keep is given. With
--keep, the next run uses the environment that is there and compiles only what changed.

  --archs LIST     as TORCH_CUDA_ARCH_LIST (default: that variable, or 8.0;9.0+PTX)
  --torch VERSION  of torch (default: 2.14.1, which is built for CUDA 13)
  --dir DIR        where (default: build/cuda_check)
  --keep           leave DIR there

MAX_JOBS=N runs N compilers (default: 2). FWM_PYTHON names the Python (default: python3).
PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and the like are pip's own.
EOT
}

# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

archs=${TORCH_CUDA_ARCH_LIST:-8.0;9.0+PTX}
torch=2.14.1
dir=$root/build/cuda_check
keep=0
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --keep) keep=1 ;;
    --archs | --torch | --dir)
      (($# > 1)) || die "$1 wants a value; --help tells which"
      case $1 in
        --archs) archs=$2 ;;
        --torch) torch=$2 ;;
        *) dir=$2 ;;
      esac
      shift
      ;;
    *) die "unknown argument '$1'; --help lists them" ;;
  esac
  shift
done

own_folder "$dir" "$keep"
python=$dir/venv/bin/python

# timed WHAT COMMAND...: run it and say how long it took, on the clock and of the processors.
timed() {
  local what=$1
  shift
  TIMEFORMAT="cuda_build_check.sh: $what took %R s, %U s of processors in user mode, %S s in the system"
  time "$@"
}

make_environment() {
  [[ -x $python ]] || "${FWM_PYTHON:-python3}" -m venv "$dir/venv"
  "$python" -m pip install --quiet --disable-pip-version-check \
    "torch==$torch" 'setuptools>=77' wheel ninja numpy nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
}

build_extension() {
  # An interrupted build of something else must not count as this one's.
  rm -rf "${dir:?}/lib"
  (
    cd "$root"
    unset FWM_BUILD
    FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$archs MAX_JOBS=${MAX_JOBS:-2} \
      "$python" setup.py --quiet build --build-lib "$dir/lib" --build-temp "$dir/temp"
  ) 2>&1 | sed -E "s|^(\\[[0-9]+/[0-9]+\\]) .* -c $root/(\\S+) -o .*|\\1 \\2|" || return "${PIPESTATUS[0]}"
}

say "commit $(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)," \
  "$(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg)"
say "making an environment with torch $torch in $dir/venv"
timed "the environment" make_environment
say "building for $archs"
timed "the build" build_extension
say "checking"
cd "$dir"
PYTHONPATH=$dir/lib "$python" "$root/scripts/lib/cuda_build_check.py" "$archs"
