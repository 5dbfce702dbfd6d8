"""Mixers whose writes depend on what was read: Recurrent Delta and self-referential weights."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fairseq_fwm import ops
from fairseq_fwm.mixers.base import Mixer, State
from fairseq_fwm.ops._common import accumulation_dtype
from fairseq_fwm.ops.dispatch import require_impl

RECURRENT_MIXERS: dict[str, type["RecurrentMixer"]] = {}


class RecurrentMixer(Mixer):
    """What both share: trained matrices of their own, and a step that is a sequence of one.

    Args:
        head_dim: d.
        num_heads: H.
        scale: constant factor on the output.
        impl: implementation of the op.

    Raises:
        RuntimeError: if ``impl`` names a compiled kernel that is not there.
    """

    op: str

    def __init__(
        self, head_dim: int, num_heads: int, scale: float = 1.0, impl: str = "auto"
    ) -> None:
        super().__init__()
        require_impl(impl, f"{self.op}_fwd")
        self.head_dim = self.value_dim = head_dim
        self.num_heads, self.scale, self.impl = num_heads, scale, impl

    def __init_subclass__(cls, name: str, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        RECURRENT_MIXERS[name] = cls

    def _run(
        self, projected: Tensor, state: State | None, mask: Tensor | None, final: bool
    ) -> tuple[Tensor, State | None]:
        raise NotImplementedError

    def forward(
        self,
        projected: Tensor,
        state: State | None = None,
        mask: Tensor | None = None,
        output_final_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        """Process a sequence; see the base class. Masked positions return zeros."""
        y, final = self._run(projected, state, mask, output_final_state)
        return y if self.scale == 1.0 else y * self.scale, final

    def step(
        self,
        projected: Tensor,
        state: State,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, State]:
        """Process one position; see the base class."""
        if rows is not None:
            state = type(state)(*(x.index_select(0, rows) for x in state))
        mask = None if mask is None else mask.unsqueeze(1)
        y, state = self(projected.unsqueeze(2), state, mask, output_final_state=True)
        return y.squeeze(2), state

    def extra_repr(self) -> str:
        """Show the shape in ``print(model)``."""
        return f"{self.num_heads} heads of {self.head_dim}"


class RecurrentDeltaState(NamedTuple):
    """The memory of a Recurrent Delta mixer.

    Attributes:
        weights: S ``(N, H, d, d)``.
        output: the last output y ``(N, H, d)``, before any scale.
    """

    weights: Tensor
    output: Tensor


class RecurrentDeltaMixer(RecurrentMixer, name="recurrent_delta"):
    """Delta rule with feedback (Recurrent Delta Net, arXiv 2106.06295).

    The slow network emits q | k | v | beta per head, 3d + 1 numbers; to these comes R^T tanh of
    the head's last output. Softmax is the feature map of both q and k.

    Attributes:
        recurrent: R ``(H, d, 3d + 1)``, initially N(0, 1/d).
    """

    state_type = RecurrentDeltaState
    op = "recurrent_delta"

    def __init__(
        self, head_dim: int, num_heads: int, scale: float = 1.0, impl: str = "auto"
    ) -> None:
        super().__init__(head_dim, num_heads, scale, impl)
        self.projection_size = 3 * head_dim + 1
        self.recurrent = nn.Parameter(torch.empty(num_heads, head_dim, self.projection_size))
        nn.init.normal_(self.recurrent, std=head_dim**-0.5)

    def init_state(
        self,
        batch: int,
        num_heads: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> RecurrentDeltaState:
        """Return an empty memory that was never read; see the base class."""
        d, kind = self.head_dim, {"device": device, "dtype": dtype}
        return RecurrentDeltaState(
            torch.zeros(batch, num_heads, d, d, **kind), torch.zeros(batch, num_heads, d, **kind)
        )

    def writes(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a sequence writes, for :mod:`fairseq_fwm.inspection`.

        Args:
            projected: ``(N, H, T, 3d + 1)``.

        Returns:
            k, v ``(N, H, T, d)`` and beta ``(N, H, T)``.
        """
        y, _ = self._run(projected, None, None, False)
        last = torch.nn.functional.pad(y[:, :, :-1], (0, 0, 1, 0)).to(self.recurrent.dtype)
        emitted = projected + torch.einsum("nhti,him->nhtm", last.tanh(), self.recurrent)
        _, k, v, beta = emitted.split((self.head_dim,) * 3 + (1,), -1)
        return k.softmax(-1), v, beta.squeeze(-1).sigmoid()

    def _run(
        self, projected: Tensor, state: State | None, mask: Tensor | None, final: bool
    ) -> tuple[Tensor, RecurrentDeltaState | None]:
        y, last = ops.recurrent_delta(
            projected,
            self.recurrent,
            state=None if state is None else tuple(state),
            output_final_state=final,
            write_mask=mask,
            impl=self.impl,
        )
        return y, None if last is None else RecurrentDeltaState(*last)


class SelfReferentialState(NamedTuple):
    """The memory of a self-referential mixer.

    Attributes:
        change: W_t - W_0 ``(N, H, d, 3d + 4)``, and not W_t: so that W_0 is trained in a segment
            that goes on from a state without gradient, too (as in arXiv 2202.05780's code).
    """

    change: Tensor


class SelfReferentialMixer(RecurrentMixer, name="srwm"):
    """Self-referential weight matrix (SRWM, arXiv 2202.05780).

    The slow network emits the input x of every head, d numbers. What is trained is the matrix that
    every sequence begins with.

    Attributes:
        weights: W_0 = [W_y | W_q | W_k | W_beta] ``(H, d, 3d + 4)``. Initially, as in
            arXiv 2310.16076, N(0, 1/d), of W_q with a hundredth of that standard deviation, of
            W_beta with mean -1.
    """

    state_type = SelfReferentialState
    op = "self_referential"

    def __init__(
        self, head_dim: int, num_heads: int, scale: float = 1.0, impl: str = "auto"
    ) -> None:
        super().__init__(head_dim, num_heads, scale, impl)
        self.projection_size = d = head_dim
        self.weights = nn.Parameter(torch.empty(num_heads, d, 3 * d + 4))
        nn.init.normal_(self.weights, std=d**-0.5)
        with torch.no_grad():
            self.weights[:, :, d : 2 * d] *= 0.01
            self.weights[:, :, 3 * d :] -= 1.0

    def init_state(
        self,
        batch: int,
        num_heads: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> SelfReferentialState:
        """Return an unchanged matrix; see the base class."""
        shape = (batch, num_heads, *self.weights.shape[1:])
        return SelfReferentialState(torch.zeros(shape, device=device, dtype=dtype))

    def _run(
        self, projected: Tensor, state: State | None, mask: Tensor | None, final: bool
    ) -> tuple[Tensor, SelfReferentialState | None]:
        initial = self.weights.to(accumulation_dtype(projected, self.weights))
        weights = initial if state is None else initial + state.change
        y, last = ops.self_referential(
            projected, weights, output_final_state=final, write_mask=mask, impl=self.impl
        )
        return y, None if last is None else SelfReferentialState(last - initial)
