"""What environment variables say of a run, below all else that is said of it, and which of them are of no use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from cgfedrec.errors import Notice, nearest
from cgfedrec.settings.layers import CLASSES, DEFAULTS, Layer, leaves, merged, same_class, short
from cgfedrec.settings.options import Option, groups_of
from cgfedrec.settings.sources import Said, option_of


def with_variables(variables: Mapping[str, Layer], above: Sequence[Layer]) -> Layer:
    """All that is said of a run: variables of the environment, and the layers that outrank them."""
    spec = merged(DEFAULTS, *variables.values(), *above)
    # A null that a later layer has undone has taken the class with it.
    for group in CLASSES:
        chosen = spec[group]
        if isinstance(chosen, dict):
            spec[group] = {"class_path": DEFAULTS[group]["class_path"], **chosen}
    return spec


def is_known(layer: Layer, known: Mapping[str, Option]) -> bool:
    """Whether all that a layer says is of options that there are."""
    groups = groups_of(known)
    for path, _ in leaves(layer):
        names = [short(path[: end + 1]) for end, part in enumerate(path) if part != "class_path"]
        # The value of an option may be a mapping, such as one of choices: what it holds are no options.
        taken_whole = any(name in known and name not in groups for name in names)
        if not taken_whole and names[-1] not in known and names[-1] not in groups:
            return False
    return True


def tell_of_variables(
    given: Said, read: Mapping[str, Layer], known: Mapping[str, Option], above: Sequence[Layer]
) -> None:
    """Warn of variables that are of no option, and of those that something else puts out of use.

    One that says the same as what outranks it may be set for good, and is no reason to say anything.

    Args:
        given: What is said.
        read: Its variables that are of an option.
        known: Of `options_of`.
        above: The layers that outrank the variables.
    """
    spec = with_variables(read, above)
    for name, layer in given.variables.items():
        if name not in read:
            option = option_of(name)
            _tell(f"{name} is not read: there is no option {option}{nearest(option, known)}")
            continue
        others = {other: read[other] for other in read if other != name}
        if with_variables(others, above) == spec and not _alike(with_variables(read, [*above, layer]), spec):
            _tell(
                f"{name} has no effect here: the command line, a config or a checkpoint says otherwise, or another "
                "class is named"
            )
    for name in given.ignored:
        _tell(f"{name} has no effect here: other configs are named")


def _alike(one: Layer, other: Layer) -> bool:
    """Whether two layers say the same; what a variable says is text, and in a config it may be a number."""
    said, there = dict(leaves(one)), dict(leaves(other))
    return said.keys() == there.keys() and all(
        _written(value) == _written(there[path]) or (path[-1] == "class_path" and same_class(value, there[path]))
        for path, value in said.items()
    )


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tell(text: str) -> None:
    warnings.warn(text, Notice, stacklevel=4)
