#!/usr/bin/env python3
"""Compare training updates of an associative memory with a loop over time steps.

One cell (default: DPFP-1, delta, S = 100, setting 2), three ways to read its memory, in turns in
one process, with the same parameters and the same questions; an update is the forward pass, the
backward pass and Adam's step:

  weights    what the model does: fairseq_fwm.ops.recall.delta_weights
  kernel     fairseq_fwm.ops.causal_delta writes S_T, which the query reads
  loop       the same in Python, one time step after the other, as the published code does it

  source scripts/keep_memory.sh
  python scripts/benchmark_retrieval.py --out docs/results/retrieval/speed.json
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from benchmark_conditions import environment, quieten, warnings_beside  # noqa: E402
from benchmark_sides import measure  # noqa: E402
from data_files import write_json  # noqa: E402
from torch import Tensor  # noqa: E402

quieten()
import numpy as np  # noqa: E402

from fairseq_fwm.data.retrieval import draw_training  # noqa: E402
from fairseq_fwm.feature_maps import build_feature_map  # noqa: E402
from fairseq_fwm.models.associative_memory import AssociativeMemory  # noqa: E402
from fairseq_fwm.ops import causal_delta, read  # noqa: E402
from fairseq_fwm.ops.features import SUM_NORM_EPS  # noqa: E402


class ByKernel(AssociativeMemory):
    """Writes the memory with the op, then reads it."""

    def _delta(self, q: Tensor, k: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v, beta = self.operands(q, k, keys, values)
        return read(q, self.write(k, v, beta))

    def operands(
        self, q: Tensor, k: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the rule takes: normalised features, one-hot values, write strengths."""
        q, k = (x / (x.sum(-1, keepdim=True) + SUM_NORM_EPS) for x in (self.phi(q), self.phi(k)))
        v = F.one_hot(values, self.n_keys).unsqueeze(1).to(k.dtype)
        return q, k, v, self._beta(keys, values)

    def write(self, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        """Return S_T."""
        return causal_delta(k, k, v, beta, output_final_state=True)[1]


class ByLoop(ByKernel):
    """Writes the memory step by step."""

    def write(self, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        """Return S_T."""
        S = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
        for k_t, v_t, beta_t in zip(k.unbind(2), v.unbind(2), beta.unbind(2), strict=True):
            retrieved = torch.einsum("nhkv,nhk->nhv", S, k_t)
            new = beta_t.unsqueeze(-1) * (v_t - retrieved)
            S = S + torch.einsum("nhk,nhv->nhkv", k_t, new)
        return S


SIDES = {"weights": AssociativeMemory, "kernel": ByKernel, "loop": ByLoop}


class Updates:
    """A model and its optimizer; a run is a number of updates."""

    def __init__(self, cls: type[AssociativeMemory], args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        phi = build_feature_map("dpfp", args.hidden_size, nu=args.nu)
        self.model = cls(args.n_keys, args.hidden_size, "delta", phi)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.args, self.losses = args, []

    def prepare(self) -> None:
        """Draw the questions, the same ones for every side, and warm up."""
        args = self.args
        rng = np.random.default_rng(args.seed)
        self.questions = [
            [
                torch.from_numpy(x)
                for x in draw_training(rng, args.batch_size, args.n_keys, 2 * args.n_keys, True)
            ]
            for _ in range(args.updates)
        ]
        self._update(self.questions[0])

    def run(self) -> None:
        """Do the updates."""
        for question in self.questions:
            self._update(question)

    def _update(self, question: list[Tensor]) -> None:
        *given, targets = question
        answers = self.model(*given)
        loss = 0.5 * (answers - F.one_hot(targets, self.args.n_keys)).square().sum(-1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--n-keys", type=int, default=100, help="S (default %(default)s)")
    add("--nu", type=int, default=1, help="of DPFP (default %(default)s)")
    add("--hidden-size", type=int, default=64, help="d (default %(default)s)")
    add("--batch-size", type=int, default=32, help="questions per update (default %(default)s)")
    add("--updates", type=int, default=3, help="per round (default %(default)s)")
    add("--rounds", type=int, default=7, help="rounds (default %(default)s)")
    add("--threads", type=int, default=1, help="default %(default)s")
    add("--seed", type=int, default=1, help="default %(default)s")
    add("--out", type=Path, metavar="FILE", help="write the result to FILE, too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(arguments)
    args.argv, args.quick = list(arguments or sys.argv[1:]), False
    torch.set_num_threads(args.threads)
    for warning in warnings_beside(args.threads):
        print(f"warning: {warning}", file=sys.stderr)
    works = {name: Updates(cls, args) for name, cls in SIDES.items()}
    times = measure(works, args.rounds, budget=600.0, label="updates")
    first = {name: work.losses[: args.updates] for name, work in works.items()}
    for name, losses in first.items():
        if not np.allclose(losses, first["loop"], rtol=1e-3):
            raise SystemExit(f"{name} computes something else: {losses}, not {first['loop']}")
    seconds = {name: statistics.median(t["cpu"]) / args.updates for name, t in times.items()}
    result = {
        **environment(Path(__file__).name, args),
        "updates_per_second": {name: 1 / value for name, value in seconds.items()},
        "ratio_to_loop": {name: seconds["loop"] / value for name, value in seconds.items()},
    }
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
