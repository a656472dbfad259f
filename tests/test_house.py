"""The house rules: no circles of imports, short files, docstrings with shapes, examples that run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "cgfedrec"
LONGEST = 300
LONG = {
    "testing.py": "one class to inherit; half of it says what each test promises",
}
"""Files above `LONGEST` lines, and why each may be."""

FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path != SOURCE / "__init__.py"
}
"""Every file by the name that it has in cgfedrec, such as ``data.module``; all but the package's own `__init__`."""
MODULES = [importlib.import_module(f"cgfedrec.{name}") for name in FILES if name != "__main__"]
WITH_EXAMPLES = [module for module in MODULES if ">>>" in inspect.getsource(module)]


def imported(name: str) -> set[str]:
    """The modules of cgfedrec that a file names in an import, wherever it stands, for types too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".removeprefix("cgfedrec.")
                found.add(whole if whole in FILES else node.module.removeprefix("cgfedrec."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("cgfedrec.") for alias in node.names}
    return {other for other in found if other in FILES and other != name}


def circle(edges: set[tuple[str, str]]) -> list[str] | None:
    """One circle among importers and what they import, if there is any."""
    graph: dict[str, set[str]] = {}
    for importer, other in edges:
        if importer != other:
            graph.setdefault(importer, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_no_circle_of_imports_between_files_or_between_rooms() -> None:
    """A room is a folder, or a file that stands beside the folders."""
    edges = {(name, other) for name in FILES for other in imported(name)}
    assert circle(edges) is None
    assert circle({(importer.split(".")[0], other.split(".")[0]) for importer, other in edges}) is None


def test_a_circle_is_seen() -> None:
    assert circle({("a", "b"), ("b", "c")}) is None
    assert set(circle({("a", "b"), ("b", "c"), ("c", "a")}) or []) == {"a", "b", "c"}
    assert imported("loop") >= {"server", "history", "method"}


def test_no_file_is_long_without_a_reason() -> None:
    lengths = {path.relative_to(SOURCE).as_posix(): len(path.read_text().splitlines()) for path in FILES.values()}
    assert {name for name, length in lengths.items() if length > LONGEST} == set(LONG)


def public() -> Iterator[tuple[str, Any, type | None]]:
    """Every public class, function, method and property of cgfedrec, with its name and the class that it belongs to."""
    for module in MODULES:
        for name, member in vars(module).items():
            if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(member):
                yield f"{module.__name__}.{name}", member, None
                for part, attribute in vars(member).items():
                    if not part.startswith("_") and function_of(attribute) is not None:
                        yield f"{module.__name__}.{name}.{part}", attribute, member
            elif function_of(member) is not None:
                yield f"{module.__name__}.{name}", member, None


def function_of(member: object) -> Callable[..., Any] | None:
    """The function behind a method, property or cached function, if it is one of these."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, cached_property):
        member = member.func
    elif isinstance(member, classmethod | staticmethod):
        member = member.__func__
    member = inspect.unwrap(member) if callable(member) else member
    return member if inspect.isfunction(member) else None


def docstring(member: Any, owner: type | None) -> str:
    """What a reader finds: of a class its own docstring, of a method also those of the methods that it overrides."""
    if inspect.isclass(member):
        own = member.__dict__.get("__doc__") or ""
        return "" if own.startswith(f"{member.__name__}(") else own  # written by `dataclass` or `NamedTuple`
    if owner is None:
        return function_of(member).__doc__ or ""
    name = function_of(member).__name__  # type: ignore[union-attr]
    overridden = [function_of(base.__dict__.get(name)) for base in owner.__mro__]
    return "\n".join(inspect.getdoc(one) or "" for one in overridden if one is not None).strip()


def test_everything_public_has_a_docstring() -> None:
    """Properties too. A method that overrides one with a docstring need not repeat it, nor need `__init__`, whose
    arguments stand in the class's docstring.
    """
    bare = {name for name, member, owner in public() if not docstring(member, owner)}
    assert not bare


def test_public_functions_of_tensors_name_a_shape() -> None:
    """In their own docstring or in that of their class, such as `[clients, items, dim]`."""
    shapeless = set()
    for name, member, owner in public():
        function = function_of(member)
        if function is None or not any(re.search(r"\bTensor\b", str(one)) for one in function.__annotations__.values()):
            continue
        text = docstring(member, owner) + (docstring(owner, None) if owner is not None else "")
        if not re.search(r"`\[[^`]*\]`", text):
            shapeless.add(name.removeprefix("cgfedrec."))
    assert not shapeless


@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=lambda module: module.__name__)
def test_examples_in_docstrings_give_what_they_say(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
