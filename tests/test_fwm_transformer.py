"""fwm_transformer in fairseq: stock with softmax, right under beam search, clear if wrong."""

import argparse

import pytest
import torch

from variants import assert_close

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator

import fairseq_fwm  # noqa: F401
from fairseq_fwm.models.fwm_transformer import FWMTransformerModel

SITES = [
    {"fwm_decoder_self": "delta"},
    {"fwm_decoder_self": "sum", "fwm_feature_map": "elu"},
    {"fwm_decoder_self": "delta", "fwm_attn_norm": "full"},
    {"fwm_decoder_self": "recurrent_delta"},
    {"fwm_decoder_self": "srwm"},
    {"fwm_encoder_self": "sum", "fwm_decoder_self": "sum", "fwm_cross": "sum"},
    {"fwm_encoder_self": "delta", "fwm_decoder_self": "delta", "fwm_cross": "sum"},
    {
        "fwm_encoder_self": "sum",
        "fwm_decoder_self": "delta",
        "fwm_cross": "sum",
        "fwm_feature_map": "favor",
    },
]


class Task:
    """As much of fairseq's translation task as a model needs to be built."""

    def __init__(self):
        self.source_dictionary = self.target_dictionary = Dictionary()
        for i in range(20):
            self.source_dictionary.add_symbol(f"w{i}")


def build(cls=FWMTransformerModel, **flags):
    task = Task()
    shape = {
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "share_all_embeddings": True,
        "dropout": 0.0,
        "max_source_positions": 64,
        "max_target_positions": 64,
    }
    args = argparse.Namespace(**shape | flags)
    torch.manual_seed(0)
    return cls.build_model(args, task).eval(), task


def batch(task, left_pad_source=True):
    """Three sentence pairs of different lengths, padded as fairseq pads."""
    generator = torch.Generator().manual_seed(2)

    def sentence(n):
        words = torch.randint(4, len(task.source_dictionary), (n,), generator=generator)
        return torch.cat((words, torch.tensor([task.source_dictionary.eos()])))

    source, target = [sentence(n) for n in (7, 3, 5)], [sentence(n) for n in (4, 6, 2)]
    data = LanguagePairDataset(
        source,
        [len(x) for x in source],
        task.source_dictionary,
        target,
        [len(x) for x in target],
        task.target_dictionary,
        left_pad_source=left_pad_source,
    )
    return data.collater([data[i] for i in range(3)])


def log_probs(model, sample):
    output = model(**sample["net_input"])
    return model.get_normalized_probs(output, log_probs=True, sample=sample)


def generate(model, task, sample, **options):
    generator = SequenceGenerator([model], task.target_dictionary, beam_size=4, **options)
    with torch.no_grad():
        return [
            [(h["tokens"].tolist(), h["score"].item()) for h in hypotheses]
            for hypotheses in generator.generate([model], sample)
        ]


def test_softmax_everywhere_is_the_stock_transformer():
    """The same seed gives the same weights, losses and translations."""
    stock, task = build(TransformerModel)
    ours, _ = build(fwm_decoder_self="softmax")
    assert list(ours.state_dict()) == list(stock.state_dict())
    for name, tensor in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    sample = batch(task)
    assert torch.equal(log_probs(ours, sample), log_probs(stock, sample))
    assert generate(ours, task, sample) == generate(stock, task, sample)


def recomputed_score(model, source, tokens):
    """Log-probability of a hypothesis from one full pass, no incremental state."""
    target = torch.tensor([tokens])
    previous = torch.cat((torch.tensor([[tokens[-1]]]), target[:, :-1]), 1)
    inputs = {
        "src_tokens": source,
        "src_lengths": torch.tensor([source.shape[1]]),
        "prev_output_tokens": previous,
    }
    whole = log_probs(model, {"net_input": inputs})
    return whole.gather(-1, target.unsqueeze(-1)).sum().item()


