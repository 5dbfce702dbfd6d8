"""The recurrent delta rule and self-referential weights: kernel, reference, segments, padding."""

import pytest
import torch

from fairseq_fwm import ops
from fairseq_fwm.ops import library
from recurrent_problems import OPS, Problem, same

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
IMPLS = ["auto", "cpu"] if library.has_kernel("recurrent_delta_fwd", "cpu") else ["auto"]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("d", [1, 4, 5, 8, 16, 24, 32, 64])
@pytest.mark.parametrize("op", OPS)
def test_kernel_is_the_reference(op, d, dtype):
    for T, mask in ((1, False), (2, True), (17, False), (63, True)):
        problem = Problem(op, 2, 3, T, d, mask)
        same(problem.run(dtype), problem.run(impl="reference"), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_full_lanes(op, dtype):
    for N, T, d in ((16, 20, 8), (37, 9, 5)):
        problem = Problem(op, N, 2, T, d, mask=True)
        same(problem.run(dtype), problem.run(impl="reference"), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_long_sequences(op, dtype):
    for d in (8, 32):
        problem = Problem(op, 1, 1, 300, d)
        same(problem.run(dtype), problem.run(impl="reference"), TOLERANCE[dtype])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_gradients_are_finite_differences(op, impl):
    problem = Problem(op, 1, 2, 4, 3)
    leaves = [x.requires_grad_() for x in (*problem.inputs, *problem.state)]
    count = len(problem.inputs)
    assert torch.autograd.gradcheck(
        lambda *x: tuple(problem.call(x[:count], x[count:], impl=impl)), leaves
    )


@pytest.mark.parametrize("op", OPS)
def test_segments_carry_the_state_and_a_step_is_a_segment_of_one(op):
    problem = Problem(op, 2, 2, 11, 5)
    x, *weights = problem.inputs
    y, *final = problem.call(problem.inputs, problem.state)
    for lengths in ([4, 7], [1] * 11):
        state, parts = problem.state, []
        for segment in x.split(lengths, 2):
            part, *state = problem.call([segment, *weights], state)
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts, 2), y)
        torch.testing.assert_close(state, final)


@pytest.mark.parametrize("op", OPS)
def test_padding_on_either_side_changes_nothing(op):
    problem = Problem(op, 2, 2, 6, 4)
    x, *weights = problem.inputs
    y, *final = problem.call(problem.inputs, problem.state)
    garbage = torch.full_like(x[:, :, :3], torch.nan)
    for left in (True, False):
        padded = torch.cat((garbage, x) if left else (x, garbage), 2)
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[:, slice(0, 3) if left else slice(6, 9)] = False
        for impl in ("auto", "reference"):
            found, *last = problem.call([padded, *weights], problem.state, mask, impl)
            torch.testing.assert_close(found[:, :, 3:] if left else found[:, :, :6], y)
            assert not (found[:, :, :3] if left else found[:, :, 6:]).any()
            torch.testing.assert_close(last, final)


@pytest.mark.parametrize("op", OPS)
def test_the_future_changes_no_bit_of_the_past(op):
    problem = Problem(op, 1, 2, 9, 4)
    y = problem.call(problem.inputs, problem.state)[0]
    problem.inputs[0][:, :, 5:] += 1
    again = problem.call(problem.inputs, problem.state)[0]
    assert torch.equal(y[:, :, :5], again[:, :, :5]) and not torch.equal(y, again)


@pytest.mark.parametrize("op", OPS)
def test_backward_twice_any_threads_any_layout_give_equal_bits(op):
    problem = Problem(op, 3, 2, 20, 8, mask=True)
    wanted = problem.run(torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = problem.run(torch.float32)
    finally:
        torch.set_num_threads(threads)
    turned = problem.run(torch.float32, lay=lambda x: x.mT.contiguous().mT)
    for other in (again, turned):
        assert all(map(torch.equal, other, wanted))
    leaves = [x.float().requires_grad_() for x in (*problem.inputs, *problem.state)]
    count = len(problem.inputs)
    loss = problem.call(leaves[:count], leaves[count:])[0].square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, leaves)))


