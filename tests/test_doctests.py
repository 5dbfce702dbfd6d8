"""The examples in docstrings do what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import fairseq_fwm
from fairseq_fwm import feature_maps, mixers, nn, ops

MODULES = [
    module
    for package in (nn, ops, mixers)
    for _, module, _ in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
] + [feature_maps.__name__, fairseq_fwm.__name__]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    torch.manual_seed(1)
    done = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert not done.failed


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(bool(test.examples) for test in found) >= 7
