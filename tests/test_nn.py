"""fairseq_fwm.nn: modules for torch alone, and what torch does with modules."""

import copy
import io
import os
import pickle

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

import pytorch_forms
from fairseq_fwm import ops
from fairseq_fwm.mixers import FastWeightState
from fairseq_fwm.nn import (
    DPFPAttention,
    DPFPCell,
    DPFPformer,
    FastWeightAttention,
    FastWeightTransformer,
)

VARIANTS = {
    "dpfp-delta": {"rule": "delta", "feature_map": "dpfp", "nu": 2},
    "elu-sum": {"rule": "sum", "feature_map": "elu"},
    "favor-sum": {"rule": "sum", "feature_map": "favor", "m": 8},
    "tanh-delta": {"rule": "delta", "feature_map": "tanh"},
    "softmax-delta": {"rule": "delta", "feature_map": "softmax_features"},
    "full-norm": {"rule": "delta", "feature_map": "elu", "attn_norm": "full"},
    "negative": {"rule": "delta", "feature_map": "elu", "l2_norm": True, "beta_max": 2.0},
    "recurrent": {"rule": "recurrent_delta"},
    "srwm": {"rule": "srwm"},
}
SEQUENCE = [name for name in VARIANTS if name not in ("recurrent", "srwm")]


