"""setup.py's CUDA side: found, told what to compile, or said to be missing, and why."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from emulation import kept
from fairseq_fwm import cuda_toolkit

SWITCHES = (
    "CFLAGS",
    "FWM_BUILD",
    "FORCE_CUDA",
    "CUDA_HOME",
    "CUDA_PATH",
    "TORCH_CUDA_ARCH_LIST",
    "CXX",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Start without any switch; what setup.py sets is taken back."""
    for name in SWITCHES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """Return a folder that looks like a toolkit, whose nvcc says where it belongs."""
    home = tmp_path / "cuda-13.0"
    for folder in "bin", "include":
        (home / folder).mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").touch()
    says = r'echo "#\$ TOP=%s/bin/.." >&2; echo release 13.0, V13.0.88'
    script(home / "bin" / "nvcc", says % home)
    return home


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def build(root: Path, tmp_path: Path, environment, toolkit):
    """Return what setup.py passes to setuptools under switches, with a torch that has CUDA."""
    tree = tmp_path / "tree"
    for name in ("x.cpp", "cuda/bindings.cpp", "cuda/kernels.cu", "cuda/kernels.cuh"):
        (tree / "kernels" / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "kernels" / "csrc" / name).touch()
    (tree / "fairseq_fwm").mkdir()
    shutil.copy(root / "fairseq_fwm" / "cuda_toolkit.py", tree / "fairseq_fwm")
    shutil.copy(root / "setup.py", tree)

    def no_gpu_is_asked_for() -> bool:
        pytest.fail("whether there is a GPU says nothing about where the package will run")

    environment.setattr(torch.version, "cuda", "13.0")
    environment.setattr(torch.cuda, "is_available", no_gpu_is_asked_for)
    environment.setattr(cpp_extension, "CUDA_HOME", None)

    def call(**switches: str) -> dict:
        for name, value in switches.items():
            environment.setenv(name, value)
        return runpy.run_path(str(tree / "setup.py"))["arguments"]()

    return call


def test_cuda_is_built_where_torch_and_nvcc_have_it(build, toolkit, capfd) -> None:
    [extension] = build(CUDA_HOME=str(toolkit))["ext_modules"]
    sources = {Path(source).name for source in extension.sources}
    assert sources == {"x.cpp", "bindings.cpp", "kernels.cu"}
    assert ("FWM_WITH_CUDA", None) in extension.define_macros
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0;8.6;9.0;10.0;12.0+PTX"
    flags = extension.extra_compile_args["nvcc"]
    assert {"-O3", "-lineinfo", "-std=c++17", "-DFWM_CUDA_PTX=1200"} <= set(flags)
    assert "building CPU and CUDA kernels" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("asked", "ptx"),
    [("9.0", []), ("8.6+PTX;9.0a", ["860"]), ("8.0+PTX 12.0+PTX", ["800,1200"])],
)
def test_archs_asked_for_are_kept(build, toolkit, asked, ptx) -> None:
    [extension] = build(CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST=asked)["ext_modules"]
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == asked
    flags = extension.extra_compile_args["nvcc"]
    assert [flag for flag in flags if "PTX" in flag] == [f"-DFWM_CUDA_PTX={x}" for x in ptx]


def test_debugging_information_only_on_request(build, toolkit) -> None:
    for flags, expected in (("", True), ("-O1 -g", False)):
        [extension] = build(CUDA_HOME=str(toolkit), CFLAGS=flags)["ext_modules"]
        assert ("-g0" in extension.extra_compile_args["cxx"]) == expected


