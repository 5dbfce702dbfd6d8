"""fairseq's checkpoints load safely after ``allow_checkpoint_contents()`` and not before."""

import argparse
import io
import pickle
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch

from fairseq_fwm._safe_globals import allow_checkpoint_contents

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.xdist_group("checkpoint")  # one process: it is trained once

# Both programs in one process: importing fairseq takes longer than what they do here.
PREPROCESS_AND_TRAIN = """
import sys
from fairseq_cli import preprocess, train

cut = sys.argv.index("then")
arguments = sys.argv
for program, sys.argv in (preprocess, arguments[:cut]), (train, arguments[cut:]):
    program.cli_main()
"""
SMALL = (
    "--arch transformer --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2 --encoder-embed-dim 8 --decoder-embed-dim 8 "
    "--encoder-ffn-embed-dim 8 --decoder-ffn-embed-dim 8 --max-update 2 --max-tokens 200 "
    "--optimizer adam --lr 0.01 --cpu --required-batch-size-multiple 1 --eval-bleu "
    "--best-checkpoint-metric bleu --maximize-best-checkpoint-metric --store-ema"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, run) -> Path:
    """Train a stock fairseq transformer for two updates on made-up sentences."""
    pytest.importorskip("fairseq", reason="fairseq is not installed")
    folder = tmp_path_factory.mktemp("stock")
    words = random.Random(0)
    for split, count in ("train", 40), ("valid", 5):
        lines = [" ".join(words.choices("abcdefgh", k=words.randint(2, 8))) for _ in range(count)]
        for language in "src", "tgt":
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    run(
        *("-c", PREPROCESS_AND_TRAIN, "-s", "src", "-t", "tgt", "--destdir", folder / "bin"),
        *("--trainpref", folder / "train", "--validpref", folder / "valid"),
        *("then", folder / "bin", "--save-dir", folder, *SMALL.split()),
    )
    return folder / "checkpoint_last.pt"


def test_fairseq_checkpoint_loads(checkpoint: Path) -> None:
    allow_checkpoint_contents()
    loaded = torch.load(checkpoint, weights_only=True)
    assert isinstance(loaded["cfg"]["model"], argparse.Namespace)
    assert loaded["cfg"]["model"].arch == "transformer"
    assert "decoder.embed_tokens.weight" in loaded["model"]
    assert loaded["optimizer_history"][-1]["num_updates"] == 2


def test_without_the_call_torch_refuses(checkpoint: Path, run) -> None:
    done = run("-c", f"import torch; torch.load({str(checkpoint)!r})", status=1)
    assert "argparse.Namespace was not an allowed global" in done.stderr


def test_nothing_in_a_checkpoint_is_left_out(checkpoint: Path) -> None:
    allow_checkpoint_contents()
    assert torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint) == []


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numbers_and_arrays_of_either_numpy(module: str) -> None:
    allow_checkpoint_contents()
    contents = {"best": np.float64(41.5), "steps": np.int64(3), "counts": np.arange(4)}
    found = torch.load(_saved_by_numpy(contents, module), weights_only=True)
    assert found["best"] == 41.5
    assert found["steps"] == 3
    assert found["counts"].tolist() == [0, 1, 2, 3]


def _saved_by_numpy(contents: dict, module: str) -> io.BytesIO:
    """Save as a numpy with that module would: only the names in the pickle differ."""
    saved, renamed = io.BytesIO(), io.BytesIO()
    torch.save(contents, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                data, count = re.subn(rb"numpy\._?core\.multiarray", module.encode(), data)
                assert count, "numpy pickles under another name now"
            target.writestr(name, data)
    renamed.seek(0)
    return renamed


def test_other_classes_are_still_refused() -> None:
    allow_checkpoint_contents()
    file = io.BytesIO()
    torch.save({"path": Path("x")}, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="pathlib"):
        torch.load(file, weights_only=True)
