"""The general CUDA kernels equal the fp64 reference: see cuda_impl for what runs them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_impl import IMPL, MARKS, OPS, on_a_gpu
from fairseq_fwm import ops
from fairseq_fwm.ops import FeatureSpec, library
from problems import FEATURES, FORWARD, Problem, check, equal_bits, errors, strided

pytestmark = MARKS
TOLERANCE = 2e-6
NORMS = [("sum", "none"), ("sum", "output")] + [
    ("delta", kind) for kind in ("none", "output", "full")
]


@pytest.mark.parametrize("t", [1, 2, 17, 63, 100])
@pytest.mark.parametrize("rule", FORWARD)
def test_odd_sizes(rule, t):
    for k, v in ((1, 1), (5, 31), (31, 5), (33, 16), (64, 64), (65, 40), (100, 130)):
        check(Problem(rule, 1, 2, t, k, v, state=t % 2 == 0), torch.float32, IMPL, TOLERANCE)


@pytest.mark.parametrize(
    "k,v", [(128, 20), (200, 9), (384, 20), (512, 3), (1000, 5), (1024, 9), (7, 300), (3, 1100)]
)
@pytest.mark.parametrize("rule", FORWARD)
def test_large_sizes(rule, k, v):
    check(Problem(rule, 1, 1, 9, k, v, state=True), torch.float32, IMPL, TOLERANCE)


@pytest.mark.parametrize("rule", FORWARD)
def test_long_sequences(rule):
    check(Problem(rule, 1, 1, 512, 64, 32, state=True), torch.float32, IMPL, TOLERANCE)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("spec", FEATURES, ids=str)
@pytest.mark.parametrize("rule,attn_norm", NORMS)
def test_every_option(rule, attn_norm, spec, state):
    for t, d, v, mask in ((19, 6, 5, True), (40, 24, 40, False)):
        problem = Problem(rule, 2, 2, t, d, v, spec, attn_norm, state, mask)
        check(problem, torch.float32, IMPL, TOLERANCE)


@pytest.mark.parametrize("rule,attn_norm", NORMS)
def test_more_values_than_one_launch_holds(rule, attn_norm):
    spec = FeatureSpec("dpfp", 2, True)
    problem = Problem(rule, 1, 1, 5, 3, 1030, spec, attn_norm, True, True)
    check(problem, torch.float32, IMPL, TOLERANCE)


@settings(max_examples=40)
@given(
    rule_norm=st.sampled_from(NORMS),
    t=st.integers(1, 60),
    d=st.sampled_from([1, 4, 6, 8, 12, 17, 24, 31, 40]),
    v=st.integers(1, 70),
    spec=st.sampled_from(FEATURES),
    state=st.booleans(),
    mask=st.booleans(),
    layout=st.permutations([0, 1, 2]),
    padding=st.integers(0, 3),
)
def test_any_problem_in_any_layout(rule_norm, t, d, v, spec, state, mask, layout, padding):
    torch.manual_seed(t * 1000 + d)
    if spec.name == "dpfp" and spec.nu > 2 * d - 1:
        spec = FeatureSpec("elu", 1, True)
    problem = Problem(rule_norm[0], 2, 2, t, d, v, spec, rule_norm[1], state, mask)
    check(problem, torch.float32, IMPL, TOLERANCE, strided(problem, layout, padding))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("v", [33, 1030])
@pytest.mark.parametrize("rule", FORWARD)
def test_half_storage_computes_in_fp32(rule, v, dtype):
    """Half tensors give what their fp32 copies give, rounded once at the end."""
    problem = Problem(rule, 2, 2, 20, 8, v, FeatureSpec("dpfp", 1, True), mask=True)
    problem.inputs = [x.to(dtype).double() for x in problem.inputs]
    problem.weights = [x.to(dtype).double() for x in problem.weights]
    half, full = problem.run(dtype, IMPL), problem.run(torch.float32, IMPL)
    for x, y in zip(half, full, strict=True):
        assert x.dtype == dtype
        assert torch.equal(x, y.to(dtype)), f"{(x.float() - y).abs().max()}"


@pytest.mark.skipif(on_a_gpu, reason="a GPU chooses its own order")
@pytest.mark.parametrize("rule,attn_norm", NORMS)
def test_threads_in_any_order_give_equal_bits(controls, rule, attn_norm):
    spec = FeatureSpec("dpfp", 1, True)
    problem = Problem(rule, 1, 2, 37, 12, 50, spec, attn_norm, True, True)
    wanted = problem.run(torch.float32, IMPL)
    for order, seed in (("reverse", 1), ("random", 1), ("random", 2)):
        controls.set(order=order, seed=seed)
        found = problem.run(torch.float32, IMPL)
        assert equal_bits(found, wanted)


@pytest.mark.parametrize("rule", FORWARD)
def test_runs_give_equal_bits(rule):
    problem = Problem(rule, 2, 3, 33, 16, 40, FeatureSpec("elu", 1, True), "output", True)
    first, second = (problem.run(torch.float32, IMPL) for _ in range(2))
    assert equal_bits(first, second)


@pytest.mark.parametrize("t", [6, 40])
@pytest.mark.parametrize("rule", FORWARD)
def test_garbage_at_masked_positions_goes_nowhere(rule, t):
    problem = Problem(rule, 2, 2, t, 8, 33, FeatureSpec("dpfp", 1, True), "output", mask=True)
    wanted = problem.run(torch.float32, IMPL)
    problem.poison_masked()
    found = problem.run(torch.float32, IMPL)
    assert equal_bits(found, wanted)
    for gradient in found[2:]:  # of k, v and beta
        masked = gradient.movedim(2, 1)[~problem.mask] if gradient.shape[2] == t else gradient
        assert (masked == 0).all()


@pytest.mark.parametrize("rule", FORWARD)
def test_changing_the_future_changes_no_bit_of_the_past(rule):
    t = 50
    problem = Problem(rule, 1, 2, t, 32, 33, FeatureSpec("elu", 1, True), "output")
    before = problem.run(torch.float32, IMPL)[0]
    problem.change_from(t // 2)
    after = problem.run(torch.float32, IMPL)[0]
    assert torch.equal(before[:, :, : t // 2], after[:, :, : t // 2])
    assert not torch.equal(before[:, :, t // 2 :], after[:, :, t // 2 :])


@pytest.mark.parametrize("attn_norm", ["none", "output", "full"])
@pytest.mark.parametrize("rule", FORWARD)
def test_saved_bytes(rule, attn_norm):
    """Kept for the backward pass: the inputs, r, y and the divisors; no state, no features."""
    if (rule, attn_norm) == ("sum", "full"):
        pytest.skip("the sum rule retrieves nothing")
    spec = FeatureSpec("dpfp", 3, True)
    inputs = [x.float().requires_grad_() for x in Problem(rule, 1, 2, 30, 16, 16, spec).inputs]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        y, _ = FORWARD[rule](*inputs, features=spec, attn_norm=attn_norm, impl=IMPL)
    per_token = sum(x.nbytes for x in saved) - sum(x.nbytes for x in inputs)
    r = 4 * 16 if rule == "delta" else 0
    divisors = {"none": 0, "output": 4 * 16 + 4, "full": 4 * 16 + 8}[attn_norm]
    assert per_token == 2 * 30 * (r + divisors)
    first = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(y.sum(), inputs)
    assert equal_bits(first, second)


def step_op(rule, in_place=False):
    return getattr(OPS, f"causal_{rule}_step" + "_" * in_place)


def options(spec, attn_norm):
    return (*spec.astuple, attn_norm)


@pytest.mark.parametrize("spec", FEATURES, ids=str)
@pytest.mark.parametrize("rule,attn_norm", NORMS)
def test_steps_equal_the_sequence(rule, attn_norm, spec):
    for d, v in ((6, 5), (16, 64), (9, 83), (90, 3)):
        problem = Problem(rule, 3, 2, 3, d, v, spec, attn_norm, True, True)
        inputs, state = ([x.float() for x in xs] for xs in (problem.inputs, problem.state))
        S, z = (*state, None)[:2]
        wanted, final = FORWARD[rule](
            *inputs,
            state=S if z is None else (S, z),
            write_mask=problem.mask,
            output_final_state=True,
            impl="reference",
            features=spec,
            attn_norm=attn_norm,
        )
        S_, z_ = S.clone(), None if z is None else z.clone()
        for t in range(3):
            now, mask = [x[:, :, t] for x in inputs], problem.mask[:, t]
            y, S, z_new = step_op(rule)(*now, S, z, None, mask, *options(spec, attn_norm))
            z = z if z is None else z_new
            y_ = step_op(rule, True)(*now, S_, z_, None, mask, *options(spec, attn_norm))
            assert torch.equal(y, y_) and torch.equal(S, S_)
            assert max(errors([y], [wanted[:, :, t].double()])) < 5e-6
        found, final = ([S], [final]) if z is None else ([S, z], final)
        assert max(errors(found, [x.double() for x in final])) < 5e-6
        assert z is None or torch.equal(z, z_)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 0, 0], [3] * 4])
@pytest.mark.parametrize("rule", FORWARD)
def test_steps_gather_rows_first(rule, rows):
    spec, attn_norm = FeatureSpec("elu"), "output"
    problem = Problem(rule, 4, 2, 1, 6, 41, spec, attn_norm, True)
    now = [x[:, :, 0].float() for x in problem.inputs]
    S, z = (x.float() for x in problem.state)
    rows = torch.tensor(rows)
    wanted = step_op(rule)(*now, S[rows], z[rows], None, None, *options(spec, attn_norm))
    found = step_op(rule)(*now, S, z, rows, None, *options(spec, attn_norm))
    assert equal_bits(found, wanted)
    y = step_op(rule, True)(*now, S, z, rows, None, *options(spec, attn_norm))
    assert all(torch.equal(x, y) for x, y in zip((y, S, z), wanted, strict=True))


@pytest.mark.skipif(on_a_gpu, reason="stops the GPU's context")
def test_steps_refuse_rows_that_are_not_there():
    problem = Problem("sum", 2, 1, 1, 4, 4, state=True)
    now, S = [x[:, :, 0].float() for x in problem.inputs], problem.state[0].float()
    rows = torch.tensor([0, 2])
    with pytest.raises(RuntimeError, match="source < a.source_rows"):
        step_op("sum")(*now, S, None, rows, None, *options(FeatureSpec("none"), "none"))


def test_no_sequence_and_no_batch():
    for n, t in ((2, 0), (0, 3), (0, 0)):
        for rule in FORWARD:
            inputs = [x[:n, :, :t].float() for x in Problem(rule, 2, 2, 3, 5, 4).inputs]
            state = torch.randn(n, 2, 5, 4)
            leaves = [x.requires_grad_() for x in (*inputs, state)]
            y, S = FORWARD[rule](*inputs, state=state, output_final_state=True, impl=IMPL)
            assert y.shape == (n, 2, t, 4)
            assert S.shape == state.shape and (t or torch.equal(S, state))
            gradients = torch.autograd.grad(y.sum() + S.sum(), leaves)
            assert all(g.shape == x.shape for g, x in zip(gradients, leaves, strict=True))


@pytest.mark.parametrize("rule", FORWARD)
def test_what_kernels_cannot_do_is_refused_with_the_way_out(rule):
    wide = [x.float() for x in Problem(rule, 1, 1, 2, 1025, 2).inputs]
    with pytest.raises(ValueError, match=r"1 to 1024 key features, found K = 1025: use impl='chu"):
        FORWARD[rule](*wide, impl=IMPL)
    mapped = [x.float() for x in Problem(rule, 1, 1, 2, 128, 2).inputs]
    with pytest.raises(ValueError, match="found K = 1280"):
        FORWARD[rule](*mapped, features=FeatureSpec("dpfp", 5), impl=IMPL)
    with pytest.raises(TypeError, match="compute in float32, found float64: use impl='chunked'"):
        FORWARD[rule](*Problem(rule, 1, 1, 2, 3, 2).inputs, impl=IMPL)


@pytest.mark.skipif(on_a_gpu, reason="the ops on CUDA tensors are checked by the others")
@pytest.mark.parametrize("rule,attn_norm", NORMS)
def test_opcheck(rule, attn_norm):
    spec = FeatureSpec("elu", 1, True)
    problem = Problem(rule, 1, 2, 5, 4, 3, spec, attn_norm, True, True)
    leaves = [x.float().requires_grad_() for x in (*problem.inputs, *problem.state)]
    sequence, (S, *z) = leaves[: len(problem.inputs)], leaves[len(problem.inputs) :]
    arguments = (*sequence, S, *(z or [None]), problem.mask, *options(spec, attn_norm), True, True)
    torch.library.opcheck(library.sequence_op_of(rule, "emulated").default, arguments)


def test_emulated_is_for_tests_alone(run):
    script = (
        "import torch; from fairseq_fwm import ops; x = torch.ones(1, 1, 2, 2);"
        "ops.causal_sum(x, x, x, impl='emulated')"
    )
    assert "unknown impl 'emulated'" in run("-c", script, status=1).stderr


def test_public_choices_do_not_name_the_emulator():
    assert "emulated" not in ops.dispatch.IMPLS
