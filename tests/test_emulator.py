"""The emulator runs kernels as a GPU would, and finds the mistakes that it is there for."""

import ctypes
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import emulation

SOURCES = ["tests/emulator/self_test.cpp"]
KERNELS = "tests/emulator/kernels.cuh"
FAULTS = "tests/emulator/faults.cuh"
emulation.VARIANTS["ucontext"] = dataclasses.replace(
    emulation.VARIANTS["plain"], emulator=("-O1", "-DFWM_EMULATOR_UCONTEXT")
)


@functools.cache
def load(path: Path) -> emulation.Emulator:
    emulator = emulation.Emulator(path)
    emulator.library.fwm_test_run.restype = ctypes.c_char_p
    emulator.library.fwm_test_run.argtypes = [
        *(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    ]
    return emulator


def built(variant: str, **options) -> Path:
    try:
        return emulation.build(SOURCES, variant, flags=["-O1", "-Werror"], **options)
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))


def prepared(path: Path) -> emulation.Emulator:
    emulator = load(path)
    emulator.reset()
    return emulator


@pytest.fixture
def plain() -> emulation.Emulator:
    return prepared(built("plain"))


@pytest.fixture
def race() -> emulation.Emulator:
    return prepared(built("race"))


@pytest.fixture
def memory() -> emulation.Emulator:
    return prepared(built("memory"))


def attempt(emulator, name: str, given=None, out=None, n: int = 0) -> str:
    """Run a kernel of self_test.cpp; return the error, empty if there is none."""
    given = torch.arange(1024.0) if given is None else given
    out = torch.zeros(1024) if out is None else out
    pointers = given.data_ptr(), out.data_ptr()
    return emulator.library.fwm_test_run(name.encode(), *pointers, n).decode()


def result(emulator, name: str, given=None, out=None, n: int = 0) -> torch.Tensor:
    """Run a kernel that must not fail; return what it wrote."""
    out = torch.zeros(1024) if out is None else out
    assert attempt(emulator, name, given, out, n) == ""
    return out


def line(file: str, text: str, occurrence: int = 0) -> str:
    """Return ``NAME:LINE`` of the line that has this text."""
    path = emulation.ROOT / file
    lines = [i for i, code in enumerate(path.read_text().splitlines(), 1) if text in code]
    return f"{path.name}:{lines[occurrence]}"


def within(file: str, kernel: str, text: str, occurrence: int = 0) -> str:
    """Return ``NAME:LINE`` of the line with this text after the line that has ``kernel``."""
    path = emulation.ROOT / file
    code = path.read_text().splitlines()
    start = next(i for i, text_ in enumerate(code) if kernel in text_)
    lines = [i for i in range(start, len(code)) if text in code[i]]
    return f"{path.name}:{lines[occurrence] + 1}"


# ---- What is right stays right ------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "race", "memory", "ucontext"])
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_results_do_not_depend_on_the_order(variant, order):
    emulator = prepared(built(variant))
    emulator.set(order=order, seed=3)
    given = torch.rand(1024)
    expected = given.view(-1, 64).flip(1).flatten()
    assert torch.equal(result(emulator, "reverse", given, n=1024), expected)
    halves = given[:32].view(-1, 2).flip(1).flatten()
    halves = halves + given[:32].view(-1, 2, 2).flip(1).flatten()
    assert torch.equal(result(emulator, "swap_in_halves", given)[:32], halves)
    assert emulator.races()[0] == 0 or variant == "memory"


def test_blocks_and_threads_have_three_dimensions(plain):
    out = result(plain, "number_blocks")[: 12 * 12]
    block, thread = torch.arange(12.0)[:, None], torch.arange(12.0)
    torch.testing.assert_close(out.view(12, 12), block + 0.01 * thread)


def test_the_order_of_blocks_and_threads(plain):
    def order(**options):
        plain.reset()
        plain.set(**options)
        return result(plain, "order", out=torch.zeros(1024))[:128].long().tolist()

    everyone = list(range(128))
    assert order() == everyone
    assert order(order="reverse") == everyone[::-1]
    once, again = order(order="random", seed=1), order(order="random", seed=1)
    other = order(order="random", seed=2)
    assert once == again != other
    assert sorted(once) == sorted(other) == everyone != once


