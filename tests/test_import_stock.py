"""fairseq's own checkpoints arrive: the same outputs, to the last bit."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq import checkpoint_utils
from fairseq.models.transformer_lm import TransformerLanguageModel

from checkpoint_files import LANGUAGE, TRANSLATION, write_checkpoint
from fairseq_fwm.models.fwm_transformer import FWMTransformerModel
from fairseq_fwm.models.fwm_transformer_lm import FWMTransformerLanguageModel
from test_fwm_transformer import batch, generate, log_probs

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import import_stock  # noqa: E402
from lib.new_checkpoint import ImportingError, read_file, run, save_whole  # noqa: E402


def convert(path):
    out = path.parent / "ours.pt"
    print(import_stock.convert(import_stock.make_parser().parse_args([str(path), f"--out={out}"])))
    return out


def load(path):
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    return model.eval(), task


@pytest.mark.parametrize(
    ("arch", "old"), [("transformer", False), ("transformer_iwslt_de_en", True)]
)
@torch.no_grad()
def test_translation_is_equal_to_the_last_bit(tmp_path, arch, old):
    path = write_checkpoint(tmp_path, "--arch", arch, *TRANSLATION)
    if old:
        state = read_file(path)
        state["args"], state["cfg"] = state["cfg"]["model"], None
        save_whole(state, path)
    wanted, task = load(path)
    found, _ = load(convert(path))
    assert type(found) is FWMTransformerModel
    sample = batch(task)
    assert torch.equal(log_probs(found, sample), log_probs(wanted, sample))
    assert generate(found, task, sample) == generate(wanted, task, sample)


@torch.no_grad()
def test_language_models_too(tmp_path):
    path = write_checkpoint(tmp_path, "--arch", "transformer_lm", *LANGUAGE)
    (wanted, _), (found, _) = load(path), load(convert(path))
    assert type(wanted) is TransformerLanguageModel
    assert type(found) is FWMTransformerLanguageModel
    tokens = torch.arange(4, 16).view(2, 6)
    assert torch.equal(found(tokens)[0], wanted(tokens)[0])


def test_everything_else_is_kept(tmp_path):
    path = write_checkpoint(tmp_path, "--arch", "transformer", *TRANSLATION)
    state = read_file(path)
    state["last_optimizer_state"] = {"exp_avg": torch.ones(3)}
    save_whole(state, path)
    after = read_file(convert(path))
    assert torch.equal(after["last_optimizer_state"]["exp_avg"], torch.ones(3))
    assert after["cfg"]["task"] == state["cfg"]["task"]


def test_other_files_are_refused(tmp_path):
    path = write_checkpoint(tmp_path, "--arch", "fwm_transformer", *TRANSLATION)
    with pytest.raises(ImportingError, match="architecture 'fwm_transformer': only fairseq's"):
        convert(path)
    with pytest.raises(ImportingError, match="there is no"):
        convert(tmp_path / "none.pt")
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(ImportingError, match="not a fairseq checkpoint"):
        convert(path)
    torch.save({"model": {}, "cfg": None}, path)
    with pytest.raises(ImportingError, match="does not say what model it is"):
        convert(path)


def test_command_line(tmp_path, capsys):
    flags = [str(write_checkpoint(tmp_path, "--arch", "transformer", *TRANSLATION)), "--out"]
    parser = import_stock.make_parser()
    assert run(import_stock.convert, parser.parse_args([*flags, str(tmp_path / "ours.pt")])) == 0
    assert "ours.pt: fwm_transformer, softmax at every site" in capsys.readouterr().out
    flags[0] = str(tmp_path / "none.pt")
    assert run(import_stock.convert, parser.parse_args([*flags, str(tmp_path / "b.pt")])) == 1
    assert "error: there is no" in capsys.readouterr().err
