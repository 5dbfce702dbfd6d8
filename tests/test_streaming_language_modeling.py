"""Streams through fairseq's own commands: order, resuming, two workers, evaluation."""

import random
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

import fairseq_fwm  # noqa: F401
from fairseq_fwm.tasks.streaming_language_modeling import StreamBatches

# One process for all: the corpus and the trained models are made once.
pytestmark = pytest.mark.xdist_group("streaming")

TASK = "--task streaming_language_modeling --tokens-per-sample 8"
MODEL = (
    "--arch fwm_transformer_lm_tiny --decoder-layers 2 --decoder-embed-dim 16 "
    "--decoder-input-dim 16 --decoder-output-dim 16 --decoder-ffn-embed-dim 16 "
    "--decoder-attention-heads 2"
)
TRAIN = (
    "--optimizer adam --lr 0.01 --criterion cross_entropy --batch-size 2 --num-workers 0 "
    "--seed 1 --log-format simple --log-interval 1 --max-epoch 2 --no-epoch-checkpoints "
    "--dropout 0.1"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, run):
    """A binarised text."""
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    for split, count in ("train", 60), ("valid", 12), ("test", 12):
        lines = [" ".join(words.choices("abcdefgh", k=words.randint(2, 9))) for _ in range(count)]
        (folder / split).write_text("\n".join(lines) + "\n")
    prefixes = [f"--{x}pref={folder / x}" for x in ("train", "valid", "test")]
    run("-m", "fairseq_cli.preprocess", "--only-source", "--destdir", folder / "bin", *prefixes)
    return folder / "bin"


def command(root, data, save_dir, *flags):
    return [
        *("-m", "fairseq_cli.train", data, "--user-dir", root / "fairseq_fwm", "--cpu"),
        *("--save-dir", save_dir, *TASK.split(), *MODEL.split(), *TRAIN.split(), *flags),
    ]


def losses(log):
    """Training loss and gradient norm by update."""
    found = re.findall(
        r"train_inner .* loss=([0-9.]+),.* num_updates=([0-9]+).* gnorm=([0-9.]+)", log
    )
    return {int(update): (float(loss), float(norm)) for loss, update, norm in found}


def parameters(checkpoint):
    return torch.load(checkpoint, weights_only=True)["model"]


def same_parameters(a, b):
    a, b = parameters(a), parameters(b)
    assert list(a) == list(b)
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("blocks", "columns", "workers"), [(12, 2, 1), (13, 2, 3), (5, 1, 1)])
def test_every_worker_reads_its_streams_in_order(blocks, columns, workers):
    batches = list(StreamBatches(blocks, columns, workers))
    streams = [
        [batch[column] for batch in batches[worker::workers]]
        for worker in range(workers)
        for column in range(columns)
    ]
    length = blocks // (columns * workers)
    assert [block for stream in streams for block in stream] == list(
        range(length * columns * workers)
    )


def test_too_little_text_for_so_many_streams():
    with pytest.raises(ValueError, match="reduce --batch-size"):
        StreamBatches(5, 3, 2)


def test_resuming_inside_an_epoch_reproduces_the_run(data, run, root, tmp_path):
    """Parameters bit for bit, dropout included; and the carried state matters."""
    whole, half, none = (tmp_path / name for name in ("whole", "half", "none"))
    log = run(*command(root, data, whole, "--save-interval-updates", 7)).stdout
    half.mkdir()
    shutil.copy(whole / "checkpoint_1_7.pt", half / "checkpoint_last.pt")
    resumed = losses(run(*command(root, data, half)).stdout)
    assert min(resumed) == 8 and resumed == {k: v for k, v in losses(log).items() if k > 7}
    assert same_parameters(half / "checkpoint_last.pt", whole / "checkpoint_last.pt")
    run(*command(root, data, none, "--no-carry-over"))
    assert not same_parameters(none / "checkpoint_last.pt", whole / "checkpoint_last.pt")


def two_workers(arguments):
    """Run a command on two processes over gloo."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                *map(str, arguments),
                *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
                *("--distributed-world-size", "2", "--distributed-no-spawn"),
                *("--distributed-init-method", f"tcp://localhost:{port}"),
                *("--distributed-rank", str(rank)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs[0]


def test_two_workers_resume_with_the_state_of_each(data, root, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    flags = ("--batch-size", 1, "--save-interval-updates", 7)
    two_workers(command(root, data, whole, *flags))
    saved = torch.load(whole / "checkpoint_1_7.pt", weights_only=True)["extra_state"]
    first, second = saved["StreamingLanguageModelingTask"]["streams"]
    assert not torch.equal(first[0]["weights"], second[0]["weights"])
    half.mkdir()
    shutil.copy(whole / "checkpoint_1_7.pt", half / "checkpoint_last.pt")
    two_workers(command(root, data, half, *flags))
    assert same_parameters(half / "checkpoint_last.pt", whole / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def trained(data, run, root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    logs = ("--tensorboard-logdir", folder / "tensorboard", "--wandb-project", "toy")
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true"}
    run(*command(root, data, folder, *logs), env=offline)
    return folder / "checkpoint_last.pt"


def test_tensorboard_and_wandb_log_through_fairseq_s_flags(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.parent / "tensorboard" / "train_inner")).Reload()
    assert len(events.Scalars("loss")) > 10
    (record,) = trained.parent.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train_inner/loss" in record.read_bytes()


def evaluated(run, root, data, checkpoint, *flags):
    log = run(
        *("-m", "fairseq_cli.eval_lm", data, "--user-dir", root / "fairseq_fwm", "--cpu"),
        *("--path", checkpoint, "--gen-subset", "test", "--num-workers", 0, *flags),
    ).stderr
    return float(re.search(r"Loss \(base 2\): ([0-9.]+)", log)[1])


def test_eval_lm_gives_the_same_for_segments_of_any_length(trained, data, run, root):
    found = {
        length: evaluated(
            *(run, root, data, trained, "--task", "streaming_language_modeling"),
            *("--tokens-per-sample", length),
        )
        for length in (5, 8, 1000)
    }
    whole = evaluated(
        *(run, root, data, trained, "--task", "language_modeling", "--sample-break-mode", "none"),
        *("--tokens-per-sample", 1000),
    )
    assert found == {length: pytest.approx(whole, abs=2e-4) for length in found}
    cut = evaluated(
        *(run, root, data, trained, "--task", "language_modeling", "--sample-break-mode", "none"),
        *("--tokens-per-sample", 5),
    )
    assert abs(cut - whole) > 2e-4


def test_what_cannot_stream_is_refused(data, run, root, tmp_path):
    def refused(*flags):
        return run(*command(root, data, tmp_path, *flags), status=1).stderr

    assert "no state of fixed size" in refused("--fwm-decoder-self", "softmax")
    assert "--sample-break-mode eos does" in refused("--sample-break-mode", "eos")
    assert "reduce --batch-size" in refused("--batch-size", 1000)
