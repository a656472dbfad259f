"""What a run has measured: a row for each evaluated round.

A checkpoint holds them as one table of numbers, so that it takes no time to write however long a run becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Row = dict[str, float]


def table_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as one table.

    Returns:
        ``columns``: the names; ``whole``: those that hold whole numbers; ``values`` `[rows, columns]`, float64: NaN
        where a row has no such value.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    values = [[row.get(name, float("nan")) for name in columns] for row in rows]
    whole = [name for name in columns if all(isinstance(row.get(name, 0), int) for row in rows)]
    table = torch.tensor(values, dtype=torch.float64).reshape(len(rows), len(columns))
    return {"columns": columns, "whole": whole, "values": table}


class Growing:
    """The table of rows that are only ever added to: those that it has seen are not read again."""

    def __init__(self) -> None:
        self.seen = 0
        self.table = table_of([])
        self.buffer = torch.empty(0, 0, dtype=torch.float64)

    def of(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`table_of` these rows, which begin with those of before."""
        columns, whole = self.table["columns"], set(self.table["whole"])
        new = rows[self.seen :]
        alike = all(
            row.keys() <= set(columns) and all(isinstance(row[name], int) for name in whole & row.keys()) for row in new
        )
        if not alike:  # another column, or the first fraction in one of whole numbers
            self.table = table_of(rows)
            self.buffer = self.table["values"]
        elif new:
            if len(rows) > len(self.buffer):
                grown = torch.empty(2 * len(rows), len(columns), dtype=torch.float64)
                grown[: self.seen] = self.buffer[: self.seen]
                self.buffer = grown
            added = [[row.get(name, float("nan")) for name in columns] for row in new]
            self.buffer[self.seen : len(rows)] = torch.tensor(added, dtype=torch.float64)
        self.seen = len(rows)
        # A copy of the rows that are: a checkpoint would hold all of the buffer.
        return self.table | {"values": self.buffer[: self.seen].clone()}


def rows_of(table: dict[str, Any]) -> list[Row]:
    """The inverse of `table_of`. Raises ``ValueError`` for what is no such table."""
    columns, whole, values = table["columns"], set(table["whole"]), table["values"]
    named = all(isinstance(name, str) for name in columns) and len(set(columns)) == len(columns)
    if not named or values.dtype != torch.float64 or values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError("the history is no table of numbers")
    return [
        {
            name: int(value) if name in whole else value
            for name, value in zip(columns, row, strict=True)
            if value == value  # NaN is not
        }
        for row in values.tolist()
    ]


class Evaluations:
    """A row for each evaluated round, of which the best is known without reading all of them again.

    Args:
        monitor: The validation metric that chooses the best round; the higher, the better.
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
        self._rows, self._judged, self._best, self._table = rows, 0, 0, Growing()

    @property
    def best(self) -> Row | None:
        """The row of the best round by ``monitor``, the last one where nothing is held out; none before the first."""
        if not self.history:
            return None
        return self.history[len(self.history) - 1 - self.since_best]

    @property
    def since_best(self) -> int:
        """How many evaluated rounds have passed since the best one."""
        if not self.history or self.monitor not in self.history[-1]:
            return 0
        for place in range(self._judged, len(self.history)):  # the rows before have been looked at
            if self.history[place][self.monitor] > self.history[self._best][self.monitor]:
                self._best = place
        self._judged = len(self.history)
        return len(self.history) - 1 - self._best

    def table(self) -> dict[str, Any]:
        """The history as one table of numbers: see `table_of`."""
        return self._table.of(self.history)
