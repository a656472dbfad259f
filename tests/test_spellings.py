"""The same interactions, however they are written: the same users, items and held-out items."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.data.split import Part, SplitName
from cgfedrec.protocol import Protocol

Row = tuple[int, int, int]
START = 978_300_000
FORMS = {"csv": ",", "tsv": "\t", "dat": "::", "parquet": ""}


def iso(time: int, zone: int) -> str:
    return datetime.fromtimestamp(time, timezone(timedelta(minutes=zone))).isoformat()


TIMES: dict[str, Callable[[int, int], object]] = {
    "s": lambda _, time: time,
    "s, some as floats": lambda row, time: f"{time}.0" if row % 3 == 0 else time,
    "ms": lambda _, time: 1000 * time,
    "us": lambda _, time: 10**6 * time,
    "ns": lambda _, time: 10**9 * time,
    "ISO": lambda _, time: iso(time, 0)[:19],
    "ISO with a space": lambda _, time: iso(time, 0)[:19].replace("T", " "),
    "ISO with Z": lambda _, time: iso(time, 0)[:19] + "Z",
    "ISO and UTC": lambda _, time: iso(time, 0)[:19].replace("T", " ") + " UTC",
    "ISO with zones": lambda row, time: iso(time, 30 * (row % 7) - 90),
    "ISO beside numbers": lambda row, time: iso(time, 60) if row % 2 else time,
}
TYPED: dict[str, pl.Expr] = {
    "as numbers": pl.col("timestamp"),
    "as floats": pl.col("timestamp").cast(pl.Float64),
    "as decimals": pl.col("timestamp").cast(pl.Decimal(20, 3)),
    "as text": pl.col("timestamp").cast(pl.String),
    **{f"in {unit}": pl.from_epoch("timestamp").cast(pl.Datetime(unit)) for unit in ("ms", "us", "ns")},
    "with a zone": pl.from_epoch("timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
}
IDS: dict[str, pl.DataType | type[pl.DataType]] = {
    "numbers": pl.Int32,
    "text": pl.String,
    "floats": pl.Float64,
    "decimals": pl.Decimal(12, 1),
}


@dataclass(frozen=True)
class Spelling:
    """How interactions are written."""

    form: str
    columns: list[str]
    times: str
    typed: str
    ids: str
    bom: bool
    end: str
    blank: int
    quoted: bool
    packed: bool

    def write(self, rows: list[Row]) -> Path:
        """Write them, and return where."""
        path = Path(f"r.{self.form}")
        if self.form == "parquet":
            table = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
            ids = [pl.col(name).cast(IDS[self.ids]) for name in ("user", "item")]
            table.with_columns(*ids, TYPED[self.typed].alias("timestamp")).write_parquet(path)
            return path
        by = FORMS[self.form]
        lines = [by.join(self.columns)]
        for place, (user, item, time) in enumerate(rows):
            spelt = {"user": user, "item": item, "timestamp": TIMES[self.times](place, time), "title": f"a {item}"}
            fields = [str(spelt[name]) for name in self.columns]
            lines += [""] * (self.blank and place % self.blank == 0)
            lines.append(by.join(f'"{field}"' for field in fields) if self.quoted else by.join(fields))
        content = ("\ufeff" * self.bom + self.end.join(lines) + self.end).encode()
        if self.packed:
            path = Path(f"{path}.gz")
        path.write_bytes(gzip.compress(content) if self.packed else content)
        return path


SPELLINGS = st.builds(
    Spelling,
    st.sampled_from(sorted(FORMS)),
    st.permutations(["user", "item", "timestamp", "title"]),
    st.sampled_from(sorted(TIMES)),
    st.sampled_from(sorted(TYPED)),
    st.sampled_from(sorted(IDS)),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(START, START + 500)), min_size=30)


def found(path: Path, layout: Format, split: SplitName) -> dict[str, Any]:
    data = FederatedDataModule(str(path), layout, split=split, negatives=1)
    data.attach(Protocol(), 0)
    data.setup()
    held_out = [(part.starts.tolist(), data.item_ids[part.items].to_list()) for part in data._parts]
    return {"users": data.user_ids.to_list(), "items": data.item_ids.to_list(), "parts": held_out, "said": data.report}


@given(rows=ROWS, spelling=SPELLINGS, split=st.sampled_from(["leave_one_out", "temporal"]))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_however_it_is_written(rows: list[Row], spelling: Spelling, split: SplitName) -> None:
    rows = [*rows, *((20 if item < 41 else 21, item, START + 8 * item) for item in range(1, 61))]
    Path("plain.csv").write_text("user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    expected = found(Path("plain.csv"), Format(), split)
    quoted = True if spelling.quoted and spelling.form == "tsv" else None
    if spelling.form == "dat" and spelling.quoted:
        return  # a separator of several characters has no quotes
    assert found(spelling.write(rows), Format(quoted=quoted), split) == expected
    assert expected["parts"][Part.TEST][1]