@pytest.mark.parametrize("width", [1, 2, 8, 32])
@pytest.mark.parametrize("operand", [0, 1, 3, 17])
def test_shuffles(plain, operand, width):
    lanes = torch.arange(32)
    first = lanes // width * width
    sources = [
        first + operand % width,
        lanes ^ operand,
        lanes + operand,
        lanes - operand,
    ]
    # From above its group of `width` lanes, and by `up` from below, a lane gets its own value.
    sources[1] = torch.where(sources[1] < first + width, sources[1], lanes)
    sources[2] = torch.where(sources[2] < first + width, sources[2], lanes)
    sources[3] = torch.where(sources[3] >= first, sources[3], lanes)
    given = torch.rand(32)
    out = result(plain, "shuffles", given, n=100 * operand + width)[:128].view(4, 32)
    for row, source in zip(out, sources, strict=True):
        assert torch.equal(row, given[source])


@pytest.mark.parametrize("bytes_", [4, 8, 16])
def test_an_asynchronous_copy_comes_at_the_wait(plain, race, bytes_):
    for emulator in plain, race:
        each = bytes_ // 4
        given = torch.rand(64 * each)
        out = result(emulator, f"copy_ahead {bytes_}", given)
        expected = given.view(-1, 2, each).flip(1).flatten()
        assert torch.equal(out[: 64 * each], expected)
        assert out[64 * each : 65 * each].isnan().all()
    assert race.races() == (0, [])


def test_vectors_of_four(plain):
    given = torch.rand(128)
    expected = given.view(32, 4).flip(0) * torch.tensor([1.0, 1, 1, -1])
    assert torch.equal(result(plain, "copy_vectors", given)[:128].view(32, 4), expected)


# ---- Storage types ------------------------------------------------------------------------------

TYPES = {"bf16": torch.bfloat16, "half": torch.float16}


@pytest.mark.parametrize("name", TYPES)
def test_every_stored_number_widens(plain, name):
    bits = torch.arange(65536).to(torch.int16)
    wide = result(plain, f"widen {name}", bits, torch.zeros(65536), 65536)
    expected = bits.view(TYPES[name]).float()
    assert torch.equal(wide.isnan(), expected.isnan())
    same = ~expected.isnan()
    assert torch.equal(wide[same].view(torch.int32), expected[same].view(torch.int32))


@pytest.mark.parametrize("name", TYPES)
def test_numbers_are_rounded_to_nearest_even(plain, name):
    stored = torch.arange(65536).to(torch.int16).view(TYPES[name]).float()
    stored = stored[stored.isfinite()].sort().values
    # Every number, the middle between every two, and its neighbours.
    middle = stored[:-1] + (stored[1:] - stored[:-1]) / 2
    infinite = torch.tensor([float("inf"), float("-inf"), float("nan"), 3e38, -3e38, 1e-45])
    random = torch.randint(-(2**31), 2**31, (65536,)).to(torch.int32).view(torch.float32)
    numbers = [
        *(stored, middle, infinite, random),
        torch.nextafter(middle, torch.tensor(torch.inf)),
        torch.nextafter(middle, torch.tensor(-torch.inf)),
    ]
    given = torch.cat(numbers)
    narrow = torch.zeros(len(given), dtype=torch.int16)
    result(plain, f"narrow {name}", given, narrow, len(given))
    expected = given.to(TYPES[name])
    assert torch.equal(narrow.view(TYPES[name]).isnan(), expected.isnan())
    same = ~expected.isnan()
    assert torch.equal(narrow[same], expected.view(torch.int16)[same])


# ---- Tensor cores -------------------------------------------------------------------------------


@pytest.mark.parametrize("b_layout", ["rows", "columns"])
@pytest.mark.parametrize("a_layout", ["rows", "columns"])
@pytest.mark.parametrize("name", ["bf16", "half", "tf32"])
def test_products_of_tiles(plain, name, a_layout, b_layout):
    dtype, depth = TYPES.get(name, torch.float32), 8 if name == "tf32" else 16
    a, b, c = torch.randn(16, depth), torch.randn(depth, 16), torch.randn(16, 16)
    if name == "tf32":
        a, b = (torch.round(x * 128) / 128 for x in (a, b))  # few enough bits to be exact
    a, b = a.to(dtype), b.to(dtype)
    stored = [
        (x if layout == "rows" else x.T).flatten() for x, layout in ((a, a_layout), (b, b_layout))
    ]
    out = c.T.flatten().clone()
    result(plain, f"product {name} {a_layout} {b_layout}", torch.cat(stored), out)
    expected = 2 * (a.double() @ b.double() + c.double())
    torch.testing.assert_close(out.view(16, 16).double(), expected, rtol=2e-6, atol=2e-6)


