"""The command lines of docs/scaling.md, as fairseq understands them; no GPU, no cluster."""

import json
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


def test_the_slurm_job_gives_every_task_its_gpu(fake, monkeypatch, tmp_path):
    fake("srun", "printf '%s\\n' \"${*@Q}\"")
    fake("scontrol", "echo node1; echo node2")
    data, runs = tmp_path / "data", tmp_path / "runs"
    job = ["bash", str(ROOT / "scripts" / "slurm_wmt14.sh"), "dpfp-nu1-delta", "--seed", "2"]
    job += ["--data", str(data), "--runs", str(runs)]
    env = {**os.environ, **JOB, "SLURM_SUBMIT_DIR": str(ROOT)}
    missing = subprocess.run(job, capture_output=True, text=True, env=env)
    assert missing.returncode == 1 and "holds no data" in missing.stderr
    data.mkdir()
    (data / "dict.de.txt").touch()
    done = subprocess.run(job, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    folder = runs / "dpfp-nu1-delta-seed2"
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"] and record["variant"] == "dpfp-nu1-delta" and record["seed"] == 2
    command = shlex.split(done.stdout.splitlines()[-1])
    for name, value in {**JOB, "SLURM_JOB_NODELIST": "n", "SLURM_PROCID": "11"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    cfg = distributed(command)
    place = cfg.distributed_training
    assert (place.distributed_world_size, place.distributed_rank, place.device_id) == (16, 11, 3)
    assert place.distributed_init_method == "tcp://node1:29500" and place.distributed_no_spawn
    assert cfg.optimization.update_freq == [3] and cfg.common.seed == 2


def bash_of_the_page():
    """Return the lines of the page's bash blocks, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", PAGE.read_text())
    return [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.splitlines()
    ]


def check_recipe(cfg):
    """What would ruin a training if it were left to fairseq's defaults."""
    assert cfg.model.arch == "fwm_transformer_wmt_en_de_big" and cfg.model.dropout == 0.3
    assert cfg.optimization.lr == [0.001] and cfg.lr_scheduler.warmup_updates == 4000
    assert cfg.criterion._name == "label_smoothed_cross_entropy"
    assert cfg.optimization.max_epoch == 45 and cfg.common.fp16
    assert cfg.checkpoint.save_dir.startswith("runs/wmt14/")


def test_torchrun_gives_every_process_its_gpu(fake, monkeypatch):
    fake("torchrun", "printf '%s\\n' \"${*@Q}\"")
    lines = [line for line in bash_of_the_page() if line.startswith(("eval ", "torchrun "))]
    assert len(lines) == 2
    done = subprocess.run(["bash", "-euc", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout)
    for name, value in (("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("RANK", "11")
    cfg = distributed(command[command.index("fairseq-train") :])
    place = cfg.distributed_training
    assert (place.distributed_world_size, place.distributed_rank) == (16, 11)
    assert (place.device_id, place.distributed_init_method) == (3, "env://")
    assert cfg.optimization.update_freq == [3]
    check_recipe(cfg)


def test_the_pages_command_is_understood(fake):
    lines = [line for line in bash_of_the_page() if line.startswith("fairseq-train ")]
    assert len(lines) == 1
    path = '"$(python -m fairseq_fwm.doctor --user-dir)"'
    cfg = distributed(shlex.split(lines[0].replace(path, "fairseq_fwm")))
    assert cfg.optimization.update_freq == [6]
    check_recipe(cfg)
