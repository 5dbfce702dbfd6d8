"""The kernels neither read nor write outside their buffers, and rely on nothing undefined."""

import os
import shutil
import subprocess

import pytest

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = ["-std=c++17", "-O0", "-g1", "-w", *SANITIZE]


@pytest.fixture(scope="module")
def program(root, tmp_path_factory):
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler {compiler}")
    sources = [*(root / "kernels/csrc/cpu").glob("*.cpp"), root / "tests/kernels_sanitized.cpp"]
    out = tmp_path_factory.mktemp("sanitized") / "kernels"
    include = f"-I{root / 'kernels/csrc'}"
    done = subprocess.run(
        [compiler, *FLAGS, include, *map(str, sources), "-o", str(out)],
        capture_output=True,
        text=True,
    )
    if "cannot find -lasan" in done.stderr:
        pytest.skip("this compiler has no AddressSanitizer")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.xdist_group("sanitized")
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_address_and_undefined_behaviour(program, isa):
    done = subprocess.run(
        [program, "400"], env=os.environ | {"FWM_CPU_ISA": isa}, capture_output=True, text=True
    )
    if done.returncode == 2:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [isa, "400"]
