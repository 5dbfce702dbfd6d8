"""scripts/benchmark_recurrent.py and scripts/benchmark_retrieval.py."""

import json
import sys
from pathlib import Path

import pytest

from fairseq_fwm.ops import library

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
SMALL = {
    "benchmark_recurrent.py": ["--hidden-size", 8, "--heads", 2, "--batch-size", 3],
    "benchmark_retrieval.py": ["--hidden-size", 8, "--n-keys", 6, "--batch-size", 3],
}
pytestmark = pytest.mark.skipif(
    not library.has_kernel("recurrent_delta_fwd", "cpu"), reason="the extension is not built"
)


@pytest.mark.parametrize("script", SMALL)
def test_all_sides_do_the_same_updates(run, tmp_path, script):
    out = tmp_path / "speed.json"
    options = [*SMALL[script], "--rounds", 2, "--updates", 2, "--out", out]
    run(ROOT / "scripts" / script, *map(str, options))
    found = json.loads(out.read_text())
    assert {"date", "command", "cpu"} <= {*found}
    cells = [found] if "ratio_to_loop" in found else [found["recurrent_delta"], found["srwm"]]
    for cell in cells:
        assert cell["ratio_to_loop"]["loop"] == 1
        assert all(value > 0 for value in cell["updates_per_second"].values())


def test_a_side_that_computes_something_else_is_no_contestant():
    import argparse

    import torch

    from lib import benchmark_updates as bench

    def side(factor):
        torch.manual_seed(1)
        batch = torch.ones(2, 3)
        model = torch.nn.Linear(3, 1)
        return bench.Updates(model, lambda: [batch], lambda m, x: factor * m(x).sum(), 0.1)

    args = argparse.Namespace(rounds=2, updates=1, threads=1)
    works = {"kernel": side(1), "loop": side(2)}
    with pytest.raises(SystemExit, match="toy: kernel computes something else"):
        bench.compare(works, args, "toy")
    assert bench.compare({"kernel": side(1), "loop": side(1)}, args, "toy")