def test_tf32_rounds_to_ten_bits_ties_away(plain):
    steps = torch.tensor([0.0, 0.49, 0.5, 0.51, 1.0, 1.5])
    a = torch.zeros(16, 8)
    a[:6, 0] = 1 + steps / 1024
    b = torch.zeros(8, 16)
    b[0, 0] = 1
    out = torch.zeros(256)
    result(plain, "product tf32 rows rows", torch.cat([a.flatten(), b.flatten()]), out)
    expected = 1 + torch.tensor([0.0, 0, 1, 1, 1, 2]) / 1024
    assert torch.equal(out.view(16, 16)[:6, 0] / 2, expected)


# ---- What does not fit together -----------------------------------------------------------------

MISTAKES = {
    "divergent barriers": [
        "divergent __syncthreads",
        within(FAULTS, "void divergent_barriers", "__syncthreads", 0),
        within(FAULTS, "void divergent_barriers", "__syncthreads", 1),
    ],
    "early return": [
        "a thread returned while others wait at __syncthreads",
        within(FAULTS, "void early_return", "__syncthreads"),
    ],
    "earliest return": [
        "a thread waits at __syncthreads",
        within(FAULTS, "void early_return", "__syncthreads"),
        "8 of the block's have returned",
    ],
    "not in own mask": [
        line(FAULTS, "void not_in_own_mask"),
        "lane 16 is not in its own mask 0000ffff",
    ],
    "absent lanes": [
        within(FAULTS, "void absent_lanes", "__shfl"),
        "mask ffffffff names lanes that have returned or do not exist, alive are 0000ffff",
    ],
    "lanes return": [
        "a lane returned while others wait for it in __shfl_xor_sync",
        within(FAULTS, "void lanes_return", "__shfl"),
    ],
    "two places": [
        "divergent warp",
        within(FAULTS, "void two_places", "__shfl", 0),
        within(FAULTS, "void two_places", "__shfl", 1),
    ],
    "outside mask": [
        within(FAULTS, "void outside_mask", "__shfl"),
        "reads lane 20, which is not in the mask 0000ffff",
    ],
    "odd width": [line(FAULTS, "void odd_width"), "width 5 is not 1, 2, 4, 8, 16 or 32"],
    "deadlock": [
        "deadlock: no thread can go on; 16 threads wait at __syncthreads",
        within(FAULTS, "void deadlock", "__syncthreads"),
        "warp 0 waits in __syncwarp " + within(FAULTS, "void deadlock", "__syncwarp"),
        "lanes 0000ffff have come",
    ],
    "too many threads": ["a block of 1025 x 1 x 1 threads", "self_test.cpp"],
    "no blocks": ["a grid of 2 x 0 x 1 blocks"],
    "copy misaligned": [
        within(FAULTS, "void copy_of", "copy_async("),
        "an address is not a multiple of the 8 bytes",
    ],
    "copy of 12 bytes": ["12 bytes, not 4, 8 or 16"],
    "copy to global": ["not into shared memory"],
    "copy without wait": [
        "returned without copy_async_wait_all() after its copy_async",
        within(FAULTS, "void copy_of", "copy_async("),
    ],
    "tile misaligned": [
        within(FAULTS, "void tile_at", "load_matrix_sync"),
        "the tile's address is not a multiple of 32 bytes",
    ],
    "tile of odd pitch": ["the leading dimension 18 is not a multiple of 4"],
    "tiles of lanes": ["lanes 0 and 16 load or store different tiles"],
}


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_a_name_and_a_place(plain, name, order):
    plain.set(order=order)
    error = attempt(plain, name)
    # In another order, another of the threads notices.
    texts = MISTAKES[name] if order == "forward" else [""]
    assert error
    for text in texts:
        assert text in error


def test_an_error_names_kernel_block_and_thread(plain):
    error = attempt(plain, "two places")
    where = line("tests/emulator/self_test.cpp", "FWM_GPU_LAUNCH(kernel")
    assert error.endswith(f"[kernel, block (0,0,0), thread (16,0,0), launched at {where}]")


def test_an_exception_ends_a_launch_and_nothing_else(plain):
    expected = result(plain, "reverse", n=1024)
    for _ in range(3):
        assert attempt(plain, "throws") == "thrown by thread 7"
        assert "deadlock" in attempt(plain, "deadlock")
        assert torch.equal(result(plain, "reverse", n=1024), expected)


