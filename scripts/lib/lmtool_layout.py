"""Names and layouts of the language-modelling toolkit of arXiv 2102.11174, and ours for them.

Its parameters are named as in Transformer-XL's code, which it is built on. Every tensor of its
state dict is used exactly once; one that is missing or left over stops the import.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.new_checkpoint import ImportingError

IMPOSSIBLE = -1e4
"""Output bias of words that the toolkit does not have; exp of it is zero, and fp16 holds it."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class AttentionType:
    """What one of the toolkit's ``--attn_type`` is here.

    Attributes:
        rule: value of ``--fwm-decoder-self``; ``xl`` is Transformer-XL.
        feature_map: value of ``--fwm-feature-map``.
        attn_norm: value of ``--fwm-attn-norm`` unless ``--skip_attn_normalization`` is given.
    """

    rule: str
    feature_map: str = "elu"
    attn_norm: str = "none"


TYPES = {
    0: AttentionType("xl"),
    2: AttentionType("softmax"),
    24: AttentionType("delta", "elu", "output"),
    25: AttentionType("delta", "favor", "output"),
    26: AttentionType("delta", "dpfp", "output"),
    34: AttentionType("sum", "elu", "output"),
    35: AttentionType("sum", "favor", "output"),
    44: AttentionType("delta", "elu", "full"),
    45: AttentionType("delta", "favor", "full"),
    46: AttentionType("delta", "dpfp", "full"),
}


