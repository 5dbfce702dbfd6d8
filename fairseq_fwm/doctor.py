"""Say what is installed, what runs and what to do about the rest.

``python -m fairseq_fwm.doctor`` prints versions, kernels and known problems with their cures;
``--user-dir`` prints only the path that fairseq wants.  Works without fairseq.  The exit status is
0 unless something that is needed is broken.
"""

import argparse
import importlib
import importlib.util
import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fairseq_fwm.kernels_status import kernels_status
from fairseq_fwm.ops.gpu import gpu, serves

USER_DIR = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 6)
_SHOWN = ("numpy", "sacrebleu", "sentencepiece", "omegaconf", "hydra-core")
_FAIRSEQ = "ve-fairseq==0.12.3"


class Problem(NamedTuple):
    """Something known to go wrong, what cures it, and whether nothing works until then."""

    problem: str
    cure: str
    needed: bool


def report() -> dict[str, Any]:
    """Collect everything the doctor knows, as plain data."""
    fairseq_error = _fairseq_error()
    return {
        "versions": _versions(),
        "fairseq_imports": _fairseq_there() and fairseq_error is None,
        "kernels": kernels_status(),
        "user_dir": str(USER_DIR),
        "problems": [problem._asdict() for problem in _problems(fairseq_error)],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_fwm.doctor", description=__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--json", action="store_true", help="print the report as JSON")
    only.add_argument(
        "--user-dir",
        action="store_true",
        help='print only the path for fairseq: --user-dir "$(python -m ... --user-dir)"',
    )
    options = parser.parse_args(arguments)
    if options.user_dir:
        print(USER_DIR)
        return 0
    found = report()
    print(json.dumps(found, indent=2) if options.json else _as_text(found))
    return int(any(problem["needed"] for problem in found["problems"]))


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["CUDA"] = torch.version.cuda and f"{torch.version.cuda}, {_gpu()}"
    versions["fairseq"] = " and ".join(_fairseq_distributions()) or None
    return versions | {name: _version(name) for name in _SHOWN}


def _gpu() -> str:
    return str(gpu() or "no usable GPU")


def _cuda_archs(archs: list[str]) -> str:
    here = gpu()
    if not archs or here is None:
        return " ".join(archs) or "nothing: built without CUDA kernels"
    among = "serves" if serves(archs, here.capability) else "does not serve"
    return f"{' '.join(archs)}, which {among} this GPU"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor, which is what the checks here compare."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def _fairseq_distributions() -> list[str]:
    """Return the installed distributions that bring the import name ``fairseq``."""
    found = ((name, _version(name)) for name in ("ve-fairseq", "fairseq"))
    return [f"{name} {version}" for name, version in found if version]


def _fairseq_there() -> bool:
    return importlib.util.find_spec("fairseq") is not None


def _fairseq_error() -> str | None:
    """Import fairseq if it is there; return what went wrong in one line."""
    if not _fairseq_there():
        return None
    try:
        importlib.import_module("fairseq")
    except Exception as error:  # fairseq 0.12.2 on Python 3.11 raises ValueError, for one
        return f"{type(error).__name__}: {error}"
    return None


def _problems(fairseq_error: str | None) -> Iterator[Problem]:
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Problem(
            f"Python {platform.python_version()} is too old", "use Python 3.11 or 3.12", True
        )
    if _numbers(torch.__version__) < OLDEST_TORCH:
        yield Problem(
            f"torch {torch.__version__} is too old: 2.6 is the oldest that works",
            "pip install torch==2.13.0",
            True,
        )
    yield from _numpy_problems()
    if not _fairseq_there():
        yield Problem(
            "fairseq is not installed: the ops, feature maps and mixers work, training does not",
            f"pip install {_FAIRSEQ} (CPython 3.11 or 3.12 on x86-64 Linux with glibc >= 2.28; "
            "elsewhere see docs/install.md)",
            False,
        )
        return
    yield from _fairseq_problems(fairseq_error)


