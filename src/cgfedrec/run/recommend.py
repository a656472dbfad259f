"""Recommendations in the users' and items' original ids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.centralized.vectors import SCORED_AT_ONCE
from cgfedrec.data import FederatedDataModule
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.data.report import named
from cgfedrec.errors import InputError, Notice, check, not_positive
from cgfedrec.evaluation.ranking import best
from cgfedrec.files import write_atomically
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.because import Why, because
from cgfedrec.run.export import nothing_yet
from cgfedrec.run.reference import ReferenceFit


def recommend(
    training: FederatedLoop | ReferenceFit,
    users: Sequence[object] | None = None,
    top_k: int = 10,
    why: Why | None = None,
) -> pl.DataFrame:
    """The best items for users, without any that they are known to have.

    A user that training dropped, or who never took part in it, has no model: such users are shown what is popular
    among the others, and ``source`` says so.

    Args:
        training: A federation, or a reference that is fitted.
        users: Original ids; by default everybody in the data. Those who are not in it are a `Notice` (a warning).
        top_k: How many items for each; fewer where the catalogue ends.
        why: How own items speak for what is recommended, if that is to be told (`cgfedrec.run.because.why`).

    Returns:
        Columns ``user``, ``rank``, ``item``, ``score``, ``source`` (``model`` or ``popularity``); ``title`` where the
        data have a table of items; and where it is asked for ``because``, a list of own items. A user who has every
        item has no row; `without_any` names them.

    Raises:
        InputError: if none of the users is in the data, and where nothing has been found yet to recommend by.
    """
    check(nothing_yet(training))
    data = training.data
    served, at_once = torch.ones(data.num_users, dtype=torch.bool), SCORED_AT_ONCE
    if isinstance(training, FederatedLoop):
        clients = training.clients
        at_once = clients.cohort_size
        if clients.no_newcomers():  # who never took part has nothing to score with
            served = clients.store.known
    known = _asked(data, users, top_k, "the data of this checkpoint")
    client = data.people.clients[known]
    # Number -1 stands for a user who was dropped; it would read the last client's entry, and so must not count.
    trained = (client >= 0) & served.numpy()[client]

    def scored(part: slice) -> Tensor:
        scores = data.popularity.float().repeat(len(known[part]), 1)
        chosen = torch.from_numpy(trained[part])
        if chosen.any():
            scores[chosen] = training.score(torch.from_numpy(client[part])[chosen]).cpu().float()
        return scores

    def explained(part: slice, shown: Tensor) -> list[list[list[int]]]:
        assert why is not None
        chosen = torch.from_numpy(trained[part])
        found: list[list[list[int]]] = [[[]] * shown.shape[1]] * len(chosen)
        history = data.histories(torch.from_numpy(client[part])[chosen])
        named = because(why, history, shown[chosen])
        for place, of_user in zip(chosen.nonzero().squeeze(1).tolist(), named, strict=True):
            found[place] = of_user
        return found

    source = np.where(trained, "model", "popularity")
    return _titled(_table(data, known, source, scored, at_once, top_k, explained if why else None), data)


def recommend_for(
    loop: FederatedLoop,
    newcomers: Newcomers,
    users: Sequence[object] | None = None,
    top_k: int = 10,
    why: Why | None = None,
) -> pl.DataFrame:
    """The best items for people who were not in training, by the histories that they give, without any of these.

    Args:
        loop: A federation whose clients can score by a history (`FederatedLoop.no_newcomers`).
        newcomers: Set up.
        users: Original ids; by default all newcomers.
        top_k: As of `recommend`.
        why: Likewise.

    Returns:
        The columns of `recommend`. ``source`` is ``history``, or ``popularity`` for somebody without any.

    Raises:
        InputError: for users that are none of them, for clients that need more than a history, and where nothing has
            been found yet to recommend by.
    """
    check(nothing_yet(loop))
    known = _asked(newcomers, users, top_k, "the histories that are given")
    everybody = torch.from_numpy(known)
    lengths = newcomers.histories(everybody).lengths.numpy()

    def scored(part: slice) -> Tensor:
        return loop.score_newcomers(newcomers, everybody[part]).cpu()

    def explained(part: slice, shown: Tensor) -> list[list[list[int]]]:
        assert why is not None
        return because(why, newcomers.histories(everybody[part]), shown)

    source = np.where(lengths > 0, "history", "popularity")
    table = _table(newcomers, known, source, scored, loop.clients.cohort_size, top_k, explained if why else None)
    return _titled(table, loop.data)


def _table(
    data: FederatedDataModule,
    known: NDArray[np.int64],
    source: NDArray[np.str_],
    scored: Callable[[slice], Tensor],
    cohort_size: int,
    top_k: int,
    explained: Callable[[slice, Tensor], list[list[list[int]]]] | None,
) -> pl.DataFrame:
    """A row for each recommendation.

    Args:
        data: Whose users they are, and which items there are.
        known: `[users]`: their places in ``data.people``.
        source: `[users]`: what each one's list comes from.
        scored: Gives the scores of all items for a part of them, `[users, items]`.
        cohort_size: How many are scored at once.
        top_k: How many items for each.
        explained: Gives, for a part of them and the items that are shown, `[users, k]`, the numbers of own items that
            speak for each; ``None`` if nobody asks.
    """
    tables = []
    for start in range(0, len(known), cohort_size):
        part = slice(start, start + cohort_size)
        values, items = best(scored(part), ~data.people.kept_from(known[part]), min(top_k, data.num_items))
        columns = {
            "user": data.people.ids[np.repeat(known[part], items.shape[1])],
            "rank": np.tile(np.arange(1, items.shape[1] + 1), len(items)),
            "item": data.item_ids[items.flatten().numpy()],
            "score": values.flatten().numpy(),
            "source": np.repeat(source[part], items.shape[1]),
        }
        if explained:
            own = [data.item_ids[numbers] for of_user in explained(part, items) for numbers in of_user]
            columns["because"] = pl.Series(own, dtype=pl.List(data.item_ids.dtype))
        tables.append(pl.DataFrame(columns).filter(pl.col("score").is_finite()))
    return pl.concat(tables)


def without_any(data: FederatedDataModule, table: pl.DataFrame, users: Sequence[object] | None = None) -> list[str]:
    """The ids of those users for whom `recommend` found nothing, since they have every item.

    Args:
        data: Of the users who could be asked for.
        table: What `recommend` returned.
        users: What it was asked for; those who are not in the data are named elsewhere.
    """
    known = dict.fromkeys(data.people.ids.cast(pl.String))
    asked = known if users is None else [user for user in dict.fromkeys(map(str, users)) if user in known]
    served = set(map(str, table["user"].unique()))
    return [user for user in asked if user not in served]


def _titled(table: pl.DataFrame, data: FederatedDataModule) -> pl.DataFrame:
    """The table with a column ``title`` where the data have titles, null where one is missing; in ``because``, too."""
    if data.items.path is None:
        return table
    titles = pl.Series([data.titles.get(str(item)) for item in table["item"]], dtype=pl.String)
    if "because" not in table.columns:
        return table.with_columns(titles.alias("title"))
    named = [[data.titles.get(str(item), str(item)) for item in own] for own in table["because"].to_list()]
    because = pl.Series("because", named, dtype=pl.List(pl.String))
    return table.drop("because").with_columns(titles.alias("title"), because)


def write(table: pl.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet, by the suffix of ``path``, in one atomic step; in CSV a list is one text."""
    if path.suffix == ".parquet":
        write_atomically(path, table.write_parquet)
    else:
        joined = cs.list().list.eval(pl.element().cast(pl.String)).list.join("; ")
        write_atomically(path, table.with_columns(joined).write_csv)


def _asked(data: FederatedDataModule, users: Sequence[object] | None, top_k: int, where: str) -> NDArray[np.int64]:
    """The places in ``data.people`` of those who are asked for, `[users]`."""
    nobody = None
    if users is not None and not len(users):
        nobody = "user: names nobody"
    check(not_positive("top_k", top_k), nobody)
    if users is None:
        return np.arange(len(data.people.ids))
    numbers = {str(user): number for number, user in enumerate(data.people.ids)}
    unknown = [str(user) for user in users if str(user) not in numbers]
    if unknown:
        are = "is" if len(unknown) == 1 else "are"
        problem = f"user: {named([repr(user) for user in unknown])} {are} not in {where}"
        if len(unknown) == len(users):
            raise InputError(problem)
        warnings.warn(problem, Notice, stacklevel=4)
    return np.array([numbers[str(user)] for user in users if str(user) in numbers], np.int64)