def test_a_wrapper_is_asked_where_it_belongs(build, environment, toolkit, tmp_path) -> None:
    script(tmp_path / "usr" / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    environment.setenv("PATH", f"{tmp_path}/usr/bin:{os.environ['PATH']}")
    assert build(FORCE_CUDA="1")
    assert cpp_extension.CUDA_HOME == str(toolkit) == os.environ["CUDA_HOME"]


def test_cuda_home_of_a_wrapper_is_refused_with_the_right_one(build, toolkit, tmp_path) -> None:
    script(tmp_path / "usr" / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    with pytest.raises(SystemExit, match=rf"has no include.*: export CUDA_HOME={toolkit}"):
        build(FWM_BUILD="cuda", CUDA_HOME=str(tmp_path / "usr"))


def test_no_nvcc_is_said_and_the_rest_is_built(build, toolkit, tmp_path, capfd) -> None:
    (toolkit / "bin" / "nvcc").unlink()
    [extension] = build(CUDA_HOME=str(toolkit))["ext_modules"]
    assert not any(source.endswith(".cu") for source in extension.sources)
    assert "no CUDA kernels, CUDA_HOME=" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but CUDA_HOME=.* has no bin/nvcc"):
        build(FORCE_CUDA="1")


def test_headers_may_be_where_conda_puts_them(environment, toolkit) -> None:
    (toolkit / "include" / "cuda_runtime.h").unlink()
    environment.setenv("CUDA_HOME", str(toolkit))
    with pytest.raises(cuda_toolkit.NoToolkit, match="install the toolkit's headers"):
        cuda_toolkit.cuda_home()
    there = toolkit / "targets" / "x86_64-linux" / "include"
    there.mkdir(parents=True)
    (there / "cuda_runtime.h").touch()
    assert cuda_toolkit.cuda_home() == toolkit
    assert cuda_toolkit.headers(toolkit) == there
    assert cuda_toolkit.cuda_release(toolkit) == "13.0"


def test_nvcc_that_does_not_run_is_named(environment, toolkit) -> None:
    (toolkit / "bin" / "nvcc").write_text("#!/no/such/shell\n")
    with pytest.raises(cuda_toolkit.NoToolkit, match="does not run"):
        cuda_toolkit.cuda_release(toolkit)


# ---- with a real toolkit


@pytest.fixture(scope="module")
def real() -> Path:
    try:
        return cuda_toolkit.cuda_home()
    except cuda_toolkit.NoToolkit as reason:
        pytest.skip(str(reason))


@pytest.mark.xdist_group("cuda_build")
@pytest.mark.parametrize("source", ["bindings.cpp", "cuda/bindings.cpp"])
def test_bindings_compile_for_a_cuda_torch(root: Path, real: Path, source: str) -> None:
    """Compiles only: torch's CPU wheel has the headers of the CUDA side, not its libraries."""
    folder = Path(torch.__file__).parent / "include"
    if not (folder / "c10" / "cuda" / "CUDAStream.h").is_file():
        pytest.skip("this torch comes without the headers of its CUDA side")
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    flags = [
        "-std=c++20",
        "-fsyntax-only",
        "-DFWM_WITH_CUDA",
        "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",
    ]
    paths = [*includes, f"-isystem{cuda_toolkit.headers(real)}", "-isystem", _python_headers()]
    done = subprocess.run(
        ["g++", *flags, *paths, f"kernels/csrc/{source}"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "kernels/csrc" not in done.stderr, done.stderr


def _python_headers() -> str:
    import sysconfig

    return sysconfig.get_paths()["include"]


@pytest.mark.xdist_group("cuda_build")
def test_kernels_say_what_they_are_compiled_for(root: Path, real: Path, tmp_path: Path) -> None:
    main = tmp_path / "main.cpp"
    main.write_text('#include "cuda/launch.h"\n#include <cstdio>\n')
    with main.open("a") as file:
        file.write("int main() { std::puts(fwm::gpu::archs()); }\n")
    flags = ["-std=c++17", "-DFWM_CUDA_PTX=900", "-I", str(root / "kernels" / "csrc")]
    archs = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    archs.append("-gencode=arch=compute_90,code=compute_90")
    archs_cu = root / "kernels" / "csrc" / "cuda" / "archs.cu"

    def make(program: str) -> None:
        command = [real / "bin" / "nvcc", *flags, *archs, archs_cu, main]
        subprocess.run([*command, "-o", program], check=True)

    texts = [archs_cu.read_text(), main.read_text(), cuda_toolkit.cuda_release(real)]
    program = kept("archs", "\n".join([*flags, *archs, *texts]), make)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert said == "8.0 9.0+PTX\n"


# ---- scripts/cuda_build_check.sh, which makes an environment of several GB: its questions alone


def check_script(root: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    command = ["bash", root / "scripts" / "cuda_build_check.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_build_check_explains_itself(root: Path) -> None:
    done = check_script(root, "--help")
    assert done.returncode == 0
    assert "5.5 GB" in done.stdout
    assert "FWM_PYTHON" in done.stdout


def test_build_check_leaves_other_folders_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    done = check_script(root, "--dir", tmp_path)
    assert done.returncode == 1
    assert "was not made by this script" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert "unknown argument" in check_script(root, "--wat").stderr
    assert "wants a value" in check_script(root, "--archs").stderr
