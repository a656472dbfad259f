"""What the command line and Python start: train, resume, open a checkpoint, open data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from cgfedrec.data.arguments import origin
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.errors import InputError, Notice
from cgfedrec.run.checkpoint import LAST, State, read_with_clients
from cgfedrec.run.console import quiet_console
from cgfedrec.run.describe import tell_of_ratings
from cgfedrec.run.folder import CLIENTS, run_folder
from cgfedrec.run.frame import with_table
from cgfedrec.run.opened import data_of, open_run
from cgfedrec.run.rolling import RollingRun, is_rolling
from cgfedrec.run.run import Run
from cgfedrec.run.update import Update, before_beside
from cgfedrec.settings.layers import UNLOGGED
from cgfedrec.settings.opening import checkpoint_in, refuse_of_fit, settings_in
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import Config, Said, said

TITLES = ("data", "init_args", "items", "path")
"""Where the settings name the table of items."""
OTHERS = ("path", "format")
"""Settings of data that may be said of other people's than those in training."""


def fit(*configs: Config, data: object = None, callbacks: Sequence[object] = (), console: Console | None = None) -> Run:
    """Train, as `cgfedrec fit` does.

    Args:
        configs: YAML files and mappings of options, later ones overriding earlier ones. ``ckpt_path`` and ``run_dir``
            are options too.
        data: A polars or pandas DataFrame in place of ``data.path``, with the columns that ``data.format`` names. It is
            kept below ``runs/data``, so that the run can be opened again.
        callbacks: Objects with some of the hooks that `cgfedrec.run.callbacks` names.
        console: Where progress and results are shown; by default nowhere.

    Raises:
        InputError: if anything that was given cannot be used, naming all of it; nothing has been written then.
        RunError: if training fails; the last good checkpoint is kept.
    """
    with with_table(configs, data) as given, start(said(given), callbacks, console) as run:
        run.fit()
    return run


@contextmanager
def start(given: Said, callbacks: Sequence[object] = (), console: Console | None = None) -> Iterator[Run]:
    """A run as is said, new or resumed, which holds its folder while the body trains it.

    The body calls `Run.fit` itself. So four calls lie between ``cgfedrec fit`` and a client's ``training_step``, each
    of which does work of its own: `Run.fit` (the folder, the test, the summary), `FederatedLoop.fit` (rounds),
    `FederatedLoop.train` (one cohort, on a worker's thread) and `cgfedrec.train.train` (batches and steps).

    Args:
        given: What the run is told.
        callbacks: As of `fit`.
        console: As of `fit`.

    Raises:
        InputError: if anything that was given cannot be used, naming all of it; nothing has been written then.
    """
    checkpoint, older = checkpoint_in(given), checkpoint_in(given, "update_from")
    state = base = update = None
    if checkpoint and older:
        raise InputError("update_from, ckpt_path: a run goes on from one of them, not from both")
    if older:
        update = Update.read(older)
        base = settings_in(update.state["config"], given)
    if checkpoint:
        state = read_with_clients(checkpoint, LAST)
        base = settings_in(state["config"], given)
    settings = parse(given, base)
    if is_rolling(settings):
        if state or update:
            named = "ckpt_path" if state else "update_from"
            raise InputError(f"{named}: a rolling evaluation has none; {RollingRun.GO_ON}")
        with run_folder(settings) as directory:
            rolling = RollingRun(settings, directory, callbacks, console)
            tell_of_ratings(rolling.console, rolling.data, given)
            yield rolling
    else:
        with open_run(settings, state, checkpoint, callbacks, console, update) as run:
            del state
            if base is None:  # a run that goes on has been told
                tell_of_ratings(run.console, run.data, given)
            yield run


