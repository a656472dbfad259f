"""The commands that use what was trained: test, validate, recommend, export, serve.

Only the standard library is imported here, as in `cgfedrec.cli`; a command imports what it needs.
"""

from __future__ import annotations

import sys
from argparse import Namespace as Arguments
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cgfedrec.errors import InputError, check, printable

if TYPE_CHECKING:
    from cgfedrec.serving import Recommender

YOU = "you"
"""Whose history ``recommend --have`` gives."""


def test(arguments: Arguments, options: list[str]) -> int:
    """Evaluate a checkpoint."""
    from cgfedrec.run.api import load_to_test
    from cgfedrec.run.beyond import show_beyond
    from cgfedrec.run.console import console, show_metrics, show_scoring, show_standing
    from cgfedrec.run.newcomers import show_newcomers, tested_on

    run, newcomers = load_to_test(arguments.ckpt_path, options, console(stderr=True))
    out = console()
    metrics = run.test()
    if newcomers:
        found = tested_on(run.loop, newcomers)
        show_newcomers(out, newcomers, found, metrics, run.training.monitor)
        show_scoring(out, int(found["bytes/scoring"]))
        return 0
    if not metrics:
        raise InputError("ckpt_path: its split holds nothing out for a test")
    show_metrics(out, metrics, run.data.protocol)
    show_beyond(out, metrics, run.training.monitor.removeprefix("val/"))
    show_standing(out, metrics, run.training.monitor)
    show_scoring(out, int(metrics["bytes/scoring"]))
    return 0


def validate(arguments: Arguments, options: list[str]) -> int:
    """Evaluate a checkpoint on what its split holds out for validation, by which the best round was chosen."""
    from cgfedrec.run.api import load
    from cgfedrec.run.console import console, show_metrics, show_scoring

    run = load(arguments.ckpt_path, options=options, console=console(stderr=True))
    out = console()
    metrics = run.validate()
    if not metrics:
        raise InputError("ckpt_path: its split holds nothing out for validation")
    show_metrics(out, metrics, run.data.protocol)
    show_scoring(out, int(metrics["bytes/scoring"]))
    return 0


def recommend(arguments: Arguments, options: list[str]) -> int:
    """Recommend items to users of a checkpoint, or for histories that are given."""
    output = None
    if arguments.output:
        output = Path(arguments.output)
    if output and output.suffix not in (".csv", ".parquet"):  # before the checkpoint is read, which may take long
        raise InputError(f"--output: {output} must end in .csv or .parquet")
    check(
        "--histories: is empty; give the path of a file" if arguments.histories == "" else None,
        None if all(one.strip() for one in arguments.have or ()) else "--have: one of the ids is empty",
    )
    if output:
        from cgfedrec.files import no_folder

        check(no_folder("--output", output.parent))

    from cgfedrec.data.report import named
    from cgfedrec.run.advice import warning_of
    from cgfedrec.run.api import load, load_beside
    from cgfedrec.run.because import why
    from cgfedrec.run.console import console, show_recommendations, show_scoring
    from cgfedrec.run.recommend import recommend as recommend_to
    from cgfedrec.run.recommend import recommend_for, without_any, write

    err, data, options = console(stderr=True), None, _with_items(arguments, options)
    if arguments.histories or arguments.have:
        if arguments.have and (arguments.histories or arguments.user):
            raise InputError("--have: is the history of one person; give neither --user nor --histories beside it")
        run, others = load_beside(arguments.ckpt_path, ("format",), options, err)
        data = run.newcomers(arguments.histories or {YOU: arguments.have}, others.format)
    else:
        run = load(arguments.ckpt_path, options=options, console=err)
    if warning := warning_of(Path(arguments.ckpt_path)):
        print(f"warning: {warning}", file=sys.stderr)
    before, reason = run.training.bytes_scoring, None
    if arguments.explain:
        reason = why(run.scorer)
    if data:
        table = recommend_for(run.loop, data, arguments.user, arguments.top_k, reason)
    else:
        table = recommend_to(run.scorer, arguments.user, arguments.top_k, reason)
    show_scoring(console(stderr=True), run.training.bytes_scoring - before)
    if full := without_any(data or run.data, table, arguments.user):
        print(f"nothing to recommend to user {printable(named(full))}: every item is theirs already", file=sys.stderr)
    if output:
        write(table, output)
        console().print(f"{len(table)} recommendations for {table['user'].n_unique()} users in {output}")
    else:
        show_recommendations(console(), table, "history that could be read" if data else "model")
    if reason:
        print(f"because: {reason.said}", file=sys.stderr)
    return 0


def export(arguments: Arguments, options: list[str]) -> int:
    """Write what recommends without the run, or the state of one device."""
    one = None
    if arguments.client is not None and arguments.server:
        one = "--client, --server: each is a file of its own; give one of them"
    titles = None
    if arguments.items and (arguments.client is not None or arguments.server):
        titles = "--items: titles are for what recommends; leave out --client and --server"
    check(one, titles)
    if arguments.catalogue is not None:
        return _export_of_network(arguments, options)

    from cgfedrec.run.api import load
    from cgfedrec.run.console import console

    output = Path(arguments.output)
    run = load(arguments.ckpt_path, options=_with_items(arguments, options), console=console(stderr=True))
    if arguments.client is not None or arguments.server:
        from cgfedrec.run.devices import write_client, write_server

        if arguments.server:
            write_server(run.loop, run.header, output)
        else:
            write_client(run.loop, run.header, arguments.client, output)
        _tell_export(output, None)
    else:
        _tell_export(output, run.export(output))
    return 0


def _export_of_network(arguments: Arguments, options: list[str]) -> int:
    """Write what the server of a run over a network has."""
    check(None if arguments.client is None else "--client: in a run over a network a client's state is on its node")
    from cgfedrec.deploy.opened import ServerOfNetwork

    output = Path(arguments.output)
    run = ServerOfNetwork(Path(arguments.ckpt_path), Path(arguments.catalogue), _with_items(arguments, options))
    if arguments.server:
        run.write(output)
        _tell_export(output, None)
    else:
        _tell_export(output, run.export(output))
    return 0


def _tell_export(output: Path, found: Recommender | None) -> None:
    """Say what was written: what recommends, or a file."""
    from cgfedrec.run.console import console

    told = f"{output}: {output.stat().st_size:,} bytes"
    if found is not None:
        told = (
            f"{output}: {found.num_items:,} items, read by {found.reader.reading}; version {found.version}\n"
            f"serve it with: cgfedrec serve {quote(str(output))}"
        )
    console().print(told, highlight=False, soft_wrap=True)


def serve(arguments: Arguments, options: list[str]) -> int:
    """Answer requests from an exported folder until stopped."""
    no_more(options)
    from cgfedrec.serving.limits import Limits
    from cgfedrec.serving.serve import serve as answer

    limits = Limits(arguments.max_body, arguments.max_history, arguments.max_top_k, arguments.rate, arguments.burst)
    return answer(Path(arguments.folder), arguments.host, arguments.port, limits)


def _with_items(arguments: Arguments, options: list[str]) -> list[str]:
    """The options, with the table of items as the one that is said of the data."""
    if arguments.items is None:
        return options
    return [*options, "--data.items.path", arguments.items]


def no_more(options: list[str]) -> None:
    """Refuse options that a command does not take."""
    if options:
        raise InputError(f"unknown option {options[0]}")
