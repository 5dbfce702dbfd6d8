"""``python -m fairseq_fwm.doctor`` tells the truth, with and without a working fairseq."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from fairseq_fwm import cuda_status, doctor
from fairseq_fwm.kernels_status import OPS, kernels_status
from fairseq_fwm.ops import library
from fairseq_fwm.ops.dispatch import resolve_impl

# Hides fairseq as if it were not installed, then runs the doctor.
WITHOUT_FAIRSEQ = """
import runpy, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest, **named: (
    None if name.split(".")[0] in ("fairseq", "fairseq_cli") else find(name, *rest, **named)
)
runpy.run_module("fairseq_fwm.doctor", run_name="__main__", alter_sys=True)
"""


def problems(monkeypatch: pytest.MonkeyPatch, error: str | None = None) -> list[doctor.Problem]:
    monkeypatch.setattr(doctor, "_fairseq_there", lambda: True)
    return list(doctor._problems(error))


def broken(found: list[doctor.Problem]) -> list[doctor.Problem]:
    return [problem for problem in found if problem.needed]


def test_user_dir_is_the_only_output(root: Path, capsys) -> None:
    assert doctor.main(["--user-dir"]) == 0
    assert capsys.readouterr().out == f"{root / 'fairseq_fwm'}\n"


def test_json_report(run) -> None:
    report = json.loads(run("-m", "fairseq_fwm.doctor", "--json").stdout)
    assert report["versions"]["torch"] == torch.__version__
    assert report["fairseq_imports"] == (importlib.util.find_spec("fairseq") is not None)
    assert report["kernels"] == kernels_status()
    assert not any(problem["needed"] for problem in report["problems"])


def test_text_report_names_every_version_and_cure(capsys) -> None:
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    report = doctor.report()
    for name, version in report["versions"].items():
        rows = [line for line in text.splitlines() if line.split()[0] == name]
        assert any((version or "none") in row for row in rows), name
    for problem in report["problems"]:
        assert problem["problem"] in text
        assert problem["cure"] in text


def test_dropped_sentences_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    data_utils = pytest.importorskip("fairseq.data.data_utils")
    for batches, noted in ([], True), ([[0, 1, 2]], False):
        monkeypatch.setattr(data_utils, "batch_by_size", lambda *_, found=batches, **__: found)
        found = [problem.problem for problem in problems(monkeypatch)]
        assert any("drops the last batch" in problem for problem in found) == noted


def test_works_without_fairseq(run) -> None:
    text = run("-c", WITHOUT_FAIRSEQ).stdout
    assert "note: fairseq is not installed" in text
    assert "BROKEN" not in text


def test_broken_fairseq_is_reported_with_its_cure(run, tmp_path: Path) -> None:
    package, info = tmp_path / "fairseq", tmp_path / "fairseq-0.12.2.dist-info"
    package.mkdir()
    package.joinpath("__init__.py").write_text("raise ValueError('mutable default')\n")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: fairseq\nVersion: 0.12.2\n")
    done = run("-m", "fairseq_fwm.doctor", status=1, env={"PYTHONPATH": str(tmp_path)})
    assert "BROKEN: " in done.stdout
    assert "fairseq 0.12.2" in done.stdout
    assert "pip install ve-fairseq==0.12.3" in done.stdout


def test_old_torch_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not broken(problems(monkeypatch))
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    [problem] = broken(problems(monkeypatch))
    assert "torch 2.5.1+cu121 is too old" in problem.problem
    assert problem.cure == "pip install torch==2.13.0"


def test_two_fairseq_distributions_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["ve-fairseq 0.12.3", "fairseq 0.12.2"]
    monkeypatch.setattr(doctor, "_fairseq_distributions", lambda: both)
    [problem] = broken(problems(monkeypatch))
    assert "overwrite each other" in problem.problem


def test_old_omegaconf_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: "2.0.6" if name == "omegaconf" else version(name)
    )
    assert any("omegaconf 2.0.6" in problem.problem for problem in problems(monkeypatch))


def test_numpy_of_another_abi_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")

    def refuse(array: object) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    [problem] = broken(problems(monkeypatch))
    assert "numpy" in problem.cure


def test_kernels_status_agrees_with_the_dispatcher() -> None:
    status = kernels_status()
    assert set(status["kernels"]) == {f"fwm::{op}" for op in OPS}
    for op, keys in status["kernels"].items():
        assert "CompositeExplicitAutograd" in keys, f"{op} has no PyTorch form"
        if not status["extension"]:
            assert keys == ["CompositeExplicitAutograd"]
    assert status["extension"] or (status["reason"] and status["cure"])
    assert status["cpu_isa"] in ("avx512", "avx2", "baseline") or not status["extension"]


def test_extension_that_does_not_load_is_named(run, root: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(root / "fairseq_fwm", tmp_path / "fairseq_fwm", ignore=ignored)
    tmp_path.joinpath("fairseq_fwm", "_C.abi3.so").write_text("built for another torch")
    status = json.loads(run("-m", "fairseq_fwm.doctor", "--json", cwd=tmp_path).stdout)["kernels"]
    assert not status["extension"]
    assert "fairseq_fwm._C does not load" in status["reason"]
    assert status["cure"]


# ---- CUDA, as it looks where there is a GPU


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that pretends a torch, a GPU and kernels, and returns the status."""

    def pretend(
        *, gpu: tuple[int, int] | None, archs: str, cuda: str | None = "13.0", nvcc: str = "13.0"
    ) -> dict:
        def toolkit() -> Path:
            if not nvcc:
                raise cuda_status.NoToolkit("no nvcc: install the CUDA toolkit")
            return tmp_path

        compiled = {"cpu_isa": "avx2", "cuda_archs": archs}
        keys = ["CPU", "CUDA", "CompositeExplicitAutograd"]
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
        monkeypatch.setattr(cuda_status, "cuda_home", toolkit)
        monkeypatch.setattr(cuda_status, "cuda_release", lambda home: nvcc)
        monkeypatch.setattr(cuda_status, "DRIVER", tmp_path)
        monkeypatch.setattr(library, "EXTENSION_PROBLEM", None)
        monkeypatch.setattr(library, "dispatch_keys", lambda op: keys)
        for name, value in compiled.items():
            monkeypatch.setattr(torch.ops.fwm, name, lambda value=value: value, raising=False)
        return kernels_status()

    return pretend


