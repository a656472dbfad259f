"""What a run has measured: a row for each evaluated round.

A checkpoint holds them as one table of numbers, so that it takes no time to write however long a run becomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, TypedDict

import torch
from torch import Tensor

Row = dict[str, float]
"""What was measured in one evaluated round, by name; whole numbers are ``int``."""


class Table(TypedDict):
    """Rows as one table.

    Attributes:
        columns: The names of all that any row holds.
        whole: Those of them that hold whole numbers.
        values: `[rows, columns]`, float64. NaN if a row has no such value.
    """

    columns: list[str]
    whole: list[str]
    values: Tensor


def table_of(rows: Sequence[Row]) -> Table:
    """Rows as one table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    values = [[row.get(name, float("nan")) for name in columns] for row in rows]
    whole = [name for name in columns if all(isinstance(row.get(name, 0), int) for row in rows)]
    table = torch.tensor(values, dtype=torch.float64).reshape(len(rows), len(columns))
    return {"columns": columns, "whole": whole, "values": table}


class Growing:
    """The table of rows that are only ever added to.

    Rows that it has seen are not read again: a run asks for the table with each checkpoint, and would take longer with
    every round.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.table = table_of([])
        self.buffer = torch.empty(0, 0, dtype=torch.float64)

    def of(self, rows: Sequence[Row]) -> Table:
        """`table_of` these rows, which begin with those of before."""
        columns, whole = self.table["columns"], set(self.table["whole"])
        new = rows[self.seen :]
        if not all(_fits(row, columns, whole) for row in new):
            self.table = table_of(rows)
            self.buffer = self.table["values"]
        elif new:
            if len(rows) > len(self.buffer):
                # Twice what is needed, so that few rows are ever copied.
                grown = torch.empty(2 * len(rows), len(columns), dtype=torch.float64)
                grown[: self.seen] = self.buffer[: self.seen]
                self.buffer = grown
            added = [[row.get(name, float("nan")) for name in columns] for row in new]
            self.buffer[self.seen : len(rows)] = torch.tensor(added, dtype=torch.float64)
        self.seen = len(rows)
        # A copy of the rows that are: a checkpoint would hold all of the buffer.
        values = self.buffer[: self.seen].clone()
        return {"columns": self.table["columns"], "whole": self.table["whole"], "values": values}


def _fits(row: Row, columns: Sequence[str], whole: set[str]) -> bool:
    """Whether a row needs no other column, and has no fraction in a column of whole numbers."""
    return row.keys() <= set(columns) and all(isinstance(row[name], int) for name in whole & row.keys())


def rows_of(table: Mapping[str, Any]) -> list[Row]:
    """The inverse of `table_of`, for a table from a checkpoint, which may hold anything.

    Raises:
        ValueError: if it is no such table.
    """
    columns, whole, values = table["columns"], set(table["whole"]), table["values"]
    named = all(isinstance(name, str) for name in columns) and len(set(columns)) == len(columns)
    if not named or values.dtype != torch.float64 or values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError("the history is no table of numbers")
    return [
        {name: _number(value, name in whole) for name, value in zip(columns, row, strict=True) if not isnan(value)}
        for row in values.tolist()
    ]


def _number(value: float, whole: bool) -> float:
    if whole:
        return int(value)
    return value


class Evaluations:
    """A row for each evaluated round, of which the best is known without reading all of them again.

    Args:
        monitor: The validation metric that chooses the best round. The higher it is, the better.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.history = []

    @property
    def history(self) -> list[Row]:
        """A row for each evaluated round; rows are only ever added."""
        return self._rows

    @history.setter
    def history(self, rows: list[Row]) -> None:
        self._rows, self._table = rows, Growing()
        self._judged = self._worse = 0
        self._best: int | None = None

    def unrank(self) -> None:
        """Take out of the last row how it ranked: there was nothing to rank with yet."""
        last = {name: value for row in self.history[-1:] for name, value in row.items() if not name.startswith("val/")}
        self.history = [*self.history[:-1], *([last] if last else [])]

    @property
    def best(self) -> Row | None:
        """The row of the best round by ``monitor``, or of the last one if nothing is held out. None before any."""
        if not self.history:
            return None
        self._judge()
        if self._best is None:
            return self.history[-1]
        return self.history[self._best]

    @property
    def since_best(self) -> int:
        """How many evaluated rounds have passed since the best one."""
        self._judge()
        return self._worse

    def _judge(self) -> None:
        """Look at the rows that have come since the last time. Those of rounds that only prepare have no metric."""
        for place in range(self._judged, len(self.history)):
            if self.monitor not in self.history[place]:
                continue
            self._worse += 1
            if self._best is None or self.history[place][self.monitor] > self.history[self._best][self.monitor]:
                self._best, self._worse = place, 0
        self._judged = len(self.history)

    def table(self) -> Table:
        """The history as one table of numbers: see `table_of`."""
        return self._table.of(self.history)
