"""What an exported model is, as plain data: the contents of its ``config.json``."""

from dataclasses import dataclass

from fairseq_fwm.mixers import FastWeightConfig


@dataclass(frozen=True)
class StackConfig:
    """Embedding, layers and, of a decoder, the output layer.

    Attributes:
        words: rows of the embedding.
        pad: index of padding.
        dim: D, size of the layers' vectors.
        embed_dim: size of the embedding's vectors; projected if it is not D.
        layers: how many.
        heads: H of every attention.
        ff_dim: width of the feed-forward networks.
        causal: decoder (True) or encoder (False).
        self_attention: the variant of self-attention; ``None`` is softmax.
        cross_attention: the variant of cross-attention; ``None`` is softmax.
        source_dim: size of an encoder's vectors; ``None`` without cross-attention.
        attention_bias: whether projections of attention have biases.
        norm_first: layer normalisation before each part; otherwise behind it.
        final_norm: layer normalisation behind the last layer.
        embed_norm: layer normalisation of the embedding.
        embed_scale: factor on the embedding.
        activation: key of ``fairseq_fwm.nn.layers.ACTIVATIONS``.
        positions: ``none``, ``sinusoids``, ``learned`` or ``reversed``.
        max_positions: longest text, for ``learned``.
        output: ``none`` (an encoder's), ``linear``, ``tied_clusters`` or ``adaptive``.
        output_dim: size of the output layer's input; projected if it is not D.
        cutoff: first word of every tail cluster.
        factor: by which ``adaptive`` tails are narrower than the one before.
    """

    words: int
    pad: int
    dim: int
    embed_dim: int
    layers: int
    heads: int
    ff_dim: int
    causal: bool
    self_attention: FastWeightConfig | None = None
    cross_attention: FastWeightConfig | None = None
    source_dim: int | None = None
    attention_bias: bool = True
    norm_first: bool = False
    final_norm: bool = False
    embed_norm: bool = False
    embed_scale: float = 1.0
    activation: str = "relu"
    positions: str = "none"
    max_positions: int = 0
    output: str = "none"
    output_dim: int = 0
    cutoff: tuple[int, ...] = ()
    factor: float = 4.0

    @classmethod
    def from_json(cls, fields: dict) -> "StackConfig":
        """Return the configuration that ``dataclasses.asdict`` gave, after a way through JSON.

        Raises:
            TypeError: if a field is missing or unknown.
        """
        variants = {
            name: FastWeightConfig(**fields[name])
            for name in ("self_attention", "cross_attention")
            if fields.get(name) is not None
        }
        return cls(**{**fields, **variants, "cutoff": tuple(fields.get("cutoff", ()))})
