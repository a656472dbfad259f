"""Changes: what clients had when they last added to sums, and what is different now."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.data.histories import Histories, History
from cgfedrec.data.interactions import Interactions, by_user_and_item
from cgfedrec.data.lists import Lists
from cgfedrec.errors import InputError, Notice

KINDS = ("added", "taken back", "at another time")
"""What may have become of an interaction, beside nothing."""
_COLUMNS = {"user": None, "item": None, "days": pl.Float64, "now": pl.Float64}


@dataclass(frozen=True)
class Before:
    """The histories of a run that has ended, as they lie on its clients' devices.

    Args:
        table: Columns ``user`` and ``item``, ids, and ``days``, how many days before ``now`` it was, in order of users
            and items. Items that nobody had in training have a row without a user, and users of whom nothing is left
            one without an item.
        now: The time that days were counted from, in days; ``None`` where times told none.
    """

    table: pl.DataFrame
    now: float | None

    @property
    def user_ids(self) -> pl.Series:
        """Of everybody who was there, ascending."""
        return self.table["user"].drop_nulls().unique().sort()

    @property
    def item_ids(self) -> pl.Series:
        """Of the whole catalogue, ascending: the number of an item is its place."""
        return self.table["item"].drop_nulls().unique().sort()

    def beside(self, now: Interactions, with_items: bool = False) -> Interactions:
        """Interactions of now, among the users of before too, and if that is asked for among its items.

        A `Notice` says so where ids were numbers and are text now, or the other way round: both are text then.
        """
        kinds = (("user", self.user_ids, now.user_ids), ("item", self.item_ids, now.item_ids))
        for name, theirs, ours in kinds:
            if theirs.dtype != ours.dtype:
                was, is_now = ("text", "numbers") if theirs.dtype == pl.String else ("numbers", "text")
                told = f"{name} ids were {was} before, and are {is_now} now: all are compared as text"
                warnings.warn(told, Notice, stacklevel=3)
        return now.with_ids(self.user_ids, self.item_ids if with_items else self.item_ids[:0])

    def write(self, file: BinaryIO) -> None:
        """Write it, to be read by `read`."""
        self.table.with_columns(now=pl.lit(self.now, pl.Float64)).write_parquet(file)

    @classmethod
    def read(cls, path: Path) -> Before:
        """Read what was written. Raises `InputError` if it is anything else."""
        try:
            table = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        wrong = list(table.columns) != list(_COLUMNS) or table["item"].null_count() == len(table)
        if wrong or any(kind not in (None, table[name].dtype) for name, kind in _COLUMNS.items()):
            raise InputError(f"{path}: holds no histories of a run")
        return cls(table.drop("now"), table["now"][0])


@dataclass(frozen=True)
class Changes:
    """What is different from `Before`, in the numbers of now.

    Args:
        moved: `[items of before]`, int64: the number that each has now.
        histories: What every client had, in the numbers of now.
        different: What changed, columns ``user`` and ``item``, in the numbers of now, and ``what``, one of `KINDS`.
        changed: `[users]`, bool: who has something to add or to take back.
        days: That have passed.
        counts: What changed, by what it is.
        train: The training items of each user now.
    """

    moved: NDArray[np.int64]
    histories: Histories
    different: pl.DataFrame
    changed: NDArray[np.bool_]
    days: float
    counts: dict[str, int]
    train: Lists

    def with_any(self, items: Tensor) -> Tensor:
        """Who has any of some items `[items]` now, `[users]`, bool.

        Clients see by themselves that something of theirs counts from now on, and say so; here it is looked up.
        """
        has = np.isin(self.train.items, items.numpy())
        owners = np.repeat(np.arange(len(self.train.lengths)), self.train.lengths)
        found = torch.zeros(len(self.train.lengths), dtype=torch.bool)
        found[torch.from_numpy(owners[has])] = True
        return found

    def of(self, users: Tensor) -> History:
        """What a cohort had, `[clients]`."""
        return self.histories.of(users)

    @property
    def share(self) -> float:
        """How many interactions have come or gone, as a share of those of before."""
        moved = sum(self.counts[name] for name in KINDS)
        return moved / max(1, self.counts["before"])

    @property
    def gone(self) -> float:
        """How many interactions of before are not there any more, as a share of them."""
        return self.counts["taken back"] / max(1, self.counts["before"])


def changes(
    before: Before,
    user_ids: pl.Series,
    item_ids: pl.Series,
    train: Lists,
    days: NDArray[np.float64] | None,
    now: float,
) -> Changes:
    """Compare histories.

    Args:
        before: As they were.
        user_ids: Of now, ascending; all of before are among them, as text where they were numbers and are no more.
        item_ids: Likewise.
        train: The training items of each user now.
        days: `[entries of train]`, or ``None``, how many days before ``now`` each was.
        now: In days.
    """
    moved = _places(before.item_ids, item_ids)
    had = before.table.drop_nulls(["user", "item"])
    users, items = _places(had["user"], user_ids), _places(had["item"], item_ids)
    order = by_user_and_item(users, items, len(user_ids), len(item_ids))  # as text, 10 comes before 9
    had, users, items = had[order], users[order], items[order]
    elapsed, then = 0.0, None
    if before.now is not None and days is not None:  # else times are nothing to compare
        elapsed, then = now - before.now, had["days"].to_numpy()
    histories = Histories(Lists.of(users, items, len(user_ids)), None, then)
    owners = np.repeat(np.arange(len(user_ids)), train.lengths)
    ages = np.zeros(len(owners)) if then is None or days is None else days
    of_now = pl.DataFrame({"user": owners, "item": train.items.astype(np.int64), "age": ages})
    age = np.zeros(len(users)) if then is None else then + elapsed
    of_then = pl.DataFrame({"user": users, "item": items, "age": age})
    both = of_now.join(of_then, ["user", "item"], "full", coalesce=True, suffix="_then")
    added, gone = pl.col("age_then").is_null(), pl.col("age").is_null()
    other = (pl.col("age") - pl.col("age_then")).abs() > 1e-6
    what = pl.when(added).then(pl.lit(KINDS[0])).when(gone).then(pl.lit(KINDS[1])).when(other).then(pl.lit(KINDS[2]))
    different = both.select("user", "item", what=what).drop_nulls()
    changed = np.zeros(len(user_ids), bool)
    changed[different["user"].to_numpy()] = True
    was, there = histories.train.lengths > 0, train.lengths > 0
    counts = {
        "before": len(of_then),
        **{kind: int((different["what"] == kind).sum()) for kind in KINDS},
        "unchanged": len(both) - len(different),
        "new users": int((~was & there).sum()),
        "users gone": int((was & ~there).sum()),
        "new items": len(item_ids) - len(moved),
        "items gone": len(np.setdiff1d(items, train.items)),
        "changed users": int(changed.sum()),
    }
    return Changes(moved, histories, different, changed, elapsed, counts, train)


def _places(ids: pl.Series, among: pl.Series) -> NDArray[np.int64]:
    """Where each id of before, `[ids]`, stands among those of now, `[ids]`."""
    return among.search_sorted(ids.cast(among.dtype)).to_numpy().astype(np.int64)


def before_of(
    user_ids: pl.Series,
    item_ids: pl.Series,
    train: Lists,
    days: NDArray[np.float64] | None,
    now: float | None,
) -> Before:
    """The histories of a run, to be kept; arguments are those of `changes`."""
    owners = np.repeat(np.arange(len(user_ids)), train.lengths)
    ages = pl.Series("days", days, pl.Float64) if days is not None else pl.lit(None, pl.Float64).alias("days")
    table = pl.DataFrame({"user": user_ids[owners], "item": item_ids[train.items.astype(np.int64)]}).with_columns(ages)
    nobodys = pl.DataFrame({"item": item_ids[np.setdiff1d(np.arange(len(item_ids)), train.items)]})
    return Before(pl.concat([table, nobodys], how="diagonal"), now)


def forgotten(before: Before, changes: Changes, user_ids: pl.Series, item_ids: pl.Series) -> Before:
    """What clients had, without what they took back since. Ids alone stay of it: state lies in their order.

    Args:
        before: What they had.
        changes: What is different now.
        user_ids: As of `changes`.
        item_ids: Likewise.
    """
    gone = changes.different.filter(pl.col("what") == KINDS[1])
    taken = pl.DataFrame({"user": user_ids[gone["user"]], "item": item_ids[gone["item"]]})
    table = before.table.cast({"user": user_ids.dtype, "item": item_ids.dtype})
    left = table.join(taken, ["user", "item"], "anti", maintain_order="left")
    alone = [table.select(name).drop_nulls().unique().join(left, name, "anti").sort(name) for name in ("user", "item")]
    return Before(pl.concat([left, *alone], how="diagonal"), before.now)
