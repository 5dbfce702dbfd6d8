"""The ops once more, in a namespace without kernels: what runs where none is built."""

import torch

from fairseq_fwm.ops import library

NAMESPACE = "fwm_pytorch"
_registered = library.register(NAMESPACE, lambda op, device: False)
OPS = getattr(torch.ops, NAMESPACE)


def use(monkeypatch) -> None:
    """Let the public functions find no kernel, as where no compiler is."""
    monkeypatch.setattr(library, "COMPILED", dict.fromkeys(library.COMPILED, frozenset()))
    monkeypatch.setattr(library, "ops_of", lambda impl: OPS)