def _fairseq_problems(error: str | None) -> Iterator[Problem]:
    distributions = _fairseq_distributions()
    replace = f"pip uninstall -y fairseq ve-fairseq && pip install {_FAIRSEQ}"
    if len(distributions) > 1:
        both = " and ".join(distributions)
        yield Problem(f"{both} overwrite each other's files", replace, True)
    elif error and distributions and distributions[0].startswith("fairseq 0.12"):
        yield Problem(
            f"{distributions[0]} cannot be imported on Python >= 3.11 ({error})", replace, True
        )
    elif error:
        yield Problem(
            f"fairseq cannot be imported ({error})",
            f"pip install --force-reinstall --no-deps {_FAIRSEQ}, or add what the error misses",
            True,
        )
    omegaconf = _version("omegaconf")
    if omegaconf and _numbers(omegaconf) < (2, 1):
        yield Problem(
            f"omegaconf {omegaconf} has invalid metadata that pip >= 24.1 refuses",
            "pip install -U 'omegaconf>=2.1' 'hydra-core>=1.3.2'",
            False,
        )
    if not error and _drops_last_batch():
        yield Problem(
            "this fairseq drops the last batch of a data set, test sets included, unless its size "
            "is a multiple of --required-batch-size-multiple (8 by default)",
            "pass --required-batch-size-multiple 1 to fairseq-generate, -validate and -train",
            False,
        )
    for name in ("sacrebleu", "sentencepiece"):
        if _version(name) is None:
            yield Problem(f"{name} is missing: scoring needs it", f"pip install {name}", False)


def _drops_last_batch() -> bool:
    from fairseq.data.data_utils import batch_by_size

    return len(batch_by_size([0, 1, 2], lambda index: 1, required_batch_size_multiple=8)) == 0


def _numpy_problems() -> Iterator[Problem]:
    try:
        import numpy as np
    except ImportError:
        return  # torch alone does without; where fairseq wants it, fairseq's import says so
    try:
        torch.from_numpy(np.zeros(1))
    except RuntimeError as error:
        yield Problem(
            f"torch {torch.__version__} was built for another numpy than {np.__version__} "
            f"({error})",
            "pip install 'numpy<2', or install a newer torch",
            True,
        )
    if not hasattr(np, "compat") and _fairseq_uses_compat():
        yield Problem(
            f"this fairseq uses np.compat, which numpy {np.__version__} no longer has: "
            "--sample-break-mode eos and --num-batch-buckets fail, everything else works",
            "pip install 'numpy<2' if you need these flags",
            False,
        )


def _fairseq_uses_compat() -> bool:
    spec = importlib.util.find_spec("fairseq")
    if spec is None or spec.origin is None:
        return False
    source = Path(spec.origin).parent / "data" / "token_block_dataset.py"
    return source.is_file() and "np.compat" in source.read_text(encoding="utf-8")


def _as_text(found: dict[str, Any]) -> str:
    versions = {name: version or "none" for name, version in found["versions"].items()}
    if found["fairseq_imports"]:
        versions["fairseq"] += ", imports"
    kernels = found["kernels"]
    compiled = sorted(
        {key for keys in kernels["kernels"].values() for key in keys} & {"CPU", "CUDA"}
    )
    names = [f"CPU ({kernels['cpu_isa']})" if key == "CPU" else key for key in compiled]
    rows = versions | {
        "kernels": f"compiled for {' and '.join(names)}" if names else "chunked PyTorch form"
    }
    if torch.version.cuda or kernels["cuda_archs"]:
        rows |= {"  CUDA for": _cuda_archs(kernels["cuda_archs"])}
    if kernels["reason"]:
        rows |= {"  because": kernels["reason"], "  cure": kernels["cure"]}
    rows["--user-dir"] = found["user_dir"]
    lines = [f"{name:<14} {value}" for name, value in rows.items()]
    for problem in found["problems"]:
        mark = "BROKEN" if problem["needed"] else "note"
        lines += [f"{mark}: {problem['problem']}", f"  cure: {problem['cure']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