@pytest.mark.parametrize("flags", SITES, ids=lambda f: "-".join(map(str, f.values())))
def test_beam_search_scores_equal_full_recomputation(flags):
    """Finished sentences leave the batch and beams are reordered; every score must still hold."""
    model, task = build(**flags)
    sample, lengths = batch(task), set()
    weight = model.encoder.embed_tokens.weight.data
    weight *= 0.2
    for seed in range(6):
        # A long end-of-sentence vector: some sentences end early, others late or never.
        weight[task.target_dictionary.eos()] = 0.6 * torch.randn(
            16, generator=torch.Generator().manual_seed(seed)
        )
        found = generate(model, task, sample, max_len_b=12, normalize_scores=False)
        for row, hypotheses in enumerate(found):
            source = sample["net_input"]["src_tokens"][row : row + 1]
            source = source[source != task.source_dictionary.pad()].unsqueeze(0)
            for tokens, score in hypotheses:
                wanted = recomputed_score(model, source, tokens)
                assert score == pytest.approx(wanted, abs=1e-3)
                lengths.add(len(tokens))
    assert len(lengths) > 2, "the test must see sentences that finish early"


@pytest.mark.parametrize("flags", SITES, ids=lambda f: "-".join(map(str, f.values())))
def test_padding_and_batch_order(flags):
    model, task = build(**flags)
    left, right = batch(task), batch(task, left_pad_source=False)
    whole = log_probs(model, left)
    assert_close("side of the padding", log_probs(model, right), whole, 1e-4)
    order = torch.tensor([2, 0, 1])
    shuffled = {
        "net_input": {k: v[order] for k, v in left["net_input"].items()},
    }
    assert_close("order", log_probs(model, shuffled), whole[order], 1e-4)


@pytest.mark.parametrize("flags", SITES, ids=lambda f: "-".join(map(str, f.values())))
def test_every_parameter_learns(flags):
    model, task = build(**flags)
    sample = batch(task)
    model.train()
    model.set_num_updates(3)
    loss = -log_probs(model, sample).gather(-1, sample["target"].unsqueeze(-1)).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # A bias on keys shifts nothing under softmax.
        assert parameter.grad.any() or name.endswith("k_proj.bias"), name


