"""``sequence_tagger``: the seven models of the formal-language study (arXiv 2310.16076)."""

from dataclasses import dataclass, field, replace
from typing import Any

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from fairseq_fwm.mixers import FastWeightConfig, build_mixer
from fairseq_fwm.modules.tagger_layers import ELSTM, LSTM, FeedForward, MixerLayer, Transformer

FAST_WEIGHTS = {
    "linear_transformer": FastWeightConfig("sum", "elu", sum_norm=False, attn_norm="none"),
    "deltanet": FastWeightConfig("delta", "elu"),
    "recurrent_delta": FastWeightConfig("recurrent_delta", "elu"),
    "srwm": FastWeightConfig("srwm", "elu"),
}
MIXERS = ("lstm", "elstm", "transformer", *FAST_WEIGHTS)


@dataclass
class SequenceTaggerConfig(FairseqDataclass):
    """Which model, and its size."""

    mixer: ChoiceEnum(list(MIXERS)) = field(  # type: ignore[valid-type]
        default="deltanet", metadata={"help": "what mixes positions"}
    )
    layers: int = field(
        default=2, metadata={"help": "number of layers (elstm: one whatever this)"}
    )
    hidden_size: int = field(default=64, metadata={"help": "width D"})
    heads: int = field(default=4, metadata={"help": "heads H; must divide the width"})
    ff_factor: int = field(
        default=4, metadata={"help": "inner size of feed-forward layers / width"}
    )
    embed_size: int = field(
        default=128,
        metadata={"help": "size of the embeddings of lstm and elstm; others: the width"},
    )
    negative_eigenvalues: bool = field(
        default=False,
        metadata={"help": "deltanet with beta in (0, 2) and keys of length one"},
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout"})


@register_model("sequence_tagger", dataclass=SequenceTaggerConfig)
class SequenceTagger(BaseFairseqModel):
    """Embedding without positions, layers that mix positions causally, one linear output.

    Args:
        symbols: how many symbols go in, and one for padding.
        targets: how many come out, likewise.
        cfg: the model.

    Raises:
        ValueError: if the heads do not divide the width, or a flag is not for this model.
    """

    def __init__(self, symbols: int, targets: int, cfg: SequenceTaggerConfig) -> None:
        super().__init__()
        mixer, dim, heads = str(cfg.mixer), cfg.hidden_size, cfg.heads
        lstm = mixer in ("lstm", "elstm")
        if not lstm and dim % heads:
            raise ValueError(f"--hidden-size {dim} is not divisible by --heads {heads}")
        if cfg.negative_eigenvalues and mixer != "deltanet":
            raise ValueError(f"--negative-eigenvalues is for --mixer deltanet, not {mixer}")
        self.embed = nn.Embedding(symbols, cfg.embed_size if lstm else dim)
        inner = cfg.ff_factor * dim
        if mixer == "lstm":
            self.layers = LSTM(cfg.embed_size, dim, cfg.layers)
        elif mixer == "elstm":
            self.layers = ELSTM(cfg.embed_size, dim)
        elif mixer == "transformer":
            self.layers = Transformer(dim, heads, inner, cfg.layers, cfg.dropout)
        else:
            config, blocks = FAST_WEIGHTS[mixer], []
            if cfg.negative_eigenvalues:
                config = replace(config, l2_norm=True, beta_max=2.0)
            for _ in range(cfg.layers):
                memory = build_mixer(dim // heads, heads, config, "decoder_self")
                blocks.append(MixerLayer(dim, heads, memory, cfg.dropout))
                blocks.append(FeedForward(dim, inner, cfg.dropout))
            self.layers = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(cfg.dropout if lstm else 0.0)
        self.output = nn.Linear(dim, targets)

    @classmethod
    def build_model(cls, cfg: SequenceTaggerConfig, task: Any) -> "SequenceTagger":
        """Build the model that the flags describe."""
        symbols, targets = task.pads
        return cls(symbols + 1, targets + 1, cfg)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map symbols ``(N, T)`` to logits ``(N, T, targets)``."""
        return self.output(self.dropout(self.layers(self.embed(tokens))))
