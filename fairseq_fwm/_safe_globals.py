"""Let ``torch.load`` read fairseq's checkpoints without running code from them.

fairseq calls ``torch.load`` without ``weights_only``, which since torch 2.6 means True: tensors
and plain containers load, the rest needs a place on torch's allow-list.  Beyond those, a fairseq
checkpoint holds ``argparse.Namespace`` (the configuration; fairseq turns omegaconf's containers
into plain ones before saving) and numpy numbers and arrays (what the meters of a training log).
Nothing here can run code from a file; ``weights_only=False`` would.
"""

import argparse
import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

_NUMPY_RECONSTRUCTORS = ("_reconstruct", "scalar")
_NUMPY_MODULES = ("numpy._core.multiarray", "numpy.core.multiarray")  # numpy 2, numpy 1
_METER_DTYPES = ("bool", "int32", "int64", "float32", "float64")


@functools.cache  # torch keeps what it is given: once is enough
def allow_checkpoint_contents() -> None:
    """Allow-list what fairseq checkpoints hold, for ``torch.load(..., weights_only=True)``."""
    torch.serialization.add_safe_globals([argparse.Namespace, *_numpy_contents()])


def allow_broadcasts() -> None:
    """Allow-list what fairseq's workers send each other when a run of several goes on.

    They get the checkpoint from the first one by ``torch.load``: the configuration in omegaconf's
    containers, tensors apart from the rest, with placeholders that hold nothing but a number.
    """
    from fairseq.distributed import utils
    from omegaconf import DictConfig, ListConfig, base, nodes

    containers = [DictConfig, ListConfig, base.ContainerMetadata, base.Metadata, nodes.AnyNode]
    plain = [Any, bool, int, float, str, list, dict, defaultdict]
    torch.serialization.add_safe_globals([utils._TensorPlaceholder, *containers, *plain])


def _numpy_contents() -> list[Callable]:
    """Return what pickles numpy's numbers and arrays, under the names of numpy 1 and 2."""
    try:
        import numpy as np
    except ImportError:  # torch alone: such checkpoints cannot be read anyway
        return []
    try:
        from numpy._core import multiarray
    except ImportError:
        from numpy.core import multiarray
    dtypes = [type(np.dtype(name)) for name in _METER_DTYPES]
    functions = [
        _named(getattr(multiarray, name), module, name)
        for name in _NUMPY_RECONSTRUCTORS
        for module in _NUMPY_MODULES
    ]
    return [np.ndarray, np.dtype, *dtypes, *functions]


def _named(function: Callable, module: str, name: str) -> Callable:
    """Return the function under the name by which a file asks for it, whatever numpy wrote it."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call
