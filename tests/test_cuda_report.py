"""scripts/cuda_report.py, and what must hold of the CUDA kernels that a compiler can tell."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from emulation import Unavailable, kept

pytest.importorskip("tqdm", reason="the progress bar needs tqdm: bash scripts/setup.sh")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import cuda_report as report  # noqa: E402
from lib import cuda_compile as compiling  # noqa: E402
from lib import cuda_launches as launching  # noqa: E402
from lib.cuda_occupancy import GPUS, blocks_per_multiprocessor, gpus_of  # noqa: E402

# Compiled once, by the process of this group that comes first.
pytestmark = pytest.mark.xdist_group("cuda_report")
# Compiling takes a minute and more for each: all of them run with --all.
RARER = [pytest.param(a, marks=pytest.mark.slow) for a in report.ARCHS if a not in ("8.0", "9.0")]
HEADER_SAYS = """
#include <cuda_occupancy.h>
#include <climits>
#include <cstdio>

int main() {
  int major, minor, warps, registers, threads;
  size_t per_block, per_multiprocessor, shared;
  while (scanf("%d %d %d %zu %zu %d %d %zu", &major, &minor, &warps, &per_block,
               &per_multiprocessor, &threads, &registers, &shared) == 8) {
    cudaOccDeviceProp gpu;
    gpu.computeMajor = major, gpu.computeMinor = minor, gpu.warpSize = 32;
    gpu.maxThreadsPerBlock = 1024, gpu.maxThreadsPerMultiprocessor = 32 * warps;
    gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536, gpu.numSms = 1;
    gpu.sharedMemPerBlock = 48 << 10, gpu.sharedMemPerBlockOptin = per_block;
    gpu.sharedMemPerMultiprocessor = per_multiprocessor, gpu.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX, kernel.numRegs = registers, kernel.numBlockBarriers = 1;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = per_block;
    cudaOccResult result;
    cudaOccDeviceState state;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state, threads, shared)) {
      return 1;
    }
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""
PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3fwm3gpu4sumsILi8ELb1EEEvPKf' for 'sm_80'
ptxas info    : Function properties for _ZN3fwm3gpu4sumsILi8ELb1EEEvPKf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 8 bytes cumulative stack size
ptxas info    : Function properties for _ZN3fwm3gpu6calledEPKf
    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function '_ZN3fwm3gpu3oneEPKf' for 'sm_80'
ptxas info    : Function properties for _ZN3fwm3gpu3oneEPKf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 2048 bytes smem, 856 bytes cmem[0]
"""
PTX = """
.visible .entry _Z3oneI6HalfEvv(
  wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f1}, {%r1};
  wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f2}, {%r1};
.visible .entry _Z3twov(
  wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%r1}, [%rd1];
"""


@pytest.fixture(scope="module")
def toolkit() -> Path:
    """Return the CUDA toolkit's folder; skip without one."""
    try:
        return compiling.cuda_home()
    except compiling.NoToolkit as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def shapes() -> dict[int, dict[str, list[report.Shape]]]:
    try:
        return report.launch_shapes()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def rows(toolkit: Path, shapes) -> list[report.Row]:
    return report.collect(["8.0"])


@pytest.mark.parametrize("rule", report.RULES)
def test_kernels(rows, rule) -> None:
    assert list(rule(rows)) == []


@pytest.mark.parametrize("rule", report.RULES)
@pytest.mark.parametrize("arch", ["9.0", *RARER])
def test_kernels_for_other_gpus(toolkit, shapes, arch, rule) -> None:
    assert list(rule(report.collect([arch]))) == []


def test_every_file_has_kernels(rows) -> None:
    sources = {Path(source).name for source in launching.sources()}
    without = {"backward.cu", "archs.cu"}
    assert {row.kernel.source for row in rows} == sources - without


def test_occupancy_is_that_of_the_toolkits_header(toolkit, tmp_path) -> None:
    folder = compiling.headers(toolkit)
    if not (folder / "cuda_occupancy.h").is_file():
        pytest.skip("this toolkit has no cuda_occupancy.h")

    def make(program: str) -> None:
        source = tmp_path / "header_says.cpp"
        source.write_text(HEADER_SAYS)
        subprocess.run(["g++", f"-I{folder}", source, "-o", program], check=True)

    program = kept("header_says", f"{HEADER_SAYS}\n{compiling.nvcc_version()}", make)
    cases = [
        (gpu, threads, registers, shared)
        for gpu in GPUS
        for threads in (32, 64, 96, 128, 160, 256, 512, 768, 992, 1024)
        for registers in (1, 24, 32, 33, 40, 63, 64, 65, 80, 96, 127, 128, 168, 200, 255)
        for shared in (0, 1, 1024, 12544, 24001, 49152, 49153, 101376, 101377, 166912, 200000)
    ]
    lines = [
        f"{gpu.capability[0]} {gpu.capability[1]} {gpu.warps} {gpu.block_shared} {gpu.shared} "
        f"{threads} {registers} {shared}"
        for gpu, threads, registers, shared in cases
    ]
    done = subprocess.run(
        program, input="\n".join(lines), capture_output=True, text=True, check=True
    )
    said = list(map(int, done.stdout.split()))
    mine = [blocks_per_multiprocessor(*case) for case in cases]
    different = [case for case, a, b in zip(cases, mine, said, strict=True) if a != b]
    assert different == []


