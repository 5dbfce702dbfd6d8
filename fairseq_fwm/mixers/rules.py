"""Update rules: how a key and a value change the fast weights."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fairseq_fwm import ops
from fairseq_fwm.ops._common import State

UPDATE_RULES: dict[str, "UpdateRule"] = {}


@dataclass(frozen=True)
class UpdateRule:
    """An update rule as the mixer sees it.

    Attributes:
        name: key in the registry and value of the ``--fwm-*`` site flags.
        uses_beta: whether the slow network emits a write strength per position.
        sequence: ``(q, k, v, beta, **options) -> (y, final_state)``.
        step: ``(q, k, v, beta, state, **options) -> (y, state)``.
        step_: ``(q, k, v, beta, state, **options) -> y``; changes the state in place.
        sites: where it may stand.
        order_free: the final state does not depend on the order of the writes, so that
            non-causal sites write everything once and then read.
        paper: where it comes from.
    """

    name: str
    uses_beta: bool
    sequence: Callable[..., tuple[Tensor, State | None]]
    step: Callable[..., tuple[Tensor, State]]
    step_: Callable[..., Tensor]
    sites: tuple[str, ...]
    order_free: bool
    paper: str


def register_update_rule(rule: UpdateRule) -> UpdateRule:
    """Add a rule to the registry.

    Raises:
        ValueError: if the name is taken.
    """
    if rule.name in UPDATE_RULES:
        raise ValueError(f"update rule {rule.name!r} is registered already")
    UPDATE_RULES[rule.name] = rule
    return rule


# Named functions, not lambdas: a mixer holds its rule, and models are pickled.
def _sum_sequence(q: Tensor, k: Tensor, v: Tensor, beta: None, **options):
    return ops.causal_sum(q, k, v, **options)


def _sum_step(q: Tensor, k: Tensor, v: Tensor, beta: None, state: State, **options):
    return ops.causal_sum_step(q, k, v, state, **options)


def _sum_step_(q: Tensor, k: Tensor, v: Tensor, beta: None, state: State, **options):
    return ops.causal_sum_step_(q, k, v, state, **options)


register_update_rule(
    UpdateRule(
        name="sum",
        uses_beta=False,
        sequence=_sum_sequence,
        step=_sum_step,
        step_=_sum_step_,
        sites=("encoder_self", "decoder_self", "cross"),
        order_free=True,
        paper="Katharopoulos et al., arXiv 2006.16236; Schlag et al., arXiv 2102.11174, Eq. 8",
    )
)
register_update_rule(
    UpdateRule(
        name="delta",
        uses_beta=True,
        sequence=ops.causal_delta,
        step=ops.causal_delta_step,
        step_=ops.causal_delta_step_,
        sites=("encoder_self", "decoder_self"),
        order_free=False,
        paper="Schlag et al., arXiv 2102.11174, Eqs. 23-25",
    )
)
