"""What each command of the command line takes, and the text of its ``--help``.

Only the standard library is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

from argparse import Action, ArgumentError, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from typing import Any

from cgfedrec import __version__
from cgfedrec.settings.environment import Verbs
from cgfedrec.texts import SHELLS

Command = Callable[[Namespace, list[str]], int]
"""Runs a command and returns its exit code.

It is given its own arguments, and the options that it does not know itself: they are those of a run's settings.
"""
EPILOG = """examples:
  cgfedrec fit                                     train on the embedded data set
  cgfedrec fit --data.path ratings.csv             train on a table with columns user, item, timestamp
  cgfedrec estimate --data.path ratings.csv        what that would need, in memory, disk, bytes and time
  cgfedrec fit --config FILE --loop.rounds 20      train as a file says, but for 20 rounds
  cgfedrec fit --ckpt_path RUN/checkpoints/last.ckpt                         go on with a run
  cgfedrec recommend --ckpt_path RUN/checkpoints/best.ckpt --user 7          what user 7 should see
  cgfedrec recommend --ckpt_path RUN/checkpoints/best.ckpt --have 50 181     what who has these items should see
  cgfedrec export --ckpt_path RUN/checkpoints/best.ckpt --output FOLDER      what recommends, without any data
  cgfedrec serve FOLDER                                                      answer requests from it
  cgfedrec compare --config configs/compare/quick.yaml                       methods side by side, and a report

Every option has an environment variable, which the command line outranks: CGFEDREC_RECOMMEND_TOP_K for --top_k of
recommend. The settings of a run have theirs from fit wherever they are taken: CGFEDREC_FIT_LOOP__ROUNDS for
--loop.rounds; see fit --help.

