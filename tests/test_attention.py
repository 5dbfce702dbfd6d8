"""The adapter: our modules inside fairseq's own layers."""

import copy
import pickle

import pytest
import torch

from variants import assert_close, label, valid_configs

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq_fwm.mixers import FastWeightConfig, FastWeightMixer
from fairseq_fwm.modules.attention import FastWeightCrossAttention, FastWeightSelfAttention

C, H = 12, 2
CAUSAL = pytest.mark.parametrize("config", valid_configs(), ids=label)


def self_attention(config, site="decoder_self"):
    mixer = FastWeightMixer(C // H, config, site)
    return FastWeightSelfAttention(C, H, mixer, causal=site == "decoder_self").eval()


def future_mask(t):
    """The mask that fairseq's decoder hands to its layers."""
    return torch.full((t, t), float("-inf")).triu(1)


@CAUSAL
def test_incremental_equals_whole_while_the_beam_moves(config):
    attention = self_attention(config)
    x = torch.randn(6, 4, C)
    order = torch.tensor([2, 2, 0])  # rows repeat, and the beam shrinks from 4 to 3
    wanted, weights = attention(x[:, order], attn_mask=future_mask(6))
    assert weights is None
    state, outputs = {}, []
    for t in range(6):
        rows = x[t : t + 1] if t < 3 else x[t : t + 1, order]
        y, _ = attention(rows, incremental_state=state)
        outputs.append(y if t >= 3 else y[:, order])
        if t == 2:
            attention.reorder_incremental_state(state, order)
    assert_close("y", torch.cat(outputs), wanted, 2e-4)
    buffer = attention._get_input_buffer(state)
    assert buffer and all(tensor.shape[0] == 3 for tensor in buffer.values())


def test_a_prefix_may_come_in_one_piece():
    attention = self_attention(FastWeightConfig("delta", "dpfp"))
    x = torch.randn(6, 2, C)
    wanted, _ = attention(x, attn_mask=future_mask(6))
    state = {}
    first, _ = attention(x[:4], incremental_state=state)
    rest = [attention(x[t : t + 1], incremental_state=state)[0] for t in (4, 5)]
    assert_close("y", torch.cat([first, *rest]), wanted, 1e-4)


@pytest.mark.parametrize("site", ["encoder_self", "decoder_self"])
@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_padding_never_writes(rule, site):
    attention = self_attention(FastWeightConfig(rule, "dpfp"), site)
    x = torch.randn(5, 3, C)

    def run(rows, padding):
        mask = future_mask(len(rows)) if site == "decoder_self" else None
        return attention(rows, key_padding_mask=padding, attn_mask=mask)[0]

    wanted = run(x, None)
    noise = torch.randn(2, 3, C)
    left = torch.tensor([[True] * 2 + [False] * 5]).expand(3, -1)
    assert_close("left", run(torch.cat((noise, x)), left)[2:], wanted, 1e-4)
    assert_close("right", run(torch.cat((x, noise)), left.flip(1))[:5], wanted, 1e-4)
    assert torch.isfinite(run(x, torch.ones(3, 5, dtype=torch.bool))).all()


@pytest.mark.parametrize("config", valid_configs("cross"), ids=label)
def test_cross_attention_writes_the_source_once(config):
    mixer = FastWeightMixer(C // H, config, "cross")
    attention = FastWeightCrossAttention(C, H, mixer, kv_dim=10).eval()
    query, source = torch.randn(4, 2, C), torch.randn(7, 2, 10)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, :3] = True
    wanted, weights = attention(query, source, source, key_padding_mask=padding)
    assert weights is None
    state = {}
    for t in range(4):
        # After the first step the source may be anything: it is in the state.
        key = source if t == 0 else None
        y, _ = attention(
            query[t : t + 1], key, key, key_padding_mask=padding, incremental_state=state
        )
        assert_close(f"y_{t}", y, wanted[t : t + 1], 1e-4)
    alone, _ = attention(query[:, 1:], source[3:, 1:])
    assert_close("padding", wanted[:, 1:], alone, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", ["sum", "delta"])
@pytest.mark.parametrize("feature_map", ["elu", "dpfp", "favor"])
def test_half_modules(rule, feature_map, dtype):
    attention = self_attention(FastWeightConfig(rule, feature_map, m=8))
    x = torch.randn(9, 2, C)
    wanted, _ = attention(x, attn_mask=future_mask(9))
    y, _ = attention.to(dtype)(x.to(dtype), attn_mask=future_mask(9).to(dtype))
    assert y.dtype == dtype
    assert_close("y", y.float(), wanted, 0.1)


def test_other_masks_are_refused():
    attention = self_attention(FastWeightConfig("delta", "dpfp"))
    x = torch.randn(4, 2, C)
    attention(x, attn_mask=future_mask(4))
    attention(x, attn_mask=torch.ones(4, 4, dtype=torch.bool).triu(1))
    biased = future_mask(4)
    biased[3, 0] = 0.5
    for mask in (torch.zeros(4, 4), future_mask(4).T.contiguous(), future_mask(5), biased):
        with pytest.raises(ValueError, match="can only be causal"):
            attention(x, attn_mask=mask)
    with pytest.raises(ValueError, match="full_context_alignment"):
        attention(x)
    encoder = self_attention(FastWeightConfig("sum", "dpfp"), "encoder_self")
    with pytest.raises(ValueError, match="takes no attn_mask"):
        encoder(x, attn_mask=future_mask(4))
    with pytest.raises(ValueError, match="not divisible"):
        FastWeightSelfAttention(C, 5, encoder.mixer, causal=True)


def test_a_verified_buffer_vouches_for_its_corners_only():
    attention = self_attention(FastWeightConfig("delta", "dpfp"))
    x, buffer = torch.randn(4, 2, C), future_mask(9)
    attention(x, attn_mask=buffer[:4, :4])
    attention(torch.randn(6, 2, C), attn_mask=buffer[:6, :6])
    for wrong in (buffer[1:5, :4], buffer[:4, 1:5], buffer[:4, :8], buffer[:8:2, :8:2].T):
        with pytest.raises(ValueError, match="can only be causal"):
            attention(x, attn_mask=wrong)
    buffer[0, 3] = 0.0
    with pytest.raises(ValueError, match="can only be causal"):
        attention(x, attn_mask=buffer[:4, :4])


def test_inference_mode_and_copies():
    attention = self_attention(FastWeightConfig("sum", "favor"))
    x = torch.randn(4, 2, C)
    wanted, _ = attention(x, attn_mask=future_mask(4))
    with torch.inference_mode():
        found, _ = attention(x.clone(), attn_mask=future_mask(4))
    assert_close("inference mode", found.clone(), wanted, 1e-6)
    for copied in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(copied(x, attn_mask=future_mask(4))[0], wanted)


@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_a_padded_row_writes_nothing_while_decoding(rule):
    attention = self_attention(FastWeightConfig(rule, "dpfp", attn_norm="output"))
    x, padding = torch.randn(3, 2, C), torch.tensor([[False], [True]])
    state = {}
    attention(x[:1], incremental_state=state)
    before = {k: v.clone() for k, v in attention._get_input_buffer(state).items()}
    attention(x[1:2], incremental_state=state, key_padding_mask=padding)
    after = attention._get_input_buffer(state)
    assert set(after) == {"weights", "normalizer"}
    for name, tensor in after.items():
        assert torch.equal(tensor[1], before[name][1])
        assert not torch.equal(tensor[0], before[name][0])


def test_cross_attention_copies_its_state_only_when_sentences_leave():
    mixer = FastWeightMixer(C // H, FastWeightConfig("sum", "dpfp"), "cross")
    attention, state = FastWeightCrossAttention(C, H, mixer, kv_dim=10).eval(), {}
    source = torch.randn(5, 2, 10).repeat_interleave(2, 1)  # two sentences, beam of two
    attention(torch.randn(1, 4, C), source, source, incremental_state=state)
    before = attention._get_input_buffer(state)["weights"]
    attention.reorder_incremental_state(state, torch.tensor([1, 0, 3, 3]))
    assert attention._get_input_buffer(state)["weights"] is before
    attention.reorder_incremental_state(state, torch.tensor([3, 2]))
    assert torch.equal(attention._get_input_buffer(state)["weights"], before[2:])


@pytest.mark.parametrize("site", ["encoder_self", "decoder_self"])
@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_compiles_without_a_graph_break(rule, site):
    attention = self_attention(FastWeightConfig(rule, "dpfp"), site)
    mask = future_mask(6) if site == "decoder_self" else None
    x = torch.randn(6, 2, C)
    wanted, _ = attention(x, attn_mask=mask)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert_close("y", compiled(x, attn_mask=mask)[0], wanted, 1e-5)
