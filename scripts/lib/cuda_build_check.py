"""Check an extension with CUDA kernels on a machine without a GPU: see cuda_build_check.sh."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fairseq_fwm
from fairseq_fwm import ops
from fairseq_fwm.ops import library

NAMES = {"elf": "machine code", "ptx": "PTX"}


def wanted(archs: str) -> dict[str, set[str]]:
    """Return what a TORCH_CUDA_ARCH_LIST asks for: numbers with machine code and with PTX."""
    found = re.findall(r"(\d+)\.(\d\w?)(\+PTX)?", archs)
    return {
        "elf": {major + minor for major, minor, _ in found},
        "ptx": {major + minor for major, minor, ptx in found if ptx},
    }


def held(extension: Path) -> dict[str, set[str]]:
    """Return what the compiled module holds, by cuobjdump."""
    packages = Path(torch.__file__).parent.parent / "nvidia"
    folders = ":".join(str(folder) for folder in packages.glob("cu*/bin"))
    tool = shutil.which("cuobjdump", path=folders) or shutil.which("cuobjdump")
    if tool is None:
        raise SystemExit(
            "cuda_build_check: error: no cuobjdump: pip install nvidia-cuda-cuobjdump"
        )

    def listed(kind: str) -> set[str]:
        command = [tool, f"--list-{kind}", str(extension)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"\.sm_(\d+\w?)\.", said))

    return {kind: listed(kind) for kind in NAMES}


def check(what: str, right: bool) -> bool:
    """Print one result."""
    print(f"{'ok     ' if right else 'FAILED '} {what}")
    return right


def fake_tensors_pass() -> bool:
    """Run an op with tensors on CUDA that have no data; autograd's engine would want a GPU."""
    with FakeTensorMode():
        q, k, v = (torch.empty(2, 3, 5, 8, device="cuda", requires_grad=True) for _ in range(3))
        beta = torch.empty(2, 3, 5, device="cuda", requires_grad=True)
        y, state = ops.causal_delta(q, k, v, beta, output_final_state=True, impl="cuda")
        return y.device.type == state.device.type == "cuda" and y.grad_fn is not None


def cpu_error() -> float:
    """Return how far the CPU kernels are from the fp64 reference, outputs and gradients."""
    torch.manual_seed(1)
    inputs = [torch.randn(2, 3, 40, 16) / 4 for _ in range(3)] + [torch.rand(2, 3, 40)]
    results = []
    for impl, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        y, _ = ops.causal_delta(*leaves, impl=impl)
        y.square().sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(*results, strict=True))


def main() -> int:
    """Check everything; return the exit status."""
    asked = wanted(sys.argv[1])
    status = fairseq_fwm.kernels_status()
    if not check(f"the extension loads with torch {torch.__version__}", status["extension"]):
        print(status["reason"])
        return 1
    causal = [op for op in library.SCHEMAS if op.startswith("causal")]
    without = [op for op in causal if "CUDA" not in library.dispatch_keys(op)]
    results = [check(f"{len(causal)} ops have CUDA kernels {without or ''}", not without)]
    module = sys.modules["fairseq_fwm._C"].__file__
    found = held(Path(module))
    size = Path(module).stat().st_size / 2**20
    for kind, name in NAMES.items():
        text = f"{size:.1f} MiB hold {name} for {' '.join(sorted(found[kind], key=int)) or 'none'}"
        results.append(check(text, asked[kind] == found[kind]))
    said = " ".join(status["cuda_archs"])
    numbers = {arch.partition("+")[0].replace(".", "") for arch in status["cuda_archs"]}
    ptx = {arch[:-4].replace(".", "") for arch in status["cuda_archs"] if arch.endswith("+PTX")}
    results.append(
        check(f"fwm::cuda_archs says {said}", numbers == asked["elf"] and ptx == asked["ptx"])
    )
    results.append(check("the ops take CUDA tensors", fake_tensors_pass()))
    error = cpu_error()
    results.append(check(f"CPU tensors still work: error {error:.1e}", error < 1e-5))
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
