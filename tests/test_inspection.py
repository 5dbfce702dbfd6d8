"""fairseq_fwm.inspection: what a memory went through, against the reference op and the mixers."""

import pytest
import torch

from fairseq_fwm import ops
from fairseq_fwm.inspection import effective_rank, trace_memory, trace_mixer
from fairseq_fwm.mixers import FastWeightConfig, build_mixer
from variants import label, valid_configs

H, T, K, V = 2, 7, 4, 3
RULES = [("sum", "none"), ("sum", "output"), ("delta", "none"), ("delta", "full")]


def problem(rule):
    k = torch.rand(1, H, T, K, dtype=torch.float64)
    v = torch.randn(1, H, T, V, dtype=torch.float64)
    return k / k.sum(-1, keepdim=True), v, *([torch.rand(1, H, T).double()] * (rule == "delta"))


def reference(rule, tensors, attn_norm, length):
    """The memory of the op after the first ``length`` positions."""
    op = {"sum": ops.causal_sum_reference, "delta": ops.causal_delta_reference}[rule]
    k, *rest = (x[:, :, :length] for x in tensors)
    _, state = op(k, k, *rest, attn_norm=attn_norm)
    return (state[0] if isinstance(state, tuple) else state)[0]


def traced(tensors, attn_norm):
    return trace_memory(*(x[0] for x in tensors), attn_norm=attn_norm)


@pytest.mark.parametrize("rule, attn_norm", RULES)
def test_norm_rank_and_change_are_those_of_the_reference(rule, attn_norm):
    tensors = problem(rule)
    k, v = (x[0] for x in tensors[:2])
    found = traced(tensors, attn_norm)
    before, z = torch.zeros(H, K, V, dtype=torch.float64), torch.zeros(H, K).double()
    for t in range(T):
        S = reference(rule, tensors, attn_norm, t + 1)
        torch.testing.assert_close(found.norm[:, t], S.flatten(1).norm(dim=1))
        torch.testing.assert_close(found.rank[:, t], effective_rank(S))
        wrote = k[:, t].unsqueeze(-1)
        change = (S - before).flatten(1).norm(dim=1) / wrote.flatten(1).norm(dim=1)
        torch.testing.assert_close(found.change[:, t], change)
        old = (before * wrote).sum(1)
        if attn_norm != "none" and t:
            old = old / ((z * k[:, t]).sum(-1, keepdim=True) + 1e-5)
        torch.testing.assert_close(found.retrieved[:, t], old.norm(dim=-1))
        before, z = S, z + k[:, t]


@pytest.mark.parametrize("rule, attn_norm", RULES)
def test_shares_are_what_the_reference_reads_of_each_token(rule, attn_norm):
    """With token i's value the i-th unit vector, an output lists the weights of all values."""
    k, _, *beta = problem(rule)
    units = torch.eye(T, dtype=torch.float64).expand(1, H, T, T)
    found, share = traced((k, units, *beta), attn_norm), torch.ones(H, T).double()
    first = torch.ones(H, T).double()
    for j in range(T):
        S = reference(rule, (k, units, *beta), attn_norm, j + 1)
        weights = torch.einsum("htk,hkt->ht", k[0], S)  # of v_i, read with k_i
        first[:, j], before = weights[:, j], share.clone()
        share[:, : j + 1] = (weights / first)[:, : j + 1]
        torch.testing.assert_close(found.erased[:, j], before - share)
    torch.testing.assert_close(found.left, share)
    torch.testing.assert_close(found.left + found.erased.sum(1), torch.ones(H, T).double())
    assert (found.left < 0.9).any() == (rule == "delta")


def test_effective_rank_counts_directions():
    matrices = torch.zeros(3, 4, 4, dtype=torch.float64)
    matrices[1, 0] = 1.0  # rank one
    matrices[2] = 5 * torch.eye(4)
    torch.testing.assert_close(effective_rank(matrices), torch.tensor([0.0, 1.0, 4.0]).double())


CONFIGS = [*valid_configs(), FastWeightConfig("recurrent_delta", "elu")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.rule}-{label(c)}"
                         if c.rule in ("sum", "delta") else c.rule)  # fmt: skip
def test_the_memory_followed_is_that_of_the_mixer(config):
    mixer = build_mixer(4, H, config, "decoder_self").eval()
    projected = torch.randn(2, H, T, mixer.projection_size)
    _, state = mixer(projected, output_final_state=True)
    traces = trace_mixer(mixer, projected)
    norms = torch.stack([trace.norm[:, -1] for trace in traces])
    wanted = torch.linalg.matrix_norm(state.weights.detach().double())
    torch.testing.assert_close(norms, wanted, rtol=1e-4, atol=1e-5)


def test_cross_attention_writes_keys_and_values_alone():
    mixer = build_mixer(4, H, FastWeightConfig("sum", "dpfp"), "cross")
    projected = torch.randn(1, H, T, 8)
    (trace,) = trace_mixer(mixer, projected)
    wanted = torch.linalg.matrix_norm(mixer.write(projected).weights[0].double())
    torch.testing.assert_close(trace.norm[:, -1], wanted, rtol=1e-4, atol=1e-6)
    assert trace.beta is None and not trace.erased.any() and (trace.left == 1).all()


def test_no_keys_and_values():
    mixer = build_mixer(4, H, FastWeightConfig("srwm", "elu"), "decoder_self")
    with pytest.raises(ValueError, match="SelfReferentialMixer has no memory that keys"):
        trace_mixer(mixer, torch.randn(1, H, T, 4))
