#!/usr/bin/env python3
"""Compare training updates of an associative memory with a loop over time steps.

One cell (default: DPFP-1, delta, S = 100, setting 2), three ways to read its memory, in turns in
one process:

  weights    what the model does: fairseq_fwm.ops.recall.delta_weights
  kernel     fairseq_fwm.ops.causal_delta writes S_T, which the query reads
  loop       the same in Python, one time step after the other, as the published code does it

  source scripts/keep_memory.sh
  python scripts/benchmark_retrieval.py --out docs/results/retrieval/speed.json
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from lib.benchmark_conditions import quieten  # noqa: E402
from lib.benchmark_updates import Updates, begin, compare, finish, make_parser  # noqa: E402

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


def questions(args: argparse.Namespace) -> list[list[Tensor]]:
    """Draw what is asked in a run."""
    rng = np.random.default_rng(args.seed)
    size = args.batch_size, args.n_keys, 2 * args.n_keys
    return [
        [torch.from_numpy(x) for x in draw_training(rng, *size, True)] for _ in range(args.updates)
    ]


def squared_error(model: AssociativeMemory, question: list[Tensor]) -> Tensor:
    """Return the loss of arXiv 2102.11174, Section 6.1."""
    *given, targets = question
    return 0.5 * (model(*given) - F.one_hot(targets, model.n_keys)).square().sum(-1).mean()


def side(cls: type[AssociativeMemory], args: argparse.Namespace) -> Updates:
    """Return a model, with the same parameters on every side."""
    torch.manual_seed(args.seed)
    phi = build_feature_map("dpfp", args.hidden_size, nu=args.nu)
    model = cls(args.n_keys, args.hidden_size, "delta", phi)
    return Updates(model, partial(questions, args), squared_error, lr=1e-3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser(__doc__, batch_size=32, updates=3)
    add = parser.add_argument
    add("--n-keys", type=int, default=100, help="S (default %(default)s)")
    add("--nu", type=int, default=1, help="of DPFP (default %(default)s)")
    add("--hidden-size", type=int, default=64, help="d (default %(default)s)")
    args = parser.parse_args(arguments)
    result = begin(args, __file__, arguments or sys.argv[1:])
    works = {name: side(cls, args) for name, cls in SIDES.items()}
    finish(result | compare(works, args, "updates"), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
