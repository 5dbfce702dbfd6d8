"""scripts/cuda_roofline.py counts what the kernels really do, and its page is up to date."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from emulation import Unavailable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import cuda_roofline as roofline  # noqa: E402
from lib.cuda_launches import Launchers, Problem  # noqa: E402
from lib.cuda_work import Counter, Work, total  # noqa: E402
from lib.result_tables import END, START  # noqa: E402

# Compiled once, by the process of this group that comes first.
pytestmark = pytest.mark.xdist_group("emulated")
TOKENS = 128
PEAK = roofline.PEAKS["A100"]


@pytest.fixture(scope="module")
def launchers() -> Launchers:
    try:
        return Launchers()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def executing() -> Launchers:
    try:
        return Launchers("memory")
    except Unavailable as reason:
        pytest.skip(str(reason))


def counted(launchers: Launchers, problem: Problem, operation: str) -> list[Work]:
    counter = Counter(launchers, problem)
    return counter.forward() if operation == "forward" else counter.backward()


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("chunkwise", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", ["sum", "delta"])
@pytest.mark.parametrize(("K", "V"), [(64, 64), (32, 48)])
def test_bytes_are_those_of_the_kernels(
    launchers, executing, K, V, rule, dtype, chunkwise, operation
) -> None:
    problem = Problem(rule, K, V, N=1, H=1, T=TOKENS, dtype=dtype, chunkwise=chunkwise)
    work = total(operation, counted(launchers, problem, operation))
    found = executing.traffic(problem, operation)
    # A write strength goes alone, 32 bytes for its 4; in the chunkwise kernels all lanes load it.
    alone = 28 if rule == "delta" and operation == "backward" else 0
    assert found["store"] / TOKENS == pytest.approx(work.written + alone, rel=0.005)
    most = 1.2 if chunkwise and rule == "delta" else 1.005  # the report rounds
    assert 0.995 * work.read <= found["load"] / TOKENS <= most * work.read + alone


@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_operations_are_those_of_the_definition(launchers, rule) -> None:
    problem = Problem(rule, 64, 64)
    [general] = counted(launchers, problem, "forward")
    state = 64 * 64
    across_lanes = 512 * (2 if rule == "delta" else 1) * (3 + 3)  # 8 lanes share a column
    assert general.lane_ops == (3 if rule == "delta" else 2) * state + across_lanes
    assert general.shuffles == 512 * (2 if rule == "delta" else 1) * 3
    chunks = counted(launchers, replace(problem, dtype="bfloat16", chunkwise=True), "forward")
    inside = 64 * (64 + 16) * (3 if rule == "delta" else 2) + (
        2 * 64 * 64 if rule == "delta" else 0
    )
    # Tiles of the triangle's inverse, 4 to a side, by tf32 products at half the rate.
    inverse = 2 * (1 * 2 + 2 * 3 + 3 * 4) * 2 * 16**3 / 64 if rule == "delta" else 0
    found = sum(x.tensor_flops for x in chunks)
    assert found == (6 if rule == "delta" else 4) * state + inside + inverse


def test_the_slowest_resource_bounds() -> None:
    work = Work("k", blocks=1, threads=128, read=1e6, once=1e6, written=1e6)
    assert roofline.seconds([work], 1000, PEAK) == pytest.approx(1e-3)  # 2 TB/s
    work.lane_ops = 19.5e6
    found = roofline.bounds(work, 1000, PEAK)
    assert max(found, key=found.get) == "fp32" and found["fp32"] == pytest.approx(2e-3)
    work.tensor_flops, work.half = 312e6, True
    assert roofline.bounds(work, 1000, PEAK)["tensor"] == pytest.approx(1e-3)
    assert roofline.bounds(replace(work, half=False), 1000, PEAK)["tensor"] == pytest.approx(2e-3)
    waiting = replace(work, chain=1.41e6, chain_steps=10, blocks=108 * 8 + 1)
    assert roofline.bounds(waiting, 1, PEAK)["chain"] == pytest.approx(2e-2)  # two waves


def test_the_papers_kernel_has_its_limits() -> None:
    small = roofline.original(Problem("delta", 64, 64))
    assert small.blocks == 8 * 16 and small.shared == 48 << 10
    assert roofline.original(Problem("delta", 107, 107)) is not None
    assert roofline.original(Problem("delta", 108, 108)) is None
    assert roofline.original(Problem("delta", 256, 64)) is None


def test_page_is_up_to_date(launchers) -> None:
    page = (ROOT / "docs" / "cuda.md").read_text("utf-8")
    tables = page.partition(START)[2].partition(END)[0].strip()
    # If not, kernels or launches changed: python scripts/cuda_roofline.py --page docs/cuda.md
    assert tables == roofline.pages(launchers)


def test_tables_name_every_kernel(launchers, capsys) -> None:
    assert roofline.main([]) == 0
    text = capsys.readouterr().out
    for name in ("`forward<Shape<8, 8>, true>`", "`chunk_keys<Bf16>`", "flash-linear-attention"):
        assert name in text
