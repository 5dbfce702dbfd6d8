"""How much of a GPU's multiprocessor a kernel's blocks can fill, from the documented limits.

Occupancy is resident warps over the most that fit. Four things limit the blocks: warps, blocks,
registers (given to whole warps in units of 256, from a quarter of the file per warp scheduler) and
shared memory (in units of 128 bytes, with 1 KiB per block for the system).
"""

from dataclasses import dataclass

WARP = 32
REGISTERS = 65536
REGISTER_UNIT = 256
SCHEDULERS = 4
SHARED_UNIT = 128
SHARED_RESERVED = 1024


@dataclass(frozen=True)
class GPU:
    """A product, and per multiprocessor what its compute capability allows.

    Attributes:
        shared: bytes of shared memory of a multiprocessor.
        block_shared: bytes that one block may have.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    warps: int
    blocks: int
    shared: int
    block_shared: int


# "Technical Specifications per Compute Capability" of NVIDIA's CUDA programming guide; how many
# multiprocessors is the product's. tests/test_cuda_report.py compares with cuda_occupancy.h.
GPUS = (
    GPU("A100", (8, 0), 108, 64, 32, 164 << 10, 163 << 10),
    GPU("RTX 3090", (8, 6), 82, 48, 16, 100 << 10, 99 << 10),
    GPU("RTX 4090", (8, 9), 128, 48, 24, 100 << 10, 99 << 10),
    GPU("H100", (9, 0), 132, 64, 32, 228 << 10, 227 << 10),
    GPU("B200", (10, 0), 148, 64, 32, 228 << 10, 227 << 10),
    GPU("RTX 5090", (12, 0), 170, 48, 24, 100 << 10, 99 << 10),
)


def gpus_of(arch: str, built: list[str]) -> list[GPU]:
    """Return the GPUs that run what was compiled for ``arch`` (such as ``8.6``).

    A GPU runs code of its own major version and the highest minor one up to its own.

    Args:
        arch: one of ``built``.
        built: everything that was compiled for.
    """
    versions = sorted(tuple(map(int, name.split("."))) for name in built)
    wanted = tuple(map(int, arch.split(".")))

    def served_by(gpu: GPU) -> tuple[int, int] | None:
        fitting = [v for v in versions if v[0] == gpu.capability[0] and v <= gpu.capability]
        return max(fitting, default=None)

    return [gpu for gpu in GPUS if served_by(gpu) == wanted]


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def blocks_per_multiprocessor(gpu: GPU, threads: int, registers: int, shared: int) -> int:
    """Return how many blocks are resident together; 0 if not even one can be.

    Args:
        gpu: where.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block, static and dynamic.
    """
    warps = _up(threads, WARP) // WARP
    if shared > gpu.block_shared:
        return 0
    per_scheduler = REGISTERS // SCHEDULERS // _up(max(registers, 1) * WARP, REGISTER_UNIT)
    by_registers = per_scheduler * SCHEDULERS // warps
    by_shared = gpu.shared // (_up(shared, SHARED_UNIT) + SHARED_RESERVED)
    return min(gpu.warps // warps, gpu.blocks, by_registers, by_shared)


def occupancy(gpu: GPU, threads: int, registers: int, shared: int) -> float:
    """Return resident warps over the most that fit: 0 to 1; arguments as above."""
    warps = _up(threads, WARP) // WARP
    return blocks_per_multiprocessor(gpu, threads, registers, shared) * warps / gpu.warps