class Tensors:
    """A state dict whose tensors are taken out one by one.

    Args:
        state: the toolkit's; a prefix ``module.`` (DataParallel's) is dropped.
    """

    def __init__(self, state: Weights) -> None:
        self.left = {name.removeprefix("module."): x for name, x in state.items()}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor and forget it.

        Raises:
            ImportingError: if it is not there, or has another shape.
        """
        if name not in self.left:
            raise ImportingError(
                f"the state dict has no {name}: are --attn_type and the other flags those of its "
                "training?"
            )
        x = self.left.pop(name)
        if tuple(x.shape) != shape:
            raise ImportingError(
                f"{name} has the shape {tuple(x.shape)}, not {shape}: are --attn_type, --n_head "
                "and the other flags those of its training?"
            )
        return x.float()

    def check_empty(self) -> None:
        """Refuse what nothing here stands for.

        Raises:
            ImportingError: naming it.
        """
        if self.left:
            raise ImportingError(
                f"nothing here stands for {', '.join(sorted(self.left)[:5])}"
                f"{' ...' if len(self.left) > 5 else ''}: are --attn_type and the other flags "
                "those of its training?"
            )


@dataclass(frozen=True)
class Sizes:
    """Sizes that the state dict tells, but for the heads.

    Attributes:
        words: V of the toolkit.
        dim: D.
        inner: width of the feed-forward networks.
        layers: how many.
        heads: H.
    """

    words: int
    dim: int
    inner: int
    layers: int
    heads: int

    @classmethod
    def of(cls, tensors: Tensors, heads: int) -> "Sizes":
        """Read them off.

        Raises:
            ImportingError: if this is no state dict of the toolkit.
        """
        embedding, first = "word_emb.emb_layers.0.weight", "layers.0.pos_ff.CoreNet.0.weight"
        missing = [name for name in (embedding, first) if name not in tensors.left]
        if missing:
            raise ImportingError(
                f"no state dict of the toolkit: it has no {missing[0]} (see docs/export.md on how "
                "to save one)"
            )
        words, dim = tensors.left[embedding].shape
        if dim % heads:
            raise ImportingError(f"--n_head {heads} does not divide the {dim} dimensions")
        layers = {name.split(".")[1] for name in tensors.left if name.startswith("layers.")}
        return cls(words, dim, tensors.left[first].shape[0], len(layers), heads)


def map_weights(tensors: Tensors, sizes: Sizes, kind: AttentionType, order: list[int]) -> Weights:
    """Return our state dict.

    Args:
        tensors: the toolkit's, which are used up.
        sizes: of the model.
        kind: of attention.
        order: which of the toolkit's words each of ours is; -1 for a word that it does not have.

    Raises:
        ImportingError: if a tensor is missing, left over or of another shape.
    """
    weights = map_words(tensors, sizes, order)
    biases = {}
    if kind.rule == "xl":
        shape = (sizes.heads, sizes.dim // sizes.heads)
        for theirs, ours in (("r_w_bias", "content_bias"), ("r_r_bias", "position_bias")):
            biases[ours] = tensors.take(theirs, *shape).unsqueeze(1)
    # A number of positions here, a buffer there.
    tensors.left.pop("pos_emb.inv_freq", None)
    for i in range(sizes.layers):
        ours = f"decoder.layers.{i}."
        for name, x in map_layer(tensors, f"layers.{i}.", sizes, kind).items():
            weights[ours + name] = x
        for name, x in biases.items():
            weights[f"{ours}self_attn.{name}"] = x
    tensors.check_empty()
    return weights


def map_words(tensors: Tensors, sizes: Sizes, order: list[int]) -> Weights:
    """Return embedding and adaptive softmax, their rows in our order."""
    words, dim = sizes.words, sizes.dim
    table = tensors.take("word_emb.emb_layers.0.weight", words, dim)
    output = tensors.take("crit.out_layers.0.weight", words, dim)
    if not table.equal(output):
        raise ImportingError(
            "input and output embeddings differ (--not_tied): here they are one table"
        )
    bias = tensors.take("crit.out_layers.0.bias", words)
    if "crit.cluster_weight" not in tensors.left:
        raise ImportingError(
            "the state dict has no crit.cluster_weight: a model without --adaptive has an output "
            "bias for which fairseq's plain softmax has no place"
        )
    clusters = tensors.left["crit.cluster_weight"].shape[0]
    weight = tensors.take("crit.cluster_weight", clusters, dim)
    new = table.new_tensor(order).lt(0)
    rows = table.new_tensor(order).long().clamp(min=0)
    table = table[rows].masked_fill(new[:, None], 0.0)
    softmax = "decoder.adaptive_softmax."
    return {
        "decoder.embed_tokens.weight": table,
        softmax + "embedding.weight": table,
        softmax + "bias": bias[rows].masked_fill(new, IMPOSSIBLE),
        # There, the first cluster of the tail has the last score.
        softmax + "cluster_weight": weight.flip(0),
        softmax + "cluster_bias": tensors.take("crit.cluster_bias", clusters).flip(0),
    }


def map_layer(tensors: Tensors, prefix: str, sizes: Sizes, kind: AttentionType) -> Weights:
    """Return the parameters of a layer."""
    dim, inner = sizes.dim, sizes.inner
    attention = map_attention(tensors, prefix + "dec_attn.", sizes, kind)
    weights = {f"self_attn.{name}": x for name, x in attention.items()}
    norms = {
        "dec_attn.layer_norm": "self_attn_layer_norm",
        "pos_ff.layer_norm": "final_layer_norm",
    }
    for theirs, ours in norms.items():
        for part in ("weight", "bias"):
            weights[f"{ours}.{part}"] = tensors.take(f"{prefix}{theirs}.{part}", dim)
    for number, ours, shape in ((0, "fc1", (inner, dim)), (3, "fc2", (dim, inner))):
        name = f"{prefix}pos_ff.CoreNet.{number}"
        weights[f"{ours}.weight"] = tensors.take(f"{name}.weight", *shape)
        weights[f"{ours}.bias"] = tensors.take(f"{name}.bias", shape[0])
    return weights


def map_attention(tensors: Tensors, prefix: str, sizes: Sizes, kind: AttentionType) -> Weights:
    """Return the parameters of a layer's attention."""
    dim, heads = sizes.dim, sizes.heads
    weights = {"out_proj.weight": tensors.take(f"{prefix}o_net.weight", dim, dim)}
    if kind.rule == "softmax":
        k, v = tensors.take(f"{prefix}kv_net.weight", 2 * dim, dim).chunk(2)
        q = tensors.take(f"{prefix}q_net.weight", dim, dim)
        return weights | {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v}
    if kind.rule == "xl":
        q, k, v = tensors.take(f"{prefix}qkv_net.weight", 3 * dim, dim).view(3, heads, -1, dim)
        # Here keys and values of a head lie side by side.
        keys_values = torch.stack((k, v), 1).reshape(-1, dim)
        r = tensors.take(f"{prefix}r_net.weight", dim, dim)
        q = q.reshape(dim, dim)
        return weights | {"q_proj.weight": q, "kv_proj.weight": keys_values, "r_proj.weight": r}
    name = "qkvb_net" if kind.rule == "delta" else "qkv_net"
    outputs = 3 * dim + (heads if kind.rule == "delta" else 0)
    weights["in_proj.weight"] = tensors.take(f"{prefix}{name}.weight", outputs, dim)
    if kind.feature_map == "favor":
        weights["mixer.feature_map.projection"] = take_projection(tensors, prefix, sizes)
    return weights


def take_projection(tensors: Tensors, prefix: str, sizes: Sizes) -> Tensor:
    """Return FAVOR+'s random matrix, which the toolkit keeps outside its state dict."""
    name = f"{prefix}proj_matrix"
    if name not in tensors.left:
        raise ImportingError(
            f"the state dict has no {name}: the toolkit keeps FAVOR+'s random matrices outside; "
            "add them when saving it (docs/export.md says how), or draw new ones with "
            "--draw-projections SEED"
        )
    d, m = sizes.dim // sizes.heads, tensors.left[name].shape[-1]
    return tensors.take(name, d, m)
