"""What users' scripts depend on: changing a name here is a deliberate edit."""

import argparse

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

import fairseq_fwm
from fairseq_fwm.feature_maps import FEATURE_MAPS
from fairseq_fwm.mixers import UPDATE_RULES

MAPS = ["elu", "dpfp", "tanh", "softmax_features", "favor"]
FAST_WEIGHTS = {
    "--fwm-decoder-self": ["softmax", "sum", "delta", "recurrent_delta", "srwm"],
    "--fwm-feature-map": MAPS,
    "--fwm-dpfp-nu": None,
    "--fwm-favor-features": None,
    "--fwm-favor-variant": ["stable", "toolkit", "retrieval"],
    "--fwm-favor-seed": None,
    "--fwm-sum-norm": ["auto", "on", "off"],
    "--fwm-l2-norm": None,
    "--fwm-beta-max": None,
    "--fwm-attn-norm": ["auto", "none", "output", "full"],
    "--fwm-output-scale": ["one", "rsqrt"],
    "--fwm-impl": ["auto", "reference", "chunked", "cpu", "cuda", "fla"],
    "--fwm-inference-precision": ["float32", "bfloat16", "int8"],
}
PUBLISHED = {"--fwm-init": ["fairseq", "normal"], "--fwm-tied-adaptive-softmax": None}
FLAGS = {
    "fwm_transformer": FAST_WEIGHTS
    | {
        "--fwm-encoder-self": ["softmax", "sum", "delta"],
        "--fwm-cross": ["softmax", "sum"],
        "--fwm-fast-decoding": ["auto", "on", "off"],
    },
    "fwm_transformer_lm": FAST_WEIGHTS
    | PUBLISHED
    | {"--fwm-positions": ["fairseq", "reversed"], "--fwm-no-projection-bias": None},
    "transformer_xl_lm": PUBLISHED | {"--mem-len": None, "--eval-mem-len": None},
    "associative_memory": {
        "--fwm-rule": ["softmax", "sum", "delta", "fwm", "ours"],
        "--fwm-feature-map": MAPS,
        "--fwm-dpfp-nu": None,
        "--fwm-favor-features": None,
        "--fwm-favor-variant": ["stable", "toolkit", "retrieval"],
    },
    "sequence_tagger": {
        "--mixer": [
            *("lstm", "elstm", "transformer", "linear_transformer"),
            *("deltanet", "recurrent_delta", "srwm"),
        ],
    },
}
ARCHITECTURES = {
    "fwm_transformer": "iwslt_de_en tiny wmt_en_de wmt_en_de_big",
    "fwm_transformer_lm": "char tiny wikitext103_medium wikitext103_small",
    "transformer_xl_lm": "tiny wikitext103_medium",
    "associative_memory": "",
    "sequence_tagger": "",
}


@pytest.mark.parametrize("model", FLAGS)
def test_models_their_architectures_and_flags(model):
    names = {model, *(f"{model}_{size}" for size in ARCHITECTURES[model].split())}
    cls = MODEL_REGISTRY[model]
    assert {name for name, owner in ARCH_MODEL_REGISTRY.items() if owner is cls} == names
    parser = argparse.ArgumentParser()
    cls.add_args(parser)
    flags = {action.option_strings[0]: action.choices for action in parser._actions}
    ours = ("--fwm-", "--mem-", "--eval-mem-", "--mixer")
    assert {flag: flags[flag] for flag in flags if flag.startswith(ours)} == FLAGS[model]


def test_no_other_models_and_tasks():
    def own(registry):
        return {k for k, cls in registry.items() if cls.__module__.startswith("fairseq_fwm.")}

    assert own(MODEL_REGISTRY) == set(FLAGS)
    tasks = {"streaming_language_modeling", "associative_retrieval", "formal_language"}
    assert own(TASK_REGISTRY) == tasks
    assert own(CRITERION_REGISTRY) == {"squared_error", "tagging"}
    assert own(LR_SCHEDULER_REGISTRY) == {"until_solved"}


def test_maps_rules_and_ops():
    assert list(FEATURE_MAPS) == MAPS and list(UPDATE_RULES) == ["sum", "delta"]
    ends = ("fwd", "bwd", "step", "step_")
    sequence = [f"causal_{rule}_{end}" for rule in ("sum", "delta") for end in ends]
    maps = [f"{op}{end}" for op in ("feature_map", "favor_exp") for end in ("", "_bwd")]
    others = ("rescaled", "recurrent_delta", "self_referential")
    maps += [f"{op}_{end}" for op in others for end in ("fwd", "bwd")]
    about = ["cpu_isa", "cuda_archs"]
    assert sorted(fairseq_fwm.ops.library.SCHEMAS) == sorted(sequence + maps + about)