def model(variant, depth=2, **options):
    torch.manual_seed(1)
    options = {"heads": 2, "head_dim": 4} | VARIANTS[variant] | options
    return FastWeightTransformer(12, depth, **options).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_segments_and_steps_agree(variant):
    net, x = model(variant), torch.randn(3, 9, 12)
    whole = net(x)
    parts, states = [], None
    for segment in x.split([4, 1, 4], 1):
        y, states = net(segment, states, return_state=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    steps, states = [], None
    for x_t in x.unbind(1):
        y, states = net.step(x_t, states)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant):
    net, x = model(variant), torch.randn(2, 6, 12)
    padded = torch.cat((x, torch.randn(2, 3, 12)), 1)
    mask = torch.arange(9).expand(2, 9) < 6
    _, states = net(padded, mask=mask, return_state=True)
    _, wanted = net(x, return_state=True)
    torch.testing.assert_close(states, wanted)
    y_6, after = net.step(padded[:, 6], wanted, mask=torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(after, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_outputs_do_not_see_padding(variant, side):
    net, x, noise = model(variant), torch.randn(2, 6, 12), torch.randn(2, 3, 12)
    left = side == "left"
    padded = torch.cat((noise, x) if left else (x, noise), 1)
    where = slice(3, 9) if left else slice(0, 6)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, where] = True
    torch.testing.assert_close(net(padded, mask=mask)[:, where], net(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_future_is_not_seen(variant):
    net, x = model(variant), torch.randn(1, 8, 12)
    before = net(x)[:, :5]
    x[:, 5:] = torch.randn(1, 3, 12)
    assert torch.equal(net(x)[:, :5], before)


@pytest.mark.parametrize("variant", ["dpfp-delta", "elu-sum"])
def test_without_causality_every_position_counts(variant):
    net, x = model(variant, causal=False), torch.randn(1, 8, 12)
    before = net(x)
    x[:, 7] = torch.randn(12)  # not a constant added, which layer normalisation takes away again
    assert (net(x)[:, 0] != before[:, 0]).any()
    with pytest.raises(ValueError, match="not causal has no state"):
        net(x, return_state=True)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_gradients_reach_everything(pre_norm):
    net = model("dpfp-delta", pre_norm=pre_norm).train()
    x = torch.randn(2, 5, 12, requires_grad=True)
    states = tuple(
        FastWeightState(torch.randn_like(s.weights).requires_grad_(), None)
        for s in net.init_state(2)
    )
    net(x, states)[0].square().sum().backward()
    everything = [x, *(s.weights for s in states), *net.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in everything)


def test_shapes_and_rules_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="dim 10 is not divisible by heads 4: give head_dim"):
        FastWeightAttention(10, 4)
    with pytest.raises(ValueError, match="unknown update rule 'dleta'"):
        FastWeightAttention(8, 2, rule="dleta")
    with pytest.raises(ValueError, match="it can stand at decoder_self only"):
        FastWeightAttention(8, 2, rule="srwm", causal=False)


# ---- the DPFP interface


def test_dpfp_attention_is_the_papers_mathematics():
    torch.manual_seed(1)
    m = DPFPAttention(6, dim_head=4, heads=2, nu=2)
    x, W = torch.randn(3, 5, 6), torch.randn(m.get_memory_shape(3))
    y, after = m(x, W)
    q, k, v, beta = m.attention.in_proj(x).unflatten(-1, (2, 13)).split([4, 4, 4, 1], -1)
    outputs, S = [], W
    for t in range(5):
        phi_q, phi_k = (ops.dpfp(z[:, t], 2) for z in (q, k))
        phi_q, phi_k = (z / (z.sum(-1, keepdim=True) + 1e-6) for z in (phi_q, phi_k))
        old = torch.einsum("nhkv,nhk->nhv", S, phi_k)
        S = S + torch.einsum("nhk,nhv->nhkv", phi_k, beta[:, t].sigmoid() * (v[:, t] - old))
        outputs.append(torch.einsum("nhkv,nhk->nhv", S, phi_q) / 2)
    wanted = m.attention.out_proj(torch.stack(outputs, 1).flatten(-2))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(after, S)


def test_dpfp_cell_reads_what_it_wrote():
    torch.manual_seed(1)
    cell, x, W = DPFPCell(5, nu=2), torch.randn(3, 5), torch.randn(1, 20, 20)
    y, after = cell(x, W)
    phi_k, phi_q = (ops.dpfp(z, 2) for z in (cell.to_k(x), cell.to_q(x)))
    phi_k, phi_q = (z / (z.sum(-1, keepdim=True) + 1e-6) for z in (phi_k, phi_q))
    old = torch.einsum("nvk,nk->nv", W.expand(3, -1, -1), phi_k)
    new = cell.to_beta(x).sigmoid() * (cell.to_v(x) - old)
    wanted = W + torch.einsum("nv,nk->nvk", new, phi_k)
    torch.testing.assert_close(after, wanted)
    torch.testing.assert_close(y, cell.to_out(torch.einsum("nvk,nk->nv", wanted, phi_q)))
    other, _ = cell(x, W, context=torch.randn(3, 5))
    assert not torch.equal(other, y)
    with pytest.raises(ValueError, match="nu must be between 1 and 2 \\* head_dim - 1 = 9"):
        DPFPCell(5, nu=10)


def test_dpfpformer_goes_on_from_its_memories():
    torch.manual_seed(1)
    net, x = DPFPformer(8, 3, dim_head=4, heads=2), torch.randn(2, 7, 8)
    whole, memories = net(x, return_weights=True)
    assert memories.shape == net.get_memory_shape(2) == (3, 2, 2, 8, 4)
    first, W = net(x[:, :3], torch.zeros(net.get_memory_shape(2)), return_weights=True)
    second, W = net(x[:, 3:], W, return_weights=True)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(W, memories)


# ---- what torch does with modules


@pytest.fixture
def compiler():
    """Forget what other tests compiled: a function has a limited number of versions."""
    torch._dynamo.reset()


@pytest.fixture(params=["compiled", "pytorch"])
def operators(request, monkeypatch):
    """Run the ops by kernels, and as where no compiler is."""
    if request.param == "pytorch":
        pytorch_forms.use(monkeypatch)


@pytest.mark.parametrize("variant", ["dpfp-delta", "elu-sum", "favor-sum", "recurrent", "srwm"])
def test_compiles_without_graph_breaks_for_any_length(compiler, operators, variant):
    net = model(variant, depth=1)
    # The graph's own backward pass; C++ code for these few operations would take a minute.
    fast = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (13, 17, 33):
            x = torch.randn(2, length, 12, requires_grad=True)
            y, wanted = fast(x), net(x)
            torch.testing.assert_close(y, wanted)
            found = torch.autograd.grad(y.square().sum(), x)
            torch.testing.assert_close(found, torch.autograd.grad(wanted.square().sum(), x))


@pytest.mark.slow
@pytest.mark.parametrize("variant", SEQUENCE)
@pytest.mark.parametrize("causal", [True, False])
def test_inductor_compiles(compiler, variant, causal):
    net = model(variant, depth=1, causal=causal)
    fast = torch.compile(net, fullgraph=True, dynamic=True)
    for length in (13, 17):
        x = torch.randn(2, length, 12, requires_grad=True)
        y, wanted = fast(x), net(x)
        torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)
        found = torch.autograd.grad(y.square().sum(), x)
        grads = torch.autograd.grad(wanted.square().sum(), x)
        torch.testing.assert_close(found, grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_exports(operators, variant, tmp_path):
    net = model(variant, depth=1)
    length = torch.export.Dim("length", min=2, max=512)
    with torch.no_grad():
        graph = torch.export.export(net, (torch.randn(2, 12, 12),), dynamic_shapes=({1: length},))
    torch.export.save(graph, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    x = torch.randn(2, 40, 12)
    torch.testing.assert_close(again(x), net(x))


CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_keeps_states_in_fp32(variant, device):
    net, x = model(variant).to(device), torch.randn(2, 6, 12, device=device)
    with torch.autocast(device, torch.bfloat16):
        y, states = net(x, return_state=True)
        y.float().square().sum().backward()
    assert all(z.dtype is torch.float32 for s in states for z in s if z is not None)
    torch.testing.assert_close(y.float(), net(x), atol=0.1, rtol=0.1)
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_bf16_modules():
    net, x = model("dpfp-delta").bfloat16(), torch.randn(2, 6, 12)
    y, states = net(x.bfloat16(), return_state=True)
    assert y.dtype is torch.bfloat16 and states[0].weights.dtype is torch.float32
    torch.testing.assert_close(y.float(), model("dpfp-delta")(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_functional_call_and_its_gradient(variant):
    net, x = model(variant, depth=1), torch.randn(2, 5, 12)
    parameters = {name: p.detach() + 0.1 for name, p in net.named_parameters()}
    changed = copy.deepcopy(net)
    changed.load_state_dict(parameters, strict=False)
    y = torch.func.functional_call(net, parameters, (x,))
    torch.testing.assert_close(y, changed(x))

    parameters = {name: p.requires_grad_() for name, p in parameters.items()}
    y = torch.func.functional_call(net, parameters, (x,))
    found = torch.autograd.grad(y.square().sum(), [*parameters.values()])
    wanted = torch.autograd.grad(changed(x).square().sum(), [*changed.parameters()])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_checkpointing(variant):
    net, x = model(variant).train(), torch.randn(2, 5, 12)
    wanted = torch.autograd.grad(net(x).square().sum(), [*net.parameters()])
    y = checkpoint(net, x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), [*net.parameters()])
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_pickles_and_state_dicts(variant):
    net, x = model(variant), torch.randn(2, 5, 12)
    y = net(x)
    assert torch.equal(copy.deepcopy(net)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    torch.manual_seed(2)
    other = FastWeightTransformer(12, 2, heads=2, head_dim=4, **VARIANTS[variant])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval()(x), y)


DPFP_MODULES = {
    "attention": (lambda: DPFPAttention(12, 4, 2), (2, 5, 12)),
    "cell": (lambda: DPFPCell(12), (2, 12)),
    "former": (lambda: DPFPformer(12, 2, 4, 2), (2, 5, 12)),
}


@pytest.mark.parametrize("kind", DPFP_MODULES)
def test_dpfp_modules_are_copied_pickled_and_compiled(kind):
    build, shape = DPFP_MODULES[kind]
    net, x = build().eval(), torch.randn(shape)
    arguments = (x, torch.zeros(2, 24, 24)) if kind == "cell" else (x,)
    wanted = net(*arguments)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), compiled):
        torch.testing.assert_close(other(*arguments), wanted)


def test_what_does_not_fit_is_named():
    net, x = model("dpfp-delta"), torch.randn(2, 5, 12)
    states = net.init_state(2)
    for wrong in (states[:1], (*states, states[0])):
        for call in (lambda s: net(x, s), lambda s: net.step(x[:, 0], s)):
            with pytest.raises(ValueError, match=f"as many states; found {len(wrong)}"):
                call(wrong)
    attention = net.layers[0].attention
    with pytest.raises(ValueError, match="a FastWeightState; found a Tensor"):
        attention(x, states[0].weights)
    with pytest.raises(ValueError, match=r"must have shape \(N, T, dim\); found \(2, 12\)"):
        attention(x[:, 0])
    with pytest.raises(ValueError, match=r"a step takes x of shape \(N, dim\)"):
        attention.step(x)
    both_ways = FastWeightAttention(12, 2, rule="sum", feature_map="elu", causal=False)
    for call in (lambda: both_ways.step(x[:, 0]), lambda: both_ways(x, return_state=True)):
        with pytest.raises(ValueError, match="not causal has no state"):
            call()
    cell = DPFPCell(12)
    for shape in ((24, 24), (3, 24, 24), (2, 24, 12)):
        with pytest.raises(ValueError, match=r"W must be \(2, 24, 24\) or \(1, 24, 24\)"):
            cell(x[:, 0], torch.zeros(shape))
    with pytest.raises(ValueError, match="2 layers go on from as many states; found 3"):
        former = DPFPformer(12, 2, 4, 2)
        former(x, torch.zeros(3, *former.get_memory_shape(2)[1:]))


def _train(rank, address, found):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(model("dpfp-delta").train())
    net(batch()[rank::2]).square().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in net.parameters()], found)
    torch.distributed.destroy_process_group()


def batch():
    torch.manual_seed(3)
    return torch.randn(4, 6, 12)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_distributed_data_parallel(tmp_path, monkeypatch):
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    found = tmp_path / "gradients.pt"
    mp.spawn(_train, (f"file://{tmp_path}/meet", found), nprocs=2)
    net = model("dpfp-delta").train()
    net(batch()).square().mean().backward()
    for ours, wanted in zip(torch.load(found), net.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted.grad)
