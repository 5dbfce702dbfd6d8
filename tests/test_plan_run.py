"""scripts/plan_run.py: what it computes on the meta device against real, small runs."""

import re
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.optim.adam import Adam
from fairseq.optim.fp16_optimizer import FP16Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import plan_run  # noqa: E402
from fairseq_fwm.ops import library  # noqa: E402
from fairseq_fwm.ops.reference import (  # noqa: E402
    causal_delta_reference,
    causal_sum_reference,
)
from lib import plan_model  # noqa: E402

pytestmark = pytest.mark.xdist_group("plan")

SITES = "--fwm-encoder-self sum --fwm-decoder-self delta --fwm-dpfp-nu 2"
VARIANTS = {
    "fast decoder": SITES,
    "fast everywhere": f"{SITES} --fwm-cross sum",
    "favor": "--fwm-encoder-self sum --fwm-decoder-self sum --fwm-feature-map favor",
    "checkpointed": f"{SITES} --checkpoint-activations",
}
WORDS = 300


def tiny(flags):
    arguments = ["--arch", "fwm_transformer_tiny", "--share-all-embeddings", "--dropout", "0.1"]
    return plan_model.settings([*arguments, *flags.split()]).model


def real(flags):
    """Build a model with numbers in it."""
    with mock.patch.object(plan_model, "META", torch.device("cpu")):
        return plan_model.build(tiny(flags), WORDS)


@pytest.fixture
def no_kernels(monkeypatch):
    """The chunked form on every device: the CPU's compiled ops keep other things than a GPU's."""
    for op in library.COMPILED:
        monkeypatch.setitem(library.COMPILED, op, frozenset())


# ---------------------------------------------------------------- memory of training


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_without_data_is_that_of_a_run_with_data(variant, no_kernels):
    flags = VARIANTS[variant]
    planned = plan_model.training_step(plan_model.build(tiny(flags), WORDS), 3, 20)
    measured = plan_model.training_step(real(flags), 3, 20, device=torch.device("cpu"))
    assert planned.flops == measured.flops
    assert planned.kept == pytest.approx(measured.kept, rel=0.01)
    assert planned.peak == pytest.approx(measured.peak, rel=0.02)


