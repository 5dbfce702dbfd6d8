"""scripts/benchmark_modules.py."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import benchmark_modules as bench  # noqa: E402

SMALL = ["--dim", "8", "--depth", "1", "--batch", "2", "--length", "6", "--rounds", "2"]
PEER = """
from torch import nn


class DPFPAttention(nn.Module):
    def __init__(self, dim, nu):
        super().__init__()
        self.layer = nn.Linear(dim, dim)

    def get_memory_shape(self, batch):
        return batch, 1, 2, 2

    def forward(self, x, W):
        return self.layer(x), W
"""


@pytest.fixture
def main(monkeypatch):
    """Run the command line in this process, memory in one of its own only where wanted."""
    monkeypatch.setattr(bench, "alone", lambda *_, **__: {"added_mb": 1.5})
    threads = torch.get_num_threads()
    yield lambda *arguments: bench.main([*SMALL, *map(str, arguments)])
    torch.set_num_threads(threads)


def test_sides_are_measured_and_a_missing_package_is_named(main, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dpfp_pytorch", None)
    page, out = tmp_path / "page.md", tmp_path / "modules.json"
    page.write_text("# Modules\n\n<!-- results:start -->\n<!-- results:end -->\n")
    assert main("--out", out, "--page", page) == 0
    said = capsys.readouterr().err
    assert "left out: dpfp-pytorch is not there" in said
    assert "pip install dpfp-pytorch==0.3.0 einops" in said
    sides = json.loads(out.read_text())["sides"]
    assert {*sides} == {"fairseq_fwm", "loop"} and sides["fairseq_fwm"]["times_ours"] == 1
    assert all(side["seconds"] > 0 for side in sides.values())
    assert "| the same as a loop over time steps |" in page.read_text()


def test_a_peer_that_is_there_is_labelled_as_another_function(main, tmp_path, capsys, monkeypatch):
    (tmp_path / "dpfp_pytorch.py").write_text(PEER)
    monkeypatch.syspath_prepend(tmp_path)
    assert main() == 0
    assert "| dpfp-pytorch 0.3.0 (another function: not causal) |" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_measured_in_another_process():
    found = bench.alone(
        bench.__file__, bench.Size(8, 1, 1, 2, 64), "loop", runs=2, threads=1, seed=1
    )
    assert found["added_mb"] >= 0 and found["tokens"] == 128