def test_shared_memory_is_limited(plain):
    needed = 256
    assert attempt(plain, "shared memory", n=needed) == ""
    assert attempt(plain, "shared memory", n=227 << 10) == ""
    error = attempt(plain, "shared memory", n=(227 << 10) + 1)
    assert "232449 bytes of shared memory asked for, a block may have 232448" in error
    plain.set(shared_limit=163 << 10)
    assert "may have 166912" in attempt(plain, "shared memory", n=227 << 10)
    error = attempt(plain, "shared memory", n=needed - 1)
    assert "an array of 256 bytes after 0 bytes of others is more than the 255 bytes" in error


def test_shared_memory_is_nan_at_first(plain):
    out = result(plain, "reads unwritten")
    assert out[5].isnan()
    assert out[:64].isnan().sum() == 1
    plain.set(fill_shared=0)
    result(plain, "reverse", n=64)
    assert not result(plain, "reads unwritten")[5].isnan()


def test_launches_from_several_threads(plain):
    outs = [torch.zeros(4096) for _ in range(4)]
    given = torch.rand(4096)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda out: result(plain, "reverse", given, out, 4096), outs))
    for out in outs:
        assert torch.equal(out, given.view(-1, 64).flip(1).flatten())


def test_options_that_do_not_exist(plain):
    with pytest.raises(ValueError, match="there are order, seed"):
        plain.set(colour=1)
    with pytest.raises(ValueError, match="'sideways' is not forward, reverse or random"):
        plain.set(order="sideways")
    with pytest.raises(ValueError, match="is no number"):
        plain.set(seed="x")
    with pytest.raises(ValueError, match="is not FILE:LINE"):
        plain.set(skip="kernels.cuh")


# ---- Races --------------------------------------------------------------------------------------


def test_kernels_without_mistakes_have_no_race(race):
    for name in ("reverse", "swap_in_warp", "swap_in_halves", "transpose 33", "copy_vectors"):
        result(race, name, n=128)
    for name in "product bf16 rows rows", "product tf32 columns columns", "product bf16 padded":
        result(race, name, torch.zeros(1024))
    assert race.races() == (0, [])


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize(
    ("name", "kind", "place", "text"),
    [
        ("across blocks", "global", "across_blocks", "out[apart ? blockIdx.x : 0]"),
        ("late write", "global", "late_write", "out[apart ? 1 : 0]"),
        ("third reader", "shared", "third_reader", "place[0] = 2.0f"),
        ("shuffle is no barrier", "shared", "shuffle_is_no_barrier", "out[i] += row[i ^ 1]"),
        ("wrong half", "shared", "wrong_half", "out[i] = row[i ^ 16]"),
        ("copy without barrier", "shared", "copy_without_barrier", "row[threadIdx.x ^ 1]"),
        ("tile without barrier", "shared", "tile_without_barrier", "load_matrix_sync(c"),
    ],
)
def test_races(race, name, kind, place, text, order):
    race.set(order=order)
    result(race, name)
    count, reports = race.races()
    assert count > 0
    found = [report for report in reports if report.startswith(f"race on {kind} memory")]
    assert any(within(FAULTS, f"void {place}", text) in report for report in found), reports


@pytest.mark.parametrize("name", ["across blocks", "late write", "third reader"])
def test_the_correction_of_a_race(race, name):
    result(race, name, n=1)
    assert race.races() == (0, [])


def test_a_report_names_both_places(race):
    race.set(skip=within(KERNELS, "reverse(", "__syncthreads"))
    result(race, "reverse", n=64)
    written = within(KERNELS, "reverse(", "row[i] = ")
    read = within(KERNELS, "reverse(", "row[63 - i]")
    count, reports = race.races()
    # The first half reads too early, the second half's reads and writes come too late.
    assert count == 96
    assert "thread 0 of block 0 at " + read in "".join(reports)
    assert f"at {written} has written, no barrier between them; " in "".join(reports)


def test_reading_what_nobody_wrote(race):
    result(race, "reads unwritten")
    count, (report,) = race.races()
    assert count == 1
    assert report.startswith("unwritten shared memory +20: thread 5 of block 0 at ")


def test_findings_add_up_until_reset(race):
    for times in 1, 2:
        result(race, "across blocks")
        assert race.races()[0] == 2 * times
    race.reset()
    assert race.races() == (0, [])


# ---- Barriers -----------------------------------------------------------------------------------


