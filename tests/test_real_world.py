"""Inputs of kinds that people have, through the command line: what each must say, by value.

`PLAIN` is one table of interactions; most cases are the same in other clothes. A case is a line in `SAME` (read as
`PLAIN`, which a checkpoint of `PLAIN` proves: it refuses other users, items or held-out items), in `COUNTED` (the same
again, with something left out and counted) or in `REFUSED` (exit code 2, and what must be said).
"""

from __future__ import annotations

import bz2
import gzip
import json
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from cgfedrec.cli import main
from tests.conftest import TINY

Row = tuple[int, int, int]
NAMES = ("user", "item", "timestamp")
START, FINE = 978_300_000, 10**9


def plain() -> list[Row]:
    """12 users with 7 of 22 items each, shuffled, no two at the same time."""
    rng = np.random.default_rng(5)
    pairs = [(user, 100 + int(item)) for user in range(1, 13) for item in rng.permutation(22)[:7]]
    assert len({item for _, item in pairs}) == 22
    times = START + 97 * rng.permutation(len(pairs))
    return [(*pairs[place], int(times[place])) for place in rng.permutation(len(pairs))]


PLAIN = plain()


def text(rows: Sequence[Sequence[Any]] = PLAIN, by: str = ",", names: Sequence[str] = NAMES, end: str = "\n") -> str:
    return "".join(by.join(map(str, row)) + end for row in [names, *rows] if row)


def with_third(values: dict[int, str], by: str, names: str = "title") -> str:
    """A column between that nobody reads: of some rows, given; of the others, a word."""
    rows = [(user, item, values.get(place, f"name{item}"), time) for place, (user, item, time) in enumerate(PLAIN)]
    return text(rows, by, ("user", "item", names, "timestamp"))


def with_times(spell: Callable[[int, int], object]) -> str:
    """Times spelt anew, by place and seconds."""
    return text([(user, item, spell(place, time)) for place, (user, item, time) in enumerate(PLAIN)])


def at(time: int, hours: int = 0) -> datetime:
    return datetime.fromtimestamp(time, timezone(timedelta(hours=hours)))


def frame(**columns: Any) -> pl.DataFrame:
    users, items, times = zip(*PLAIN, strict=True)
    return pl.DataFrame({"user": users, "item": items, "timestamp": times}).with_columns(**columns)


def parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: frame(**columns).write_parquet(path)


def spark(folder: Path) -> None:
    """As Spark leaves a table: parts, their checksums, and a mark that it is done."""
    folder.mkdir()
    for part in range(3):
        name = f"part-0000{part}-c000.snappy.parquet"
        frame()[part * 28 : (part + 1) * 28].write_parquet(folder / name)
        (folder / f".{name}.crc").write_bytes(b"crc\x00")
    (folder / "_SUCCESS").touch()
    (folder / "._part.parquet").write_bytes(b"what a Mac adds")