HALF = [
    {"fwm_decoder_self": "delta"},
    {"fwm_encoder_self": "delta", "fwm_decoder_self": "delta", "fwm_feature_map": "elu"},
    {
        "fwm_encoder_self": "sum",
        "fwm_decoder_self": "sum",
        "fwm_cross": "sum",
        "fwm_feature_map": "elu",
    },
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("flags", HALF, ids=lambda f: "-".join(map(str, f.values())))
def test_half_model(flags, dtype):
    """No further from fp32 than twice what rounding does to the stock transformer."""
    errors = []
    for variant in ({"fwm_decoder_self": "softmax"}, flags):
        model, task = build(**variant)
        sample = batch(task)
        wanted = log_probs(model, sample)
        half = log_probs(model.to(dtype), sample).float()
        assert torch.isfinite(half).all()
        errors.append((half - wanted).abs().mean().item())
    assert errors[1] <= 2 * errors[0]


def test_layers_of_one_model_draw_different_random_features():
    model, _ = build(fwm_decoder_self="sum", fwm_feature_map="favor")
    projections = [v for k, v in model.state_dict().items() if k.endswith("map.projection")]
    assert len(projections) == 2 and not torch.equal(*projections)
    again, _ = build(fwm_decoder_self="sum", fwm_feature_map="favor")
    assert torch.equal(
        projections[0],
        next(v for k, v in again.state_dict().items() if k.endswith("map.projection")),
    )


@pytest.mark.parametrize(
    "flags,reason",
    [
        ({"fwm_feature_map": "tanh", "fwm_sum_norm": "on"}, "--fwm-decoder-self .*can be zero"),
        ({"fwm_cross": "sum", "fwm_attn_norm": "full"}, "--fwm-cross sum.*retrieves nothing"),
        ({"fwm_dpfp_nu": 0}, "nu must be between 1 and 2 \\* head_dim - 1 = 15"),
        ({"fwm_dpfp_nu": 16}, "found 16"),
        ({"fwm_feature_map": "favor", "fwm_favor_features": 0}, "m must be at least 1"),
        ({"fwm_feature_map": "relu"}, "unknown feature map 'relu'"),
        ({"fwm_decoder_self": "gated"}, "unknown update rule 'gated'"),
    ],
)
def test_wrong_flags_name_the_cause(flags, reason):
    with pytest.raises(ValueError, match=reason):
        build(**flags)


@pytest.mark.parametrize("flag", ["print_alignment", "replace_unk"])
def test_alignments_of_a_fast_weight_cross_attention_are_refused(flag):
    generation = argparse.Namespace(**{"beam": 5, flag: "hard"})
    model, _ = build(fwm_cross="sum")
    with pytest.raises(ValueError, match="train with --fwm-cross softmax"):
        model.prepare_for_inference_(argparse.Namespace(generation=generation))
    model, _ = build()
    model.prepare_for_inference_(argparse.Namespace(generation=generation))


def gradients(model, sample):
    loss = -log_probs(model, sample).gather(-1, sample["target"].unsqueeze(-1)).sum()
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("flags", SITES, ids=lambda f: "-".join(map(str, f.values())))
def test_activation_checkpointing_gives_the_same_gradients(flags):
    plain, task = build(**flags)
    wrapped, _ = build(checkpoint_activations=True, **flags)
    layers = [*wrapped.encoder.layers, *wrapped.decoder.layers]
    assert all("checkpoint" in repr(layer.forward) for layer in layers)
    sample = batch(task)
    for model in (plain, wrapped):
        model.train()
        model.set_num_updates(1)
    for found, wanted in zip(gradients(wrapped, sample), gradients(plain, sample), strict=True):
        assert_close("gradient", found, wanted, 1e-4)


def test_fast_weights_need_no_mask_of_t_x_t_numbers():
    x = torch.empty(50, 1, 16)
    assert build(fwm_decoder_self="delta")[0].decoder.buffered_future_mask(x).numel() == 0
    softmax = build(fwm_decoder_self="softmax", fwm_cross="sum")[0].decoder
    assert softmax.buffered_future_mask(x).shape == (50, 50)


def test_layerdrop_leaves_out_whole_layers():
    model, task = build(encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    sample = batch(task)
    model.train()
    losses = {log_probs(model, sample).sum().item() for _ in range(12)}
    assert len(losses) > 1, "every draw ran the same layers"
    model.eval()
    assert torch.equal(log_probs(model, sample), log_probs(model, sample))


def decoder_mixer(**flags):
    model, _ = build(**flags)
    return model.decoder.layers[0].self_attn.mixer


def test_every_flag_reaches_the_mixer():
    default = decoder_mixer()
    assert (default.sum_norm, default.attn_norm, default.config.scale) == (True, "none", 1.0)
    assert not decoder_mixer(fwm_sum_norm="off").sum_norm
    sum_rule = decoder_mixer(fwm_decoder_self="sum", fwm_sum_norm="on", fwm_attn_norm="none")
    assert (sum_rule.rule.name, sum_rule.sum_norm, sum_rule.attn_norm) == ("sum", True, "none")
    assert decoder_mixer(fwm_attn_norm="full").attn_norm == "full"
    assert decoder_mixer(fwm_output_scale="rsqrt").config.scale == 8**-0.5
    assert decoder_mixer(fwm_dpfp_nu=3).feature_map.out_dim == 2 * 3 * 8
    assert decoder_mixer(fwm_impl="reference").config.impl == "reference"
    favor = {"fwm_feature_map": "favor", "fwm_favor_features": 24}
    feature_map = decoder_mixer(**favor, fwm_favor_variant="toolkit").feature_map
    assert (feature_map.m, feature_map.variant) == (24, "toolkit")
    seeds = {decoder_mixer(**favor, fwm_favor_seed=n).feature_map.seed for n in (1, 2)}
    assert len(seeds) == 2


SHAPES = {  # encoder layers, width, FFN, heads
    "fwm_transformer": (6, 512, 2048, 8),
    "fwm_transformer_iwslt_de_en": (6, 512, 1024, 4),
    "fwm_transformer_tiny": (4, 128, 256, 4),
    "fwm_transformer_wmt_en_de": (6, 512, 2048, 8),
    "fwm_transformer_wmt_en_de_big": (6, 1024, 4096, 16),
}


@pytest.mark.parametrize("arch", SHAPES)
def test_architectures(arch):
    args = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[arch](args)
    first = dict(vars(args))
    ARCH_CONFIG_REGISTRY[arch](args)
    assert vars(args) == first, "fairseq runs architecture functions twice"
    for side in ("encoder", "decoder"):
        names = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
        shape = tuple(first[f"{side}_{name}"] for name in names)
        assert shape == SHAPES[arch]
    assert first["fwm_decoder_self"] == "delta" and first["fwm_feature_map"] == "dpfp"
    assert first["fwm_encoder_self"] == first["fwm_cross"] == "softmax"
    assert ARCH_MODEL_REGISTRY[arch] is FWMTransformerModel
