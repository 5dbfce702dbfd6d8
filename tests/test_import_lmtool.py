"""Models of the language-modelling toolkit arrive: its state dicts, its mathematics.

The state dicts are made up here in that layout; what a model of it computes is written out once
more, one position at a time, from the published formulas.
"""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq import checkpoint_utils

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import import_lmtool  # noqa: E402
from lib.lmtool_layout import TYPES  # noqa: E402
from lib.new_checkpoint import ImportingError, run  # noqa: E402

DIM, HEADS, INNER, LAYERS, LENGTH, M = 16, 2, 12, 2, 7, 3
D = DIM // HEADS
TOLERANCE = 1e-5  # the model runs in double precision; its sinusoids do not
WORDS = ["<eos>", "the", "<unk>", *(f"w{i}" for i in range(20))]
CUTOFFS = (8, 14)
FLAGS = f"--n_head {HEADS} --tgt_len {LENGTH} --cutoffs 8,14 --performer_proj_dim {M}"


def toolkit_state(attn_type):
    """A state dict of the toolkit's layout with random numbers."""
    v, state = len(WORDS), {}
    kind = TYPES[attn_type]
    state["word_emb.emb_layers.0.weight"] = torch.randn(v, DIM)
    state["crit.out_layers.0.weight"] = state["word_emb.emb_layers.0.weight"]
    state["crit.out_layers.0.bias"] = torch.randn(v)
    state["crit.cluster_weight"] = torch.randn(len(CUTOFFS), DIM)
    state["crit.cluster_bias"] = torch.randn(len(CUTOFFS))
    state["pos_emb.inv_freq"] = torch.randn(DIM // 2)
    if kind.rule == "xl":
        state["r_w_bias"], state["r_r_bias"] = torch.randn(2, HEADS, D)
    nets = {
        "xl": {"qkv_net": 3 * DIM, "r_net": DIM},
        "softmax": {"q_net": DIM, "kv_net": 2 * DIM},
        "sum": {"qkv_net": 3 * DIM},
        "delta": {"qkvb_net": 3 * DIM + HEADS},
    }[kind.rule]
    for i in range(LAYERS):
        attn, ff = f"layers.{i}.dec_attn.", f"layers.{i}.pos_ff."
        for name, outputs in (nets | {"o_net": DIM}).items():
            state[f"{attn}{name}.weight"] = torch.randn(outputs, DIM) / 6
        if kind.feature_map == "favor":
            state[f"{attn}proj_matrix"] = torch.randn(D, M)
        for name in (attn, ff):
            state[f"{name}layer_norm.weight"], state[f"{name}layer_norm.bias"] = torch.randn(
                2, DIM
            )
        state[f"{ff}CoreNet.0.weight"] = torch.randn(INNER, DIM) / 2
        state[f"{ff}CoreNet.0.bias"] = torch.randn(INNER)
        state[f"{ff}CoreNet.3.weight"] = torch.randn(DIM, INNER) / 2
        state[f"{ff}CoreNet.3.bias"] = torch.randn(DIM)
    return state


def convert(tmp_path, state, flags, *options):
    torch.save(state, tmp_path / "state.pt")
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
    command = [str(tmp_path / "state.pt"), "--vocabulary", str(tmp_path / "words.txt")]
    command += ["--out", str(tmp_path / "model" / "checkpoint.pt"), "--flags", f"{FLAGS} {flags}"]
    import_lmtool.convert(import_lmtool.make_parser().parse_args([*command, *options]))
    path = str(tmp_path / "model" / "checkpoint.pt")
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([path])
    return model.double().eval(), task


# What the toolkit computes.


def sinusoid(position):
    angles = [position / 10000 ** (2 * i / DIM) for i in range(DIM // 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def features(kind, x, p):
    """phi of a vector."""
    if kind.feature_map == "elu":
        return F.elu(x) + 1
    if kind.feature_map == "favor":
        u, half = x @ p, x @ x / 2
        return (torch.cat((u - half, -u - half)).exp() + 1e-4) / math.sqrt(2 * M)
    y = torch.cat((x.relu(), (-x).relu()))
    return torch.cat([y * y.roll(j) for j in (1, 2)])


def fast_weights(kind, norm, qkvb, p, guarded):
    """One head: rows of q, k, v and perhaps beta; the delta or the sum rule, step by step."""
    S = z = 0
    rows = []
    for x in qkvb:
        q, k, v = x[: 3 * D].view(3, D)
        q, k = features(kind, q, p), features(kind, k, p)
        if kind.rule == "sum":
            S, z = S + torch.outer(k, v), z + k
        else:
            q, k = (y / (y.sum() + (1e-6 if guarded else 0)) for y in (q, k))
            beta = x[-1].sigmoid()
            first = isinstance(z, int)
            z, retrieving = z + k, k
            if norm == "full":
                kappa = torch.ones(()) if first else (z - k) @ k
                beta = beta * (kappa + 1e-5 if guarded else kappa)
                retrieving = k / (kappa + 1e-5)
            old = torch.zeros(D).double() if first else retrieving @ S
            S = S + torch.outer(retrieving, beta * (v - old))
        rows.append(q @ S / (z @ q + 1e-5 if norm != "none" else 1))
    return torch.stack(rows) / math.sqrt(D)


def softmax_head(q, k, v):
    scores = (q @ k.T / math.sqrt(D)).masked_fill(torch.ones(len(q), len(q)).triu(1) > 0, -1e30)
    return scores.softmax(-1) @ v


def relative_head(q, k, v, state, w_r, head):
    """Transformer-XL without a memory, one pair of positions at a time."""
    u, w = state["r_w_bias"][head], state["r_r_bias"][head]
    rows = []
    for i in range(len(q)):
        scores = [(q[i] + u) @ k[j] + (q[i] + w) @ (w_r @ sinusoid(i - j)) for j in range(i + 1)]
        rows.append((torch.stack(scores) / math.sqrt(D)).softmax(0) @ v[: i + 1])
    return torch.stack(rows)


def attend(state, kind, norm, prefix, h, guarded):
    def net(name):
        return h @ state[f"{prefix}{name}.weight"].T

    heads = []
    for i in range(HEADS):
        part = slice(i * D, (i + 1) * D)
        if kind.rule == "softmax":
            k, v = (x[:, part] for x in net("kv_net").chunk(2, -1))
            heads.append(softmax_head(net("q_net")[:, part], k, v))
        elif kind.rule == "xl":
            q, k, v = (x[:, part] for x in net("qkv_net").chunk(3, -1))
            w_r = state[f"{prefix}r_net.weight"][part]
            heads.append(relative_head(q, k, v, state, w_r, i))
        else:
            qkvb = net("qkvb_net" if kind.rule == "delta" else "qkv_net").chunk(HEADS, -1)[i]
            p = state.get(f"{prefix}proj_matrix")
            heads.append(fast_weights(kind, norm, qkvb, p, guarded))
    return torch.cat(heads, -1) @ state[f"{prefix}o_net.weight"].T


def toolkit_log_probs(state, attn_type, tokens, skip=False, positions=True, guarded=True):
    """Log-probabilities of the toolkit's next words, ``(T, V)``, of one text.

    ``guarded``: with the guards of this project against division by zero, which stand elsewhere
    than the toolkit's (docs/export.md).
    """
    state = {name: x.double() for name, x in state.items()}
    kind = TYPES[attn_type]
    norm = "none" if skip else kind.attn_norm

    def layer_norm(name, x):
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])

    h = state["word_emb.emb_layers.0.weight"][tokens] * math.sqrt(DIM)
    if positions and kind.rule != "xl":
        h = h + torch.stack([sinusoid(len(tokens) - 1 - t) for t in range(len(tokens))])
    for i in range(LAYERS):
        attn, ff = f"layers.{i}.dec_attn.", f"layers.{i}.pos_ff."
        h = layer_norm(f"{attn}layer_norm", h + attend(state, kind, norm, attn, h, guarded))
        a = F.linear(h, state[f"{ff}CoreNet.0.weight"], state[f"{ff}CoreNet.0.bias"]).relu()
        y = F.linear(a, state[f"{ff}CoreNet.3.weight"], state[f"{ff}CoreNet.3.bias"])
        h = layer_norm(f"{ff}layer_norm", h + y)
    scores = F.linear(h, state["crit.out_layers.0.weight"], state["crit.out_layers.0.bias"])
    clusters = F.linear(h, state["crit.cluster_weight"], state["crit.cluster_bias"])
    edges = [*CUTOFFS, len(WORDS)]
    head = torch.cat((scores[:, : edges[0]], clusters), -1).log_softmax(-1)
    parts = [head[:, : edges[0]]]
    for c in range(1, len(edges)):
        # The first cluster of the tail has the last score of the head.
        tail = scores[:, edges[c - 1] : edges[c]].log_softmax(-1)
        parts.append(head[:, -c, None] + tail)
    return torch.cat(parts, -1)


def compare(model, task, state, attn_type, tolerance, **options):
    numbers = torch.tensor([0, 5, 1, 2, 20, 11, 9])
    wanted = toolkit_log_probs(state, attn_type, numbers, **options)
    ours = ["</s>", *WORDS[1:]]
    dictionary = task.target_dictionary
    indices = torch.tensor([dictionary.index(word) for word in ours])
    assert indices.unique().numel() == len(WORDS)
    found = model.get_normalized_probs(model(indices[numbers][None]), log_probs=True)[0]
    torch.testing.assert_close(found[:, indices], wanted, rtol=tolerance, atol=tolerance)
    other = set(range(len(dictionary))) - set(indices.tolist())
    assert (found[:, list(other)].exp() == 0).all()


@pytest.mark.parametrize("attn_type", TYPES)
@torch.no_grad()
def test_every_type_computes_what_the_toolkit_does(attn_type, tmp_path):
    state = toolkit_state(attn_type)
    model, task = convert(tmp_path, state, f"--attn_type {attn_type}")
    compare(model, task, state, attn_type, TOLERANCE)
    # Where no sum is near zero, the guards do not show.
    shows = TYPES[attn_type].attn_norm == "full" or attn_type == 25
    compare(model, task, state, attn_type, 0.05 if shows else TOLERANCE, guarded=False)


@pytest.mark.parametrize("attn_type", [24, 34])
@torch.no_grad()
def test_flags_of_the_training_count(attn_type, tmp_path):
    state = toolkit_state(attn_type)
    flags = f"--attn_type {attn_type} --skip_attn_normalization --no_pos --carry_over_fast_weight"
    model, task = convert(tmp_path, state, f"{flags} --lr 0.00025 --adaptive")
    assert type(task).__name__ == "StreamingLanguageModelingTask"
    compare(model, task, state, attn_type, TOLERANCE, skip=True, positions=False)


@torch.no_grad()
def test_parallel_training_s_prefix_and_an_unknown_word(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "WORDS", [w.replace("<unk>", "also") for w in WORDS])
    state = toolkit_state(24)
    prefixed = {f"module.{name}": x for name, x in state.items()}
    model, task = convert(tmp_path, prefixed, "--attn_type 24")
    compare(model, task, state, 24, TOLERANCE)


def test_random_matrices_may_be_drawn(tmp_path):
    state = {name: x for name, x in toolkit_state(25).items() if "proj_matrix" not in name}
    with pytest.raises(ImportingError, match="keeps FAVOR.*--draw-projections"):
        convert(tmp_path, state, "--attn_type 25")
    model, _ = convert(tmp_path, state, "--attn_type 25", "--draw-projections", "1")
    first, second = (layer.self_attn.mixer.feature_map for layer in model.decoder.layers)
    assert first.projection.shape == (D, M)
    assert not torch.equal(first.projection, second.projection)


@pytest.mark.parametrize("attn_type", TYPES)
def test_every_tensor_is_used_once(attn_type, tmp_path):
    state = toolkit_state(attn_type)
    for name in state:
        if name == "pos_emb.inv_freq":  # the one number that is no parameter
            continue
        partial = {key: x for key, x in state.items() if key != name}
        with pytest.raises(ImportingError, match=name.replace(".", r"\.")):
            lay_out(attn_type, partial)
    with pytest.raises(ImportingError, match="nothing here stands for extra"):
        lay_out(attn_type, {**state, "extra": torch.ones(1)})
    with pytest.raises(ImportingError, match=r"the shape \(16, 9\), not \(16, 16\)"):
        lay_out(attn_type, {**state, "layers.1.dec_attn.o_net.weight": torch.ones(16, 9)})


def lay_out(attn_type, state):
    from lib.lmtool_layout import Sizes, Tensors, map_weights

    tensors = Tensors(state)
    order = import_lmtool.our_order(WORDS, CUTOFFS[0])
    return map_weights(tensors, Sizes.of(tensors, HEADS), TYPES[attn_type], order)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--attn_type 54", "attn_type 54: only 0, 2, 24"),
        ("--attn_type 24 --pre_lnorm", "--pre_lnorm cannot be imported: its residual"),
        ("--attn_type 24 --clamp_len 400", "--clamp_len cannot be imported"),
        ("--attn_type 24 --carry_over_fast_weight", "without --no_pos"),
        ("--attn_type 24 --cutoffs 2,14", "is word 2, in a tail"),
        ("--attn_type 24 --n_head 3", "--n_head 3 does not divide"),
        ("--attn_type 34", "no layers.0.dec_attn.qkv_net.weight: are --attn_type"),
        ("--attn_type x", "flags of the toolkit: argument --attn_type"),
    ],
)
def test_what_cannot_arrive_says_why(flags, message, tmp_path):
    with pytest.raises(ImportingError, match=message):
        convert(tmp_path, toolkit_state(24), flags)


