"""Checkpoints of models that fairseq has built and nobody has trained."""

import sys
from pathlib import Path

from fairseq import tasks
from fairseq.data import Dictionary

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from lib.new_checkpoint import configuration, save_checkpoint  # noqa: E402

SMALL = ["--dropout", "0", "--cpu", "--optimizer", "adam", "--lr", "0.001"]
TRANSLATION = ["--source-lang", "de", "--target-lang", "en", "--share-all-embeddings"]
TRANSLATION += ["--encoder-embed-dim", "16", "--decoder-embed-dim", "16"]
TRANSLATION += ["--encoder-ffn-embed-dim", "24", "--decoder-ffn-embed-dim", "24"]
TRANSLATION += ["--encoder-layers", "2", "--decoder-layers", "2", *SMALL]
LANGUAGE = ["--task", "language_modeling", "--tokens-per-sample", "16", *SMALL]
LANGUAGE += ["--decoder-embed-dim", "16", "--decoder-layers", "2"]


def write_checkpoint(folder, *flags):
    """Write a checkpoint of a model that fairseq builds from flags of ``fairseq-train``."""
    dictionary = Dictionary()
    for i in range(20):
        dictionary.add_symbol(f"w{i}")
    for name in ("dict.txt", "dict.de.txt", "dict.en.txt"):
        dictionary.save(str(folder / name))
    cfg = configuration([str(folder), *flags])
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    path = folder / "checkpoint.pt"
    save_checkpoint(path, cfg, model.state_dict())
    return path
