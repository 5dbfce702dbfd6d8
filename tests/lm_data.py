"""What the tests of the language modelling data share: made-up corpora and how to read results."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from fairseq.data.indexed_dataset import MMapIndexedDataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from lib import data_files, lm_files, lm_texts, lm_tokens  # noqa: E402, F401

SPLITS = ("train", "valid", "test")
WORDS = {
    "train": "\n = Title = \n\nb a c b\nb c <unk> \n\n",
    "valid": "a\n\n d d\n",
    "test": " a b\n",
}
TEXT = bytes(random.Random(3).choices(b"abcdefgh \n", k=5000))


def sha(text):
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def facts(unit, texts, *more, name="tiny"):
    """What a script says of a corpus with these texts, one for each split or one for all."""
    flags = ["--name", name, "--licence", "none", "--unit", unit, "--url", "file:///nowhere"]
    for split, text in texts.items():
        flags += ["--text", split, f"tiny.{split}", sha(text)]
    return [*flags, *map(str, more)]


def fill(directory, texts, name="tiny.{}"):
    directory.mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        (directory / name.format(split)).write_bytes(text)
    return directory


def make(directory, unit, texts, *more):
    """Make data of texts that are at hand; return where they are."""
    source = fill(directory / "in", texts)
    arguments = facts(unit, texts, "--from", source, "--out", directory / "out", *more)
    assert lm_files.main(arguments) == 0
    return directory / "out"


def words(**changes):
    return {split: text.encode() for split, text in (WORDS | changes).items()}


def items(directory, split):
    return [item.tolist() for item in MMapIndexedDataset(str(directory / split))]


def decoded(directory, split, capfdbinary):
    capfdbinary.readouterr()
    lm_tokens.main([str(directory), split])
    sys.stdout.flush()
    return capfdbinary.readouterr().out


def record(directory):
    return json.loads((directory / "data.json").read_text())


def script(name, *arguments):
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / f"prepare_{name}.sh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,
        },
    )
