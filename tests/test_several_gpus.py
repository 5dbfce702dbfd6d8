"""The command lines of docs/scaling.md, as fairseq understands them; no GPU, no cluster."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed.utils import infer_init_method

import fairseq_fwm  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"
JOB = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}

# What fairseq's configuration and hydra say of their own future.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def distributed(command):
    """Return fairseq's view of a command's place among the processes."""
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, command[1:]))
    infer_init_method(cfg.distributed_training)
    return cfg


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that puts a program on the path, and clears the environment's ranks."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def add(name, text):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return add


def test_the_slurm_job_gives_every_task_its_gpu(fake, monkeypatch):
    fake("srun", "printf '%s\\n' \"${*@Q}\"")
    fake("scontrol", "echo node1; echo node2")
    job = ["bash", str(ROOT / "scripts" / "slurm_wmt14.sh"), "dpfp-nu1-delta", "--seed", "2"]
    env = {**os.environ, **JOB, "SLURM_SUBMIT_DIR": str(ROOT)}
    done = subprocess.run(job, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for name, value in {**JOB, "SLURM_JOB_NODELIST": "n", "SLURM_PROCID": "11"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    cfg = distributed(shlex.split(done.stdout))
    place = cfg.distributed_training
    assert (place.distributed_world_size, place.distributed_rank, place.device_id) == (16, 11, 3)
    assert place.distributed_init_method == "tcp://node1:29500" and place.distributed_no_spawn
    assert cfg.optimization.update_freq == [3] and cfg.common.seed == 2


def commands_of_the_page(first):
    """Return the commands of the page that begin with a word, as lists of words."""
    text = re.sub(r"\\\n\s*", "", PAGE.read_text())
    text = text.replace('"$(python -m fairseq_fwm.doctor --user-dir)"', "fairseq_fwm")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(first + " ")]


def test_torchrun_gives_every_process_its_gpu(fake, monkeypatch):
    commands = commands_of_the_page("torchrun")
    assert len(commands) == 2
    for command in commands:
        at = next(i for i, word in enumerate(command) if word.endswith("fairseq-train"))
        for name, value in (("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WORLD_SIZE", "16")
        monkeypatch.setenv("RANK", "11")
        place = distributed(command[at:]).distributed_training
        assert (place.distributed_world_size, place.distributed_rank) == (16, 11)
        assert (place.device_id, place.distributed_init_method) == (3, "env://")


def test_the_pages_commands_are_understood(fake):
    commands = commands_of_the_page("fairseq-train")
    assert len(commands) == 2
    for command in commands:
        cfg = distributed(command)
        assert cfg.optimization.update_freq == [6] and cfg.common.fp16
        assert cfg.model.arch == "fwm_transformer_wmt_en_de_big"
