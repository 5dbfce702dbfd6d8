#!/usr/bin/env bash
# Make the project's virtual environment and install what is missing; see --help.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash scripts/setup.sh [--force | --help]

Makes the virtual environment .venv and installs fairseq_fwm in it, editable, with the versions
pinned in constraints.txt. Costs nothing when nothing changed; goes on where it was interrupted.

  --force   install again although nothing changed
  --help    this text

Switches (environment variables):
  FWM_VENV         the environment's folder, from the project's (default: .venv)
  FWM_PYTHON       the Python to make it with (default: the first that fits of python3.11,
                   python3.12, python3)
  FWM_TORCH_INDEX  where to take torch from: cpu, cu126, cu130, ... (short for
                   https://download.pytorch.org/whl/NAME), or a full URL
                   (default: pip's own index; PyPI has the CUDA build for Linux, several GB)
  FWM_EXTRAS       parts to install (default: fairseq,demo,data,docs,test)
  FWM_BUILD        compiled kernels: auto (default), 0, cpu, cuda; see setup.py
  PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX and the like are pip's own and work as usual.

A torch >= 2.6 that is already in the environment is kept. If the Python that makes the
environment has one (a CUDA container), the environment is made with --system-site-packages
and uses it. Otherwise torch is installed in the version that constraints.txt names.

The fairseq wheels (ve-fairseq) are for CPython 3.11 and 3.12 on x86-64 Linux with glibc >= 2.28.
Elsewhere: FWM_EXTRAS=data,test bash scripts/setup.sh for the torch-only part (ops, mixers), or
build fairseq's main branch from source in the environment yourself, see docs/install.md.
EOF
}

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: error: %s\n' "$*" >&2
  exit 1
}

