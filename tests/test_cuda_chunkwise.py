"""The chunkwise CUDA kernels (tensor cores) equal the fp64 reference to their precision."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuda_impl import IMPL, MARKS, on_a_gpu
from fairseq_fwm.ops import FeatureSpec
from problems import FEATURES, FORWARD, Problem, equal_bits, errors, strided

pytestmark = MARKS
# Relative to the largest number of each result, for rounded inputs.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
NORMS = [("sum", "none"), ("sum", "output")] + [
    ("delta", kind) for kind in ("none", "output", "full")
]
A100, RTX_4090 = 163 << 10, 99 << 10


@pytest.fixture(autouse=True)
def chunkwise(monkeypatch):
    """Ask for the chunkwise form, and allow tf32."""
    monkeypatch.setenv("FWM_CUDA_FORM", "chunkwise")
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def rounded(problem, dtype):
    problem.inputs = [x.to(dtype).double() for x in problem.inputs]
    problem.weights = [x.to(dtype).double() for x in problem.weights]
    return problem


def check(problem, dtype, lay=lambda x: x):
    rounded(problem, dtype)
    wanted = problem.run(torch.float64, "reference")
    found = problem.run(dtype, IMPL, lay)
    assert all(x.dtype in (dtype, torch.float32) and torch.isfinite(x).all() for x in found)
    # Gradients of states come in fp32 and were rounded with the others.
    assert max(errors(found, wanted)) < TOLERANCE[dtype]


def ran_chunkwise(controls):
    return any(barrier.file.endswith("chunk_forward.cuh") for barrier in controls.barriers())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("t", [1, 2, 17, 63, 64, 65, 100])
@pytest.mark.parametrize("rule", FORWARD)
def test_odd_lengths(controls, rule, t, dtype):
    for k, v in ((16, 16), (64, 32), (48, 80)):
        check(Problem(rule, 1, 2, t, k, v, state=t % 2 == 0), dtype)
    assert on_a_gpu or ran_chunkwise(controls)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("k,v", [(128, 128), (256, 32), (32, 256), (256, 256)])
@pytest.mark.parametrize("rule", FORWARD)
def test_large_sizes(rule, k, v, dtype):
    check(Problem(rule, 1, 1, 70, k, v, state=True), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rule", FORWARD)
def test_long_sequences(rule, dtype):
    check(Problem(rule, 1, 1, 512, 64, 32, state=True), dtype)


def dtypes(attn_norm):
    return [x for x in TOLERANCE if x != torch.float16 or attn_norm == "none"]


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("spec", FEATURES, ids=str)
@pytest.mark.parametrize("rule,attn_norm", NORMS)
def test_every_option(rule, attn_norm, spec, state):
    # From z = 0 on, z.q can be as small as eps: then rounding q is felt many times over.
    state = state or attn_norm != "none"
    for dtype in dtypes(attn_norm):
        problem = Problem(rule, 2, 2, 70, 16, 32, spec, attn_norm, state, not state)
        check(problem, dtype)
        problem = Problem(rule, 2, 2, 33, 32, 16, spec, attn_norm, state, state)
        check(problem, dtype)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule_norm=st.sampled_from(NORMS),
    t=st.integers(1, 140),
    d=st.sampled_from([16, 32, 48]),
    v=st.sampled_from([16, 48, 64, 112]),
    spec=st.sampled_from(FEATURES[:5]),
    state=st.booleans(),
    mask=st.booleans(),
    layout=st.permutations([0, 1, 2]),
    padding=st.integers(0, 3),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_any_problem_in_any_layout(rule_norm, t, d, v, spec, state, mask, layout, padding, dtype):
    torch.manual_seed(t * 1000 + d)
    dtype = dtype if dtype in dtypes(rule_norm[1]) else torch.bfloat16
    state = state or rule_norm[1] != "none"
    problem = Problem(rule_norm[0], 2, 2, t, d, v, spec, rule_norm[1], state, mask)
    check(problem, dtype, strided(problem, layout, padding))


@pytest.mark.skipif(on_a_gpu, reason="a GPU has the shared memory that it has")
@pytest.mark.parametrize("limit", [A100, RTX_4090, 64 << 10])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_less_shared_memory(controls, dtype, limit):
    """Shorter chunks, fewer columns and more passes over the values give the same."""
    controls.set(shared_limit=limit)
    spec = FeatureSpec("dpfp", 2, True)
    attn_norm = "output" if dtype in dtypes("output") else "none"
    check(Problem("delta", 1, 1, 70, 32, 64, spec, attn_norm, True), dtype)
    assert ran_chunkwise(controls)


@pytest.mark.skipif(on_a_gpu, reason="a GPU chooses its own order")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rule,attn_norm", NORMS)
def test_threads_in_any_order_give_equal_bits(controls, rule, attn_norm, dtype):
    if dtype not in dtypes(attn_norm):
        attn_norm = "none"
    spec = FeatureSpec("dpfp", 1, True)
    problem = Problem(rule, 1, 2, 70, 16, 48, spec, attn_norm, True, True)
    wanted = rounded(problem, dtype).run(dtype, IMPL)
    for order, seed in (("reverse", 1), ("random", 1)):
        controls.set(order=order, seed=seed)
        found = problem.run(dtype, IMPL)
        assert equal_bits(found, wanted)


@pytest.mark.parametrize("rule", FORWARD)
def test_garbage_at_masked_positions_goes_nowhere(rule):
    t = 70
    problem = Problem(rule, 2, 2, t, 16, 32, FeatureSpec("dpfp", 1, True), "output", mask=True)
    wanted = problem.run(torch.float32, IMPL)
    problem.poison_masked()
    found = problem.run(torch.float32, IMPL)
    assert equal_bits(found, wanted)


@pytest.mark.parametrize("rule", FORWARD)
def test_changing_the_future_changes_no_bit_of_the_past(rule):
    t = 100
    problem = Problem(rule, 1, 2, t, 32, 32, FeatureSpec("elu", 1, True), "output")
    before = problem.run(torch.float32, IMPL)[0]
    problem.change_from(t // 2)
    after = problem.run(torch.float32, IMPL)[0]
    assert torch.equal(before[:, :, : t // 2], after[:, :, : t // 2])
    assert not torch.equal(before[:, :, t // 2 :], after[:, :, t // 2 :])


@pytest.mark.skipif(on_a_gpu, reason="asks the emulator which kernels ran")
def test_the_form_is_chosen_by_shape_and_permission(controls, monkeypatch):
    monkeypatch.delenv("FWM_CUDA_FORM")

    def runs_chunkwise(dtype, *sizes, form=None, allow_tf32=False):
        if form:
            monkeypatch.setenv("FWM_CUDA_FORM", form)
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        controls.reset()
        Problem("sum", 1, 1, *sizes).run(dtype, IMPL)
        return ran_chunkwise(controls)

    half = torch.bfloat16
    assert runs_chunkwise(half, 128, 32, 16)
    assert not runs_chunkwise(half, 127, 32, 16)  # short
    assert not runs_chunkwise(half, 128, 33, 16)
    assert not runs_chunkwise(half, 128, 32, 17)
    assert not runs_chunkwise(half, 128, 272, 16)
    assert not runs_chunkwise(torch.float32, 128, 32, 16)  # tf32 is the caller's choice
    assert runs_chunkwise(torch.float32, 128, 32, 16, allow_tf32=True)
    assert not runs_chunkwise(half, 128, 32, 16, form="general")
    assert runs_chunkwise(half, 5, 32, 16, form="chunkwise")


def test_what_cannot_be_done_chunkwise_is_refused(monkeypatch):
    with pytest.raises(
        ValueError, match="multiples of 16 .*found K = 20, V = 16, Float: unset it"
    ):
        Problem("sum", 1, 1, 5, 20, 16).run(torch.float32, IMPL)
    with pytest.raises(ValueError, match="float32 for attention normalisation; .* Half: unset it"):
        spec = FeatureSpec("elu")
        Problem("sum", 1, 1, 5, 16, 16, spec, "output").run(torch.float16, IMPL)
    torch.backends.cuda.matmul.allow_tf32 = False
    with pytest.raises(ValueError, match="would round float32 tensors to tf32: allow it with"):
        Problem("sum", 1, 1, 5, 16, 16).run(torch.float32, IMPL)
    monkeypatch.setenv("FWM_CUDA_FORM", "quick")
    with pytest.raises(ValueError, match="FWM_CUDA_FORM=quick: choose auto, general or chunkwise"):
        Problem("sum", 1, 1, 5, 16, 16).run(torch.float32, IMPL)