def load(ckpt_path: str | Path, *configs: Config, options: Sequence[str] = (), console: Console | None = None) -> Run:
    """Open a checkpoint, to test it or to ask for recommendations.

    It is read as data: it imports nothing but what `cgfedrec.settings.trust` lists and what these overrides name.

    Args:
        ckpt_path: A checkpoint of `fit`.
        configs: Overrides of the config that it was trained with: where the data now lie, say.
        options: The same as command-line options.
        console: Where it is said which data are read; by default nowhere.

    Raises:
        InputError: if the checkpoint cannot be read, or the data are not those that it was trained on.
    """
    path = Path(ckpt_path)
    return _opened(path, read_with_clients(path), of_use(configs, options), console)


def load_beside(
    ckpt_path: str | Path, apart: Sequence[str], options: Sequence[str] = (), console: Console | None = None
) -> tuple[Run, FederatedDataModule]:
    """Open a checkpoint beside data of other people, which some of the options speak of.

    Args:
        ckpt_path: As of `load`.
        apart: The settings of ``data`` that are said of the other data alone; the checkpoint's own are as it says.
        options: As of `load`.
        console: As of `load`.

    Returns:
        The run, and a data module with the settings of the other data, which is not set up.

    Raises:
        InputError: as `load`.
    """
    given, path = of_use((), options), Path(ckpt_path)
    state = read_with_clients(path)
    others: FederatedDataModule = instantiate(parse(given, settings_in(state["config"], given))).data
    return _opened(path, state, given.without("data", apart), console), others


def load_to_test(
    ckpt_path: str | Path, options: Sequence[str] = (), console: Console | None = None
) -> tuple[Run, Newcomers | None]:
    """Open a checkpoint to test it, on its own data or on those of other people (``data.path``).

    Data are other ones if their fingerprint is another. They are split and measured as the checkpoint's own.

    Returns:
        The run on its own data, and the other people, or ``None`` where there are none.

    Raises:
        InputError: as `load`; where the checkpoint's own data, which name its items, cannot be read; and for methods
            whose clients cannot serve people who were not in training.
    """
    given, path = of_use((), options), Path(ckpt_path)
    state = read_with_clients(path)
    own, asked = (parse(said, settings_in(state["config"], said)) for said in (given.without("data", OTHERS), given))
    if own.data == asked.data or _is_trained_on(path, state, asked):
        return _opened(path, state, given, console), None
    where = asked.data.init_args.path
    try:
        run = _opened(path, state, given.without("data", OTHERS), console)
    except InputError as error:
        raise InputError(
            [f"ckpt_path: was trained on other data than {where}; its own are needed too:", *error.problems]
        ) from error
    return run, run.newcomers(where, instantiate(asked).data.format, tested=True)


def _is_trained_on(path: Path, state: State, settings: Namespace) -> bool:
    """Whether a checkpoint was trained on the data of these settings."""
    try:
        return data_of(settings, before=before_beside(path.parent)).fingerprint() == state["fingerprint"]
    except InputError:  # then whoever reads them next says why
        return False


def of_use(configs: Sequence[Config], options: Sequence[str]) -> Said:
    """What is said to a command that only uses a checkpoint."""
    given = said([*configs, UNLOGGED | {"callbacks": None}], options)
    refuse_of_fit(given, "a checkpoint that is only used")
    return given


def _opened(path: Path, state: State, given: Said, console: Console | None) -> Run:
    settings = parse(given, settings_in(state["config"], given))
    items = settings.data.init_args.get("items")
    if items and items.path and not given.who(TITLES) and not Path(items.path).exists():
        warnings.warn(f"no titles: {items.path} of the run is not there; --data.items.path names another", Notice, 3)
        items.path = None
    if console:
        name = origin(settings.data.init_args.path, settings.data.class_path)
        console.print(f"data: {name}", highlight=False, soft_wrap=True)
    run = Run(settings, path.parent, console=console, clients=path.parent / CLIENTS, to_train=False)
    run.restore(state)
    return run


def open_data(options: Sequence[str], console: Console | None = None) -> FederatedDataModule:
    """The data that the options of a run name, read and split. Raises `InputError` where they cannot serve."""
    given = said(options=options)
    refuse_of_fit(given, "data describe")
    data = data_of(parse(given), console)
    tell_of_ratings(console or quiet_console(), data, given)
    return data
