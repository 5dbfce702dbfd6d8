"""Which implementation the tests of the CUDA kernels run, and how it comes to be there.

``FWM_TEST_CUDA_IMPL=cuda`` runs the compiled kernels on a GPU; otherwise the emulator runs them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from emulation import Emulator, Unavailable
from fairseq_fwm.ops import library

IMPL = os.environ.get("FWM_TEST_CUDA_IMPL", "emulated")
OPS = torch.ops.fwm if IMPL == "cuda" else torch.ops.fwm_emulated
# A mark for whole modules. Tests of one group run in one process: what they share is built once.
MARKS = [pytest.mark.xdist_group("emulated"), pytest.mark.usefixtures("controls")]
on_a_gpu = IMPL == "cuda"


@contextmanager
def kernels() -> Iterator[Emulator | None]:
    """Make the ops that the tests call; yield the emulator's controls, or None on a GPU."""
    if not on_a_gpu:
        from emulated_ops import emulated

        try:
            controls = emulated()
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield controls
        return
    if not library.has_kernel("causal_sum_fwd", "cuda") or not torch.cuda.is_available():
        pytest.fail("FWM_TEST_CUDA_IMPL=cuda needs compiled CUDA kernels and a GPU")
    torch.set_default_device("cuda")
    yield None
    torch.set_default_device(None)
