#!/usr/bin/env bash
# Build the sdist and the wheel, and try them where there is torch and no fairseq; see --help.
set -euo pipefail

usage() {
  cat <<'EOT'
usage: bash scripts/wheel_check.sh [--dir DIR] [--keep]

Makes an environment with torch and without fairseq, builds the sdist and from it the wheel
(python -m build), and checks that
  - the sdist installs there, with its compiled kernels where a compiler is;
  - without a compiler it installs as pure Python, says why, and passes the doctests and the tests
    of modules and trained models;
  - the wheel installs, with its kernels;
  - the library's doctests and its part of the test suite pass on what is installed.
Nothing of this checkout changes: everything is under DIR, which is removed at the end unless --keep
is given; then the sdist and the wheel are left in DIR/dist.

  --dir DIR   where (default: build/wheel_check)
  --keep      leave DIR there

FWM_PYTHON names the Python (default: python3). PIP_INDEX_URL and the like are pip's own.
EOT
}

# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

dir=$root/build/wheel_check
keep=0
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --keep) keep=1 ;;
    --dir)
      (($# > 1)) || die "$1 wants a value; --help tells which"
      dir=$2
      shift
      ;;
    *) die "unknown argument '$1'; --help lists them" ;;
  esac
  shift
done

own_folder "$dir" "$keep"
python=$dir/venv/bin/python
pip=("$python" -m pip --quiet --disable-pip-version-check)

say "making an environment with torch and without fairseq"
[[ -x $python ]] || "${FWM_PYTHON:-python3}" -m venv "$dir/venv"
"${pip[@]}" install --constraint "$root/constraints.txt" \
  torch numpy build setuptools wheel ninja safetensors pytest pytest-xdist hypothesis tqdm

say "building the sdist and the wheel"
rm -rf "${dir:?}/dist" "${dir:?}/sdist"
(cd "$root" && FWM_BUILD=cpu "$python" -m build --no-isolation --outdir "$dir/dist" .) >"$dir/build.log" 2>&1 ||
  { tail -n 30 "$dir/build.log" >&2; die "the build failed: $dir/build.log"; }
ls -l "$dir/dist"
sdist=("$dir"/dist/*.tar.gz)

mkdir "$dir/sdist"
tar -xzf "${sdist[0]}" -C "$dir/sdist" --strip-components=1
rm -r "$dir/sdist/fairseq_fwm" # the installed package is the one to test
export OMP_NUM_THREADS=1

install() { "${pip[@]}" install --no-deps --force-reinstall "$@"; }

library_tests() { # FILE...: tests of what is installed
  (cd "$dir/sdist" && "$python" -m pytest --quiet -n 2 -m "not slow" "$@")
}

compiled() {
  (cd "$dir" && "$python" -c '
import importlib.util
import fairseq_fwm
assert importlib.util.find_spec("fairseq") is None, "fairseq is here"
assert fairseq_fwm.kernels_status()["extension"], fairseq_fwm.kernels_status()
print("ok      compiled kernels in", fairseq_fwm.__file__)
')
}

say "the sdist without a compiler"
CXX=no-such-compiler install --no-build-isolation "${sdist[0]}"
(cd "$dir" && "$python" -c '
import fairseq_fwm
status = fairseq_fwm.kernels_status()
assert not status["extension"], status
print("ok      pure Python:", status["reason"])
')
library_tests tests/test_doctests.py tests/test_nn.py tests/test_trained_models.py \
  tests/test_pytorch_forms.py

say "the wheel"
install "$dir"/dist/*.whl
compiled

say "the sdist with its kernels"
FWM_BUILD=cpu install --no-build-isolation "${sdist[0]}"
compiled
library_tests tests/test_doctests.py tests/test_nn.py tests/test_ops.py tests/test_kernels.py \
  tests/test_feature_maps.py tests/test_mixers.py tests/test_recall.py tests/test_recurrent_ops.py \
  tests/test_recurrent_mixers.py tests/test_trained_models.py tests/test_inspection.py \
  tests/test_fla.py tests/test_interop.py
say "all checks passed"
