"""The command line: cgfedrec fit, estimate, test, validate, recommend, export, serve, compare, tune, deploy, data.

What uses a trained run is in `cgfedrec.using`. Only the standard library is imported here, so that ``--help`` answers
at once; a verb imports what it needs.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from argparse import ArgumentParser
from argparse import Namespace as Arguments
from collections.abc import Iterator
from pathlib import Path

from cgfedrec.arguments import OWN_HELP, Command, command_parser
from cgfedrec.errors import InputError, Notice, RunError, check, nearest, printable
from cgfedrec.settings.environment import tell_of_unread, with_variables
from cgfedrec.texts import SETTINGS, asks_for_help, packaged
from cgfedrec.using import export, no_more, recommend, serve, test, validate
from cgfedrec.words import under_our_name, with_ids_joined, with_values_joined

TAKE_SETTINGS = ("fit", "estimate", "test", "validate", "recommend", "export", "tune", "deploy", "data")
"""Commands that take the settings of a run."""
_shown = warnings.formatwarning


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words behind ``cgfedrec``; by default those that the process was started with.

    Returns:
        Its exit code: 0 done, 1 a run failed, 2 something given cannot be used, 3 too few changes to go on with
        (``fit --update_from``), 128 + n stopped by signal n.
    """
    if argv is None:
        argv = sys.argv[1:]
    # To import torch makes objects by the million: by default the collector would take a seventh of the time.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)  # and at the end it would look at all of them once more, for a second
    # Clients' tables in pages of 2 MiB, where the system gives them: a round takes a tenth less. Torch reads it once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    argv = under_our_name(argv)
    warnings.formatwarning = _warning
    parser, verbs = command_parser(COMMANDS)
    try:
        argv = with_variables(argv, verbs, os.environ)
    except InputError as error:
        return _fail(Arguments(traceback=False), 2, *error.problems)
    # What the parser does not know may be a setting of a run. The command says so itself if it takes none.
    if "recommend" in argv:
        argv = with_ids_joined(argv, _own(verbs["recommend",]) | _settings())
    arguments, options = parser.parse_known_args(with_values_joined(argv))
    tell_of_unread(arguments.words, verbs, os.environ, arguments.words[0] in TAKE_SETTINGS)
    if arguments.words in OWN_HELP and asks_for_help(options):  # here, since it is quick
        if arguments.words != ("fit",):
            print(f"cgfedrec {' '.join(arguments.words)}: {verbs[arguments.words].description}\n")
        print(packaged(SETTINGS), end="")
        return 0
    try:
        check(*_misspelt(options, verbs[arguments.words]))
        code: int = arguments.run(arguments, options)
        return code
    except InputError as error:
        return _fail(arguments, error.code, *error.problems)
    except RunError as error:
        return _fail(arguments, 1, str(error))
    except KeyboardInterrupt as stopped:
        for number in stopped.args:  # of `_fit`
            return _fail(arguments, 128 + number, f"stopped by {number.name}; no round was under way")
        return _fail(arguments, 130, "interrupted")
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail(arguments, 1, f"{type(error).__name__}: {error} (cgfedrec --traceback shows where)")


def _misspelt(options: list[str], verb: ArgumentParser) -> Iterator[str]:
    """The problem with each option that is no setting of a run, but nearly one of the command's own."""
    settings, own = _settings(), _own(verb)
    for name in (word.partition("=")[0] for word in options):
        if name.startswith("--") and "." not in name and name not in settings and (meant := nearest(name, own)):
            yield f"{name}: there is no such option{meant}"


def _own(verb: ArgumentParser) -> set[str]:
    """The options of a command itself."""
    return set(verb._option_string_actions) - {"-h", "--help"}


def _settings() -> set[str]:
    """The options that are settings of a run, each up to its first dot."""
    return set(re.findall(r"--[a-z_]+", packaged(SETTINGS)))


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as it is shown: ours as we show errors, others with the line that they come from."""
    if issubclass(category, Notice):
        return f"warning: {printable(str(message))}\n"
    return _shown(message, category, filename, lineno, line)


def _fail(arguments: Arguments, code: int, *problems: str) -> int:
    if arguments.traceback:
        traceback.print_exc()
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    return code


def _fit(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.run.signals import Signals

    ended = False

    def stop(came: list[signal.Signals]) -> str:
        """What a signal does before the first round and after the last, where nothing else looks after it."""
        if ended:  # and all is written
            return "the run is over; nothing is left to stop"
        raise KeyboardInterrupt(came[-1])

    with Signals(stop):  # before all that takes seconds to import
        from cgfedrec.run.advice import advice
        from cgfedrec.run.api import start
        from cgfedrec.run.console import console, show_result
        from cgfedrec.settings.sources import said

        warnings.filterwarnings("ignore", module="lightning")
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # how processes find each other
        out = console()
        with start(said(options=options), console=out) as run:
            run.fit()
            ended = True
        if run.interrupted:
            if run.processes.first:
                out.print(run.go_on, soft_wrap=True)
            return 128 + run.interrupted
        if run.processes.first:
            show_result(out, run.summary, run.data.protocol, run.training.monitor, run.directory)
            for line in advice(run):
                out.print(line, highlight=False, soft_wrap=True)
        return 0


def _estimate(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.run.console import console
    from cgfedrec.run.estimate import estimate

    warnings.filterwarnings("ignore", module="lightning")
    estimate(options, console())
    return 0


def _compare(arguments: Arguments, options: list[str]) -> int:
    no_more(options)
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


def _deploy(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.deploy.start import start

    print(start(options, arguments.nodes, Path(arguments.output)))
    return 0


def _dashboard(arguments: Arguments, options: list[str]) -> int:
    no_more(options)

    from cgfedrec.run.console import console
    from cgfedrec.run.dashboard import dashboard

    dashboard(arguments.project, arguments.entity, arguments.metric, Path(arguments.output), console())
    return 0


def _describe(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.run.api import open_data
    from cgfedrec.run.console import console
    from cgfedrec.run.describe import show_data

    out = console()
    show_data(out, open_data(options, out), details=True)
    return 0


def _diff(arguments: Arguments, options: list[str]) -> int:
    from cgfedrec.run.console import console
    from cgfedrec.run.difference import diff_files, show_difference

    show_difference(console(), diff_files(arguments.old, arguments.new, options))
    return 0


def _download(arguments: Arguments, options: list[str]) -> int:
    no_more(options)

    from cgfedrec.data.catalog import download
    from cgfedrec.run.console import console

    download(arguments.name, Path(arguments.dir), console(), arguments.url)
    return 0


def _completion(arguments: Arguments, options: list[str]) -> int:
    no_more(options)
    print(packaged(f"completion.{arguments.shell}"), end="")
    return 0


COMMANDS: dict[tuple[str, ...], Command] = {
    ("fit",): _fit,
    ("estimate",): _estimate,
    ("test",): test,
    ("validate",): validate,
    ("recommend",): recommend,
    ("export",): export,
    ("serve",): serve,
    ("compare",): _compare,
    ("tune",): _tune,
    ("deploy",): _deploy,
    ("dashboard",): _dashboard,
    ("data", "describe"): _describe,
    ("data", "diff"): _diff,
    ("data", "download"): _download,
    ("completion",): _completion,
}


if __name__ == "__main__":
    sys.exit(main())
