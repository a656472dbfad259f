"""No test depends on those before it."""

from __future__ import annotations

import sys
import zlib
from importlib import import_module
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("value", [1, 2])
def test_a_module_of_one_test_is_none_of_another(value: int) -> None:
    with pytest.raises(ImportError):
        import_module("of_one_test")
    Path("of_one_test.py").write_text(f"value = {value}\n")
    sys.path.append(str(Path.cwd()))
    module = import_module("of_one_test")
    assert module.value == value


@pytest.mark.parametrize("one", [1, 2])
def test_what_is_drawn_depends_on_the_name_of_a_test(one: int) -> None:
    name = f"test_what_is_drawn_depends_on_the_name_of_a_test[{one}]"
    wanted = torch.rand(3, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    assert torch.rand(3).equal(wanted)
