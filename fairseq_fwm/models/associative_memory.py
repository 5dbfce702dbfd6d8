"""``associative_memory``: it writes pairs and reads by keys (arXiv 2102.11174, Sec. 6.1)."""

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from omegaconf import II
from torch import Tensor, nn

from fairseq_fwm.feature_maps import FEATURE_MAPS, FavorFeatureMap, FeatureMap, build_feature_map
from fairseq_fwm.ops.features import SUM_NORM_EPS
from fairseq_fwm.ops.recall import delta_weights, sum_weights
from fairseq_fwm.ops.rescaled import read_rescaled

PUBLISHED_NAMES = {"ours": "delta"}
RULES = ("softmax", "sum", "delta", "fwm")


def why_no_memory(rule: str, feature_map: str) -> str | None:
    """Return why a rule does not go with a feature map; None if it does."""
    if rule in ("sum", "delta") and not FEATURE_MAPS[feature_map].positive:
        return f"the {rule} rule divides by sums of features, and {feature_map} takes both signs"
    return None


@dataclass
class AssociativeMemoryConfig(FairseqDataclass):
    """The layer: its size, feature map and update rule."""

    hidden_size: int = field(default=64, metadata={"help": "size of queries and keys before phi"})
    fwm_rule: ChoiceEnum([*RULES, *PUBLISHED_NAMES]) = field(  # type: ignore[valid-type]
        default="delta", metadata={"help": "update rule; `ours` is the published name of delta"}
    )
    fwm_feature_map: ChoiceEnum(list(FEATURE_MAPS)) = field(  # type: ignore[valid-type]
        default="dpfp", metadata={"help": "feature map phi of all rules but softmax"}
    )
    fwm_dpfp_nu: int = field(
        default=1, metadata={"help": "DPFP's nu; key features K = 2 * nu * hidden_size"}
    )
    fwm_favor_features: int = field(
        default=64, metadata={"help": "FAVOR+'s m; key features K = 2 * m"}
    )
    fwm_favor_variant: ChoiceEnum(list(FavorFeatureMap.VARIANTS)) = field(  # type: ignore[valid-type]
        default="stable",
        metadata={"help": "FAVOR+ as here (stable) or as published (toolkit, retrieval)"},
    )
    seed: int = II("common.seed")


@register_model("associative_memory", dataclass=AssociativeMemoryConfig)
class AssociativeMemory(BaseFairseqModel):
    """Keys and queries of a sequence of pairs, a memory of one-hot values, answers ``(B, Q, S)``.

    A pair's key is made of both the key's embedding and the one-hot value; the value written is
    the one-hot vector itself, and so is what is read.

    Args:
        n_keys: S, how many keys there are, and how many values.
        hidden_size: d, of queries and keys before the feature map.
        rule: one of :data:`RULES`.
        phi: feature map; None for softmax.
        eps: added to the sum of a key's features (delta).
        redraw: draw FAVOR+'s matrix anew for every forward pass that evaluates.
    """

    def __init__(
        self,
        n_keys: int,
        hidden_size: int,
        rule: str,
        phi: FeatureMap | None,
        eps: float = SUM_NORM_EPS,
        redraw: bool = False,
    ) -> None:
        super().__init__()
        self.n_keys, self.rule, self.eps, self.redraw = n_keys, rule, eps, redraw
        self.phi = phi
        embed_dim = int(2.2 * n_keys)
        self.embed_keys = nn.Embedding(n_keys, embed_dim)
        self.key = nn.Linear(n_keys + embed_dim, hidden_size)
        self.query = nn.Linear(embed_dim, hidden_size)
        self.write_strength = nn.Linear(n_keys + embed_dim, 1)
        for projection in (self.key, self.query):
            if rule == "softmax":
                nn.init.xavier_uniform_(projection.weight)
            else:
                nn.init.uniform_(projection.weight, -(hidden_size**-0.5), hidden_size**-0.5)
        self.evaluations = 0

    @classmethod
    def build_model(cls, cfg: AssociativeMemoryConfig, task: Any) -> "AssociativeMemory":
        """Build the model that the flags describe.

        Raises:
            ValueError: if the flags make no sense together.
        """
        rule = PUBLISHED_NAMES.get(str(cfg.fwm_rule), str(cfg.fwm_rule))
        published = task.cfg.as_published
        phi = None
        if rule != "softmax":
            name = str(cfg.fwm_feature_map)
            reason = why_no_memory(rule, name)
            if reason:
                raise ValueError(f"--fwm-rule {rule} with --fwm-feature-map {name}: {reason}")
            phi = build_feature_map(
                name,
                cfg.hidden_size,
                nu=cfg.fwm_dpfp_nu,
                m=cfg.fwm_favor_features,
                variant=str(cfg.fwm_favor_variant),
                seed=cfg.seed,
            )
        eps = 0.0 if published else SUM_NORM_EPS
        return cls(task.cfg.n_keys, cfg.hidden_size, rule, phi, eps, published)

    def forward(self, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        """Write pairs and read.

        Args:
            keys: ``(B, T)``, from 0 to S - 1.  values: ``(B, T)``, from 0 to S - 1.
            queries: ``(B, Q)``, keys to read by.

        Returns:
            Answers ``(B, Q, S)``, near one-hot where the memory serves.
        """
        if self.redraw and not self.training and self.phi is not None:
            self.evaluations += 1
            self.phi.train().resample(-self.evaluations)
        q = F.embedding(queries, self.query(self.embed_keys.weight)).unsqueeze(1)
        k = self._of_pairs(self.key, keys, values).unsqueeze(1)
        return getattr(self, f"_{self.rule}")(q, k, keys, values).squeeze(1)

    def _of_pairs(self, projection: nn.Linear, keys: Tensor, values: Tensor) -> Tensor:
        """Project [one-hot value, key embedding], each key and each value once: ``(B, T, .)``."""
        of_values, of_keys = projection.weight.split(
            (self.n_keys, self.embed_keys.embedding_dim), 1
        )
        table = F.linear(self.embed_keys.weight, of_keys, projection.bias)
        return F.embedding(keys, table) + F.embedding(values, of_values.t())

    def _beta(self, keys: Tensor, values: Tensor) -> Tensor:
        return self._of_pairs(self.write_strength, keys, values).sigmoid().transpose(1, 2)

    def _softmax(self, q: Tensor, k: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self._weighted(weights, values)

    def _sum(self, q: Tensor, k: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        weights = sum_weights(self.phi(q), self.phi(k))
        return self._weighted(weights / (weights.sum(-1, keepdim=True) + SUM_NORM_EPS), values)

    def _delta(self, q: Tensor, k: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k = self.phi(q, scale_free=True), self.phi(k, scale_free=True)
        q = q / (q.sum(-1, keepdim=True) + SUM_NORM_EPS)
        k = k / (k.sum(-1, keepdim=True) + self.eps)
        return self._weighted(delta_weights(q, k, self._beta(keys, values)), values)

    def _fwm(self, q: Tensor, k: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        one_hot = F.one_hot(values, self.n_keys).unsqueeze(1).to(k.dtype)
        y = read_rescaled(self.phi(q), self.phi(k), one_hot, self._beta(keys, values))
        return F.layer_norm(y, (self.n_keys,))

    def _weighted(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sum one-hot values by their weights ``(B, 1, Q, T)``: ``(B, 1, Q, S)``."""
        answers = weights.new_zeros(*weights.shape[:3], self.n_keys)
        return answers.scatter_add(-1, values[:, None, None].expand_as(weights), weights)
