"""Run fairseq-generate and note its peak memory (called by score.py).

The first argument names the JSON file to write, the others go to fairseq-generate.
"""

import re
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.data_files import write_json  # noqa: E402


def peak_memory() -> float:
    """Return the most main memory that this process has had, in MiB."""
    try:
        # Unlike getrusage's, this is not at least the size of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return round(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024, 1)
    except (OSError, TypeError):
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def main() -> int:
    """Run the command line."""
    record, *flags = sys.argv[1:]
    import torch
    from fairseq_cli.generate import cli_main

    sys.argv = ["fairseq-generate", *flags]
    cli_main()
    cuda = torch.cuda.is_available() and "--cpu" not in flags
    peak = round(torch.cuda.max_memory_allocated() / (1 << 20), 1) if cuda else None
    write_json(
        Path(record),
        {
            "flags": flags,
            "peak_memory_mib": peak_memory(),
            "peak_gpu_memory_mib": peak,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": torch.get_num_threads(),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
