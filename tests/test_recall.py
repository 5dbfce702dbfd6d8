"""What queries read from a written memory, and the rescaled rule, against their definitions."""

import pytest
import torch

from fairseq_fwm.ops import causal_delta_reference, read, rescaled_op, write
from fairseq_fwm.ops.recall import delta_weights, sum_weights
from fairseq_fwm.ops.rescaled import read_rescaled, write_rescaled

SIZES = [(1, 1, 1, 1, 1, 1), (2, 3, 7, 5, 4, 3), (1, 2, 40, 16, 9, 30), (3, 1, 63, 8, 64, 2)]


def problem(N, H, T, K, V, Q, dtype=torch.float64):
    shapes = ((N, H, Q, K), (N, H, T, K), (N, H, T, V))
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    beta = torch.rand(N, H, T, dtype=dtype, requires_grad=True)
    return q, torch.nn.functional.normalize(k, dim=-1), v, beta


def same_with_gradients(found, wanted, inputs, **close):
    torch.testing.assert_close(found, wanted, **close)
    grads = torch.randn_like(wanted)
    of = [
        torch.autograd.grad((y * grads).sum(), inputs, retain_graph=True) for y in (found, wanted)
    ]
    for ours, theirs in zip(*of, strict=True):
        torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("sizes", SIZES)
def test_delta_weights_read_what_the_rule_wrote(sizes):
    q, k, v, beta = problem(*sizes)
    _, S = causal_delta_reference(k, k, v, beta)
    same_with_gradients(delta_weights(q, k, beta) @ v, read(q, S), (q, k, v, beta))


@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_delta_weights_by_other_implementations(impl):
    q, k, v, beta = problem(*SIZES[1])
    same_with_gradients(
        delta_weights(q, k, beta, impl=impl), delta_weights(q, k, beta), (q, k, beta)
    )


@pytest.mark.parametrize("sizes", SIZES)
def test_sum_weights_read_what_the_rule_wrote(sizes):
    q, k, v, _ = problem(*sizes)
    same_with_gradients(sum_weights(q, k) @ v, read(q, write(k, v)), (q, k, v))


def test_half_precision_is_summed_in_fp32():
    q, k, v, beta = (x.detach().bfloat16() for x in problem(*SIZES[2]))
    for found in (delta_weights(q, k, beta), sum_weights(q, k)):
        assert found.dtype is torch.float32
    wanted = delta_weights(*(x.double() for x in (q, k, beta)))
    torch.testing.assert_close(delta_weights(q, k, beta).double(), wanted, rtol=1e-4, atol=1e-4)


def test_shapes_are_checked():
    q, k, _, beta = problem(2, 3, 7, 5, 4, 3)
    for function in (sum_weights, lambda q, k: delta_weights(q, k, beta)):
        with pytest.raises(ValueError, match=r"q must be \(N, H, Q, K\) and k \(N, H, T, K\)"):
            function(q[..., :-1], k)
    with pytest.raises(ValueError, match=r"beta must be \(N, H, T\) = \(2, 3, 7\)"):
        delta_weights(q, k, beta[..., :-1])


def published_write(k, v, beta):
    """Spec of the published loop, W = S^T: remove, insert, rescale from the second step on."""
    W = None
    for t in range(k.shape[0]):
        if W is None:
            W = torch.outer(v[t], beta[t] * k[t])
            continue
        old = W @ k[t]
        W = W - torch.outer(old, k[t])
        W = W + torch.outer(beta[t] * v[t] + (1 - beta[t]) * old, k[t])
        W = W / (torch.relu(W.norm() - 1) + 1)
    return W.t()


def test_rescaled_rule_is_the_published_one():
    _, k, v, beta = problem(2, 3, 9, 5, 4, 1)
    found = write_rescaled(k, v, beta)
    wanted = torch.stack(
        [
            torch.stack([published_write(k[n, h], v[n, h], beta[n, h]) for h in range(3)])
            for n in range(2)
        ]
    )
    same_with_gradients(found, wanted, (k, v, beta))
    assert (torch.linalg.vector_norm(found, dim=(-2, -1)) <= 1 + 1e-12).all()


@pytest.mark.parametrize("form", ["op", "pytorch"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])  # norm never, sometimes, always cut
@pytest.mark.parametrize("sizes", SIZES)
def test_rescaled_memory_is_read_without_making_it(sizes, scale, form, monkeypatch):
    if form == "pytorch":
        monkeypatch.setattr(torch.ops.fwm, "rescaled_fwd", rescaled_op.forward)
    q, k, v, beta = problem(*sizes)
    k = (scale * k).detach().requires_grad_()
    wanted = read(q, write_rescaled(k, v, beta))
    same_with_gradients(read_rescaled(q, k, v, beta), wanted, (q, k, v, beta))
