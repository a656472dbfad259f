"""The examples in docstrings say what the code does."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = {"cgfedrec.evaluation.metrics": 6, "cgfedrec.units": 1}
"""With how many docstrings hold examples at least, so that one that is lost is missed."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = import_module(name)
    examples = [found for found in doctest.DocTestFinder().find(module) if found.examples]
    assert len(examples) >= MODULES[name]
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)
