"""The words of a command, put so that argparse reads them as they are meant."""

from __future__ import annotations

from collections.abc import Collection


def under_our_name(argv: list[str]) -> list[str]:
    """``predict``, as Lightning calls it, as ``recommend``; all else as it is."""
    first = next((place for place, word in enumerate(argv) if not word.startswith("-")), len(argv))
    if argv[first : first + 1] != ["predict"]:
        return argv
    return [*argv[:first], "recommend", *argv[first + 1 :]]


def with_ids_joined(argv: list[str], options: Collection[str]) -> list[str]:
    """``--user -a -b`` as ``--user=-a --user=-b``: argparse takes a word that begins with a dash for an option.

    The word behind ``--user`` or ``--have`` of ``recommend`` is an id, unless it is one of the ``options``, and so are
    those that follow, up to one that begins with two dashes. Whoever has an id like an option says ``--user=--top_k``.
    """
    joined: list[str] = []
    option, needs_one = "", False
    for word in argv:
        if needs_one and word.partition("=")[0].partition(".")[0] in options:
            joined.append(option)  # argparse says that an id is missing
            needs_one, option = False, ""
        if needs_one or (option and not word.startswith("--")):
            joined.append(f"{option}={word}")
            needs_one = False
        elif word in ("--user", "--have"):
            option, needs_one = word, True
        else:
            joined.append(word)
            option = ""
    if needs_one:  # as above
        joined.append(option)
    return joined


def with_values_joined(argv: list[str]) -> list[str]:
    """``--data.format.header false`` of ``data diff`` as one word: argparse would take the value for a file."""
    first = next((place + 2 for place in range(len(argv)) if argv[place : place + 2] == ["data", "diff"]), len(argv))
    joined = argv[:first]
    for word in argv[first:]:
        option = joined[-1]
        takes = option.startswith("--data.") or option == "--config"
        if takes and "=" not in option and not word.startswith("--"):
            joined[-1] = f"{option}={word}"
        else:
            joined.append(word)
    return joined