def test_not_tied_and_not_adaptive_models_are_refused(tmp_path):
    state = toolkit_state(24)
    with pytest.raises(ImportingError, match="--not_tied"):
        convert(tmp_path, {**state, "crit.out_layers.0.weight": torch.randn(23, DIM)}, "")
    plain = {name: x for name, x in state.items() if "cluster" not in name}
    with pytest.raises(ImportingError, match="without --adaptive"):
        convert(tmp_path, plain, "--attn_type 24")


def test_other_vocabularies_are_refused(tmp_path, monkeypatch):
    state = toolkit_state(24)
    monkeypatch.setitem(globals(), "WORDS", WORDS[:-1])
    with pytest.raises(ImportingError, match="has 22 words, the model 23"):
        convert(tmp_path, state, "--attn_type 24")
    monkeypatch.setitem(globals(), "WORDS", [*WORDS[1:], "<eos>", "last"])
    with pytest.raises(ImportingError, match="must begin with <eos>"):
        convert(tmp_path, state, "--attn_type 24")


def test_command_line(tmp_path, capsys):
    command = [str(tmp_path / "none.pt"), "--vocabulary", "v", "--out", "o", "--flags", FLAGS]
    assert run(import_lmtool.convert, import_lmtool.make_parser().parse_args(command)) == 1
    assert "error: there is no" in capsys.readouterr().err
