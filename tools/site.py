"""Build the documentation site: ``make docs``, or ``python -m tools.site FOLDER``.

The pages are the Markdown in ``docs/``. Two of them go on with what the program says of itself: the help of every
command, and the settings of every method. So nothing of that has to be kept up by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.arguments import OWN_HELP, command_parser
from cgfedrec.cli import COMMANDS
from cgfedrec.method import Recommender
from cgfedrec.texts import SETTINGS, packaged

ROOT = Path(__file__).parents[1]
WIDTH = "100"
"""Characters in a line of help."""


def commands() -> Iterator[str]:
    """A section for each command, with its help, in Markdown."""
    os.environ["COLUMNS"] = WIDTH
    _, verbs = command_parser(COMMANDS)
    for words, verb in verbs.items():
        if words not in COMMANDS:  # data, of which there are several
            continue
        text = verb.format_help()
        if words == ("fit",):
            text = packaged(SETTINGS)
        elif words in OWN_HELP:
            text = f"{verb.format_usage()}\n{verb.description}\n\nThe options are those of fit.\n"
        yield f"## {' '.join(words)}\n\n```text\n{text.rstrip()}\n```\n"


def methods() -> Iterator[str]:
    """A section for each method and reference: what it is, and a table of its settings, in Markdown."""
    for package in (cgfedrec.methods, cgfedrec.centralized):
        for name in package.__all__:
            kind = getattr(package, name)
            yield f"## {name}\n\n{of_module(kind)}\n\n{inspect.getdoc(kind)}\n\n{settings(kind)}"


def of_module(kind: type) -> str:
    """What the file of a method says of it."""
    module = inspect.getmodule(kind)
    return inspect.cleandoc((module.__doc__ if module else None) or "")


def settings(kind: type[Recommender]) -> str:
    """A table of the settings of a method, in Markdown."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Recommender):
            helps |= texts_of_fields(base)
    rows = ["| setting | default | |", "|---|---|---|"]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # every method is a dataclass
        default = shown(field.default).replace("|", "\\|")
        text = " ".join(helps.get(field.name, "").split()).replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{default}` | {text} |")
    return "\n".join(rows) + "\n"


def texts_of_fields(kind: type) -> dict[str, str]:
    """The text below each field of a class, by its name."""
    (tree,) = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if named and told:
            found[field.target.id] = str(below.value.value)  # type: ignore[attr-defined]
    return found


def shown(value: object) -> str:
    """A default as one would write it: a class or function by its name."""
    return getattr(value, "__name__", None) or repr(value)


def build(folder: Path) -> Path:
    """Build the site, strictly.

    Args:
        folder: For the pages and, in ``site`` below it, what they become. An earlier build there is replaced.

    Returns:
        The folder of the site.

    Raises:
        subprocess.CalledProcessError: if a link leads nowhere or a name is not found; what it says is printed.
    """
    pages = folder / "docs"
    for old in (pages, folder / "site"):
        shutil.rmtree(old, ignore_errors=True)
    (folder / "src").unlink(missing_ok=True)
    shutil.copytree(ROOT / "docs", pages)
    shutil.copy(ROOT / "zensical.toml", folder)
    (folder / "src").symlink_to(ROOT / "src")  # mkdocstrings reads it there, and imports nothing
    for name, sections in (("cli", commands()), ("methods", methods())):
        with (pages / "reference" / f"{name}.md").open("a", encoding="utf-8") as page:
            page.writelines(f"\n{section}" for section in sections)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "site"


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build")
    place.mkdir(parents=True, exist_ok=True)
    try:
        print(build(place))
    except subprocess.CalledProcessError:
        sys.exit(1)
