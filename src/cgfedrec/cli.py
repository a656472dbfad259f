"""The command line: cgfedrec fit | test | recommend | compare | tune | data.

Only the standard library is imported here, so that ``--help`` answers at once; a verb imports what it needs.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from argparse import Namespace as Arguments
from collections.abc import Callable
from pathlib import Path

from cgfedrec import __version__
from cgfedrec.errors import InputError, Notice, RunError, printable
from cgfedrec.settings.environment import Verbs, tell_of_unread, with_variables

TAKE_SETTINGS = ("fit", "test", "recommend", "tune", "data")
"""Commands that take the settings of a run."""
_shown = warnings.formatwarning
EPILOG = """examples:
  cgfedrec fit                                     train on the embedded data set
  cgfedrec fit --data.path ratings.csv             train on a table with columns user, item, timestamp
  cgfedrec fit --config FILE --loop.rounds 20      train as a file says, but for 20 rounds
  cgfedrec fit --ckpt_path RUN/checkpoints/last.ckpt                         go on with a run
  cgfedrec recommend --ckpt_path RUN/checkpoints/best.ckpt --user 7          what user 7 should see
  cgfedrec compare --config configs/compare/quick.yaml                       methods side by side, and a report

Every option has an environment variable, which the command line outranks: CGFEDREC_RECOMMEND_TOP_K for --top_k of
recommend. The settings of a run have theirs from fit wherever they are taken: CGFEDREC_FIT_LOOP__ROUNDS for
--loop.rounds; see fit --help.

exit codes: 0 done, 1 a run failed, 2 something given cannot be used, 128 + n stopped by signal n"""


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    warnings.formatwarning = _warning
    parser, verbs = _parser()
    try:
        argv = with_variables(argv, verbs, os.environ)
    except InputError as error:
        return _fail(Arguments(traceback=False), 2, *error.problems)
    arguments, options = parser.parse_known_args(_with_ids_joined(argv))
    tell_of_unread(arguments.words, verbs, os.environ, arguments.words[0] in TAKE_SETTINGS)
    try:
        code: int = arguments.run(arguments, options)
        return code
    except InputError as error:
        return _fail(arguments, 2, *error.problems)
    except RunError as error:
        return _fail(arguments, 1, str(error))
    except KeyboardInterrupt:
        return _fail(arguments, 130, "interrupted")
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail(arguments, 1, f"{type(error).__name__}: {error} (cgfedrec --traceback shows where)")


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as it is shown: ours as we show errors, others with the line that they come from."""
    if issubclass(category, Notice):
        return f"warning: {printable(str(message))}\n"
    return _shown(message, category, filename, lineno, line)


def _with_ids_joined(argv: list[str]) -> list[str]:
    """``--user -a -b`` as ``--user=-a --user=-b``: argparse takes a word that begins with a dash for an option.

    The word behind ``--user`` is an id, whatever it is, and so are those that follow, up to one that begins with two
    dashes.
    """
    if "recommend" not in argv:
        return argv
    joined, ids = list[str](), 0
    for word in argv:
        if ids and (ids == 1 or not word.startswith("--")):
            joined, ids = [*joined, f"--user={word}"], 2
        else:
            ids = int(word == "--user")
            joined += [] if ids else [word]
    return joined + ["--user"] * (ids == 1)


def _fail(arguments: Arguments, code: int, *problems: str) -> int:
    if arguments.traceback:
        traceback.print_exc()
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    return code


