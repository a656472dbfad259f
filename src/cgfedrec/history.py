"""What a run has measured, a row an evaluated round; in a checkpoint as one table of numbers, which takes no time."""

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