@pytest.mark.parametrize("op", OPS)
def test_what_was_written_can_be_taken_back(op):
    """The backward pass does so: from the last state to the first one."""
    d, T = 8, 100
    problem = Problem(op, 1, 1, T, d)
    inputs, state = ([x.float() for x in xs] for xs in (problem.inputs, problem.state))
    out = getattr(torch.ops.fwm, f"{op}_fwd")(*inputs, *state, None)
    W, kept = out[1][0, 0], out[2 if op == "self_referential" else 3]
    if not kept.numel():
        pytest.skip("the PyTorch form keeps nothing")
    numbers = kept[0, :, :, 0]
    if op == "recurrent_delta":
        _, k, residual, beta = numbers.split((d, d, d, 1), 1)
        change = beta * residual
    else:
        _, k, beta, difference = numbers.split((d, d, 4, 3 * d + 4), 1)
        change = beta.repeat_interleave(torch.tensor([d, d, d, 4]), 1) * difference
    for t in reversed(range(T)):
        W = W - torch.outer(k[t], change[t])
    assert (W - state[0][0, 0]).abs().max() < 1e-4


@pytest.mark.parametrize("op", OPS)
def test_half_precision_is_computed_in_fp32(op):
    problem = Problem(op, 2, 2, 12, 8)
    half = [x.bfloat16() for x in problem.inputs]
    y, *state = problem.call(half, [x.float() for x in problem.state])
    wanted, *_ = problem.call([x.float() for x in half], [x.float() for x in problem.state])
    assert y.dtype is torch.bfloat16 and state[0].dtype is torch.float32
    assert torch.equal(y, wanted.bfloat16())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(op, masked):
    problem = Problem(op, 2, 2, 5, 4, masked)
    tensors = [x.float().requires_grad_() for x in (*problem.inputs, *problem.state)]
    forward = getattr(torch.ops.fwm, f"{op}_fwd").default
    torch.library.opcheck(forward, (*tensors, problem.mask))


def test_no_kernel_runs_the_pytorch_form(monkeypatch):
    problems = [Problem(op, 2, 2, 7, 4, mask=True) for op in OPS]
    wanted = [problem.run() for problem in problems]
    compiled = {op: frozenset() for op in library.COMPILED}
    monkeypatch.setattr(library, "COMPILED", compiled)
    for problem, by_kernel in zip(problems, wanted, strict=True):
        same(problem.run(), by_kernel, 1e-10)


def test_initial_weights_of_all_sequences():
    x, W = torch.randn(3, 2, 6, 4), torch.randn(2, 4, 16, requires_grad=True)
    y, final = ops.self_referential(x, W, output_final_state=True)
    assert final.shape == (3, 2, 4, 16)
    (grad,) = torch.autograd.grad(y.square().sum(), W)
    each = W.detach().expand(3, -1, -1, -1).clone().requires_grad_()
    y, _ = ops.self_referential(x, each)
    (grads,) = torch.autograd.grad(y.square().sum(), each)
    torch.testing.assert_close(grad, grads.sum(0))
    y, final = ops.recurrent_delta(torch.randn(3, 2, 6, 13), torch.randn(2, 4, 13))
    assert y.shape == (3, 2, 6, 4) and final is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.recurrent_delta(torch.ones(1, 1, 2, 12), torch.ones(1, 4, 13)),
         r"projected must be floating point \(N, H, T, 3d \+ 1\)"),
        (lambda: ops.recurrent_delta(torch.ones(1, 1, 2, 13), torch.ones(1, 4, 12)),
         r"recurrent must be \(H, d, 3d \+ 1\) = \(1, 4, 13\)"),
        (lambda: ops.recurrent_delta(torch.ones(1, 1, 2, 13), torch.ones(1, 4, 13),
                                     state=(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3))),
         r"a state is S \(N, H, d, d\) = \(1, 1, 4, 4\) and y"),
        (lambda: ops.self_referential(torch.ones(1, 2, 4), torch.ones(1, 4, 16)),
         r"x must be floating point \(N, H, T, d\)"),
        (lambda: ops.self_referential(torch.ones(1, 1, 2, 4), torch.ones(1, 4, 15)),
         r"weights must be \(H, d, 3d \+ 4\) = \(1, 4, 16\)"),
        (lambda: ops.self_referential(torch.ones(1, 1, 2, 4), torch.ones(1, 4, 16),
                                      write_mask=torch.ones(1, 3, dtype=torch.bool)),
         r"write_mask must have shape \(N, T\) = \(1, 2\)"),
        (lambda: ops.self_referential(torch.ones(1, 1, 2, 4), torch.ones(1, 4, 16),
                                      write_mask=torch.ones(1, 2)), "write_mask must be bool"),
    ],
)  # fmt: skip
def test_shapes_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