def test_a_gpu_runs_the_best_code_of_its_major_version() -> None:
    names = {
        arch: [gpu.name for gpu in gpus_of(arch, ["8.0", "8.6", "9.0"])] for arch in ("8.0", "8.6")
    }
    assert names == {"8.0": ["A100"], "8.6": ["RTX 3090", "RTX 4090"]}
    assert [gpu.name for gpu in gpus_of("8.0", ["8.0"])] == ["A100", "RTX 3090", "RTX 4090"]
    assert gpus_of("8.9", ["8.9", "12.0"])[0].name == "RTX 4090"


def test_launchers_say_what_they_launch(shapes) -> None:
    launchers = launching.Launchers()
    problem = launching.Problem("delta", K=64, V=40, N=3, H=5, T=7, attn_norm="full")
    names = []
    for operation in problem.operations:
        launches = launchers.launches(problem, operation)
        names += compiling.readable([launch.kernel for launch in launches])
        assert all(launch.grid[0] % 15 == 0 or launch.grid[0] == 27 for launch in launches)
    assert names[0] == "normalizer_kernel"
    assert "forward_kernel<Shape<8, 8>, true>" in names
    # V decides where values are the rows: 40 do not fit 32.
    assert "backward_queries_kernel<Shape<8, 8>, true>" in names


def test_launchers_refuse_what_is_impossible(shapes) -> None:
    launchers = launching.Launchers()
    with pytest.raises(launching.LaunchError, match="a grid of 0 x"):
        launchers.launches(launching.Problem("sum", K=8, V=8, N=0), "forward")


def test_compilers_words_are_understood() -> None:
    first, second = compiling._parse_log(PTXAS)
    assert (first.registers, first.stack, first.spills, first.shared) == (80, 16, 28, 0)
    assert (second.registers, second.spills, second.shared) == (24, 0, 2048)
    names = compiling.readable([first.symbol, second.symbol])
    assert names == ["sums<8, true>", "one"]
    with pytest.raises(compiling.CompileError, match="something else"):
        list(compiling._parse_log(PTXAS.replace("registers", "things")))
    product = "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32"
    assert compiling._ptx_products(PTX) == {"_Z3oneI6HalfEvv": {product: 2}}
    opcodes = {"HMMA.16816.F32": 3, "LDS.128": 2, "LDS": 1, "EXIT": 1}
    assert compiling._told(opcodes) == ({"HMMA.16816.F32": 3}, {"LDS": 3})


def row(**changes) -> report.Row:
    """A kernel without any fault, changed."""
    kernel = compiling.Kernel("k", "k<8>", "k.cu", "8.0", registers=32)
    shape = report.Shape(128, 1024, True)
    for name in set(changes) & {field.name for field in dataclasses.fields(kernel)}:
        setattr(kernel, name, changes.pop(name))
    shapes = {
        gpu.block_shared: {kernel.name: [dataclasses.replace(shape, **changes)]} for gpu in GPUS
    }
    return report.row_of(kernel, gpus_of("8.0", ["8.0"]), shapes)


def test_rules_find_what_they_are_for() -> None:
    def found(made: report.Row) -> dict[str, list[str]]:
        return {rule.__name__: said for rule in report.RULES if (said := list(rule([made])))}

    assert found(row()) == {}
    assert found(row(spills=8)) == {"spilling": ["k<8> on 8.0 spills 8 bytes at 32 registers"]}
    [said] = found(row(registers=96, threads=1024, small=False))["not_launchable"][:1]
    assert said.endswith("impossible on A100: 1024 threads of 96 registers")
    [said, _] = found(row(shared=120_000, small=False))["not_launchable"]
    assert said.endswith("121024 bytes of shared memory, a block may have 101376")
    [said] = found(row(registers=168))["half_empty"]
    assert "the worst at 19%" in said
    assert "half_empty" not in found(row(registers=168, small=False))
    assert list(found(row(name="chunk_forward"))) == ["without_products"]
    assert found(row(name="chunk_forward", products={"HMMA.16816": 4})) == {}
    assert list(found(report.Row(row().kernel, {}))) == ["never_launched"]


def test_page_and_data(monkeypatch, tmp_path, capsys) -> None:
    rows = [row(), row(name="chunk<64>", products={"HMMA.16816.F32": 4}, products_from="SASS")]
    monkeypatch.setattr(report, "collect", lambda *_: rows)
    monkeypatch.setattr(report, "nvcc_version", lambda: "release 13.0")
    page = tmp_path / "static.md"
    assert report.main(["--arch", "8.0", "--out", str(page), "--check"]) == 0
    text = page.read_text()
    assert "| k.cu | `k<8>` | 32 |" in text
    assert "4 HMMA.16816.F32 (SASS)" in text
    assert "## What should not be\n\nNothing." in text
    data = json.loads((tmp_path / "static" / "results.json").read_text())
    assert data["kernels"][0]["occupancy"]["A100"] == [1.0, 1.0]
    rows[0].kernel.spills = 4
    assert report.main(["--arch", "8.0", "--check"]) == 1
    assert "spills 4 bytes" in capsys.readouterr().out


def test_without_nvcc_the_cure_is_named(monkeypatch, capsys) -> None:
    def missing(*_: object) -> None:
        raise compiling.NoToolkit("no nvcc: install the CUDA toolkit")

    monkeypatch.setattr(report, "collect", missing)
    assert report.main([]) == 2
    assert "error: no nvcc: install the CUDA toolkit" in capsys.readouterr().err
