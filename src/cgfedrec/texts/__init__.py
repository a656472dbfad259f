"""Texts that are packaged, so that they are printed at once: to make them takes seconds of imports.

`cgfedrec.write_texts` writes the files of this folder (``make texts``), and a test holds them to what it would write.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
SETTINGS = "settings.txt"
"""The help of a run's settings."""
SHELLS = ("bash", "zsh")
"""For which there is a completion, in the file ``completion.`` and the name."""


def packaged(name: str) -> str:
    """The text of a file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def asks_for_help(options: list[str]) -> bool:
    """Whether these words, behind a command that takes the settings of a run, ask for what they all are."""
    return "--help" in options or options[:1] == ["-h"]
