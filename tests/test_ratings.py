from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cgfedrec.data import Format
from cgfedrec.data.quotes import Quotes, check_text
from cgfedrec.data.ratings import read
from cgfedrec.data.source import find
from cgfedrec.errors import InputError, Notice

POSITIONS = Format(header=False, user_column=0, item_column=1, timestamp_column=2)
TABLE = "user,item,timestamp\n1,a,10\n2,b,20\n1,b,30\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "layout"),
    [
        ("a.csv", TABLE, Format()),
        ("a.tsv", TABLE.replace(",", "\t"), Format()),
        ("a.dat", TABLE.replace(",", "::"), Format()),
        ("a.dat", "1::a::10\n2::b::20\n1::b::30\n", POSITIONS),
        ("a.csv", "1,a,10\n2,b,20\n1,b,30\n", POSITIONS),
        ("a.txt", TABLE.replace(",", ";"), Format(separator=";")),
        ("a.csv", TABLE.replace("\n", "\r\n"), Format()),
        ("a.csv", "\ufeff" + TABLE, Format()),
        ("a.csv", "when,who,what\n10,1,a\n20,2,b\n30,1,b\n", Format(None, True, "who", "what", None, "when")),
        ("a.csv", '"user","item","timestamp"\n"1","a",10\n"2","b",20\n\n"1","b",30\n', Format()),
    ],
)
def test_text_in_every_layout(name: str, text: str, layout: Format, tmp_path: Path) -> None:
    data = read(write(tmp_path / name, text), layout)
    assert data.user_ids.to_list() == [1, 2]
    assert data.item_ids.to_list() == ["a", "b"]
    assert data.users.tolist() == [0, 1, 0]
    assert data.items.tolist() == [0, 1, 1]
    assert data.times is not None
    assert data.times.tolist() == [10, 20, 30]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz"])
def test_gzip(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(TABLE.replace(",", "\t" if "tsv" in name else ",").encode()))
    assert read(path).users.tolist() == [0, 1, 0]


def test_parquet_with_any_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    days = pl.Series(["2024-01-02", "2024-01-01"]).str.to_date()
    pl.DataFrame({"user": [3, 1], "item": ["x", "y"], "timestamp": days}).write_parquet(path)
    data = read(path)
    assert data.user_ids.to_list() == [1, 3]
    assert data.users.tolist() == [1, 0]
    assert data.times is not None
    assert data.times[0] > data.times[1]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["10", "9", "9"], [9, 10]),
        (["007", "7", "7"], ["007", "7"]),
        (["b", "a", "7"], ["7", "a", "b"]),
        (["-1", "99999999999999999999", "-1"], ["-1", "99999999999999999999"]),
    ],
)
def test_ids_are_numbers_where_nothing_is_lost(ids: list[str], expected: list[object], tmp_path: Path) -> None:
    rows = "".join(f"{id},{n},0\n" for n, id in enumerate(ids))
    assert read(write(tmp_path / "a.csv", rows), POSITIONS).user_ids.to_list() == expected


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01", "2024-01-01T00:00:01", "2024-01-01 01:00"],
        ["2024-01-01T12:00:00Z", "2024-01-01T12:00:00.5Z", "2024-01-01T12:30:00+00:00"],
        ["2024-01-01T12:00:00+02:00", "2024-01-01T11:00:00Z", "2024-01-01T12:00:00+00:30"],
        ["1.5", "1.75", "2e3"],
    ],
)
def test_times_as_numbers_or_iso_dates(times: list[str], tmp_path: Path) -> None:
    rows = "".join(f"1,{n},{time}\n" for n, time in enumerate(times))
    parsed = read(write(tmp_path / "a.csv", rows), POSITIONS).times
    assert parsed is not None
    assert (np.diff(parsed) > 0).all()


def test_duplicates_keep_the_earliest_row_and_are_counted(tmp_path: Path) -> None:
    data = read(write(tmp_path / "a.csv", "1,a,10\n1,a,5\n1,b,7\n"), POSITIONS)
    assert data.times is not None
    assert data.times.tolist() == [5, 7]
    assert data.report["duplicates"] == 1


def test_a_threshold_makes_low_ratings_known_but_not_positive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,a,5,0\n1,b,2.5,1\n1,c,4,2\n")
    data = read(path, Format(None, False, 0, 1, 2, 3, threshold=4))
    assert data.positive.tolist() == [True, False, True]
    assert data.report["below the threshold"] == 1


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("", POSITIONS, "the file is empty"),
        ("user,item,timestamp\n", Format(), "no rows"),
        (TABLE, Format(user_column="who"), "no column 'who'; the file has 3 columns: user, item, timestamp"),
        (TABLE, Format(user_column=7), "no column at position 7"),
        ("user,item\n1,a\n", Format(), "timestamp_column a name or a position from 0, or set it to null"),
        ("1,a,10\n2,b,soon\n", POSITIONS, "line 2: the time is 'soon', expected a number or an ISO date"),
        ("user,item,timestamp\n1,a,10\n\n2,b\n", Format(), "line 4: the time is missing"),
        ("1,a,10\n,b,20\n", POSITIONS, "line 2: the user is missing"),
        ("1,a,10\n2,b,20,30\n", POSITIONS, "line 2: 4 fields, expected 3"),
        ("1,a,10\n2,b,nan\n", POSITIONS, "line 2: the time is 'nan'"),
        ('1,a,10\n2,"b,20\n', POSITIONS, "a.csv"),
        (
            "user;item;timestamp\n1;a;10\n",
            Format(),
            "(';' may stand between its fields: data.format.separator says so)",
        ),
        ("1;a;4,5;10\n", Format(";", False, 0, 1, 2, 3, 4), "the rating is '4,5', expected a number such as 4.5"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, layout: Format, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "a.csv", text), layout)
    assert "a.csv" in str(error.value)
    assert message in str(error.value)