exit codes: 0 done, 1 a run failed, 2 something given cannot be used, 3 too few changes to go on with (fit
--update_from), 128 + n stopped by signal n"""
_MORE = "; further options, such as --data.path, override the checkpoint's config (--trust: see SECURITY.md)"
_ITEMS = (
    "a table of items with their titles, by default the run's own (data.items.path); the other options of data.items "
    "say how it is laid out"
)
_HELP = {
    ("fit",): "train a federation",
    ("estimate",): "say what a run would need, in memory, disk, bytes and time; takes the options of fit",
    ("test",): f"evaluate a checkpoint on the test split{_MORE}",
    ("validate",): f"evaluate a checkpoint on the validation split{_MORE}",
    ("recommend",): f"recommend items to users; predict is the same{_MORE}",
    ("export",): f"write what recommends for anybody's history without data or run, or the state of one device{_MORE}",
    ("serve",): "answer requests for recommendations over HTTP from an exported folder",
    ("compare",): "run methods side by side, measured alike, and report on them",
    ("deploy",): "write what a federation over a network needs, on Flower; further options are those of fit",
    ("tune",): "search for settings by validation alone; further options are those of fit",
    ("dashboard",): "write a workspace of Weights & Biases for the runs of a project, and save it where there is a key",
    ("data", "describe"): "print what a data set holds; takes the options of fit",
    (
        "data",
        "diff",
    ): "say what a run that goes on from OLD would see in NEW (fit --update_from); takes --config and "
    "the options data.format.* of fit, for both files",
    ("data", "download"): "fetch a public data set",
    ("completion",): "print what completes this command line in a shell",
}
"""Of each command, by its words, in the order of the list of commands."""
OWN_HELP = (("fit",), ("estimate",), ("data", "describe"))
"""Those whose ``--help`` tells the settings of a run."""


class _Once(Action):
    """Stores the value of an option, and refuses a second one that is another."""

    def __call__(self, parser: ArgumentParser, given: Namespace, value: Any, option_string: str | None = None) -> None:
        before = vars(self).setdefault("before", value)
        if before != value:
            raise ArgumentError(self, f"is given twice, as {before!r} and as {value!r}; give one of them")
        setattr(given, self.dest, value)


def command_parser(commands: Mapping[tuple[str, ...], Command]) -> tuple[ArgumentParser, Verbs]:
    """The parser of the command line, and those of all commands by their words.

    Args:
        commands: What runs each command.
    """
    whole = ArgumentParser(
        "cgfedrec",
        description="Train recommenders on interactions that never leave their owners.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"cgfedrec {__version__}")
    whole.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    verbs = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers: dict[tuple[str, ...], ArgumentParser] = {(): whole}
    kinds = None  # the commands below data, which is none itself
    for words, help in _HELP.items():
        group = verbs
        if words[0] == "data":
            if kinds is None:
                about = "describe, compare or download data"
                data = verbs.add_parser("data", help=about, description=about)
                kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
            group = kinds
        one = group.add_parser(
            words[-1], help=help, description=help, add_help=words not in OWN_HELP, allow_abbrev=False
        )
        one.set_defaults(run=commands[words], words=words)
        one.register("action", None, _Once)  # what options do that say nothing else
        parsers[words] = one
    for name in ("test", "validate"):
        parsers[name,].add_argument("--ckpt_path", required=True, metavar="FILE", help="a checkpoint of fit")
    _add_recommend(parsers["recommend",])
    _add_export(parsers["export",])
    _add_serve(parsers["serve",])
    _add_compare(parsers["compare",])
    _add_tune(parsers["tune",])
    _add_deploy(parsers["deploy",])
    _add_dashboard(parsers["dashboard",])
    parsers["data", "diff"].add_argument("old", metavar="OLD", help="a file of interactions, as they were")
    parsers["data", "diff"].add_argument("new", metavar="NEW", help="a file of interactions, as they are now")
    _add_download(parsers["data", "download"])
    parsers["completion",].add_argument("shell", choices=SHELLS)
    return whole, parsers


def _add_recommend(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--ckpt_path", required=True, metavar="FILE", help="a checkpoint of fit")
    add("--user", nargs="+", action="extend", metavar="ID", help="original user ids; by default everybody")
    add(
        "--histories",
        metavar="FILE",
        help="interactions of people who were not in training, who are then served in place of those who were; --user "
        "chooses among them, and options of data.format are of this file",
    )
    add("--have", nargs="+", action="extend", metavar="ID", help="items that you have, the oldest first")
    add("--top_k", type=int, default=10, metavar="K", help="how many items for each (%(default)s)")
    add("--explain", action="store_true", help="name the own items that speak most for each")
    add("--output", metavar="FILE", help="write .csv or .parquet instead of printing")
    add("--items", metavar="FILE", help=_ITEMS)


def _add_export(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--ckpt_path", required=True, metavar="FILE", help="a checkpoint of fit")
    add("--output", required=True, metavar="PATH", help="the folder, whose export is replaced in one step; or the file")
    add("--client", metavar="ID", help="write this user's client alone: its private state and what came down to it")
    add("--server", action="store_true", help="write the server alone: what it has found, and no user")
    add("--items", metavar="FILE", help=_ITEMS)
    add("--catalogue", metavar="FILE", help="of a run over a network: items.csv of any of its nodes")


def _add_serve(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="what export wrote; a new one there is taken up while requests are answered")
    add("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    add("--port", type=int, default=8000, help="0 for any free one (%(default)s)")
    add("--max_body", type=int, default=2**18, metavar="BYTES", help="of a request; 413 above (%(default)s)")
    add(
        "--max_history",
        type=int,
        default=5000,
        metavar="N",
        help="items of a history, or excluded; 422 above (%(default)s)",
    )
    add("--max_top_k", type=int, default=100, metavar="K", help="items in an answer; 422 above (%(default)s)")
    add(
        "--rate",
        type=float,
        default=50,
        metavar="N",
        help="requests a second of an address; 429 above, 0: any (%(default)s)",
    )
    add("--burst", type=int, default=100, metavar="N", help="requests that may come at once (%(default)s)")


def _add_compare(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="methods, data, seeds and a base for all runs")
    add("--output", metavar="DIR", help="where to; by default runs/compare/<config>")
    add(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="runs side by side, which share the cores (%(default)s)",
    )
    add("--keep_checkpoints", action="store_true", help="of finished runs, which take room for all clients' state")
    add(
        "--replace",
        action="store_true",
        help="throw away and run anew what was run with other settings or on other data",
    )


def _add_tune(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, action="append", metavar="FILE", help="of fit; its own settings come first")
    add("--space", required=True, metavar="FILE", help="options: [8, 16], or {low: 8, high: 64} with log or step")
    add("--trials", required=True, type=int, metavar="N", help="how many in all; --loop.rounds for each")
    add("--output", required=True, metavar="DIR", help="where best.yaml, trials.csv and the study go")
    add("--prune", action="store_true", help="end trials below the median of the others early")


def _add_deploy(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--nodes", required=True, type=int, metavar="N", help="to share the clients out to, such as machines")
    add("--output", required=True, metavar="DIR", help="where the app and the nodes' folders go; a new folder")


def _add_dashboard(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--project", default="cgfedrec", metavar="NAME", help="whose runs it shows (%(default)s)")
    add("--entity", metavar="NAME", help="the user or team of the project; by default that of the key")
    add("--metric", default="ndcg@10", metavar="NAME", help="that is plotted (%(default)s)")
    add("--output", default="dashboard.json", metavar="FILE", help="where the workspace goes (%(default)s)")


def _add_download(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help="such as ml-100k; a wrong name lists all")
    add("--dir", default="data", help="where to (%(default)s)")
    add("--url", help="take the archive from elsewhere; its checksum must still agree")
