"""Models leave: what scripts/export.py writes gives the same logits without fairseq."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator

from checkpoint_files import LANGUAGE as LM_FLAGS
from checkpoint_files import TRANSLATION, write_checkpoint
from fairseq_fwm.models.fwm_transformer import FWMTransformerModel
from fairseq_fwm.nn import ExportError, load_exported, save_exported
from fairseq_fwm.torch_twin import difference, torch_twin
from language_models import build as build_lm
from language_models import tokens
from test_fwm_transformer import batch
from test_fwm_transformer import build as build_mt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import export as script  # noqa: E402

TOLERANCE = 1e-5
TINY = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_layers": 2}
TINY |= {"decoder_attention_heads": 2, "tokens_per_sample": 32, "max_target_positions": 32}
CLUSTERS = {"adaptive_softmax_cutoff": "10,15", "share_decoder_input_output_embed": False}
PUBLISHED = {"fwm_feature_map": "elu", "fwm_output_scale": "rsqrt", "fwm_positions": "reversed"}
PUBLISHED |= {"fwm_no_projection_bias": True, "fwm_tied_adaptive_softmax": True} | CLUSTERS

LANGUAGE = {
    "dpfp-delta": {},
    "dpfp-delta-nu2-l2": {"fwm_dpfp_nu": 2, "fwm_l2_norm": True, "fwm_beta_max": 2.0},
    "elu-sum": {"fwm_decoder_self": "sum", "fwm_feature_map": "elu"},
    "favor-sum": {"fwm_decoder_self": "sum", "fwm_feature_map": "favor", "fwm_favor_features": 8},
    "favor-toolkit-delta": {"fwm_feature_map": "favor", "fwm_favor_variant": "toolkit"},
    "full-norm": {"fwm_attn_norm": "full"},
    "recurrent-delta": {"fwm_decoder_self": "recurrent_delta"},
    "srwm": {"fwm_decoder_self": "srwm"},
    "softmax": {"fwm_decoder_self": "softmax", "no_token_positional_embeddings": False},
    "softmax-no-bias": {"fwm_decoder_self": "softmax", "fwm_no_projection_bias": True},
    "learned": {"no_token_positional_embeddings": False, "decoder_learned_pos": True},
    "sizes": {
        "decoder_input_dim": 12,
        "decoder_output_dim": 20,
        "share_decoder_input_output_embed": False,
        "decoder_normalize_before": True,
        "layernorm_embedding": True,
        "activation_fn": "gelu",
    },
    "adaptive": CLUSTERS | {"adaptive_softmax_factor": 2},
    "published": PUBLISHED,
    "published-softmax": PUBLISHED | {"fwm_decoder_self": "softmax"},
}
SITES = {
    "default": {},
    "softmax": {"fwm_decoder_self": "softmax"},
    "sum-everywhere": {"fwm_encoder_self": "sum", "fwm_decoder_self": "sum", "fwm_cross": "sum"},
    "delta-both": {"fwm_encoder_self": "delta", "fwm_cross": "sum", "fwm_feature_map": "elu"},
    "favor": {"fwm_encoder_self": "sum", "fwm_cross": "sum", "fwm_feature_map": "favor"},
    "recurrent-delta": {"fwm_decoder_self": "recurrent_delta"},
    "srwm": {"fwm_decoder_self": "srwm"},
    "pre-norm": {
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": False,
        "encoder_learned_pos": True,
    },
}


def language_model(**flags):
    sizes = {f"decoder_{side}_dim": 16 for side in ("input", "output")}
    return build_lm("fwm_transformer_lm_tiny", **TINY | sizes | flags)


def there_and_back(model, folder):
    save_exported(folder, torch_twin(model))
    return load_exported(folder)


@pytest.mark.parametrize("flags", LANGUAGE.values(), ids=LANGUAGE)
@torch.no_grad()
def test_language_models_keep_their_logits(flags, tmp_path):
    model = language_model(**flags)
    for name, x in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide a bias that is lost
            x.uniform_(-0.5, 0.5)
    twin = there_and_back(model, tmp_path)
    assert difference(model, twin) < TOLERANCE
    text = tokens(2, 9)
    if model.decoder.adaptive_softmax is None:
        torch.testing.assert_close(twin(text), model(text)[0], rtol=TOLERANCE, atol=TOLERANCE)
    if flags.get("fwm_positions") != "reversed":
        goes_on(twin, text)


def goes_on(twin, text):
    """In segments and token by token: the logits of the whole text."""
    whole = twin(text)
    first, state = twin(text[:, :4], return_state=True)
    second, state = twin(text[:, 4:8], state, return_state=True)
    last, _ = twin.step(text[:, 8], state)
    found = torch.cat((first, second, last.unsqueeze(1)), 1)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=TOLERANCE)


@torch.no_grad()
def test_reversed_positions_refuse_a_state(tmp_path):
    twin = there_and_back(language_model(**PUBLISHED), tmp_path)
    with pytest.raises(ValueError, match="reversed positions move with every new token"):
        twin.step(tokens(2))


@pytest.mark.parametrize("flags", SITES.values(), ids=SITES)
@torch.no_grad()
def test_translation_models_keep_logits_and_translations(flags, tmp_path):
    model, task = build_mt(**flags)
    for x in model.parameters():
        x.add_(torch.randn_like(x), alpha=0.3)  # sharper: translations of several words
    twin = there_and_back(model, tmp_path)
    sample = batch(task)["net_input"]
    source, previous = sample["src_tokens"], sample["prev_output_tokens"]
    real = previous.ne(task.target_dictionary.pad())
    found, wanted = twin(source, previous)[real], model(**sample)[0][real]
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert twin.translate(source, 12) == greedy(model, task, sample, 12)


def greedy(model, task, sample, longest):
    options = {"beam_size": 1, "max_len_a": 0, "max_len_b": longest}
    generator = SequenceGenerator([model], task.target_dictionary, **options)
    found = generator.generate([model], {"net_input": sample})
    # At the greatest length fairseq puts the end of sentence where the next word would be.
    return [hypotheses[0]["tokens"].tolist()[:-1] for hypotheses in found]


def test_stock_models_leave_too(tmp_path):
    model, _ = build_mt(TransformerModel)
    assert difference(model, there_and_back(model, tmp_path)) < TOLERANCE


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path):
    twin = there_and_back(build_mt()[0], tmp_path)
    assert twin.encoder.embed_tokens.weight is twin.decoder.embed_tokens.weight
    assert twin.decoder.output_projection.weight is twin.decoder.embed_tokens.weight
    count = sum(p.numel() for p in twin.parameters())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 0 < size - 4 * count < 8192  # the header


def test_the_choices_of_the_paper_are_spelled_out(tmp_path):
    save_exported(tmp_path, torch_twin(language_model(fwm_impl="reference")))
    variant = json.loads((tmp_path / "config.json").read_text())["decoder"]["self_attention"]
    assert (variant["sum_norm"], variant["attn_norm"], variant["impl"]) == (True, "none", "auto")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"adaptive_input": True, "adaptive_input_cutoff": "10,15"} | CLUSTERS,
            "--adaptive-input",
        ),
        ({"scale_heads": True, "scale_fc": True}, "--scale-fc, --scale-heads"),
        ({"activation_fn": "relu_squared"}, "--activation-fn relu_squared"),
        ({"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4}, "--quant-noise-pq"),
    ],
)
def test_what_cannot_leave_says_why(flags, message):
    with pytest.raises(ExportError, match=f"{message} cannot be exported.*train without"):
        torch_twin(language_model(**flags))


def test_other_models_are_refused():
    model = build_lm("transformer_xl_lm_tiny", **TINY)
    with pytest.raises(ExportError, match="TransformerXLLanguageModel cannot be exported"):
        torch_twin(model)


def test_damaged_folders_say_so(tmp_path):
    with pytest.raises(ExportError, match=r"no config.json: scripts/export.py writes"):
        load_exported(tmp_path)
    save_exported(tmp_path, torch_twin(language_model()))
    config = tmp_path / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"version": 1', '"version": 99'))
    with pytest.raises(ExportError, match="version 99; this is"):
        load_exported(tmp_path)
    config.write_text(whole.replace('"ff_dim": 24', '"ff_dim": 25'))
    with pytest.raises(ExportError, match=r"(?s)size mismatch.*export the checkpoint again"):
        load_exported(tmp_path)
    for damage in (whole[:80], "[1, 2]", whole.replace('"tied": {', '"tied": {"no.such": "x", ')):
        config.write_text(damage)
        with pytest.raises(ExportError, match="is damaged"):
            load_exported(tmp_path)
    config.write_text(whole.replace('"dictionaries": {', '"dictionaries": {"target": "dict.txt"'))
    with pytest.raises(ExportError, match=r"(?s)is damaged.*dict.txt"):
        load_exported(tmp_path)
    config.write_text(whole)
    with pytest.raises(ExportError, match="a Linear has no place in such a folder"):
        save_exported(tmp_path / "other", torch.nn.Linear(2, 2))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ExportError, match="is damaged"):
        load_exported(tmp_path)


READ_WITHOUT_FAIRSEQ = """
import sys
sys.modules["fairseq"] = None
from fairseq_fwm.nn import load_exported
model = load_exported(sys.argv[1])
import torch
source = torch.tensor([model.vocabularies["source"].encode("one two three")])
words = model.vocabularies["target"].decode(model.translate(source)[0])
assert "fairseq.models" not in sys.modules
print("read:", words)
"""


@pytest.mark.parametrize("flags", [TRANSLATION, LM_FLAGS], ids=["translation", "language"])
def test_command_line(flags, tmp_path, capsys):
    arch = "fwm_transformer" if flags is TRANSLATION else "fwm_transformer_lm"
    checkpoint, out = write_checkpoint(tmp_path, "--arch", arch, *flags), tmp_path / "exported"
    command = [str(checkpoint), "--data", str(tmp_path), "--out", str(out)]
    assert script.main(command) == 0
    assert "log-probabilities differ from the checkpoint's by at most" in capsys.readouterr().out
    languages = ("de.", "en.") if flags is TRANSLATION else ("",)
    dictionaries = {f"dict.{language}txt" for language in languages}
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json"} | dictionaries
    assert len(load_exported(out).vocabularies["target"]) == 24


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    command = [str(tmp_path / "checkpoint.pt"), "--out", str(tmp_path / "exported")]
    assert script.main(command) == 1
    assert "error: there is no checkpoint" in capsys.readouterr().err
    write_checkpoint(tmp_path, "--arch", "fwm_transformer", *TRANSLATION)
    assert script.main([*command, "--data", str(tmp_path / "elsewhere")]) == 1
    assert "say with --data where the dictionaries" in capsys.readouterr().err


def test_reads_without_fairseq(tmp_path, run):
    checkpoint = write_checkpoint(tmp_path, "--arch", "fwm_transformer", *TRANSLATION)
    assert script.main([str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    assert "read:" in run("-c", READ_WITHOUT_FAIRSEQ, tmp_path / "out").stdout


def test_a_task_s_dictionaries_come_back(tmp_path):
    task = build_mt(FWMTransformerModel)[1]
    task.cfg = type("Config", (), {"source_lang": "de", "target_lang": "en"})
    assert script.save_dictionaries(tmp_path, task) == {
        "source": "dict.de.txt",
        "target": "dict.en.txt",
    }
    task.target_dictionary.add_symbol("late")
    task.target_dictionary.symbols.insert(4, "<special>")
    task.target_dictionary.nspecial = 5
    with pytest.raises(ExportError, match="special symbols of its own"):
        script.save_dictionaries(tmp_path, task)
