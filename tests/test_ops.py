"""fairseq_fwm.ops: every form equals the reference recurrence, outputs and gradients."""

import pytest
import torch

from fairseq_fwm import ops
from fairseq_fwm.ops import chunked, library
from variants import DTYPES, assert_close

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
RULES = ["sum", "delta"]
FORWARD = {"sum": ops.causal_sum, "delta": ops.causal_delta}
STEP = {"sum": ops.causal_sum_step, "delta": ops.causal_delta_step}
STEP_IN_PLACE = {"sum": ops.causal_sum_step_, "delta": ops.causal_delta_step_}
CHUNKED = {"sum": chunked.causal_sum_chunked, "delta": chunked.causal_delta_chunked}


def draw(rule, n=2, h=3, t=17, k=5, v=4, dtype=torch.float64, grad=True, seed=0):
    """q, k, v (, beta) and S_0; keys sum to one, as the delta rule needs to be stable."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = [
        randn(n, h, t, k).softmax(-1),
        randn(n, h, t, k).softmax(-1),
        randn(n, h, t, v),
    ]
    if rule == "delta":
        tensors.append(randn(n, h, t).sigmoid())
    state = randn(n, h, k, v)
    return [x.to(dtype).requires_grad_(grad) for x in tensors], state.to(dtype).requires_grad_(
        grad
    )


def gradients(y, final, inputs):
    """Gradients of a scalar in which every output has its own weight."""
    generator = torch.Generator().manual_seed(1)
    loss = 0
    for out in (y, final):
        weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        loss = loss + (out * weights.to(out.dtype)).sum()
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk_size", [1, 7, 64])
@pytest.mark.parametrize("t", [1, 2, 3, 31, 63, 100])
@pytest.mark.parametrize("rule", RULES)
def test_chunked_equals_reference(rule, t, chunk_size, dtype):
    tensors, state = draw(rule, t=t, dtype=dtype)
    wanted = FORWARD[rule](*tensors, state=state, output_final_state=True, impl="reference")
    found = CHUNKED[rule](*tensors, state, True, chunk_size)
    for name, x, y in zip(("y", "S"), found, wanted, strict=True):
        assert_close(name, x, y, TOLERANCE[dtype])
    inputs = [*tensors, state]
    for i, (x, y) in enumerate(
        zip(gradients(*found, inputs), gradients(*wanted, inputs), strict=True)
    ):
        assert_close(f"gradient {i}", x, y, TOLERANCE[dtype])


@pytest.mark.parametrize("t", [3, 100])
@pytest.mark.parametrize("rule", RULES)
def test_without_states_the_short_form_gives_the_same(rule, t):
    tensors, state = draw(rule, t=t, grad=False)
    y, final = FORWARD[rule](*tensors, impl="chunked")
    assert final is None
    zeros = torch.zeros_like(state)
    wanted, _ = FORWARD[rule](*tensors, state=zeros, output_final_state=True, impl="reference")
    assert_close("y", y, wanted, 1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_steps_and_segments_equal_the_whole(rule):
    tensors, state = draw(rule, t=11, grad=False)
    wanted, final = FORWARD[rule](*tensors, state=state, output_final_state=True)

    S, outputs = state, []
    for t in range(11):
        y, S = STEP[rule](*(x[:, :, t] for x in tensors), S)
        outputs.append(y)
    assert_close("steps", torch.stack(outputs, 2), wanted, 1e-10)
    assert_close("state after steps", S, final, 1e-10)

    first, S = FORWARD[rule](*(x[:, :, :4] for x in tensors), state=state, output_final_state=True)
    second, S = FORWARD[rule](*(x[:, :, 4:] for x in tensors), state=S, output_final_state=True)
    assert_close("segments", torch.cat((first, second), 2), wanted, 1e-10)
    assert_close("state after segments", S, final, 1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_gradient_through_a_carried_state(rule):
    tensors, state = draw(rule, t=9)
    whole = FORWARD[rule](*tensors, state=state, output_final_state=True)
    y1, S = FORWARD[rule](*(x[:, :, :4] for x in tensors), state=state, output_final_state=True)
    y2, S = FORWARD[rule](*(x[:, :, 4:] for x in tensors), state=S, output_final_state=True)
    inputs = [*tensors, state]
    wanted = gradients(*whole, inputs)
    for x, y in zip(gradients(torch.cat((y1, y2), 2), S, inputs), wanted, strict=True):
        assert_close("gradient of segments", x, y, 1e-10)

    S, outputs = state, []
    for t in range(9):
        y, S = STEP[rule](*(x[:, :, t] for x in tensors), S)
        outputs.append(y)
    for x, y in zip(gradients(torch.stack(outputs, 2), S, inputs), wanted, strict=True):
        assert_close("gradient of steps", x, y, 1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_in_place_step_gathers_rows_first(rule):
    tensors, state = draw(rule, t=1, grad=False)
    step = [x[:, :, 0] for x in tensors]
    rows = torch.tensor([1, 1])
    wanted_y, wanted_S = STEP[rule](*step, state[rows])
    mine = state.clone()
    y = STEP_IN_PLACE[rule](*step, mine, rows=rows)
    assert_close("y", y, wanted_y, 1e-12)
    assert_close("S", mine, wanted_S, 1e-12)
    with pytest.raises(ValueError, match="beam that shrinks"):
        STEP_IN_PLACE[rule](*step, mine, rows=torch.tensor([0]))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("rule", RULES)
def test_gradcheck_with_initial_state_and_mask(rule, impl):
    tensors, state = draw(rule, n=2, h=1, t=5, k=3, v=2)
    mask = torch.tensor([[True, True, False, True, True], [False, False, True, True, True]])

    def run(*args):
        *sequence, S = args
        return FORWARD[rule](
            *sequence, state=S, output_final_state=True, write_mask=mask, impl=impl
        )

    assert torch.autograd.gradcheck(run, (*tensors, state))


@pytest.mark.parametrize("position", [0, 5, 16])
@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("rule", RULES)
def test_causality_is_bit_exact(rule, impl, position):
    tensors, state = draw(rule, dtype=torch.float32, grad=False)
    before, _ = FORWARD[rule](*tensors, state=state, impl=impl)
    for i in range(len(tensors)):
        changed = [x.clone() for x in tensors]
        changed[i][:, :, position] = 0.37
        after, _ = FORWARD[rule](*changed, state=state, impl=impl)
        assert torch.equal(before[:, :, :position], after[:, :, :position])
        assert not torch.equal(before[:, :, position:], after[:, :, position:])


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("rule", RULES)
def test_masked_positions_write_nothing_even_if_poisoned(rule, impl):
    tensors, state = draw(rule, t=6, grad=False)
    mask = torch.tensor([[True, False, True, True, False, True]]).expand(2, -1)
    keep = mask[0]
    wanted, final = FORWARD[rule](
        *(x[:, :, keep] for x in tensors), state=state, output_final_state=True
    )
    poisoned = [tensors[0]] + [x.clone() for x in tensors[1:]]
    for x in poisoned[1:]:
        x[:, :, ~keep] = torch.nan
    y, S = FORWARD[rule](
        *poisoned, state=state, output_final_state=True, write_mask=mask, impl=impl
    )
    assert_close("y", y[:, :, keep], wanted, 1e-10)
    assert_close("S", S, final, 1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_non_contiguous_inputs_and_untouched_state(rule):
    tensors, state = draw(rule, grad=False)
    wanted, _ = FORWARD[rule](*tensors, state=state)
    kept = state.clone()
    strided = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in tensors]
    found, _ = FORWARD[rule](*strided, state=state)
    assert_close("y", found, wanted, 1e-12)
    assert torch.equal(state, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_half_inputs_are_accumulated_in_fp32(rule, dtype):
    tensors, _ = draw(rule, t=40, grad=False)
    half = [x.to(dtype) for x in tensors]
    y, S = FORWARD[rule](*half, output_final_state=True)
    assert y.dtype == dtype and S.dtype == torch.float32
    wanted, wanted_S = FORWARD[rule](*(x.float() for x in half), output_final_state=True)
    assert_close("S", S, wanted_S, 1e-6)
    assert_close("y", y.float(), wanted, 2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        inside, S = FORWARD[rule](*(x.float() for x in half), output_final_state=True)
    assert S.dtype == torch.float32 and torch.equal(inside, wanted)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("sum_norm", [False, True])
@pytest.mark.parametrize("name,nu", [("elu", 1), ("dpfp", 1), ("dpfp", 3)])
@pytest.mark.parametrize("rule", RULES)
def test_features_inside_the_op(rule, name, nu, sum_norm, impl):
    spec = ops.FeatureSpec(name, nu, sum_norm)
    tensors, _ = draw(rule, k=6, grad=False)
    q, k, rest = torch.randn_like(tensors[0]), torch.randn_like(tensors[1]), tensors[2:]
    wanted, final = FORWARD[rule](spec(q), spec(k), *rest, output_final_state=True)
    found, S = FORWARD[rule](q, k, *rest, features=spec, output_final_state=True, impl=impl)
    assert S.shape[2] == spec.out_dim(6)
    assert_close("y", found, wanted, 1e-10)
    assert_close("S", S, final, 1e-10)


def test_write_and_read_are_the_sum_rule_seen_from_its_end():
    (q, k, v), state = draw("sum")
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[0, 3:6] = False
    _, wanted = ops.causal_sum(q, k, v, state=state, output_final_state=True, write_mask=mask)
    S = ops.write(k, v, write_mask=mask, state=state)
    assert_close("S", S, wanted, 1e-10)
    assert_close("y", ops.read(q, S), torch.einsum("nhtk,nhkv->nhtv", q, wanted), 1e-10)
    assert torch.autograd.gradcheck(
        lambda *a: ops.read(a[0], ops.write(a[1], a[2], state=a[3])), (q, k, v, state)
    )


@pytest.mark.parametrize("attn_norm", ["none", "output"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_torch_library_ops(rule, masked, attn_norm):
    tensors, S = draw(rule, dtype=torch.float32)
    z = None if attn_norm == "none" else torch.rand(2, 3, 5, requires_grad=True)
    mask = torch.rand(2, 17) > 0.3 if masked else None
    op = getattr(torch.ops.fwm, f"causal_{rule}_fwd")
    options = ("none", 1, False, attn_norm)
    for args in (
        (*tensors, S, z, mask, *options, True, True),
        (*tensors, None, None, mask, *options, False, True),
    ):
        torch.library.opcheck(op.default, args)
    y, final, *_ = op(*tensors, S, z, mask, *options, True, True)
    state = S if z is None else (S, z)
    wanted, wanted_final = FORWARD[rule](
        *tensors, state=state, write_mask=mask, output_final_state=True, attn_norm=attn_norm
    )
    wanted_final = wanted_final if z is None else wanted_final[0]
    inputs = [*tensors, S]
    for x, g in zip(
        gradients(y, final, inputs), gradients(wanted, wanted_final, inputs), strict=True
    ):
        assert_close("gradient", x, g, 1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_torch_library_steps(rule):
    tensors, S = draw(rule, t=1, grad=False, dtype=torch.float32)
    step = [x[:, :, 0].contiguous() for x in tensors]
    options = (None, None, None, "none", 1, False, "none")
    for name in (f"causal_{rule}_step", f"causal_{rule}_step_"):
        torch.library.opcheck(getattr(torch.ops.fwm, name).default, (*step, S, *options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "spec",
    [ops.FeatureSpec("elu"), ops.FeatureSpec("dpfp", 3, True), ops.FeatureSpec("none", 1, True)],
    ids=str,
)
def test_feature_map_op(spec, dtype):
    x = torch.randn(3, 2, 7, dtype=dtype)
    x = (x.abs() if spec.name == "none" else x).requires_grad_()
    torch.library.opcheck(torch.ops.fwm.feature_map.default, (x, *spec.astuple))
    found, wanted = ops.feature_map(x, spec), spec(x.double())
    assert_close("phi", found, wanted, 1e-10 if dtype == torch.float64 else 1e-6)
    g = torch.randn_like(wanted)
    (found,) = torch.autograd.grad(found, x, g.to(dtype))
    (wanted,) = torch.autograd.grad(wanted, x, g)
    assert_close("dx", found, wanted, 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 16, 21])
@pytest.mark.parametrize("added,cap", [(0.0, float("inf")), (1e-4, 0.5)])
def test_favor_exp_op(added, cap, m, dtype):
    u = torch.randn(4, 3, m, dtype=dtype, requires_grad=True)
    offset = torch.rand(4, 3, 1, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.fwm.favor_exp.default, (u, offset, 0.3, added, cap))
    found = ops.favor_exp(u, offset, scale=0.3, added=added, cap=cap)
    wide = [x.detach().double().requires_grad_() for x in (u, offset)]
    exponents = (torch.cat((wide[0], -wide[0]), -1) - wide[1]).clamp(max=cap)
    wanted = 0.3 * (exponents.exp() + added)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    assert_close("phi", found, wanted, tolerance)
    g = torch.randn_like(wanted)
    gradients_found = torch.autograd.grad(found, (u, offset), g.to(dtype))
    for x, y in zip(gradients_found, torch.autograd.grad(wanted, wide, g), strict=True):
        assert_close("gradient", x, y, 10 * tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_wrong_shapes_are_named(rule):
    (q, k, v, *beta), state = draw(rule, grad=False)
    run = FORWARD[rule]
    with pytest.raises(ValueError, match="q and k must have the same shape"):
        run(q[..., :-1], k, v, *beta)
    with pytest.raises(ValueError, match="v must be"):
        run(q, k, v[:, :, :-1], *beta)
    with pytest.raises(ValueError, match="state must have shape"):
        run(q, k, v, *beta, state=state[..., :-1])
    with pytest.raises(ValueError, match="write_mask must have shape"):
        run(q, k, v, *beta, write_mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="write_mask must be bool"):
        run(q, k, v, *beta, write_mask=torch.ones(2, 17))
    with pytest.raises(ValueError, match="q must have shape"):
        run(q[0], k, v, *beta)
    step = [x[:, :, 0] for x in (q, k, v, *beta)]
    with pytest.raises(ValueError, match="a step takes.*state should be"):
        STEP[rule](*step, state[..., :-1])
    with pytest.raises(ValueError, match="write_mask should be"):
        STEP[rule](*step, state, write_mask=torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="write_mask must be bool"):
        STEP[rule](*step, state, write_mask=torch.ones(2))
    with pytest.raises(ValueError, match="state must have shape"):
        ops.write(k, v, state=state[..., :1])
    with pytest.raises(ValueError, match="write_mask must have shape"):
        ops.write(k, v, write_mask=torch.ones(1, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="q must be"):
        ops.read(q[..., :-1], state)
    if beta:
        for wrong in (beta[0][:, :, 0].unsqueeze(-1), beta[0][:1, :, 0]):
            with pytest.raises(ValueError, match="beta should be"):
                STEP[rule](*step[:3], wrong, state)
        with pytest.raises(ValueError, match="beta must have shape"):
            run(q, k, v, beta[0][:, :, :-1])


def test_impl_is_never_silently_something_else():
    (q, k, v), _ = draw("sum", grad=False)
    with pytest.raises(ValueError, match="unknown impl 'fast'"):
        ops.causal_sum(q, k, v, impl="fast")
    for impl in ("cpu", "cuda"):
        if not library.has_kernel("causal_sum_fwd", impl):
            with pytest.raises(RuntimeError, match="pip install --no-build-isolation -e ."):
                ops.causal_sum(q, k, v, impl=impl)
        elif impl == "cuda":
            with pytest.raises(ValueError, match="needs tensors on cuda"):
                ops.causal_sum(q, k, v, impl=impl)


def test_nu_out_of_range():
    x = torch.randn(2, 4)
    for nu in (0, 8):
        with pytest.raises(ValueError, match="between 1 and"):
            ops.FeatureSpec("dpfp", nu)(x)
    with pytest.raises(ValueError, match="'elu' or 'dpfp'"):
        ops.FeatureSpec("tanh")
