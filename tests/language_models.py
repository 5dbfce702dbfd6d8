"""Language models built as fairseq builds them, without a task or data."""

import argparse

import torch
from fairseq.data import Dictionary
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
)

WORDS = 24
PAD, EOS = Dictionary().pad(), Dictionary().eos()


class Task:
    """As much of fairseq's language modelling task as a model needs to be built."""

    def __init__(self, words=WORDS):
        self.source_dictionary = self.target_dictionary = Dictionary()
        for i in range(words - 4):
            self.source_dictionary.add_symbol(f"w{i}")


def build(arch, words=WORDS, **flags):
    """Build from flags, then the architecture's shape, then the model's defaults."""
    args = argparse.Namespace(**flags)
    ARCH_CONFIG_REGISTRY[arch](args)
    for name, default in vars(MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY[arch]]()).items():
        setattr(args, name, getattr(args, name, default))
    torch.manual_seed(0)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, Task(words)).eval()


def tokens(*shape, first=4, words=WORDS):
    """Random words, the same every time."""
    return torch.randint(first, words, shape, generator=torch.Generator().manual_seed(1))
