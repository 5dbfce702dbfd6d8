"""The compiled CPU kernels equal the fp64 reference: outputs, gradients, states, every option."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import problems
from fairseq_fwm import ops
from fairseq_fwm.ops import FeatureSpec, library
from fairseq_fwm.ops.rescaled import read_rescaled, write_rescaled
from problems import FEATURES, FORWARD, STEP, STEP_, Problem, equal_bits, errors

pytestmark = pytest.mark.skipif(
    not library.has_kernel("causal_sum_fwd", "cpu"),
    reason=f"no compiled CPU kernels: {library.missing_reason('causal_sum_fwd', 'cpu')}",
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
LENGTHS = [1, 2, 3, 17, 48, 63, 257, 1000]
SIZES = [1, 5, 16, 31, 32, 96, 128, 384]


def check(problem, dtype, lay=lambda x: x):
    problems.check(problem, dtype, "cpu", TOLERANCE[dtype], lay)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("k,v", list(zip(SIZES, reversed(SIZES), strict=True)) + [(128, 64)])
@pytest.mark.parametrize("rule", FORWARD)
def test_every_size(rule, k, v, dtype):
    for t in LENGTHS[:-1]:
        check(Problem(rule, 1, 2, t, k, v, state=t % 2 == 0), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rule", FORWARD)
def test_long_sequences(rule, dtype):
    for k, v in ((31, 5), (16, 96), (128, 32)):
        check(Problem(rule, 1, 1, 1000, k, v, state=True), dtype)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("attn_norm", ["none", "output", "full"])
@pytest.mark.parametrize("spec", FEATURES, ids=str)
@pytest.mark.parametrize("rule", FORWARD)
def test_every_option(rule, spec, attn_norm, state):
    if (rule, attn_norm) == ("sum", "full"):
        pytest.skip("the sum rule retrieves nothing")
    for t, d, v, mask in ((19, 6, 5, True), (48, 24, 40, False), (70, 16, 16, True)):
        problem = Problem(rule, 2, 2, t, d, v, spec, attn_norm, state, mask)
        check(problem, torch.float64)
        check(problem, torch.float32)


@settings(max_examples=40)
@given(
    rule=st.sampled_from(list(FORWARD)),
    t=st.integers(1, 90),
    d=st.sampled_from([4, 6, 8, 12, 17, 24, 31, 40]),
    v=st.integers(1, 70),
    spec=st.sampled_from(FEATURES),
    attn_norm=st.sampled_from(["none", "output", "full"]),
    state=st.booleans(),
    mask=st.booleans(),
    layout=st.permutations([0, 1, 2]),
    padding=st.integers(0, 3),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_any_problem_in_any_layout(
    rule, t, d, v, spec, attn_norm, state, mask, layout, padding, dtype
):
    torch.manual_seed(t * 1000 + d)
    attn_norm = "output" if rule == "sum" and attn_norm == "full" else attn_norm

    problem = Problem(rule, 2, 2, t, d, v, spec, attn_norm, state, mask)
    check(problem, dtype, problems.strided(problem, layout, padding))


def test_fairseq_layout_comes_back_without_a_copy():
    t, n, h, d = 9, 2, 3, 16
    projected = torch.randn(t, n, h * (3 * d + 1), requires_grad=True)
    heads = projected.view(t, n, h, -1).permute(1, 2, 0, 3)
    q, k, v, beta = heads.split([d, d, d, 1], -1)
    y, _ = ops.causal_delta(q.softmax(-1), k.softmax(-1), v, beta.squeeze(-1).sigmoid())
    assert y.permute(2, 0, 1, 3).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("t", [40, 300])
@pytest.mark.parametrize("rule", FORWARD)
def test_half_storage_computes_in_fp32(rule, t, dtype):
    """Half tensors give what their fp32 copies give, rounded once at the end."""
    problem = Problem(rule, 2, 2, t, 32, 33)
    problem.inputs = [x.to(dtype).double() for x in problem.inputs]
    problem.weights = [x.to(dtype).double() for x in problem.weights]
    half, full = problem.run(dtype, "cpu"), problem.run(torch.float32, "cpu")
    for x, y in zip(half, full, strict=True):
        assert x.dtype == dtype
        assert torch.equal(x, y.to(dtype)), f"{(x.float() - y).abs().max()}"


@pytest.mark.parametrize("attn_norm", ["none", "output"])
@pytest.mark.parametrize("t", [30, 200])
@pytest.mark.parametrize("rule", FORWARD)
def test_threads_give_equal_bits(rule, t, attn_norm):
    problem = Problem(rule, 1, 3, t, 32, 150, FeatureSpec("dpfp", 1, True), attn_norm, t > 100)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(problem.run(torch.float32, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("t", [6, 40, 130])
@pytest.mark.parametrize("rule", FORWARD)
def test_garbage_at_masked_positions_goes_nowhere(rule, t):
    problem = Problem(rule, 2, 2, t, 8, 33, FeatureSpec("dpfp", 1, True), "output", mask=True)
    wanted = problem.run(torch.float32, "cpu")
    problem.poison_masked()
    found = problem.run(torch.float32, "cpu")
    assert equal_bits(found, wanted)
    for gradient in found[2:]:  # of k, v and beta
        masked = gradient.movedim(2, 1)[~problem.mask] if gradient.shape[2] == t else gradient
        assert (masked == 0).all()


@pytest.mark.parametrize("t", [20, 100])
@pytest.mark.parametrize("rule", FORWARD)
def test_changing_the_future_changes_no_bit_of_the_past(rule, t):
    problem = Problem(rule, 1, 2, t, 32, 33, FeatureSpec("elu", 1, True), "output")
    before = problem.run(torch.float32, "cpu")[0]
    problem.change_from(t // 2)
    after = problem.run(torch.float32, "cpu")[0]
    assert torch.equal(before[:, :, : t // 2], after[:, :, : t // 2])
    assert not torch.equal(before[:, :, t // 2 :], after[:, :, t // 2 :])


@pytest.mark.parametrize("rule", FORWARD)
def test_backward_twice_and_saved_bytes(rule):
    """What the backward pass keeps is not used up; it is r beside the inputs, and no state."""
    spec = FeatureSpec("dpfp", 3, True)
    inputs = [x.float().requires_grad_() for x in Problem(rule, 1, 2, 300, 16, 16, spec).inputs]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        y, _ = FORWARD[rule](*inputs, features=spec, impl="cpu")
    given_bytes = sum(x.nbytes for x in inputs)
    allowed = given_bytes + (y.nbytes if rule == "delta" else 0)
    assert sum(x.nbytes for x in saved) <= allowed
    first = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(y.sum(), inputs)
    assert equal_bits(first, second)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attn_norm", ["none", "output", "full"])
@pytest.mark.parametrize("spec", FEATURES, ids=str)
@pytest.mark.parametrize("rule", FORWARD)
def test_steps_equal_the_sequence(rule, spec, attn_norm, dtype):
    if (rule, attn_norm) == ("sum", "full"):
        pytest.skip("the sum rule retrieves nothing")
    for d, v in ((6, 5), (16, 64), (9, 83)):
        problem = Problem(rule, 3, 2, 5, d, v, spec, attn_norm, True, True)
        inputs, state = ([x.to(dtype) for x in xs] for xs in (problem.inputs, problem.state))
        options = {"features": spec, "attn_norm": attn_norm}
        state = state[0] if attn_norm == "none" else tuple(state)
        wanted, final = FORWARD[rule](
            *inputs,
            state=state,
            write_mask=problem.mask,
            output_final_state=True,
            impl="reference",
            **options,
        )
        mine = state.clone() if attn_norm == "none" else tuple(x.clone() for x in state)
        for t in range(5):
            now, mask = [x[:, :, t] for x in inputs], problem.mask[:, t]
            y, state = STEP[rule](*now, state, write_mask=mask, **options)
            y_ = STEP_[rule](*now, mine, write_mask=mask, **options)
            assert torch.equal(y, y_)
            assert max(errors([y], [wanted[:, :, t].double()])) < TOLERANCE[dtype]
        pairs = (
            zip(state, mine, final, strict=True) if attn_norm != "none" else [(state, mine, final)]
        )
        for x, x_, w in pairs:
            assert torch.equal(x, x_)
            assert max(errors([x], [w.double()])) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 0, 0], [1, 0, 0, 2], [3] * 4])
@pytest.mark.parametrize("rule", FORWARD)
def test_steps_gather_rows_first(rule, rows):
    problem = Problem(rule, 4, 2, 1, 6, 21, FeatureSpec("elu"), "output", True)
    now = [x[:, :, 0].float() for x in problem.inputs]
    state = tuple(x.float() for x in problem.state)
    options = {"features": FeatureSpec("elu"), "attn_norm": "output"}
    rows = torch.tensor(rows)
    gathered = tuple(x[rows] for x in state)
    wanted, wanted_state = STEP[rule](*now, gathered, **options)
    y, fresh = STEP[rule](*now, state, rows=rows, **options)
    mine = tuple(x.clone() for x in state)
    y_ = STEP_[rule](*now, mine, rows=rows, **options)
    for found, found_state in ((y, fresh), (y_, mine)):
        assert torch.equal(found, wanted)
        assert all(torch.equal(x, w) for x, w in zip(found_state, wanted_state, strict=True))
    some = [x[:2] for x in now]  # a beam that shrinks
    y, fresh = STEP[rule](*some, state, rows=rows[:2], **options)
    assert torch.equal(y, wanted[:2]) and torch.equal(fresh[0], wanted_state[0][:2])
    with pytest.raises(IndexError, match="is not a row of a state"):
        STEP[rule](*now, state, rows=rows + 4, **options)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("T,V", [(1, 3), (2, 16), (17, 21), (40, 70)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])  # the norm never, sometimes, always cut
def test_rescaled_delta_rule(scale, T, V, dtype):
    q, k = torch.randn(2, 2, 3, 1, 9, dtype=torch.float64)
    k = scale * torch.nn.functional.normalize(torch.randn(2, 3, T, 9, dtype=q.dtype), dim=-1)
    v, beta = torch.randn(2, 3, T, V, dtype=q.dtype), torch.rand(2, 3, T, dtype=q.dtype)
    exact = [x.requires_grad_() for x in (q, k, v, beta)]
    mine = [x.detach().to(dtype).requires_grad_() for x in exact]
    wanted = ops.read(q, write_rescaled(*exact[1:]))
    found = read_rescaled(*mine)
    dy = torch.randn_like(wanted)
    wanted = (wanted, *torch.autograd.grad(wanted, exact, dy))
    found = (found, *torch.autograd.grad(found, mine, dy.to(dtype)))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).norm() <= 10 * TOLERANCE[dtype] * theirs.norm() + 1e-7
    gram = (k @ k.transpose(-1, -2)).detach().to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.fwm.rescaled_fwd.default, (gram, *mine[2:]))


def test_no_sequence_and_no_batch():
    for n, t in ((2, 0), (0, 3), (0, 0)):
        for rule in FORWARD:
            inputs = [x[:n, :, :t].float() for x in Problem(rule, 2, 2, 3, 5, 4).inputs]
            state = torch.randn(n, 2, 5, 4)
            y, S = FORWARD[rule](*inputs, state=state, output_final_state=True, impl="cpu")
            assert y.shape == (n, 2, t, 4)
            assert S.shape == state.shape and (t or torch.equal(S, state))


def test_wrong_dtype_is_refused():
    x = torch.ones(1, 1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="floating point"):
        ops.causal_sum(x, x, x, impl="cpu")


@pytest.mark.skipif("FWM_CPU_ISA" in os.environ, reason="an instruction set is forced already")
@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_other_instruction_sets(isa, run):
    """This file again, with the kernels of another instruction set."""
    probe = "import torch, fairseq_fwm.ops as o; print(torch.ops.fwm.cpu_isa())"
    found = run("-c", probe, env={"FWM_CPU_ISA": isa}).stdout.split()
    assert found[-1] == isa
    done = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__),
        __file__.replace("test_kernels", "test_recurrent_ops"),
        env={"FWM_CPU_ISA": isa},
    )
    assert " passed" in done.stdout and "failed" not in done.stdout


def test_unknown_instruction_set_is_named(run):
    done = run(
        *("-c", "from fairseq_fwm.ops import library; print(library.EXTENSION_PROBLEM)"),
        env={"FWM_CPU_ISA": "avx1024"},
    )
    assert "FWM_CPU_ISA asks for instructions" in done.stdout
