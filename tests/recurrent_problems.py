"""Problems of the recurrent delta rule and self-referential weights, for their tests."""

import torch

from fairseq_fwm import ops

OPS = ["recurrent_delta", "self_referential"]


class Problem:
    """Random inputs in fp64; an op is run on what is asked for."""

    def __init__(self, op, N, H, T, d, mask=False):
        self.op, self.d, self.N = op, d, N
        randn = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        if op == "recurrent_delta":
            width = 3 * d + 1
            self.inputs = [randn(N, H, T, width), randn(H, d, width) / d**0.5]
            self.state = [randn(N, H, d, d) / d**0.5, randn(N, H, d)]
        else:
            self.inputs = [randn(N, H, T, d)]
            self.state = [randn(N, H, d, 3 * d + 4) / d**0.5]
        self.mask = torch.rand(N, T) > 0.3 if mask else None

    def call(self, inputs, state, mask=None, impl="auto"):
        options = {"write_mask": mask, "output_final_state": True, "impl": impl}
        if self.op == "recurrent_delta":
            y, final = ops.recurrent_delta(*inputs, state=tuple(state), **options)
            return [y, *final]
        return list(ops.self_referential(*inputs, *state, **options))

    def run(self, dtype=torch.float64, impl="auto", lay=lambda x: x):
        """Outputs, then the gradients of everything that went in."""
        leaves = [lay(x.to(dtype)).requires_grad_() for x in (*self.inputs, *self.state)]
        inputs, state = leaves[: len(self.inputs)], leaves[len(self.inputs) :]
        outputs = self.call(inputs, state, self.mask, impl)
        torch.manual_seed(1)
        weights = [torch.randn(x.shape, dtype=torch.float64).to(dtype) for x in outputs]
        loss = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        return [x.detach() for x in (*outputs, *torch.autograd.grad(loss, leaves))]


def same(found, wanted, tolerance):
    """Check that every tensor agrees, by norm."""
    for ours, theirs in zip(found, wanted, strict=True):
        error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-3)
        assert error <= tolerance, f"error {error}"
