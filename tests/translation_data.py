"""A binarised corpus in which German is English in capitals."""

import random
from collections.abc import Callable
from pathlib import Path


def capitals(folder: Path, run: Callable, train: int = 60, valid: int = 8, test: int = 8) -> Path:
    """Make it in a folder, with as many sentences; return the directory of the data."""
    words, counts = random.Random(0), {"train": train, "valid": valid, "test": test}
    for split, count in counts.items():
        lines = [" ".join(words.choices("abcdefgh", k=words.randint(2, 9))) for _ in range(count)]
        (folder / f"{split}.en").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.de").write_text("\n".join(lines).upper() + "\n")
    prefixes = [f"--{x}pref={folder / x}" for x in counts]
    run(
        *("-m", "fairseq_cli.preprocess", "-s", "en", "-t", "de", "--joined-dictionary"),
        *("--destdir", folder / "bin", *prefixes),
    )
    return folder / "bin"
