"""No CUDA kernel races or leaves its buffers, every barrier is needed, planted bugs are found."""

import functools
import subprocess

import pytest

import emulation
from emulated_ops import KERNELS

# One process: the programs are built once and share their object files.
pytestmark = pytest.mark.xdist_group("instrumented")
FORMS = ["general", "chunkwise", "recurrent"]
SOURCES = [*KERNELS]
PROBLEMS = {"general": 24, "chunkwise": 12, "recurrent": 12}


def program(variant, mutation=None):
    options = {"program": True, "host_sources": ["tests/cuda_problems.cpp"], "host_flags": ["-w"]}
    try:
        if mutation is None:
            return emulation.build(SOURCES, variant, **options)
        return emulation.mutated(SOURCES, *mutation, variant, **options)
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))


def run(path, form, problems=None, first=0, skip=None):
    arguments = [form, problems or PROBLEMS[form], first, *([skip] if skip else [])]
    return subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=600
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["race", "address"])
def test_nothing_is_found(variant, form):
    done = run(program(variant), form)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@functools.cache
def barriers(form):
    """Return the places of the kernels' barriers that ran."""
    done = run(program("race"), form)
    lines = [line.split() for line in done.stdout.splitlines()]
    return sorted({place for _, place, _ in lines})


@pytest.mark.parametrize("form", FORMS)
def test_every_barrier_is_needed(form):
    """Skip one at a time: the race detector, or the emulator, must see it."""
    places = barriers(form)
    assert len(places) > 10
    path = program("race")
    idle = [p for p in places if run(path, form, PROBLEMS[form] * 2, skip=p).returncode != 3]
    assert not idle, f"nothing notices that these barriers are gone: {idle}"


CUDA = "kernels/csrc/cuda/"
OUTSIDE = {
    "shared memory, one row too far": (
        "general",
        CUDA + "forward.cuh",
        "if (first_part) tile.y[i * C + c] = y;",
        "if (first_part) tile.y[i * C + c] = tile.y[steps * C + c] = y;",
    ),
    "global memory, one column too far": (
        "general",
        CUDA + "step.cuh",
        "if (c < V) fresh[Index(j) * V + c] = s[i];",
        "fresh[Index(j) * V + c] = s[i];",
    ),
    "a matrix of weights, one row too far": (
        "recurrent",
        CUDA + "sequential.cuh",
        "return sum_of(rows, [&](int i) { return x[i] * m[i * columns + j]; });",
        "return sum_of(rows + 1, [&](int i) { return x[i] * m[i * columns + j]; });",
    ),
}


@pytest.mark.parametrize("bug", OUTSIDE)
def test_accesses_outside_are_found(bug):
    form, *mutation = OUTSIDE[bug]
    done = run(program("address", mutation), form)
    assert "AddressSanitizer" in done.stderr


def test_an_unwritten_output_is_found():
    mutation = (
        CUDA + "backward_values.cuh",
        "store_tile(tile.out, C, a.dv, a.dtype, head, span, begin, width);",
        "store_tile(tile.out, C, a.dv, a.dtype, head, span, begin, width - 1);",
    )
    done = run(program("plain", mutation), "general")
    assert done.returncode == 1 and "is not finite" in done.stdout


WRONG = {
    "a mask of another sequence": (
        "from problems import Problem, check\n"
        "problem = Problem('sum', 2, 2, 9, 5, 6, mask=True)\n"
        "check(problem, torch.float32, 'emulated', 2e-6)\n",
        CUDA + "forward.cuh",
        "const bool* mask = mask_of(a, head);",
        "const bool* mask = mask_of(a, Head(a.H, 0));",
    ),
    "no gradient through what decides how much is written": (
        "from recurrent_problems import Problem, same\n"
        "problem = Problem('self_referential', 2, 2, 9, 5)\n"
        "found = problem.run(torch.float32, 'emulated')\n"
        "same(found, problem.run(impl='reference'), 2e-5)\n",
        CUDA + "self_referential.cuh",
        "da[3 * d + part] = sum * beta[part] * (1.0f - beta[part]);",
        "da[3 * d + part] = sum * beta[part];",
    ),
}


@pytest.mark.parametrize("bug", WRONG)
def test_wrong_numbers_are_found(run, bug):
    """By the comparison with the reference, in a process of its own."""
    comparison, *mutation = WRONG[bug]
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import torch, emulated_ops, emulation\n"
        f"emulated_ops.emulated({tuple(mutation)!r})\n{comparison}"
    )
    assert "AssertionError: error" in run("-c", script, status=1).stderr


# Read and written once per sequence, not per time step: states, whose rows lie far apart.
ONCE = {"shape.cuh", "chunk.cuh"}


@pytest.mark.parametrize(
    "form,size",
    [("general", "64x64x0"), ("general", "128x128x2"), ("general", "384x64x0")]
    + [("chunkwise", "64x64x2"), ("chunkwise", "128x128x0"), ("chunkwise", "256x64x3")]
    + [("recurrent", "32x0x0"), ("recurrent", "64x0x0")],
)
def test_memory_is_used_well(form, size):
    """No bank conflict above two-way; as few sectors as the numbers asked for allow."""
    done = subprocess.run([program("memory"), form, size], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [emulation.parse_line(text) for text in done.stdout.splitlines()]
    shared = [line for line in lines if line.space == "shared"]
    everywhere = [x for x in lines if x.space == "global" and x.file not in ONCE]
    assert len(shared) > 10 and len(everywhere) > 5
    assert not [line for line in shared if line.cost > 2]
    # Rows of few or of two-byte numbers may fill half of a sector.
    assert not [x for x in everywhere if x.cost > max(2, 2 * x.lanes * x.bytes / 32)]
