"""Which combinations are valid, in one place: the code refuses the rest, the README prints it."""

from dataclasses import dataclass

from fairseq_fwm.feature_maps import FEATURE_MAPS
from fairseq_fwm.mixers.recurrent import RECURRENT_MIXERS
from fairseq_fwm.mixers.rules import UPDATE_RULES
from fairseq_fwm.ops.normalization import ATTN_NORMS

SITES = ("encoder_self", "decoder_self", "cross")


@dataclass(frozen=True)
class FastWeightConfig:
    """Everything that names a variant of fast weight attention.

    Attributes:
        rule: key of ``UPDATE_RULES``, or of ``RECURRENT_MIXERS``, which use ``scale`` and
            ``impl`` alone.
        feature_map: key of ``FEATURE_MAPS``.
        sum_norm: divide phi(q) and phi(k) by their sums (arXiv 2102.11174, Eq. 29);
            ``None`` is the paper's choice, see :meth:`resolved`.
        attn_norm: ``none``; ``output``: divide the output by z_t.q_t; ``full``: the retrieval of
            the delta rule by z_{t-1}.k_t too (Eqs. 26-28); ``None`` is the paper's choice.
        l2_norm: divide phi(q) and phi(k) by their lengths instead of their sums.
        beta_max: write strengths lie between 0 and this. Above 1, with keys of length one, the
            transition I - beta k k^T has negative eigenvalues: a memory that can change its sign
            with every token, as parity asks for (Grazzi et al., arXiv 2411.12537).
        scale: constant factor on the output.
        nu: DPFP's number of shifts.
        m: FAVOR+'s number of random directions.
        favor_variant: see :class:`fairseq_fwm.feature_maps.FavorFeatureMap`.
        impl: implementation of the ops.
    """

    rule: str
    feature_map: str
    sum_norm: bool | None = None
    attn_norm: str | None = None
    l2_norm: bool = False
    beta_max: float = 1.0
    scale: float = 1.0
    nu: int = 1
    m: int = 64
    favor_variant: str = "stable"
    impl: str = "auto"

    @property
    def resolved(self) -> tuple[bool, str]:
        """Return (sum_norm, attn_norm) with the paper's choices filled in.

        Delta: sum normalisation and no attention normalisation. Sum: the reverse. Neither is
        chosen where the feature map cannot bear it.
        """
        cls = FEATURE_MAPS[self.feature_map]
        delta_like = UPDATE_RULES[self.rule].uses_beta
        sum_norm = self.sum_norm
        if sum_norm is None:
            sum_norm = delta_like and cls.positive and not cls.normalized and not self.l2_norm
        attn_norm = self.attn_norm
        if attn_norm is None:
            attn_norm = "output" if cls.positive and not delta_like else "none"
        return sum_norm, attn_norm


def why_invalid(config: FastWeightConfig, site: str = "decoder_self") -> str | None:
    """Return why a combination is refused at a site, or ``None`` if it is valid."""
    if config.rule in RECURRENT_MIXERS:
        return _why_invalid_recurrent(config, site)
    if config.rule not in UPDATE_RULES:
        known = ", ".join([*UPDATE_RULES, *RECURRENT_MIXERS])
        return f"unknown update rule {config.rule!r}: choose one of {known}"
    if config.feature_map not in FEATURE_MAPS:
        return (
            f"unknown feature map {config.feature_map!r}: choose one of {', '.join(FEATURE_MAPS)}"
        )
    if site not in SITES:
        return f"unknown site {site!r}: choose one of {', '.join(SITES)}"
    rule, cls = UPDATE_RULES[config.rule], FEATURE_MAPS[config.feature_map]
    sum_norm, attn_norm = config.resolved
    if attn_norm not in ATTN_NORMS:
        return f"unknown attention normalisation {attn_norm!r}: choose one of {ATTN_NORMS}"
    if site not in rule.sites:
        return (
            f"the {rule.name} rule cannot stand at {site}: what it writes depends on the order of "
            f"the writes; use 'sum' or 'softmax' there"
        )
    if config.l2_norm and sum_norm:
        return "features are divided by their sum or by their length, not by both"
    if not 0 < config.beta_max <= 2 or (config.beta_max != 1 and not rule.uses_beta):
        return f"beta_max must be above 0, 2 at most, and 1 without beta, found {config.beta_max}"
    if config.beta_max > 1 and not (config.l2_norm or sum_norm or cls.normalized):
        return "write strengths above 1 need keys of bounded length: use the L2 norm"
    if sum_norm and not cls.positive:
        return f"sum normalisation divides by a sum that can be zero with {config.feature_map}"
    if sum_norm and cls.normalized:
        return f"{config.feature_map} sums to one already: switch sum normalisation off"
    if attn_norm != "none" and not cls.positive:
        return (
            f"attention normalisation divides by z.q, which can be zero with "
            f"{config.feature_map}: use 'none'"
        )
    if attn_norm == "full" and not rule.uses_beta:
        return f"the {rule.name} rule retrieves nothing before it writes: use 'output' or 'none'"
    return None


def _why_invalid_recurrent(config: FastWeightConfig, site: str) -> str | None:
    if site != "decoder_self":
        return f"{config.rule} is causal: it can stand at decoder_self only, not at {site}"
    if config.sum_norm:
        return f"{config.rule} has softmax features, which sum to one already"
    if config.attn_norm not in (None, "none"):
        return f"{config.rule} knows no attention normalisation: use 'none'"
    return None


def validity_table() -> str:
    """Return the feature map x rule matrix as Markdown: the sites where each may stand."""
    rules = list(UPDATE_RULES)
    lines = [
        "| feature map | " + " | ".join(f"`{rule}`" for rule in rules) + " |",
        "| --- |" + " --- |" * len(rules),
    ]
    for name in FEATURE_MAPS:
        cells = []
        for rule in rules:
            config = FastWeightConfig(rule, name)
            sites = [site for site in SITES if why_invalid(config, site) is None]
            sum_norm, attn_norm = config.resolved
            defaults = f"sum norm {'on' if sum_norm else 'off'}, attention norm {attn_norm}"
            cells.append(f"{', '.join(sites) or '-'} ({defaults})")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