force=0
case "${1-}" in
  "") ;;
  --force) force=1 ;;
  -h | --help)
    usage
    exit 0
    ;;
  *) die "unknown argument '$1'; --help lists them" ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=${FWM_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$root/$venv
extras=${FWM_EXTRAS-fairseq,demo,data,docs,test}
python=$venv/bin/python
stamp=$venv/.fwm-setup.stamp
pins=$venv/.fwm-constraints.txt

# What an install depends on. A check sum is enough: this detects edits, not attacks.
fingerprint() {
  {
    printf '%s\n' "$root" "$venv" "$extras" "${FWM_BUILD-}" "${FWM_TORCH_INDEX-}" \
      "${FORCE_CUDA-}" "${TORCH_CUDA_ARCH_LIST-}" "${CUDA_HOME-}" "${CXX-}"
    cat constraints.txt pyproject.toml setup.py scripts/setup.sh
    if [[ -d kernels/csrc ]]; then find kernels/csrc -type f -exec cksum {} + | sort; fi
  } | cksum
}

up_to_date() {
  [[ $force == 0 && -x $python && -f $stamp && "$(cat "$stamp")" == "$(fingerprint)" ]]
}

# Say why the Python $1 cannot be used, or print its real path (version managers put a shim first).
probe() {
  "$1" - "$extras" 2>&1 <<'EOF'
import sys

top = (3, 12) if "fairseq" in sys.argv[1].split(",") else (3, 99)
if not (3, 11) <= sys.version_info[:2] <= top:
    sys.exit(f"is Python {sys.version.split()[0]}")
if sys.prefix == sys.base_prefix:
    try:
        import ensurepip, venv
    except ImportError:
        sys.exit("lacks the venv module, which Debian and Ubuntu pack as python3-venv")
print(sys.executable)
EOF
}

find_python() {
  local candidate answer tried=""
  for candidate in ${FWM_PYTHON:-python3.11 python3.12 python3}; do
    if ! command -v "$candidate" >/dev/null; then
      tried+="; $candidate is not there"
    elif ! "$candidate" -c '' 2>/dev/null; then
      tried+="; $candidate does not start"
    elif answer=$(probe "$candidate"); then
      printf '%s\n' "$answer"
      return
    else
      tried+="; $candidate $answer"
    fi
  done
  die "no fitting Python (${tried#; }): install Python 3.11 or 3.12 with its venv module" \
    "(Debian, Ubuntu: apt install python3.11 python3.11-venv) or set FWM_PYTHON to one"
}

# Fail with the platform's shortcoming if there is no wheel of fairseq for it.
check_platform() {
  [[ ",$extras," == *,fairseq,* ]] || return 0
  local lacking
  lacking=$("$1" - <<'EOF'
import platform, sys

libc, version = platform.libc_ver()
if (sys.platform, platform.machine()) != ("linux", "x86_64"):
    print(platform.system(), platform.machine())
elif libc != "glibc" or tuple(map(int, version.split("."))) < (2, 28):
    print("Linux with", libc or "another C library than glibc", version)
elif sys.implementation.name != "cpython":
    print(sys.implementation.name)
EOF
  )
  [[ -z $lacking ]] || die "no fairseq wheel for $lacking: ve-fairseq has CPython 3.11 and 3.12" \
    "on x86-64 Linux with glibc >= 2.28. FWM_EXTRAS=data,test bash scripts/setup.sh installs the" \
    "torch-only part; docs/install.md tells how to build fairseq from source"
}

# Print the version of torch that the Python $1 has, if it is one that can be kept.
kept_torch() {
  "$1" - <<'EOF'
from importlib.metadata import PackageNotFoundError, version

try:
    found = version("torch")
except PackageNotFoundError:
    raise SystemExit
if tuple(int(part) for part in found.split("+")[0].split(".")[:2]) >= (2, 6):
    print(found)
EOF
}

# Print constraints.txt, with the lines that a kept torch decides replaced by what is installed.
write_pins() {
  "$python" - constraints.txt <<'EOF'
import re, sys
from importlib.metadata import PackageNotFoundError, requires, version

def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None

def key(text):
    return re.split(r"[^\w.-]", text.strip(), maxsplit=1)[0].lower().replace("_", "-")

lines = open(sys.argv[1]).read().splitlines()
torch = installed("torch")
if torch and f"torch=={torch.split('+')[0]}" not in lines:  # another torch has needs of its own
    own = {key(line) for line in requires("torch") or []}
    lines = [line for line in lines if key(line) not in own]
for name in ("torch", "torchaudio"):
    if installed(name):
        lines = [line for line in lines if key(line) != name] + [f"{name}=={installed(name)}"]
print(*lines, sep="\n")
EOF
}

make_venv() {
  local base options=(-m venv)
  base=$(find_python) || exit 1
  check_platform "$base"
  if [[ -n $(kept_torch "$base") ]]; then
    say "using torch $(kept_torch "$base") of $base"
    options+=(--system-site-packages)
  fi
  say "making ${venv#"$root"/} with $("$base" --version)"
  "$base" "${options[@]}" "$venv" ||
    die "python -m venv failed: remove $venv, check the disk's free space and try again"
}

install() {
  local options=(--disable-pip-version-check -c "$pins")
  [[ -t 1 ]] || options+=(--quiet)
  "$python" -m pip install "${options[@]}" "$@" ||
    die "pip failed, its reason is above. Without network, point PIP_FIND_LINKS or PIP_INDEX_URL" \
      "to a folder or mirror with the wheels; if kernels do not compile, FWM_BUILD=0 goes without" \
      "them. Then run this again: it goes on where it stopped"
}

install_torch() {
  local url wanted
  if [[ -n $(kept_torch "$python") ]]; then
    say "keeping torch $(kept_torch "$python")"
    return
  fi
  case "${FWM_TORCH_INDEX-}" in
    "") url="" ;;
    *://* | /*) url=$FWM_TORCH_INDEX ;;
    *) url=https://download.pytorch.org/whl/$FWM_TORCH_INDEX ;;
  esac
  wanted=$(grep '^torch==' constraints.txt)
  say "installing $wanted from ${url:-the package index of pip} (FWM_TORCH_INDEX chooses)"
  install ${url:+--index-url "$url"} "$wanted"
  write_pins >"$pins"
}

main() {
  up_to_date && exit 0

  [[ ! -e $venv || -d $venv ]] || die "FWM_VENV=$venv is a file; name a folder"
  [[ -f $venv/pyvenv.cfg || -f $venv/.fwm-setup.lock || -z $(ls -A "$venv" 2>/dev/null) ]] ||
    die "$venv is there and is no virtual environment: set FWM_VENV to another folder"
  mkdir -p "$venv"
  if command -v flock >/dev/null; then
    exec 9>"$venv/.fwm-setup.lock"
    flock -n 9 || {
      say "waiting for another setup of $venv"
      flock 9
    }
    up_to_date && exit 0
  fi

  rm -f "$stamp"
  [[ ! -e $venv/bin/pip ]] || "$venv/bin/pip" --version >/dev/null 2>&1 ||
    die "$venv is broken or was moved here: remove it and try again"
  "$python" -c 'import pip' 2>/dev/null || make_venv
  probe "$python" >/dev/null || die "$venv $(probe "$python" || true): remove it and try again"
  check_platform "$python"
  write_pins >"$pins"
  say "installing the build tools"
  install 'setuptools>=77' wheel ninja
  install_torch
  say "installing fairseq_fwm${extras:+[$extras]}"
  install --no-build-isolation -e ".${extras:+[$extras]}"
  "$python" -m fairseq_fwm.doctor || die "installed, but something needed is broken: see above"
  fingerprint >"$stamp"
  say "done: $venv"
}

main