def test_a_rating_that_is_no_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,a,5,0\n1,b,NaN,1\n1,c,,2\n1,d,good,2\n")
    layout = Format(None, False, 0, 1, 2, 3, threshold=4)
    with pytest.raises(InputError) as error:
        read(path, layout)
    *rows, hint = error.value.problems
    assert len(rows) == 3
    assert hint == f"{path}: data.format.bad_rows drop leaves these rows out"
    kept = read(path, Format(None, False, 0, 1, 2, 3, threshold=4, bad_rows="drop"))
    assert kept.report["unreadable rows"] == 3
    assert kept.item_ids.to_list() == ["a"]


def test_many_bad_rows_are_counted_and_few_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "a.csv", "1,a,1\n" * 20 + "1,a,x\n" * 9), POSITIONS)
    assert "line 21" in error.value.problems[0]
    assert "4 more rows like these" in error.value.problems[-1]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,\xff\xfe,3\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read(tmp_path / "a.csv", POSITIONS)
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a Parquet file"):
        read(tmp_path / "a.parquet", POSITIONS)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "b.csv", POSITIONS)


def test_lines_are_counted_through_quoted_line_breaks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 4: the time is 'x'"):
        read(write(tmp_path / "a.csv", 'user,item,timestamp\n1,"a\nb",1\n1,c,x\n'))


def test_files_that_are_no_parts_of_a_folder_are_named(tmp_path: Path) -> None:
    part = pl.DataFrame({"user": [1, 2], "item": [3, 4], "timestamp": [5, 6]})
    (tmp_path / "day=1").mkdir()
    (tmp_path / "_delta_log").mkdir()
    part.write_parquet(tmp_path / "day=1" / "a.parquet")
    for spark in ("_SUCCESS", ".a.parquet.crc", "_delta_log/0.json"):
        (tmp_path / spark).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(tmp_path).users) == 2
    for name in ("b.csv", "c.pq", "day=1/d.parquet.gz"):
        (tmp_path / name).touch()
    with pytest.warns(Notice, match=r"3 other files are not read, .*: b\.csv, c\.pq, day=1/d\.parquet\.gz$"):
        read(tmp_path)


def test_odd_columns_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame(
        {"user": pl.Series([2**63 + 1, 1], dtype=pl.UInt64), "item": [1, 2], "timestamp": [1, 2]}
    ).write_parquet(path)
    assert read(path).user_ids.to_list() == ["1", str(2**63 + 1)]
    pl.DataFrame({"user": [[1], [2]], "item": [1, 2], "timestamp": [1, 2]}).write_parquet(path)
    with pytest.raises(InputError, match=r"a\.parquet"):
        read(path)


def test_odd_text_with_double_colons(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"1::\xff::3\n")
    for text, message in (
        (None, "not UTF-8"),
        ("user::user::t\n1::2::3\n", "same name"),
    ):
        if text is not None:
            write(tmp_path / "a.dat", text)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.dat", Format() if text and "user" in text else POSITIONS)


def test_double_colons_with_a_wrong_number_of_fields(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: 4 fields, expected 3"):
        read(write(tmp_path / "a.dat", "1::a::10\n2::b::20::9\n"), POSITIONS)
    with pytest.raises(InputError, match="line 2: the time is missing"):
        read(write(tmp_path / "a.dat", "1::a::10\n2::b\n"), POSITIONS)


@pytest.mark.parametrize("chunk", [4, 5, 7, 64])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\ufeff"1",é,10\r\n1,"b""é\n"\r\n'.encode(), None),
        (b'1,a,10\n"1",b"b",10\n', "line 2: a quote that neither"),
        (b'1,a,10\n1,"b"b,10\n', "line 2: a quote that neither"),
        (b'1,a,10\n1,"b",10\n1,"c"",10\n1,d,10\n', "line 3: a quoted field begins that never ends"),
        ("1,é,10\n1,é,10\n1,".encode() + b"\xe9,10\n", "line 3: not UTF-8"),
        ("1,é,10\n1,é,10\n1,é".encode()[:-1], "line 3: not UTF-8"),
    ],
)
def test_a_text_is_checked_whatever_is_read_at_once(
    text: bytes, message: str | None, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgfedrec.data.quotes.CHUNK", chunk)
    (tmp_path / "a.csv").write_bytes(text)
    found = find(tmp_path / "a.csv", POSITIONS)
    if message is None:
        assert check_text(found, POSITIONS, ",") == Quotes(True, 1)
        return
    with pytest.raises(InputError, match=message):
        check_text(found, POSITIONS, ",")