def test_barriers_are_listed_and_each_is_needed(race):
    names = "reverse", "swap_in_warp", "swap_in_halves", "transpose 33", "copy_ahead 4"
    for name in names:
        result(race, name, n=128)
    barriers = race.barriers()
    first = within(KERNELS, "reverse(", "__syncthreads")
    assert [(b.kind, b.count) for b in barriers if b.place == first] == [("__syncthreads", 2)]
    assert {b.kind for b in barriers} == {"__syncthreads", "__syncwarp"}
    assert len(barriers) == 6
    for barrier in barriers:
        race.reset()
        race.set(skip=barrier.place)
        for name in names:
            result(race, name, n=128)
        assert race.races()[0] > 0, barrier
        assert [b.place for b in race.barriers() if b.skipped] == [barrier.place]


def test_a_planted_bug_is_found(race):
    library = emulation.mutated(
        SOURCES, KERNELS, "  __syncthreads();\n  out[blockIdx.x", "  out[blockIdx.x", "race"
    )
    changed = prepared(library)
    result(changed, "reverse", n=64)
    assert changed.races()[0] == 96
    result(race, "reverse", n=64)
    assert race.races()[0] == 0


def test_a_replacement_must_be_possible_once():
    with pytest.raises(ValueError, match="has 0 times, not once"):
        emulation.mutated(SOURCES, KERNELS, "no such text", "")
    with pytest.raises(ValueError, match="times, not once: '__syncthreads"):
        emulation.mutated(SOURCES, KERNELS, "__syncthreads();", "")


# ---- Memory -------------------------------------------------------------------------------------


def measured(emulator, name: str, given=None) -> dict[tuple[str, str, str], emulation.Line]:
    emulator.reset()
    result(emulator, name, torch.zeros(1024) if given is None else given)
    return {(f"{m.file}:{m.line}", m.space, m.operation): m for m in emulator.memory()}


def test_bank_conflicts_of_a_transpose(memory):
    store = within(KERNELS, "transpose(", "tile[r * pitch + x] ="), "shared", "store"
    load = within(KERNELS, "transpose(", "= tile[x * pitch + r]"), "shared", "load"
    for pitch, worst in (32, 32), (33, 1):
        lines = measured(memory, f"transpose {pitch}")
        assert (lines[store].requests, lines[store].lanes, lines[store].cost) == (32, 32, 1)
        assert (lines[load].requests, lines[load].cost, lines[load].worst) == (32, worst, worst)


def test_sectors_of_global_memory(memory):
    lines = measured(memory, "transpose 33")
    store = lines[within(KERNELS, "transpose(", "out[r * 32 + x]"), "global", "store"]
    assert (store.bytes, store.cost) == (4, 4)
    lines = measured(memory, "gather")
    load = lines[within(KERNELS, "gather(", "in[threadIdx.x * 8]"), "global", "load"]
    store = lines[within(KERNELS, "gather(", "out[threadIdx.x] ="), "global", "store"]
    assert (load.requests, load.cost, store.requests, store.cost) == (2, 32, 2, 4)


def test_vectors_are_one_request(memory):
    lines = measured(memory, "copy_vectors")
    load = lines[within(KERNELS, "copy_vectors(", "row[i] = "), "global", "load"]
    assert (load.requests, load.bytes, load.cost) == (1, 16, 16)
    shared = lines[within(KERNELS, "copy_vectors(", "mine = row[31 - i]"), "shared", "load"]
    assert (shared.requests, shared.bytes, shared.cost) == (1, 16, 1)


def test_tiles_are_read_as_tensor_cores_do(memory):
    tight, padded = (
        measured(memory, f"product bf16 {name}")[
            within(KERNELS, "product(", "load_matrix_sync(a"), "shared", "load"
        ]
        for name in ("rows columns", "padded")
    )
    assert (tight.requests, tight.bytes, tight.cost) == (4, 4, 2)
    assert (padded.requests, padded.bytes, padded.cost) == (4, 4, 1)


# ---- Bounds and alignment -----------------------------------------------------------------------


