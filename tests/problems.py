"""Random problems for every implementation of the causal ops, and how far results are apart."""

import torch

from fairseq_fwm import ops
from fairseq_fwm.ops import FeatureSpec

FORWARD = {"sum": ops.causal_sum, "delta": ops.causal_delta}
STEP = {"sum": ops.causal_sum_step, "delta": ops.causal_delta_step}
STEP_ = {"sum": ops.causal_sum_step_, "delta": ops.causal_delta_step_}
NONE = FeatureSpec("none")
FEATURES = [
    NONE,
    FeatureSpec("none", 1, True),
    FeatureSpec("elu"),
    FeatureSpec("elu", 1, True),
    FeatureSpec("dpfp", 1, True),
    FeatureSpec("dpfp", 2),
    FeatureSpec("dpfp", 3, True),
]


class Problem:
    """One random problem in fp64: what goes in, and weights to make a scalar of what comes out."""

    def __init__(self, rule, n, h, t, d, v, spec=NONE, attn_norm="none", state=False, mask=False):
        self.rule, self.spec, self.attn_norm, self.final = rule, spec, attn_norm, state
        K = spec.out_dim(d)
        randn = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        positive = spec.name == "none"
        q, k = (randn(n, h, t, d).softmax(-1) if positive else randn(n, h, t, d) for _ in "qk")
        self.inputs = [q, k, randn(n, h, t, v)]
        if rule == "delta":
            # Strengths at which the update is a contraction, whatever the size of the keys.
            keys = spec(k)
            longest = keys.square().sum(-1).max().clamp(min=1)
            beta = torch.rand(n, h, t, dtype=torch.float64) / longest
            self.inputs.append(beta * 0.1 if attn_norm == "full" else beta)
        self.state = [randn(n, h, K, v)] if state else []
        if state and attn_norm != "none":
            self.state.append(1 + torch.rand(n, h, K, dtype=torch.float64) * 3)
        self.mask = torch.rand(n, t) > 0.3 if mask else None
        self.weights = [randn(n, h, t, v), randn(n, h, K, v), randn(n, h, K)]

    def run(self, dtype, impl, lay=lambda x: x):
        """Outputs, then the gradients of everything that went in."""
        leaves = [lay(x.to(dtype)).requires_grad_() for x in (*self.inputs, *self.state)]
        sequence, state = leaves[: len(self.inputs)], leaves[len(self.inputs) :]
        state = tuple(state) if self.attn_norm != "none" else (*state, None)[0]
        y, final = FORWARD[self.rule](
            *sequence,
            state=state or None if isinstance(state, tuple) else state,
            write_mask=self.mask,
            features=self.spec,
            attn_norm=self.attn_norm,
            output_final_state=self.final,
            impl=impl,
        )
        outputs = [y, *([] if final is None else final if isinstance(final, tuple) else [final])]
        loss = sum((x * w.to(dtype)).sum() for x, w in zip(outputs, self.weights, strict=False))
        return [x.detach() for x in (*outputs, *torch.autograd.grad(loss, leaves))]

    def poison_masked(self):
        """Put NaN where nothing may be read: keys, values and strengths at masked positions."""
        for x in self.inputs[1:]:
            n, _, t, *features = x.shape
            x.masked_fill_(~self.mask.reshape(n, 1, t, *[1] * len(features)), torch.nan)

    def change_from(self, t):
        """Change everything from time t on."""
        for x in self.inputs:
            x[:, :, t:] += 1


def equal_bits(found, wanted):
    """Return whether two lists of results agree to the bit."""
    return all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def errors(found, wanted):
    return [
        ((x.double() - y).abs().max() / y.abs().max().clamp(min=1e-3)).item() if y.numel() else 0.0
        for x, y in zip(found, wanted, strict=True)
    ]


def strided(problem, layout, padding):
    """Return what gives a tensor other strides: N, H, T in any order in memory, rows apart."""
    t = problem.inputs[0].shape[2]

    def lay(x):
        if x.dim() < 4 or x.shape[2] != t:
            return x
        wide = torch.full((*(x.shape[i] for i in layout), x.shape[3] + padding), torch.nan)
        wide = wide.to(x.dtype)[..., : x.shape[3]].permute(*torch.tensor(layout).argsort(), 3)
        return wide.copy_(x)

    return lay


def check(problem, dtype, impl, tolerance, lay=lambda x: x):
    """Hold outputs and gradients to the fp64 reference: relative to each one's largest number."""
    wanted = problem.run(torch.float64, "reference")
    found = problem.run(dtype, impl, lay)
    assert all(x.dtype == dtype and torch.isfinite(x).all() for x in found)
    worst = max(errors(found, wanted))
    if worst > tolerance:
        # Where terms cancel no arithmetic is exact, and a key's gradient is a sum of two sweeps:
        # of the order of the reference's own error then, which fp32 shows.
        reference = max(errors(problem.run(torch.float32, "reference"), wanted))
        allowed = 30 * reference * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        assert worst <= allowed, f"error {worst:.1e}, the fp32 reference's {reference:.1e}"