def zipped(*names: str, content: str | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(
                    name, text(by="\t" if name.lower().endswith(".tsv") else ",") if content is None else content
                )

    return write


def put(path: Path, content: str | bytes | Callable[[Path], None]) -> Path:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def reading(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in (f"--data.format.{name}", str(value))]


BY_POSITION = reading(user_column=0, item_column=1, timestamp_column=2)
QUOTED = [[f'"{value}"' for value in row] for row in PLAIN]
LATIN = with_third({3: "Café", 50: "Señor"}, ",").encode("latin-1")
HALVES = with_third({20: '"Half open', 60: '7"'}, "\t")

SAME: dict[str, tuple[str, str | bytes | Callable[[Path], None], list[str]]] = {
    "as it is": ("a.csv", text(), []),
    "BOM and CRLF": ("a.csv", "\ufeff" + text(end="\r\n"), []),
    "BOM before a quote": ("a.csv", "\ufeff" + text(QUOTED, names=['"user"', '"item"', '"timestamp"']), []),
    "blank lines": ("a.csv", "\n\n" + text().replace("\n", "\n\n"), []),
    "no last line end": ("a.csv", text().rstrip("\n"), []),
    "a comma behind each line": ("a.csv", text(end=",\n"), []),
    "semicolons": ("a.csv", text(by=";"), reading(separator=";")),
    "pipes": ("a.txt", text(by="|"), reading(separator="|")),
    "tabs": ("a.tsv", text(by="\t"), []),
    "double colons with CRLF": ("a.dat", "\ufeff" + text(by="::", end="\r\n"), []),
    "double colons, blank lines": ("a.dat", "\n" + text(by="::").replace("\n", "\n\n"), []),
    "gzip": ("a.csv.gz", gzip.compress(text().encode()), []),
    "gzip of double colons": ("a.dat.gz", gzip.compress(text(by="::").encode()), []),
    "gzip by content": ("a.csv", gzip.compress(text().encode()), []),
    "capitals": ("A.TSV", text(by="\t"), []),
    "capitals of Parquet": ("A.PARQUET", parquet(), []),
    "a zip with one file": ("a.csv.zip", zipped("r.csv"), []),
    "a zip that names the separator": ("a.zip", zipped("R.TSV", "__MACOSX/._R.TSV"), []),
    "Spark's folder": ("parts", spark, []),
    "RecBole": (
        "a.inter",
        text(
            [(u, i, 4.0, f"{t}.0") for u, i, t in PLAIN],
            "\t",
            ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
        ),
        reading(
            separator="\t",
            user_column="user_id:token",
            item_column="item_id:token",
            timestamp_column="timestamp:float",
        ),
    ),
    "no header": ("a.csv", text(names=()), [*BY_POSITION, *reading(header="false")]),
    "columns by position": ("a.csv", text(), BY_POSITION),
    "titles with commas, quotes and line ends": (
        "a.csv",
        with_third({n: f'"A, ""B""\nline {n}"' for n in range(84)}, ","),
        [],
    ),
    "a lone quote in tabs": ("a.tsv", with_third({20: '"', 60: '"'}, "\t"), []),
    "a quoted word in tabs": ("a.tsv", with_third({20: '"Weird" one'}, "\t"), []),
    "inches in tabs": ("a.tsv", with_third({20: '12" mix'}, "\t"), []),
    "one quote in tabs": ("a.tsv", with_third({20: '"Plain'}, "\t"), []),
    "halves of quotes in tabs": ("a.tsv", HALVES, []),
    "halves of quotes in double colons": ("a.dat", HALVES.replace("\t", "::"), []),
    "inches in a CSV that is not quoted": ("a.csv", with_third({20: '12" mix'}, ","), reading(quoted="false")),
    "tabs that are quoted": ("a.tsv", with_third({20: '"a\tb"'}, "\t"), reading(quoted="true")),
    "Latin-1": ("a.csv", LATIN, reading(encoding="latin-1")),
    "UTF-16 of a spreadsheet": ("a.tsv", text(by="\t").encode("utf-16"), reading(encoding="utf-16")),
    "milliseconds": ("a.csv", with_times(lambda _, time: time * 1000 + 1), []),
    "nanoseconds": ("a.csv", with_times(lambda _, time: time * FINE + 123_456_789), []),
    "times of which floats are the same": ("a.csv", with_times(lambda _, t: 10**18 + (t - START) // 97), []),
    "the same as floats": ("a.csv", with_times(lambda _, t: f"{10**18 + (t - START) // 97}.0"), []),
    "times before 1970": ("a.csv", with_times(lambda _, time: time - 2 * FINE), []),
    "numbers of both kinds": ("a.csv", with_times(lambda n, time: f"{time}.0" if n % 3 == 0 else time), []),
    "fractions": ("a.csv", with_times(lambda n, time: f"{time}.25" if n % 3 == 0 else time), []),
    "ISO in many zones": ("a.csv", with_times(lambda n, time: at(time, n % 5 - 2).isoformat()), []),
    "ISO and UTC": ("a.csv", with_times(lambda _, time: f"{at(time):%Y-%m-%d %H:%M:%S} UTC"), []),
    "ISO without seconds": (
        "a.csv",
        with_times(lambda _, t: f"{at(START) + (t - START) // 97 * timedelta(minutes=1):%Y-%m-%dT%H:%MZ}"),
        [],
    ),
    "ISO to the nanosecond": (
        "a.csv",
        with_times(lambda _, t: f"2001-01-01T10:00:00.{100_000_000 + (t - START) // 97}Z"),
        [],
    ),
    "ISO and numbers": ("a.csv", with_times(lambda n, t: t if n % 2 else f"{at(t):%Y-%m-%dT%H:%M:%S}Z"), []),
    "ISO and a few numbers, bad rows dropped": (
        "a.csv",
        with_times(lambda n, t: t * 1000 if n % 9 == 0 else f"{at(t):%Y-%m-%d %H:%M:%S} +00:00"),
        reading(bad_rows="drop"),
    ),
    "Parquet": ("a.parquet", parquet(), []),
    "Parquet with floats as ids": (
        "a.parquet",
        parquet(user=pl.col("user").cast(pl.Float64), item=pl.col("item").cast(pl.Float32)),
        [],
    ),
    "Parquet with decimals as ids": ("a.parquet", parquet(user=pl.col("user").cast(pl.Decimal(20, 2))), []),
    "Parquet with ids as text": ("a.parquet", parquet(user=pl.col("user").cast(pl.String).cast(pl.Categorical)), []),
    "Parquet with decimals as times": ("a.parquet", parquet(timestamp=pl.col("timestamp").cast(pl.Decimal(18, 2))), []),
    "Parquet with zones": (
        "a.parquet",
        parquet(timestamp=pl.from_epoch("timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")),
        [],
    ),
    "Parquet with times to the nanosecond": (
        "a.parquet",
        parquet(timestamp=((pl.col("timestamp") - START) // 97 + START * FINE).cast(pl.Datetime("ns"))),
        [],
    ),
}

COUNTED: dict[str, tuple[str, str | bytes | Callable[[Path], None], list[str], str]] = {
    "a repeated header": ("a.csv", text([*PLAIN[:10], NAMES, *PLAIN[10:]]), [], "left out: 1 repeated header"),
    "in tabs, bad rows dropped": (
        "a.tsv",
        text([*PLAIN[:10], NAMES, NAMES, *PLAIN[10:]], "\t"),
        reading(bad_rows="drop"),
        "left out: 2 repeated headers",
    ),
    "in double colons": ("a.dat", text([*PLAIN, NAMES], "::"), [], "left out: 1 repeated header"),
    "too many fields": (
        "a.csv",
        text([*PLAIN[:10], (1, 100, 5, 6), (1, 100, 5, "", 6), *PLAIN[10:]]),
        reading(bad_rows="drop"),
        "left out: 2 unreadable rows",
    ),
    "too many beside quotes": (
        "a.csv",
        text([*QUOTED[:10], ('"1\n"', 100, 5, '"a\nb"'), *QUOTED[10:]]),
        reading(bad_rows="drop"),
        "left out: 1 unreadable row",
    ),
    "too many in double colons": (
        "a.dat",
        text([*PLAIN[:10], (1, 100, 5, 6), *PLAIN[10:]], "::"),
        reading(bad_rows="drop"),
        "left out: 1 unreadable row",
    ),
    "too few fields": ("a.csv", text([*PLAIN, (1, 100)]), reading(bad_rows="drop"), "left out: 1 unreadable row"),
    "a bad time among ISO": (
        "a.csv",
        text([*PLAIN, (1, 100, "soon"), (1, 101, "nan")]),
        reading(bad_rows="drop"),
        "left out: 2 unreadable rows",
    ),
    "users that are missing": (
        "a.parquet",
        lambda path: pl.concat(
            [
                frame(user=pl.col("user").cast(pl.Float64)),
                pl.DataFrame({"user": [float("nan")] * 4, "item": [100, 101, 102, 103], "timestamp": [1, 2, 3, 4]}),
            ]
        ).write_parquet(path),
        reading(bad_rows="drop"),
        "left out: 4 unreadable rows",
    ),
    "line ends within quotes, which may be lost rows": (
        "a.csv",
        with_third({20: '"a\nb"', 30: '"c\n\nd"'}, ","),
        [],
        "; 3 line ends within quotes",
    ),
}

REFUSED: dict[str, tuple[str, str | bytes | Callable[[Path], None], list[str], list[str]]] = {
    "a row taken for names": ("a.csv", text(names=()), BY_POSITION, ["line 1", "data.format.header false"]),
    "a row without a time taken for names": (
        "a.csv",
        "".join(f"{user},{item}\n" for user, item, _ in PLAIN),
        ["--data.split", "random", *reading(user_column=0, item_column=1, timestamp_column="null")],
        ["line 1", "data.format.header false"],
    ),
    "the same with words": (
        "a.csv",
        "".join(f"u{user},i{item}\n" for user, item, _ in PLAIN),
        ["--data.split", "random", *reading(user_column=0, item_column=1, timestamp_column="null")],
        ["line 1", "data.format.header false"],
    ),
    "two columns of one name": (
        "a.csv",
        text([(*row, 1) for row in PLAIN], names=(*NAMES, "item")),
        [],
        ["two columns have the same name, 'item'", "1 or 3"],
    ),
    "the same in double colons": (
        "a.dat",
        text([(*row, 1) for row in PLAIN], "::", (*NAMES, "item")),
        [],
        ["two columns have the same name, 'item'"],
    ),
    "too many fields": ("a.csv", text([*PLAIN[:9], (1, 1, 1, 1)]), [], ["a.csv, line 11: 4 fields, expected 3"]),
    "too many fields in a table of numbers, one of them read by nobody": (
        "a.csv",
        text([*((*row, 5) for row in PLAIN[:9]), (1, 1, 1, 1, 1)], names=(*NAMES, "rating")),
        [],
        ["a.csv, line 11: 5 fields, expected 4"],
    ),
    "a quote within a word": ("a.csv", with_third({20: '12" mix'}, ","), [], ["line 22", "data.format.quoted false"]),
    "a word behind a quote": ("a.csv", with_third({20: '"Weird" one'}, ","), [], ["line 22"]),
    "a quote without an end": ("a.csv", with_third({20: '"Half open'}, ","), [], ["line 22", "never ends"]),
    "backslashes": ("a.csv", with_third({9: '"\\"122"'}, ";"), reading(separator=";"), ["a.csv, line 11"]),
    "Latin-1": ("a.csv", LATIN, [], ["a.csv, line 5", "not UTF-8", "data.format.encoding", "latin-1"]),
    "Latin-1 in double colons": ("a.dat", LATIN.replace(b",", b"::"), [], ["line 5", "not UTF-8"]),
    "UTF-16": ("a.csv", text().encode("utf-16"), [], ["line 1", "data.format.encoding, utf-16"]),
    "not ASCII": ("a.csv", LATIN, reading(encoding="ascii"), ["line 5: not text in ascii"]),
    "no encoding": ("a.csv", LATIN, reading(encoding="latin-one"), ["data.format.encoding: 'latin-one'"]),
    "old Macs": ("a.csv", text(end="\r"), [], ["CR alone"]),
    "a gzip cut short": ("a.csv.gz", gzip.compress(text().encode())[:-30], [], ["a.csv.gz: is damaged"]),
    "a damaged gzip": (
        "a.csv.gz",
        (packed := gzip.compress(text().encode()))[:60] + bytes(40) + packed[100:],
        [],
        ["a.csv.gz: is damaged"],
    ),
    "bzip2": ("a.csv.bz2", bz2.compress(text().encode()), [], ["packed with bzip2", "gzip"]),
    "a zip with two files": ("a.zip", zipped("r.csv", "s.csv"), [], ["holds 2 files (r.csv, s.csv)", "unpack it"]),
    "a folder": ("folder", lambda path: path.mkdir(), [], ["is a folder without Parquet parts"]),
    "users that are missing": (
        "a.parquet",
        parquet(user=pl.when(pl.col("item") == 100).then(float("nan")).otherwise(pl.col("user"))),
        [],
        ["the user is nan, expected an id", "row "],
    ),
    "a struct as time": ("a.parquet", parquet(timestamp=pl.struct("timestamp")), [], ["the time is of type Struct"]),
    "a list as user": ("a.parquet", parquet(user=pl.concat_list("user")), [], ["the user is of type List"]),
    "times that floats cannot tell apart": (
        "a.parquet",
        parquet(timestamp=(pl.col("timestamp") * FINE).cast(pl.Float64)),
        [],
        ["the time holds floats beyond 2^53"],
    ),
    "the same in text": (
        "a.csv",
        with_times(lambda n, time: f"{time}.12345678{n % 10}" if n % 2 else f"{START}.123456789{n}"),
        [],
        ["the time holds 978300000.", "the same float"],
    ),
    "ids that floats cannot tell apart": (
        "a.parquet",
        parquet(user=(pl.col("user") + 2**60).cast(pl.Float64)),
        [],
        ["the user holds floats beyond 2^53"],
    ),
}


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def fit(path: Path, directory: Path, *options: str) -> Path:
    """A checkpoint of a run of one round on a table."""
    config = path.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(TINY))
    assert (
        run("fit", "--config", config, "--loop.rounds", "1", "--data.path", path, "--run_dir", directory, *options) == 0
    )
    return directory / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `PLAIN`; beside the run, what it recommends to everybody."""
    folder = tmp_path_factory.mktemp("plain")
    checkpoint = fit(put(folder / "plain.csv", text()), folder / "run")
    assert run("recommend", "--ckpt_path", checkpoint, "--output", folder / "all.csv") == 0
    table = pl.read_csv(folder / "all.csv")
    assert sorted(table["user"].unique()) == list(range(1, 13))
    assert table.join(frame(), ["user", "item"]).is_empty()
    return checkpoint


def recommended(checkpoint: Path, capsys: pytest.CaptureFixture[str], *options: str | Path) -> list[list[str]]:
    """The cells of what `recommend` prints, a list for each line of the table."""
    capsys.readouterr()
    assert run("recommend", "--ckpt_path", checkpoint, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


@pytest.mark.parametrize(("name", "content", "options"), SAME.values(), ids=SAME)
def test_the_same_in_other_clothes(
    name: str,
    content: str | bytes | Callable[[Path], None],
    options: list[str],
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = put(Path(name), content)
    assert run("data", "describe", "--data.path", path, *options) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert "12 users, 22 items, 84 interactions" in said
    assert "left out" not in said
    assert run("recommend", "--ckpt_path", checkpoint, "--output", "all.csv", "--data.path", path, *options) == 0
    assert Path("all.csv").read_text() == (checkpoint.parents[2] / "all.csv").read_text()


@pytest.mark.parametrize(("name", "content", "options", "said"), COUNTED.values(), ids=COUNTED)
def test_what_is_left_out_is_counted(
    name: str,
    content: str | bytes | Callable[[Path], None],
    options: list[str],
    said: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = put(Path(name), content)
    assert run("data", "describe", "--data.path", path, *options) == 0
    summary = capsys.readouterr().out.splitlines()[0]
    assert "12 users, 22 items, 84 interactions" in summary
    assert said in summary
    assert run("recommend", "--ckpt_path", checkpoint, "--data.path", path, *options) == 0


@pytest.mark.parametrize(("name", "content", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_said(
    name: str,
    content: str | bytes | Callable[[Path], None],
    options: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = put(Path(name), content)
    before = sorted(Path().rglob("*"))
    assert run("fit", "--data.path", path, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert [words for words in said if words not in error] == []
    assert sorted(Path().rglob("*")) == before


def test_another_item_held_out_is_noticed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `SAME` rests on."""
    latest = max(PLAIN, key=lambda row: (row[0] == 1, row[2]))
    path = put(Path("a.csv"), text([(*row[:2], START if row == latest else row[2]) for row in PLAIN]))
    assert run("recommend", "--ckpt_path", checkpoint, "--data.path", path) == 2
    assert "trained on other data" in capsys.readouterr().err


def test_one_cut_in_time_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """Times of which floats are the same."""
    said = []
    for start in (0, 10**18):
        path = put(Path("a.csv"), text([(user, item, start + (time - START) // 97) for user, item, time in PLAIN]))
        assert run("data", "describe", "--data.path", path, "--data.split", "temporal") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


ODD = [
    "  pad",
    "null",
    "[red]x[/]",
    "NA",
    "NaN",
    "007",
    "7.0",
    "7",
    str(2**53 + 1),
    str(2**64),
    "-x",
    "--y",
    'q"q',
    "a,b",
]
ODD += ["é" * 60, "tab\tx", "04b8157d-bbab-4817-a8d1-3080fa619774" * 3]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of data with odd ids, of users and of items."""
    folder = tmp_path_factory.mktemp("odd")
    table = pl.DataFrame(
        [(user, f"item {(7 * n + k * k) % 30}" + "\n" * (k % 2), k) for n, user in enumerate(ODD) for k in range(9)],
        schema=list(NAMES),
        orient="row",
    )
    table.write_csv(folder / "odd.csv")
    return fit(folder / "odd.csv", folder / "run")


def test_every_odd_id_is_whole(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("all.csv", "all.parquet"):
        assert run("recommend", "--ckpt_path", odd, "--output", name) == 0
    for table in (pl.read_csv("all.csv", infer_schema=False), pl.read_parquet("all.parquet")):
        assert sorted(table["user"].unique()) == sorted(ODD)
    capsys.readouterr()
    printed = recommended(odd, capsys, *(word for user in ODD for word in ("--user", user)), "--top_k", "1")
    assert [row[0] for row in printed[:2]] == [ODD[0].strip(), "null"]


def test_ids_are_whole_where_there_is_no_terminal(
    odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = [user for user in ODD if len(user) > 50]
    assert len(long) == 2
    assert [row[0] for row in recommended(odd, capsys, "--user", *long, "--top_k", "1")] == long


@pytest.mark.parametrize(
    "words",
    [["--user", "-x"], ["--user=-x"], ["--user", "--y"], ["--user", "7", "-x", "--top_k", "2"]],
    ids=" ".join,
)
def test_ids_that_begin_with_a_dash(words: list[str], odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [word for word in words[1:] if word in ODD] or ["-x"]
    printed = recommended(odd, capsys, *words)
    assert list(dict.fromkeys(row[0] for row in printed)) == asked
    assert len(printed) == len(asked) * (2 if "--top_k" in words else 10)


@pytest.mark.parametrize(
    "words",
    [
        ["--have", "--top_k", "3"],
        ["--user", "--data.path", "x.csv"],
        ["--have", "--user", "7"],
        ["--user", "--top_k=3"],
    ],
    ids=" ".join,
)
def test_an_option_is_no_id(words: list[str], odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("recommend", "--ckpt_path", odd, *words)
    assert ended.value.code == 2
    assert f"argument {words[0]}: expected at least one argument" in capsys.readouterr().err
    assert run("recommend", "--ckpt_path", odd, "--user=--top_k") == 2
    assert "user: '--top_k' is not in the data of this checkpoint" in capsys.readouterr().err


def test_negative_numbers_are_ids(capsys: pytest.CaptureFixture[str]) -> None:
    path = put(Path("a.csv"), text([(-user, item, time) for user, item, time in PLAIN]))
    checkpoint = fit(path, Path("run"))
    assert {row[0] for row in recommended(checkpoint, capsys, "--user", "-5", "-12")} == {"-5", "-12"}


def test_a_user_who_has_every_item_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = put(Path("a.csv"), text([*PLAIN, *((99, 100 + n, n) for n in range(22)), *((98, n, n) for n in (100, 101))]))
    checkpoint = fit(path, Path("run"))
    capsys.readouterr()
    assert run("recommend", "--ckpt_path", checkpoint, "--user", "99", "98", "1") == 0
    out, err = capsys.readouterr()
    assert "nothing to recommend to user 99: every item is theirs already" in err
    users = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert users == ["98"] * 10 + ["1"] * 10
    assert run("recommend", "--ckpt_path", checkpoint, "--output", "all.csv") == 0
    assert "user 99:" in capsys.readouterr().err
    assert run("recommend", "--ckpt_path", checkpoint, "--user", "1", "98") == 0
    assert "nothing" not in capsys.readouterr().err


TITLES = {100 + n: f"Film {n}, The" for n in range(22)} | {103: "Señor", 104: 'Café "Q"', 105: '12" mix', 106: '"'}


def items(by: str = ",", escape: bool = True, names: str = "id,title", spell: Callable[[int], object] = str) -> str:
    def field(title: str) -> str:
        return '"' + title.replace('"', '""') + '"' if escape else title

    return "\n".join([names.replace(",", by), *(f"{spell(i)}{by}{field(t)}" for i, t in TITLES.items())]) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("i.csv", "\ufeff" + items(), []),
        ("i.csv", items().encode("latin-1"), ["--data.items.encoding", "latin-1"]),
        ("i.tsv", items("\t", escape=False), []),
        ("i.dat", items("::", escape=False), []),
        ("i.tsv", items("\t"), ["--data.items.quoted", "true"]),
        ("i.csv", items(spell=lambda item: f"{item}.0"), []),
        ("i.csv", items().split("\n", 1)[1], ["--data.items.header", "false"]),
        ("I.CSV.gz", gzip.compress(items().encode()), ["--data.items.id", "id", "--data.items.title", "title"]),
        (
            "i.parquet",
            lambda path: pl.DataFrame({"id": map(float, TITLES), "title": TITLES.values()}).write_parquet(path),
            [],
        ),
    ],
    ids=["BOM", "latin-1", "tabs", "double colons", "quoted tabs", "floats", "no header", "gzip", "floats in Parquet"],
)
def test_titles_are_whole(
    name: str, content: str | bytes | Callable[[Path], None], options: list[str], checkpoint: Path
) -> None:
    path = put(Path(name), content)
    assert run("recommend", "--ckpt_path", checkpoint, "--items", path, *options, "--output", "all.parquet") == 0
    table = pl.read_parquet("all.parquet")
    assert dict(table.select("item", "title").unique().iter_rows()) == TITLES


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (items().encode("latin-1"), [], ["i.csv, line 5", "not UTF-8", "data.items.encoding"]),
        (items(escape=False).replace(", The", ""), [], ["i.csv, line 6: a quote", "data.items.quoted false"]),
        (items().split("\n", 1)[1], [], ["'100' is an item", "data.items.header false"]),
        (items(names="id,id"), ["--data.items.id", "id"], ["two columns have the same name, 'id'", "data.items.id"]),
        (items(), ["--data.items.title", "name"], ["no column 'name'", "data.items.title"]),
        (items(), ["--data.items.encoding", "x"], ["data.items.encoding: 'x'"]),
    ],
    ids=["latin-1", "quotes", "lost row", "two of a name", "no title", "no encoding"],
)
def test_items_that_cannot_be_read_are_said(
    content: str | bytes, options: list[str], said: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(Path("i.csv"), content)
    assert run("recommend", "--ckpt_path", checkpoint, "--items", path, *options) == 2
    error = capsys.readouterr().err
    assert [words for words in said if words not in error] == []


def test_every_strange_id_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    strange = ["007", "7.0", "7", "NA", str(2**53), str(2**53 + 1), str(2**64), str(2**64 - 1)]
    rows = [*PLAIN, *((user, 100 + n, n) for user in strange for n in range(5))]
    different = len({(str(user), item) for user, item, _ in rows})
    assert run("data", "describe", "--data.path", put(Path("a.csv"), text(rows))) == 0
    assert f"19 users, 22 items, {different} interactions" in capsys.readouterr().out


def test_what_lies_below_the_threshold_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stars = [(*row, (1 + place % 10) / 2) for place, row in enumerate(PLAIN)]
    path = put(Path("a.csv"), text(stars, names=(*NAMES, "rating")))
    options = reading(rating_column="rating", threshold=3.5)
    assert run("data", "describe", "--data.path", path, "--data.min_interactions", "3", *options) == 0
    out = capsys.readouterr().out
    assert f"{sum(row[3] < 3.5 for row in stars)} below the threshold" in out


@pytest.mark.parametrize(("split", "ranks"), [("none", False), ("leave_one_out", True)])
def test_a_run_names_the_files_that_it_left(split: str, ranks: bool, capsys: pytest.CaptureFixture[str]) -> None:
    fit(put(Path("a.csv"), text()), Path("run"), "--data.split", split)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " are in " in line]
    named = line.split("; ")[1].split(" are in ")[0].split(", ")
    assert ("ranks.parquet" in named) == ranks
    pictures = list(Path("run").glob("*.svg"))
    assert ("its pictures (*.svg)" in named) == bool(pictures)
    left = {path.name for path in Path("run").glob("[!.]*") if path not in pictures}
    assert set(named) - {"its pictures (*.svg)"} == left


def test_nobody_is_left_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    """Those with room for negatives have nothing before the cut, the others have everything."""
    rows = [(1, 100 + n, n) for n in range(20)] + [(2, 100 + n, 50 + n) for n in range(4)]
    path = put(Path("a.csv"), text(rows))
    assert run("data", "describe", "--data.path", path, "--data.split", "temporal") == 2
    assert "of 2 users, 1 have nothing to train on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([*PLAIN, *((user, 900 + user, START + FINE) for user in range(1, 9))], ["--data.split", "temporal"]),
        ([(1, 100 + n, n) for n in range(8)] + [(2, 108 + n, 0) for n in range(2)], ["--data.min_interactions", "3"]),
        ([(user, item, 5) for user, item, _ in PLAIN], []),
    ],
    ids=["items that only the test has", "one user", "one time"],
)
def test_metrics_are_shares(rows: list[Row], options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = put(Path("a.csv"), text(rows))
    if len(rows) == 10:  # nothing is left to draw negatives from
        assert run("fit", "--data.path", path, *options) == 2
        assert "data.negatives" in capsys.readouterr().err
        return
    fit(path, Path("run"), *options)
    summary = json.loads(Path("run/summary.json").read_text())
    told = {name: value for name, value in summary.items() if name.startswith(("val/", "test/"))}
    assert told.pop("test/novelty@10", 0) >= 0  # in bits
    metrics = list(told.values())
    assert metrics
    assert all(0 <= value <= 1 for value in metrics)
