"""Training on several GPUs, rehearsed: two processes on the CPU, and checkpointed activations."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq import checkpoint_utils

from translation_data import capitals

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from lib.fairseq_jobs import fairseq_train  # noqa: E402

# One process for all: the corpus is made once.
pytestmark = pytest.mark.xdist_group("two processes")

# Without dropout, whose random numbers differ between processes. FAVOR+ draws anew every update.
FLAGS = (
    "-s en -t de --arch fwm_transformer_tiny --encoder-layers 1 --decoder-layers 1 "
    "--encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-ffn-embed-dim 16 "
    "--decoder-ffn-embed-dim 16 --encoder-attention-heads 2 --decoder-attention-heads 2 "
    "--share-all-embeddings --dropout 0 --fwm-encoder-self sum --fwm-cross sum "
    "--fwm-feature-map favor "
    "--optimizer sgd --lr 0.5 --criterion label_smoothed_cross_entropy --label-smoothing 0.1 "
    "--max-tokens 100 --max-update 6 --clip-norm 1 --seed 1 --cpu --num-workers 0 "
    "--disable-validation --no-epoch-checkpoints --log-format simple --log-interval 1"
)
TWO = (
    "--distributed-world-size 2 --distributed-backend gloo --ddp-backend legacy_ddp "
    "--distributed-no-spawn --checkpoint-activations"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, run):
    return capitals(tmp_path_factory.mktemp("corpus"), run, train=96)


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(root, command):
    return subprocess.Popen(
        [sys.executable, "-m", "fairseq_cli.train", *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def parameters(save_dir):
    return checkpoint_utils.load_checkpoint_to_cpu(str(save_dir / "checkpoint_last.pt"))["model"]


def test_two_processes_train_as_one_with_twice_the_batches(data, root, tmp_path, monkeypatch):
    """The two also compute their activations again instead of keeping them."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    common = [str(data), "--user-dir", str(root / "fairseq_fwm"), *FLAGS.split()]
    address = f"tcp://localhost:{free_port()}"
    two = [*common, *TWO.split(), "--save-dir", str(tmp_path / "two")]
    two += ["--distributed-init-method", address, "--distributed-rank"]
    started = [start(root, [*two, rank]) for rank in "01"]
    fairseq_train([*common, "--save-dir", str(tmp_path / "one"), "--update-freq", "2"])
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    one, two = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
