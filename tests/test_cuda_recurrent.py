"""The CUDA kernels of updates that depend on what they read equal the fp64 reference."""

import pytest
import torch

from cuda_impl import IMPL, MARKS, on_a_gpu
from cuda_impl import OPS as NAMESPACE
from fairseq_fwm import ops
from recurrent_problems import OPS, Problem, same

pytestmark = MARKS
TOLERANCE = 2e-5


@pytest.mark.parametrize("d", [1, 4, 5, 8, 16, 24, 32, 64])
@pytest.mark.parametrize("op", OPS)
def test_sizes(op, d):
    for T, mask in ((1, False), (2, True), (17, False), (30, True)):
        problem = Problem(op, 2, 2, T, d, mask)
        same(problem.run(torch.float32, IMPL), problem.run(impl="reference"), TOLERANCE)


@pytest.mark.parametrize("op", OPS)
def test_long_sequences(op):
    for T, d in ((300, 8), (100, 24)):
        problem = Problem(op, 1, 1, T, d)
        same(problem.run(torch.float32, IMPL), problem.run(impl="reference"), TOLERANCE)


@pytest.mark.skipif(on_a_gpu, reason="a GPU has the shared memory that it has")
@pytest.mark.parametrize("op", OPS)
def test_matrices_that_do_not_fit_shared_memory_are_in_global_memory(controls, op):
    d, width = 20, 20 if op == "recurrent_delta" else 64
    problem = Problem(op, 2, 2, 9, d, mask=True)
    wanted = problem.run(torch.float32, IMPL)
    for matrices in range(2):
        controls.set(shared_limit=2500 + matrices * 4 * d * width)
        found = problem.run(torch.float32, IMPL)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("op", OPS)
def test_heads_larger_than_any_shared_memory(op):
    problem = Problem(op, 1, 1, 2, 260)
    same(problem.run(torch.float32, IMPL), problem.run(impl="reference"), TOLERANCE)


@pytest.mark.skipif(on_a_gpu, reason="a GPU chooses its own order")
@pytest.mark.parametrize("op", OPS)
def test_threads_in_any_order_give_equal_bits(controls, op):
    problem = Problem(op, 2, 2, 11, 12, mask=True)
    wanted = problem.run(torch.float32, IMPL)
    for order, seed in (("reverse", 1), ("random", 1), ("random", 2)):
        controls.set(order=order, seed=seed)
        assert all(map(torch.equal, problem.run(torch.float32, IMPL), wanted))


@pytest.mark.parametrize("op", OPS)
def test_garbage_at_masked_positions_goes_nowhere(op):
    problem = Problem(op, 2, 2, 9, 6, mask=True)
    wanted = problem.run(torch.float32, IMPL)
    x = problem.inputs[0]
    x.movedim(2, 1)[~problem.mask] = torch.nan
    found = problem.run(torch.float32, IMPL)
    assert all(map(torch.equal, found, wanted))
    gradient = found[3 if op == "recurrent_delta" else 2]  # of x
    assert gradient.shape == x.shape and (gradient.movedim(2, 1)[~problem.mask] == 0).all()


@pytest.mark.parametrize("op", OPS)
def test_any_layout_and_backward_twice_give_equal_bits(op):
    problem = Problem(op, 2, 3, 8, 10)
    wanted = problem.run(torch.float32, IMPL)
    turned = problem.run(torch.float32, IMPL, lay=lambda x: x.mT.contiguous().mT)
    assert all(map(torch.equal, turned, wanted))
    leaves = [x.float().requires_grad_() for x in (*problem.inputs, *problem.state)]
    count = len(problem.inputs)
    loss = problem.call(leaves[:count], leaves[count:], impl=IMPL)[0].square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, leaves)))


@pytest.mark.parametrize("op", OPS)
def test_no_sequence_and_no_batch(op):
    for n, t in ((2, 0), (0, 3)):
        problem = Problem(op, n, 2, t, 5)
        found = problem.run(torch.float32, IMPL)
        leaves = [*problem.inputs, *problem.state]
        outputs = [problem.inputs[0].new_empty(n, 2, t, 5), *problem.state]
        assert [x.shape for x in found] == [x.shape for x in (*outputs, *leaves)]
        if t == 0:
            assert all(map(torch.equal, found[1:], (x.float() for x in problem.state)))


@pytest.mark.parametrize("op", OPS)
def test_half_precision_is_computed_in_fp32(op):
    problem = Problem(op, 2, 2, 7, 8)
    half = [x.bfloat16() for x in problem.inputs]
    y, *_ = problem.call(half, [x.float() for x in problem.state], impl=IMPL)
    full = [x.float() for x in half]
    wanted, *_ = problem.call(full, [x.float() for x in problem.state], impl=IMPL)
    assert torch.equal(y, wanted.bfloat16())


@pytest.mark.parametrize("op", OPS)
def test_what_kernels_cannot_do_is_refused_with_the_way_out(op):
    with pytest.raises(TypeError, match="compute in float32, found float64: use impl='chunked'"):
        Problem(op, 1, 1, 2, 3).run(impl=IMPL)
    x = torch.zeros(1, 1, 1, 1025)
    with pytest.raises(ValueError, match="heads of up to 1024 numbers, found 1025"):
        ops.self_referential(x, torch.zeros(1, 1025, 3079), impl=IMPL)


@pytest.mark.skipif(on_a_gpu, reason="the ops on CUDA tensors are checked by the others")
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    problem = Problem(op, 2, 2, 5, 4, mask=True)
    tensors = [x.float().requires_grad_() for x in (*problem.inputs, *problem.state)]
    torch.library.opcheck(getattr(NAMESPACE, f"{op}_fwd").default, (*tensors, problem.mask))
