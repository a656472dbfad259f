"""A table in memory becomes a file, so that a run on it can be resumed, tested and asked as any other."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xxhash

from cgfedrec.errors import InputError, check
from cgfedrec.files import write_atomically
from cgfedrec.settings.sources import Config, said

FOLDER = Path("runs") / "data"
"""Where tables are kept, each by a hash of what it holds: the same table twice is one file."""


@contextmanager
def with_table(configs: Sequence[Config], table: object) -> Iterator[list[Config]]:
    """The configs of a run whose data are a table in memory: one more, which names the file that holds it.

    Args:
        configs: What else is said of the run.
        table: A polars or pandas DataFrame; ``None`` where the configs say where the data are.

    Raises:
        InputError: if it is none, or the configs name other data. If the body finds that the table cannot be used, its
            file is removed again.
    """
    if table is None:
        yield list(configs)
        return
    other = said(configs, environment={}).who(("data", "init_args", "path"))
    check(f"data: a table is given, and {other} names data.path; give one of them" if other else None)
    buffer = io.BytesIO()
    as_polars(table).write_parquet(buffer)
    content = buffer.getvalue()
    path = FOLDER / f"{xxhash.xxh3_64_hexdigest(content)}.parquet"
    existed = path.exists()
    if not existed:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    try:
        yield [*configs, {"data.path": str(path)}]
    except InputError:
        if not existed:
            path.unlink()
            with suppress(OSError):  # other files are there
                os.removedirs(path.parent)
        raise


def as_polars(table: Any) -> pl.DataFrame:
    """A polars or pandas DataFrame as a polars one, without the index. Raises `InputError` for anything else."""
    if isinstance(table, pl.DataFrame):
        return table
    if isinstance(table, pl.LazyFrame):
        raise InputError("data: is a polars LazyFrame; give what its collect() returns")
    if type(table).__module__.split(".")[0] != "pandas" or not hasattr(table, "columns"):
        raise InputError(f"data: must be a polars or pandas DataFrame, not {type(table).__name__}")
    try:
        return pl.DataFrame([_column(str(name), table.iloc[:, place]) for place, name in enumerate(table.columns)])
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise InputError(f"data: {str(error).splitlines()[0]}") from error


def _column(name: str, column: Any) -> pl.Series:
    """A column of pandas, `[rows]`. What is missing is null."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufbM":
        return pl.Series(name, column.to_numpy())
    values = column.astype(object).where(column.notna(), None).to_list()
    try:
        return pl.Series(name, values)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"data: the column {name!r} holds values of several types") from error
