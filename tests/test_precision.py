"""int8 and bfloat16 on a CPU: a trained model still says what it learned, quantised or not."""

import argparse
import copy

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from torch import nn

from fairseq_fwm.modules.precision import PRECISIONS, set_inference_precision
from language_models import build as build_lm
from language_models import tokens
from test_fwm_transformer import SITES, batch, build, generate, log_probs

SMALL = ["bfloat16", "int8"]
INFERENCE = argparse.Namespace(generation=argparse.Namespace())


def inference(precision, **flags):
    model, task = build(fwm_inference_precision=precision, **flags)
    model.prepare_for_inference_(INFERENCE)
    return model, task


@pytest.mark.parametrize("precision", SMALL)
@pytest.mark.parametrize("flags", [{"fwm_decoder_self": "softmax"}, *SITES], ids=str)
@torch.no_grad()
def test_smaller_numbers_are_near(flags, precision):
    model, task = inference("float32", **flags)
    small, _ = inference(precision, **flags)
    whole, found = (log_probs(m, batch(task)).float() for m in (model, small))
    assert not torch.equal(whole, found), "nothing was converted"
    assert (found - whole).abs().mean() < 0.1  # of log-probabilities around -3
    longest = [h[0] for h in generate(small, task, batch(task), max_len_b=9)]
    assert all(score < 0 and tokens for tokens, score in longest)


@torch.no_grad()
def test_what_is_quantised():
    model, _ = inference("int8", fwm_decoder_self="delta")
    linear = [name for name, m in model.named_modules() if type(m) is nn.Linear]
    quantised = [
        name for name, m in model.named_modules() if "quantized.dynamic" in type(m).__module__
    ]
    assert not linear
    assert "decoder.output_projection" in quantised and "encoder.layers.0.fc1" in quantised
    assert model.decoder.embed_tokens.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", SMALL)
def test_a_trained_model_keeps_what_it_learned(precision):
    """Beam search says the same as in float32 where the model is sure of it."""
    model, task = build(fwm_decoder_self="delta", fwm_feature_map="dpfp")
    sample = batch(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        scores = log_probs(model.train(), sample).transpose(1, 2)
        padding = task.target_dictionary.pad()
        loss = nn.functional.nll_loss(scores, sample["target"], ignore_index=padding)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    found = []
    for name in ("float32", precision):
        one = copy.deepcopy(model).eval()
        set_inference_precision(one, name)
        found.append([h[0][0] for h in generate(one, task, sample)])
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", SMALL)
@torch.no_grad()
def test_a_language_model(precision):
    found = []
    for name in ("float32", precision):
        model = build_lm(
            "fwm_transformer_lm_tiny", fwm_decoder_self="delta", fwm_inference_precision=name
        )
        model.eval().prepare_for_inference_(INFERENCE)
        output = model(tokens(2, 12))
        found.append(model.get_normalized_probs(output, log_probs=True).float())
    assert not torch.equal(*found)
    assert (found[0] - found[1]).abs().mean() < 0.1


def test_float32_is_left_alone():
    model, _ = build()
    before = [id(m) for m in model.modules()]
    set_inference_precision(model, "float32")
    assert [id(m) for m in model.modules()] == before and PRECISIONS[0] == "float32"


def test_errors_say_what_to_do(monkeypatch):
    model, _ = build()
    with pytest.raises(ValueError, match="one of float32"):
        set_inference_precision(model, "int4")
    with pytest.raises(ValueError, match="--cpu"):
        set_inference_precision(model.to("meta"), "bfloat16")
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(ValueError, match="take bfloat16"):
        set_inference_precision(build()[0], "int8")