def _fit(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.run.api import start
    from cgfedrec.run.console import console, show_result
    from cgfedrec.settings.sources import said

    warnings.filterwarnings("ignore", module="lightning")
    out = console()
    with start(said(options=options), console=out) as run:
        run.fit()
    if run.interrupted:
        last = run.checkpoints / "last.ckpt"
        out.print(f"stopped after round {run.loop.round}; go on with: cgfedrec fit --ckpt_path {last}", soft_wrap=True)
        return 128 + run.interrupted
    show_result(out, run.summary, run.data.protocol, run.training.monitor, run.directory)
    return 0


def _test(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.run.api import load
    from cgfedrec.run.console import console, show_metrics

    run = load(arguments.ckpt_path, options=options, console=console(stderr=True))
    metrics = run.test()
    if not metrics:
        raise InputError("ckpt_path: its split holds nothing out for a test")
    show_metrics(console(), metrics, run.data.protocol)
    return 0


def _recommend(arguments: Arguments, options: list[str]) -> int:
    output = Path(arguments.output) if arguments.output else None
    if output and output.suffix not in (".csv", ".parquet"):
        raise InputError(f"--output: {output} must end in .csv or .parquet")

    from cgfedrec.run.api import load
    from cgfedrec.run.console import console, show_recommendations
    from cgfedrec.run.recommend import SHOWN, ItemsFormat, with_titles, without_any, write

    run = load(arguments.ckpt_path, options=options, console=console(stderr=True))
    table = run.recommend(arguments.user, arguments.top_k)
    if arguments.items:
        layout = ItemsFormat(
            arguments.items_separator,
            not arguments.items_no_header,
            item_column=_column(arguments.items_id),
            quoted=None if arguments.items_quoted is None else arguments.items_quoted == "true",
            encoding=arguments.items_encoding,
        )
        table = with_titles(table, Path(arguments.items), layout, _column(arguments.items_title))
        if len(table) and table["title"].null_count() == len(table):
            print(f"warning: no id in {printable(arguments.items)} is among the recommended items", file=sys.stderr)
    if full := without_any(run.loop, table, arguments.user):
        names = ", ".join(full[:SHOWN]) + (f" and {len(full) - SHOWN:,} more" if len(full) > SHOWN else "")
        print(f"nothing to recommend to user {printable(names)}: every item is theirs already", file=sys.stderr)
    if output:
        write(table, output)
        console().print(f"{len(table)} recommendations for {table['user'].n_unique()} users in {output}")
    else:
        show_recommendations(console(), table)
    return 0


def _compare(arguments: Arguments, options: list[str]) -> int:
    _no_more(options)
    from cgfedrec.experiments.compare import compare
    from cgfedrec.run.console import console

    warnings.filterwarnings("ignore", module="lightning")
    out = console()
    _, ended = compare(
        arguments.config, arguments.output, arguments.processes, arguments.replace, arguments.keep_checkpoints, out
    )
    if ended.signal:
        out.print("stopped; the same command goes on")
        return 128 + ended.signal
    if ended.failed:
        raise RunError(
            "\n".join([f"{len(ended.failed)} runs failed:", *(f"{name}: {why}" for name, why in ended.failed.items())])
        )
    return 0


def _tune(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.experiments.tune import tune
    from cgfedrec.run.console import console

    warnings.filterwarnings("ignore", module="lightning")
    given = [text for config in arguments.config for text in ("--config", config)] + options
    tune(given, arguments.space, arguments.trials, arguments.output, arguments.prune, console())
    return 0


def _describe(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.run.api import open_data
    from cgfedrec.run.console import console, show_data

    out = console()
    show_data(out, open_data(options, out), details=True)
    return 0


def _download(arguments: Arguments, options: list[str]) -> int:
    _no_more(options)

    from cgfedrec.data.catalog import download
    from cgfedrec.run.console import console

    download(arguments.name, Path(arguments.dir), console(), arguments.url)
    return 0


def _no_more(options: list[str]) -> None:
    if options:
        raise InputError(f"unknown option {options[0]}")


def _column(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _parser() -> tuple[ArgumentParser, Verbs]:
    """The parser of the command line, and those of all commands."""
    parser = ArgumentParser(
        "cgfedrec",
        description="Train recommenders on interactions that never leave their owners.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cgfedrec {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers: dict[tuple[str, ...], ArgumentParser] = {(): parser}

    def verb(
        of: object, name: str, run: Callable[[Arguments, list[str]], int], help: str, own_help: bool = False
    ) -> ArgumentParser:
        added: ArgumentParser = of.add_parser(  # type: ignore[attr-defined]
            name, help=help, description=help, add_help=not own_help, allow_abbrev=False
        )
        words = (name,) if of is verbs else ("data", name)
        added.set_defaults(run=run, words=words)
        parsers[words] = added
        return added

    verb(verbs, "fit", _fit, "train a federation", own_help=True)
    more = "; further options, such as --data.path, override the checkpoint's config (--trust: see SECURITY.md)"
    test = verb(verbs, "test", _test, f"evaluate a checkpoint on the test split{more}")
    test.add_argument("--ckpt_path", required=True, metavar="FILE", help="a checkpoint of fit")
    recommend = verb(verbs, "recommend", _recommend, f"recommend items to users{more}")
    recommend.add_argument("--ckpt_path", required=True, metavar="FILE", help="a checkpoint of fit")
    recommend.add_argument(
        "--user", nargs="+", action="extend", metavar="ID", help="original user ids; by default everybody"
    )
    recommend.add_argument("--top_k", type=int, default=10, metavar="K", help="how many items for each (%(default)s)")
    recommend.add_argument("--output", metavar="FILE", help="write .csv or .parquet instead of printing")
    recommend.add_argument("--items", metavar="FILE", help="a table of items from which titles are joined")
    recommend.add_argument(
        "--items_id", default="0", metavar="COLUMN", help="its id column, by name or position (%(default)s)"
    )
    recommend.add_argument("--items_title", default="1", metavar="COLUMN", help="its title column (%(default)s)")
    recommend.add_argument(
        "--items_separator", metavar="TEXT", help="its separator, by default told from the file name"
    )
    recommend.add_argument(
        "--items_quoted",
        choices=("true", "false"),
        help="whether its fields may stand in double quotes; by default where the separator is , ; or |",
    )
    recommend.add_argument("--items_encoding", default="utf-8", metavar="NAME", help="such as latin-1 (%(default)s)")
    recommend.add_argument("--items_no_header", action="store_true", help="its first line is an item already")
    compare = verb(verbs, "compare", _compare, "run methods side by side, measured alike, and report on them")
    compare.add_argument("--config", required=True, metavar="FILE", help="methods, data, seeds and a base for all runs")
    compare.add_argument("--output", metavar="DIR", help="where to; by default runs/compare/<config>")
    compare.add_argument(
        "--processes", type=int, default=1, metavar="N", help="runs side by side, which share the cores (%(default)s)"
    )
    compare.add_argument(
        "--keep_checkpoints", action="store_true", help="of finished runs, which take room for all clients' state"
    )
    compare.add_argument(
        "--replace", action="store_true", help="throw away and run anew what was run with other settings"
    )
    tune = verb(verbs, "tune", _tune, "search for settings by validation alone; further options are those of fit")
    tune.add_argument(
        "--config", required=True, action="append", metavar="FILE", help="of fit; its own settings come first"
    )
    tune.add_argument("--space", required=True, metavar="FILE", help="options, each with choices or low and high")
    tune.add_argument("--trials", required=True, type=int, metavar="N", help="how many in all; --loop.rounds for each")
    tune.add_argument("--output", required=True, metavar="DIR", help="where best.yaml, trials.csv and the study go")
    tune.add_argument("--prune", action="store_true", help="end trials below the median of the others early")
    data = verbs.add_parser("data", help="describe or download data", description="describe or download data")
    kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    verb(kinds, "describe", _describe, "print what a data set holds; takes the options of fit", own_help=True)
    fetch = verb(kinds, "download", _download, "fetch a public data set")
    fetch.add_argument("name", help="such as ml-100k; a wrong name lists all")
    fetch.add_argument("--dir", default="data", help="where to (%(default)s)")
    fetch.add_argument("--url", help="take the archive from elsewhere; its checksum must still agree")
    return parser, parsers


if __name__ == "__main__":
    sys.exit(main())
