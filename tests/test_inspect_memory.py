"""scripts/inspect_memory.py: pictures and numbers of small models, and what it refuses."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

fairseq = pytest.importorskip("fairseq", reason="fairseq is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from fairseq import options, tasks  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

import inspect_memory  # noqa: E402
from lm_data import SPLITS, make  # noqa: E402

SIZES = {
    "language_modeling": "--arch fwm_transformer_lm_tiny --decoder-layers 2 "
    "--decoder-embed-dim 16 --decoder-input-dim 16 --decoder-output-dim 16 "
    "--decoder-ffn-embed-dim 16 --decoder-attention-heads 2 --tokens-per-sample 64",
    "translation": "-s en -t de --arch fwm_transformer_tiny --encoder-layers 1 "
    "--decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16 "
    "--encoder-attention-heads 2 --decoder-attention-heads 2",
}


def checkpoint(path, data, task, flags):
    """What fairseq-train would save before its first update."""
    arguments = [str(data), "--task", task, *shlex.split(f"{SIZES[task]} {flags}")]
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(0)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    rest = {"args": None, "optimizer_history": [{"lr_scheduler_state": {}, "num_updates": 0}]}
    rest["extra_state"] = {"train_iterator": {"epoch": 1}}
    torch.save({"cfg": OmegaConf.to_container(cfg), "model": model.state_dict(), **rest}, path)
    return path


@pytest.fixture(scope="module")
def text_data(tmp_path_factory):
    """Characters, with the record of how they were made."""
    folder = tmp_path_factory.mktemp("text")
    return make(folder, "character", dict.fromkeys(SPLITS, b"def add(self):\n"))


@pytest.fixture(scope="module")
def pair_data(tmp_path_factory):
    """Dictionaries of words, without a record."""
    folder = tmp_path_factory.mktemp("pairs")
    for language in ("en", "de"):
        (folder / f"dict.{language}.txt").write_text("a 3\nb 2\n$ 1\n")
    return folder


def drawn(out):
    assert all(path.stat().st_size > 5000 for path in out.glob("*.png"))
    return sorted(path.stem for path in out.glob("*.png"))


def test_a_language_model(text_data, tmp_path, capsys):
    flags = "--fwm-decoder-self delta --fwm-feature-map dpfp"
    model = checkpoint(tmp_path / "lm.pt", text_data, "language_modeling", flags)
    arguments = [model, "--data", text_data, "--text", "add(self)", "--out", tmp_path / "out"]
    assert inspect_memory.main(list(map(str, arguments))) == 0
    layers = [f"decoder-{i}-self-{kind}" for i in (1, 2) for kind in ("erasure", "history")]
    assert drawn(tmp_path / "out") == layers
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "memory.json")
    first, _ = json.loads((tmp_path / "out" / "memory.json").read_text())["memories"]
    assert first["tokens"] == ["</s>", *"add(self)"] and (first["keys"], first["values"]) == (
        16,
        8,
    )
    # The same model, fed by hand: its own first layer's strengths and memory.
    (net,), _, task = fairseq.checkpoint_utils.load_model_ensemble_and_task([str(model)])
    seen = []
    mixer = net.eval().decoder.layers[0].self_attn.mixer
    mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    words = [task.source_dictionary.index(x) for x in first["tokens"]]
    net(torch.tensor([words]))
    _, state = mixer(seen[0], output_final_state=True)
    norm = torch.linalg.matrix_norm(state.weights[0].detach())
    found = {name: torch.tensor(x) for name, x in first["trace"].items()}
    torch.testing.assert_close(found["norm"][:, -1], norm, rtol=1e-3, atol=0)
    torch.testing.assert_close(found["beta"], seen[0][0, ..., -1].sigmoid(), rtol=1e-3, atol=0)


def test_a_translation_model_with_fast_weights_everywhere(pair_data, tmp_path):
    flags = "--fwm-decoder-self delta --fwm-encoder-self delta --fwm-cross sum"
    model = checkpoint(tmp_path / "mt.pt", pair_data, "translation", flags)
    arguments = [model, "--source", "a b $ a", "--text", "b a b", "--out", tmp_path / "out"]
    assert inspect_memory.main(list(map(str, arguments))) == 0
    both = [
        f"encoder-1-self{way}-{kind}" for way in ("-back", "") for kind in ("erasure", "history")
    ]
    assert drawn(tmp_path / "out") == sorted(
        ["decoder-1-cross-history", "decoder-1-self-erasure", "decoder-1-self-history", *both]
    )
    memories = json.loads((tmp_path / "out" / "memory.json").read_text())["memories"]
    tokens = {memory["file"]: memory["tokens"] for memory in memories}
    assert tokens["decoder-1-self"] == ["</s>", "b", "a", "b"]
    assert tokens["decoder-1-cross"] == tokens["encoder-1-self"] == ["a", "b", "$", "a", "</s>"]
    assert tokens["encoder-1-self-back"] == ["</s>", "a", "$", "b", "a"]


def test_the_sum_rule_erases_nothing_and_has_no_strengths(text_data, tmp_path):
    flags = "--fwm-decoder-self sum --fwm-feature-map elu"
    model = checkpoint(tmp_path / "lm.pt", text_data, "language_modeling", flags)
    arguments = [model, "--text", "add(", "--max-tokens", "3", "--out", tmp_path / "out"]
    assert inspect_memory.main(list(map(str, arguments))) == 0
    assert drawn(tmp_path / "out") == ["decoder-1-self-history", "decoder-2-self-history"]
    first, _ = json.loads((tmp_path / "out" / "memory.json").read_text())["memories"]
    assert first["tokens"] == ["</s>", "a", "d"] and first["trace"]["beta"] is None


@pytest.mark.parametrize(
    "task, flags, options, reason",
    [
        ("language_modeling", "--fwm-decoder-self softmax", "--text add", "without fast weights"),
        ("language_modeling", "--fwm-decoder-self srwm", "--text add", "written to none of these"),
        ("language_modeling", "", "--text ''", "the text is empty"),
        ("language_modeling", "", "--text add --data nowhere", "dictionary is not there"),
        ("translation", "", "--text a", "reads a source, too: --source"),
        (
            "translation",
            "",
            "--text 'c d a' --source a",
            "2 of 3 tokens are not in the dictionary",
        ),
        ("translation", "", "--text a --source a --bpe fastbpe", "needs its file: --bpe-model"),
    ],
)
def test_refusals(text_data, pair_data, tmp_path, capsys, task, flags, options, reason):
    data = text_data if task == "language_modeling" else pair_data
    model = checkpoint(tmp_path / "model.pt", data, task, flags)
    arguments = [str(model), "--out", str(tmp_path / "out"), *shlex.split(options)]
    assert inspect_memory.main(arguments) == 1
    assert reason in capsys.readouterr().err
    assert not drawn(tmp_path / "out")


def test_no_checkpoint(tmp_path, capsys):
    arguments = ["missing.pt", "--text", "a", "--out", str(tmp_path)]
    assert inspect_memory.main(arguments) == 1
    assert "there is no checkpoint missing.pt" in capsys.readouterr().err
