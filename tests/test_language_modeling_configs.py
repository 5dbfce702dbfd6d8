"""Every configuration of a published language model loads and trains."""

import random
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.models import ARCH_CONFIG_REGISTRY

import fairseq_fwm  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from lib.config_rows import load_row  # noqa: E402

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "language_modeling"
ROWS = sorted(path.stem for path in FOLDER.glob("*.yaml"))

pytestmark = [
    pytest.mark.xdist_group("lm configs"),
    # fairseq's way with hydra, and what it tells of hydra's future.
    pytest.mark.filterwarnings("ignore:.*(ConfigStore schema|validated against).*"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*"),
]


def load(row, *overrides):
    return load_row(FOLDER, row, *overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    for split, count in ("train", 30), ("valid", 20):
        lines = [" ".join(words.choices("abcdefghijklmno", k=9)) for _ in range(count)]
        (folder / split).write_text("\n".join(lines) + "\n")
    prefixes = [f"--{x}pref={folder / x}" for x in ("train", "valid")]
    run("-m", "fairseq_cli.preprocess", "--only-source", "--destdir", folder / "bin", *prefixes)
    return folder / "bin"


@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains(row, data, root, tmp_path):
    from fairseq_cli.train import main

    cfg = load(
        row,
        *(f"common.user_dir={root / 'fairseq_fwm'}", f"task.data={data}", "common.cpu=true"),
        *("task.tokens_per_sample=8", "dataset.batch_size=2", "dataset.batch_size_valid=2"),
        *("model.adaptive_softmax_cutoff='5,8,12'", "model.decoder_layers=2"),
        "optimization.max_update=2",
        *(
            f"checkpoint.save_dir={tmp_path}",
            "common.log_interval=1",
            "common.no_progress_bar=true",
        ),
    )
    main(cfg)
    assert (tmp_path / "checkpoint_last.pt").is_file()


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_its_published_number(row):
    head = (FOLDER / f"{row}.yaml").read_text().split("defaults:")[0]
    assert "arXiv 2102.11174" in head
    assert re.search(r"^# Published perplexity: (none|valid|> ?\d)", head, re.M)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_shapes_are_those_of_the_architecture(size):
    """An architecture's name in a configuration would not apply its shape: rows spell it out."""
    from argparse import Namespace

    arch = Namespace()
    ARCH_CONFIG_REGISTRY[f"fwm_transformer_lm_wikitext103_{size}"](arch)
    model = load(f"{size}_delta", "common.user_dir=x", "task.data=x").model
    assert {name: model[name] for name in vars(arch)} == vars(arch)