def program(name: str, n: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [built("address", program=True), name, str(n)], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("name", "n", "report", "text"),
    [
        ("global bounds", 64, "heap-buffer-overflow", "out[0] = in[global]"),
        ("shared bounds", 60, "use-after-poison", "first[shared_place] = 1.0f"),
        ("shared bounds", 64, "use-after-poison", "first[shared_place] = 1.0f"),
        ("misaligned", 2, "misaligned address", "reinterpret_cast<const float4*>(in + offset)"),
        ("local bounds", 4, "index 4 out of bounds", "numbers[i] = in[i]"),
    ],
)
def test_bounds_and_alignment(name, n, report, text):
    done = program(name, n)
    assert done.returncode not in (0, 3), done.stdout
    assert report in done.stderr
    assert line(FAULTS, text) in done.stderr


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(("global bounds", 63), ("shared bounds", 59), ("misaligned", 4), ("local bounds", 3)),
        *(("reverse", 64), ("swap_in_halves", 0)),
    ],
)
def test_inside_bounds(name, n):
    done = program(name, n)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_errors_under_the_sanitizers():
    done = program("deadlock", 0)
    assert done.returncode == 3
    assert "deadlock" in done.stdout
    assert done.stderr == ""


def test_python_can_load_the_sanitized_library():
    script = (
        "import sys, ctypes, emulation\n"
        "emulator = emulation.Emulator(sys.argv[1])\n"
        "out = (ctypes.c_float * 64)()\n"
        "run = emulator.library.fwm_test_run\n"
        "assert run(b'reverse', out, out, 64) is not None\n"
        "print('clean', flush=True)\n"
        "run(b'shared bounds', out, out, 60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, built("address")],
        env=os.environ | emulation.sanitizer_environment(),
        cwd=Path(emulation.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "clean\n", done.stderr
    assert "use-after-poison" in done.stderr


# ---- Compiling ----------------------------------------------------------------------------------


def test_what_is_compiled_is_kept():
    path = built("plain")
    before = path.stat().st_mtime_ns
    assert built("plain") == path
    assert path.stat().st_mtime_ns == before


def test_who_comes_later_waits_for_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(emulation, "KEPT", tmp_path / "kept")
    made = []

    def make(path: str) -> None:
        made.append(path)
        time.sleep(0.1)
        if len(made) == 1:
            raise emulation.CompileError("the first try fails")
        Path(path).write_text("done")

    with pytest.raises(emulation.CompileError):
        emulation.kept("x.so", "source", make)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: emulation.kept("x.so", "source", make), range(4)))
    assert len(made) == 2
    assert [path.read_text() for path in paths] == ["done"] * 4
    assert emulation.kept("x.so", "other source", make) != paths[0]


def test_static_shared_memory_is_a_compiler_error():
    built("plain")
    sources = ["tests/emulator/kernels.cu"]
    declaration = "SharedMemory shared;\n  float4* row"
    with pytest.raises(emulation.CompileError, match="shared arrays come from"):
        emulation.mutated(sources, KERNELS, declaration, f"__shared__ float x;\n{declaration}")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    emulation.compiler.cache_clear()
    try:
        with pytest.raises(emulation.Unavailable, match="install g\\+\\+, or set CXX"):
            emulation.build(SOURCES)
    finally:
        emulation.compiler.cache_clear()


@pytest.fixture
def nvcc() -> Iterator[str]:
    path = shutil.which("nvcc")
    if path is None:
        pytest.skip("no nvcc: install the CUDA toolkit and put its bin folder on PATH")
    return path


def test_nvcc_compiles_the_same_source(nvcc, root, tmp_path):
    archs = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)]
    strict = ["-Xcompiler", "-Wall,-Wextra", "-Werror", "all-warnings"]
    source = ["-std=c++17", "-Ikernels/csrc", "tests/emulator/kernels.cu"]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    compile_all = [nvcc, *archs, *strict, *source, "-c", "-o", str(tmp_path / "kernels.o")]
    to_ptx = [nvcc, "-arch=compute_80", *source, "-ptx", "-o"]

    def make(ptx: str) -> None:
        subprocess.run(compile_all, cwd=root, check=True)
        subprocess.run([*to_ptx, ptx], cwd=root, check=True)

    depends_on = version, compile_all[:-1], to_ptx, sorted(emulation.closure(source[-1]).items())
    code = emulation.kept("kernels.ptx", repr(depends_on), make).read_text()
    for name in (
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.bf16.f32",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32",
        "wmma.mma.sync.aligned.row.col.m16n16k8.f32.tf32.tf32.f32",
        *("cp.async.cg.shared.global", "cp.async.ca.shared.global", "cp.async.wait_all"),
        *("bar.sync", "bar.warp.sync", "shfl.sync.bfly.b32"),
    ):
        assert name in code, name