BUILD = "FWM_BUILD=cuda pip install"
CASES = [
    # GPU, compiled for, more: what is wrong, the cure's beginning
    ((9, 0), "8.0 9.0+PTX", {}, None, None),
    ((8, 9), "8.0 9.0", {}, None, None),
    ((10, 0), "8.0 9.0+PTX", {}, None, None),
    (None, "8.0", {}, None, None),
    (None, "", {}, None, None),
    ((10, 0), "8.0+PTX 9.0", {}, None, None),
    ((8, 0), "8.6", {}, "compiled for 8.6, this GPU is Some GPU, 8.0",
     f"TORCH_CUDA_ARCH_LIST=8.0 {BUILD}"),
    ((12, 0), "8.0 9.0", {}, "compiled for 8.0 9.0, this GPU is Some GPU, 12.0",
     f"TORCH_CUDA_ARCH_LIST=12.0 {BUILD}"),
    ((7, 5), "8.0", {}, "need compute capability 8.0, this GPU is Some GPU, 7.5", "nothing to do"),
    ((9, 0), "", {}, "built without CUDA kernels", BUILD),
    ((9, 0), "", {"nvcc": ""}, "built without CUDA kernels",
     f"no nvcc: install the CUDA toolkit; then {BUILD}"),
    ((9, 0), "", {"nvcc": "12.4"}, "built without CUDA kernels",
     f"nvcc is of CUDA 12.4, torch of 13.0: set CUDA_HOME to a toolkit of 13.0; then {BUILD}"),
    (None, "", {"cuda": None}, "has no CUDA, though this machine has an NVIDIA GPU",
     "install a CUDA build of torch"),
]  # fmt: skip


@pytest.mark.parametrize(("gpu", "archs", "more", "reason", "cure"), CASES)
def test_cuda_is_there_or_its_cure(machine, capsys, gpu, archs, more, reason, cure) -> None:
    status = machine(gpu=gpu, archs=archs, **more)
    assert status["cuda_archs"] == archs.split()
    assert (status["reason"], status["cure"]) == (None, None) or reason in status["reason"]
    assert (reason is None) == (status["reason"] is None)
    assert cure is None or status["cure"].startswith(cure)
    doctor.main([])
    text = capsys.readouterr().out
    if archs and gpu:
        serves = "serves" if reason is None else "does not serve"
        assert f"CUDA for     {archs}, which {serves} this GPU" in text
    assert reason is None or (reason in text and status["cure"] in text)


@pytest.mark.parametrize(("gpu", "runs"), [((8, 6), "cuda"), ((9, 0), "chunked"), (None, "cuda")])
def test_auto_takes_a_kernel_compiled_for_the_gpu(machine, monkeypatch, gpu, runs) -> None:
    machine(gpu=gpu, archs="8.0 12.0+PTX")
    monkeypatch.setitem(library.COMPILED, "causal_sum_fwd", {"cpu", "cuda"})
    library.unserved_gpu.cache_clear()
    device = torch.device("cuda")
    try:
        assert resolve_impl("auto", "causal_sum_fwd", device) == runs
        if runs == "cuda":
            assert resolve_impl("cuda", "causal_sum_fwd", device) == "cuda"
        else:
            with pytest.raises(RuntimeError, match=r"compiled for 8.0 12.0\+PTX, this .* 9.0"):
                resolve_impl("cuda", "causal_sum_fwd", device)
        assert resolve_impl("auto", "causal_sum_fwd", torch.device("cpu")) == "cpu"
    finally:
        library.unserved_gpu.cache_clear()


def test_an_old_extension_names_no_archs(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(gpu=None, archs="8.0")
    monkeypatch.setattr(library, "dispatch_keys", lambda op: [])
    assert kernels_status()["cuda_archs"] == []