def test_the_meter_sees_what_the_allocator_sees(no_kernels):
    """torch's profiler reports every allocation of the CPU's allocator."""
    model, cpu = real(SITES), torch.device("cpu")
    step = plan_model.training_step(model, 4, 64, device=cpu)
    tokens, lengths = torch.full((4, 64), 4), torch.full((4,), 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        output = model(tokens, lengths, tokens)
        lprobs = model.get_normalized_probs(output, log_probs=True).flatten(0, 1)
        loss, _ = plan_model.label_smoothed_nll_loss(
            lprobs, tokens.flatten(), plan_model.SMOOTHING, ignore_index=1
        )
        loss.backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert step.peak == pytest.approx(peak, rel=0.05)


def test_kept_is_what_saved_tensor_hooks_see(no_kernels):
    model, saved = real(SITES), {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    tokens, lengths = torch.full((3, 20), 4), torch.full((3,), 20)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits, _ = model(tokens, lengths, tokens)
        lprobs = model.get_normalized_probs((logits, None), log_probs=True).flatten(0, 1)
        plan_model.label_smoothed_nll_loss(lprobs, tokens.flatten(), 0.1, ignore_index=1)
    step = plan_model.training_step(model, 3, 20, device=torch.device("cpu"))
    # The meter also has the logits in its hands, and what hooks count with the inputs.
    assert sum(size for size, _ in saved.values()) == pytest.approx(step.kept, rel=0.1)


def test_fixed_memory_is_that_of_fairseqs_optimizer():
    model = real("").half()
    parameters = list(model.parameters())
    masters = FP16Optimizer.build_fp32_params(None, parameters, flatten=False)
    adam = Adam(masters)
    adam.step()
    tensors = [*parameters, *parameters, *masters, *(p.grad for p in masters)]  # and gradients
    tensors += [x for p in masters for x in adam.state[p].values() if torch.is_tensor(x)]
    plan = plan_run.Plan(tiny(""), WORDS)
    assert plan.static() == sum(x.numel() * x.element_size() for x in tensors)
    assert plan.static(gpus=2) - plan.static() == 2 * plan.parameters


def test_checkpointed_activations_cost_a_forward_pass():
    with plan_model.as_on_gpu():
        plain, checkpointed = (
            plan_model.training_step(plan_model.build(tiny(flags), WORDS), 8, 128)
            for flags in (SITES, f"{SITES} --checkpoint-activations")
        )
    assert checkpointed.kept < 0.4 * plain.kept and checkpointed.peak < plain.peak
    assert 1.1 < checkpointed.flops / plain.flops < 4 / 3


def test_kernels_keep_less_than_the_chunked_form():
    model = plan_model.build(tiny(SITES), WORDS)
    kept = []
    for kernels in (True, False):
        with plan_model.as_on_gpu(kernels):
            kept.append(plan_model.training_step(model, 8, 128).kept)
    assert kept[0] < 0.9 * kept[1]
    assert "meta" not in library.COMPILED["causal_sum_fwd"]


def test_softmax_memory_is_quadratic_and_fast_weights_are_linear():
    def kept(flags, length):
        with plan_model.as_on_gpu():
            model = plan_model.build(tiny(flags), WORDS)
            return plan_model.training_step(model, 1, length).kept / length

    everywhere = VARIANTS["fast everywhere"]
    assert kept(everywhere, 4096) == pytest.approx(kept(everywhere, 2048), rel=0.01)
    softmax = "--fwm-decoder-self softmax"
    assert kept(softmax, 4096) > 1.5 * kept(softmax, 2048)


# ---------------------------------------------------------------- operations, decoding


class Products(TorchDispatchMode):
    """Counts products of as many numbers as the state has."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul.Tensor and result.numel() == self.size:
            self.count += 1
        return result


@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_operations_of_an_update_are_those_of_the_recurrence(rule):
    n, h, t, k, v = 2, 3, 5, 16, 7
    shapes = [(n, h, t, k), (n, h, t, k), (n, h, t, v), *([(n, h, t)] * (rule == "delta"))]
    inputs = [torch.rand(shape, requires_grad=True) for shape in shapes]
    state = torch.rand(n, h, k, v, requires_grad=True)
    reference = {"sum": causal_sum_reference, "delta": causal_delta_reference}[rule]
    with Products(state.numel()) as products:
        y, _ = reference(*inputs, state=state)
        forward = products.count
        y.sum().backward()
        backward = products.count - forward + t  # a kernel also computes the states again
    options = ("none", 1, False, "none")
    got = plan_model.update_flops(rule, False)(*shapes, None, None, None, *options, False, True)
    assert got == 2 * forward * state.numel()
    saved, grads = [None] * 7, [(n, h, t, v), None, None]
    got = plan_model.update_flops(rule, True)(*grads, *shapes, *saved, *options, False)
    assert got == 2 * backward * state.numel()


def test_operations_of_a_model_are_six_per_weight_and_token():
    """A multiply-add forward and two backward; the table of words is the output's matrix, too."""
    plan = plan_run.Plan(tiny("--fwm-decoder-self softmax"), WORDS)
    at = plan.at(4)
    matrices = sum(p.numel() for p in plan.model.parameters() if p.dim() == 2)
    assert at.flops / at.length == pytest.approx(6 * matrices, rel=0.02)


@pytest.mark.parametrize("variant", ["fast decoder", "fast everywhere", "favor"])
def test_decoding_keeps_what_the_plan_says(variant):
    model = real(VARIANTS[variant]).eval()
    length, state = 7, {}
    tokens, lengths = torch.full((1, length), 4), torch.tensor([length])
    with torch.no_grad():
        output = model.encoder(tokens, lengths)
        for i in range(length):
            model.decoder(tokens[:, : i + 1], output, incremental_state=state)
    kept = sum(
        x.numel() * x.element_size()
        for buffer in state.values()
        for name, x in buffer.items()
        if x is not None and x.is_floating_point() and "padding" not in name
    )
    plan = plan_model.decoding(model, length, element=4)
    assert kept == plan.hypothesis + plan.sentence
    assert plan.hypothesis_softmax == plan.sentence_softmax == 4 * 2 * length * 128 * 4


# ---------------------------------------------------------------- the command line


HEADERS = ("wmt14_dpfp_nu2", "wmt14_favor_m128", "wmt14_dpfp_nu3_delta", "iwslt14_elu_delta")


@pytest.mark.parametrize("row", HEADERS)
def test_a_rows_header_says_what_the_plan_says(row, capsys):
    assert plan_run.main(["--row", row, "--lengths", "32"]) == 0
    said = re.search(r"estimated: (\S+) hours on 1 A100", capsys.readouterr().out)[1]
    head = (plan_run.CONFIGS / f"{row}.yaml").read_text()
    corpus = plan_run.CORPORA[row.split("_")[0]]
    assert f"# Estimated: {said} hours on one A100" in head
    assert f"assumed {100 * corpus.utilisation:.0f} % of" in head
    assert f"plan_run.py --row {row}" in head


def test_flags_of_fairseq_are_understood(capsys):
    flags = ["--arch", "fwm_transformer_tiny", "--fwm-dpfp-nu", "2", "--utilisation", "0.1"]
    assert plan_run.main([*flags, "--vocabulary", "300", "--gpu", "V100", "--lengths", "64"]) == 0
    text = capsys.readouterr().out
    assert "sentences of 64 tokens" in text and "10% of its peak of 125 T" in text


@pytest.mark.slow
def test_the_page_has_the_tables(monkeypatch, capsys):
    chosen = {name: plan_run.table_variants()[name] for name in ("softmax", "DPFP, nu = 4")}
    monkeypatch.setattr(plan_run, "table_variants", lambda: chosen)
    assert plan_run.main(["--table"]) == 0
    text, page = capsys.readouterr().out, (ROOT / "docs" / "scaling.md").read_text()
    rows = re.findall(r"^\| DPFP, nu = 4 \| 512 \| (.*) \|$", text, re.M)
    assert [len(row.split(" | ")) for row in rows] == [8, 9, 6]
    assert [line for line in text.splitlines() if line not in page] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "wmt14"], "no row 'wmt14': choose one of iwslt14_"),
        (["--row", "wmt14_linear", "--dropout", "0"], "--row says it all; unknown: --dropout"),
        (["--lengths", "64,x"], "positive whole numbers and commas, not '64,x'"),
        (["--arch", "fwm_transformer_tiny", "--fwm-nu", "2"], "unrecognized arguments: --fwm-nu"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        plan_run.main(arguments)
    assert message in str(error.value) + capsys.readouterr().err
