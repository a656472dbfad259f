"""What is said by a command that opens a checkpoint: which one, whom it trusts, and what it cannot heed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from cgfedrec.errors import InputError, Notice, check
from cgfedrec.settings.layers import Layer
from cgfedrec.settings.mistakes import shown
from cgfedrec.settings.sources import Said
from cgfedrec.settings.trust import settings_of

OF_FIT = ("ckpt_path", "update_from", "run_dir")
"""Options that only ``fit`` can heed."""


def settings_in(text: str, given: Said) -> Layer:
    """The settings of a checkpoint. It may name a class of somebody's own only if this call names it too.

    Args:
        text: The settings, as the checkpoint holds them.
        given: What is said in this call, with the classes that it names, and those of ``--trust``.

    Raises:
        InputError: naming every setting that it may not hold. Nothing has been imported then.
    """
    return settings_of(text, given.named(), given.trusted())


def checkpoint_in(given: Said, option: str = "ckpt_path") -> Path | None:
    """The checkpoint that an option names, if it does. It must be known before `parse`, whose base its settings are."""
    path = given.value(option)
    if path is None or path == "null":
        return None
    if not isinstance(path, str) or not path:
        raise InputError(f"{option}: must be the path of a file, not {shown(path)}")
    return Path(path)


def refuse_of_fit(given: Said, verb: str, but: Sequence[str] = ()) -> None:
    """Refuse what only ``fit`` can heed, and say of a variable that it has no effect.

    A variable may be set for good, to serve every ``fit``: that is no reason for another command to end.

    Args:
        given: What is said.
        verb: The command.
        but: What this one can heed too.

    Raises:
        InputError: naming the options.
    """
    for variable, layer in given.variables.items():
        if layer.keys() & (set(OF_FIT) - set(but)):
            warnings.warn(f"{variable} has no effect on {verb}", Notice, stacklevel=3)
    check(*_of_fit(given, verb, [name for name in OF_FIT if name not in but]))


def _of_fit(given: Said, verb: str, names: Sequence[str]) -> Iterator[str]:
    """The problem with each option of a config or of the command line that only ``fit`` can heed."""
    for name in names:
        for source, layer in given.configs:
            if layer.get(name) is not None:
                yield f"{name}: {verb} cannot heed it ({source})"
        if given.options.get(name) is not None:
            yield f"{name}: {verb} cannot heed it"
