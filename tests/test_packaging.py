"""The package installs anywhere, builds its extension where it can, and says why where not."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

BUILD_WHEEL = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
TINY_EXTENSION = """
#include <Python.h>
#include <torch/library.h>
#include <ATen/ATen.h>

extern "C" PyObject* PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
static at::Tensor twice(const at::Tensor& x) { return x + x; }
TORCH_LIBRARY(fwm_packaging_test, m) { m.def("twice(Tensor x) -> Tensor", &twice); }
"""


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """Copy what an install reads, with one C++ source."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "csrc")
    for name in "fairseq_fwm", "kernels":
        shutil.copytree(root / name, copy / name, ignore=ignored)
    for name in "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE":
        shutil.copy(root / name, copy)
    copy.joinpath("README.md").touch()
    copy.joinpath("kernels", "csrc").mkdir()
    copy.joinpath("kernels", "csrc", "x.cpp").write_text(TINY_EXTENSION)
    return copy


@pytest.fixture
def arguments(tree: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what setup.py's ``arguments()`` returns under the given switches."""

    def call(**switches: str) -> dict:
        for name in "FWM_BUILD", "FORCE_CUDA", "CXX":
            monkeypatch.delenv(name, raising=False)
        for name, value in switches.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(tree / "setup.py"))["arguments"]()

    return call


def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_only_torch_is_required(root: Path) -> None:
    assert project(root)["dependencies"] == ["torch>=2.6"]


def test_everything_the_extras_name_is_pinned(root: Path) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (root / "constraints.txt").read_text(), re.M))
    pinned = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = project(root)["optional-dependencies"]
    for requirement in (line for lines in extras.values() for line in lines):
        name, _, version = requirement.partition("==")
        name = name.partition("[")[0]  # an extra of the package
        assert name in pinned, f"{name} has no pin in constraints.txt"
        assert version in ("", pinned[name])
    assert pinned["torch"] == "2.13.0"


def test_no_folder_shadows_a_package(root: Path) -> None:
    # fairseq puts the project's folder first on sys.path
    for folder in "kernels", "scripts", "configs", "tests":
        assert not (root / folder / "__init__.py").exists()


def test_ci_can_be_run(root: Path) -> None:
    assert os.access(root / ".ci" / "run", os.X_OK)


def test_pure_wheel_holds_the_package_and_nothing_else(run, root: Path, tree: Path) -> None:
    run("-c", BUILD_WHEEL, tree / "dist", cwd=tree, env={"FWM_BUILD": "0"})
    [wheel] = (tree / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fairseq_fwm"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    sources = {path.relative_to(root).as_posix() for path in root.glob("fairseq_fwm/**/*.py")}
    assert sources <= set(names)


def test_sdist_holds_what_a_build_needs(run, tree: Path) -> None:
    run("-c", BUILD_WHEEL.replace("wheel", "sdist"), tree / "dist", cwd=tree)
    [sdist] = (tree / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"kernels/csrc/x.cpp", "setup.py", "pyproject.toml", "LICENSE"} <= names


def test_pure_python_on_request(arguments) -> None:
    assert arguments(FWM_BUILD="0") == {}


def test_auto_says_why_nothing_is_built(arguments, capfd) -> None:
    assert arguments(CXX="no-such-compiler") == {}
    said = capfd.readouterr().err
    assert "kernels not built, no C++ compiler 'no-such-compiler'" in said


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
@pytest.mark.parametrize("switch", ["FORCE_CUDA=1", "FWM_BUILD=cuda"])
def test_cuda_is_demanded_or_left_out(arguments, capfd, switch: str) -> None:
    assert arguments()
    assert "building CPU kernels" in capfd.readouterr().err
    with pytest.raises(SystemExit, match=f"{switch}, but torch .* has no CUDA: install"):
        arguments(**dict([switch.split("=")]))


def test_no_sources(arguments, tree: Path, capfd) -> None:
    shutil.rmtree(tree / "kernels" / "csrc")
    assert arguments() == {}
    assert "no C++ sources under kernels/csrc" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="FWM_BUILD=cpu, but there are no C"):
        arguments(FWM_BUILD="cpu")


def test_no_torch(arguments, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils", None)
    assert arguments() == {}
    assert "--no-build-isolation" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="torch cannot be imported"):
        arguments(FWM_BUILD="cpu")


def test_unknown_switch(arguments) -> None:
    with pytest.raises(SystemExit, match="choose one of auto, 0, cpu, cuda"):
        arguments(FWM_BUILD="gpu")


@pytest.mark.slow
def test_extension_builds_and_serves_any_python(run, tree: Path) -> None:
    run("-c", BUILD_WHEEL, tree / "dist", cwd=tree, env={"FWM_BUILD": "cpu", "MAX_JOBS": "1"})
    [wheel] = (tree / "dist").iterdir()
    assert "-cp311-abi3-" in wheel.name
    [library] = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert library == "fairseq_fwm/_C.abi3.so"
    zipfile.ZipFile(wheel).extractall(tree / "installed")
    script = (
        "import torch, fairseq_fwm._C as c; "
        "print(c.__file__, torch.ops.fwm_packaging_test.twice(torch.ones(2)).tolist())"
    )
    done = run("-c", script, cwd=tree / "installed")
    assert done.stdout.split("\n")[-2] == f"{tree / 'installed' / library} [2.0, 2.0]"


def setup_script(root: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", root / "scripts" / "setup.sh", *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_setup_help(root: Path) -> None:
    done = setup_script(root, "--help")
    assert done.returncode == 0
    assert "FWM_TORCH_INDEX" in done.stdout
    assert "x86-64 Linux with glibc >= 2.28" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "python", "error"),
    [
        (["--what"], "python3", "unknown argument '--what'"),
        ([], "no-such-python", "no fitting Python (no-such-python is not there)"),
        ([], "false", "no fitting Python (false does not start)"),
    ],
)
def test_setup_errors_name_cause(
    root: Path, tmp_path: Path, arguments: list[str], python: str, error: str
) -> None:
    done = setup_script(root, *arguments, FWM_VENV=str(tmp_path / "v"), FWM_PYTHON=python)
    assert done.returncode == 1
    assert error in done.stderr


def test_setup_leaves_other_folders_alone(root: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("thesis.tex").touch()
    done = setup_script(root, FWM_VENV=str(tmp_path))
    assert done.returncode == 1
    assert "is no virtual environment" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.xdist_group("groups")
def test_tests_of_a_group_stay_together(request) -> None:
    """pytest-xdist tells groups by the names of tests, which pytest 9.2 does not let it change."""
    if request.config.getoption("loadgroup", False):
        assert request.node.nodeid.endswith("@groups")
