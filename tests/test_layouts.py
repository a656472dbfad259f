"""Named layouts: a made-up file of each, read, recognised, and what wins where more is said."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.data.layout import laid_out
from cgfedrec.data.layouts import LAYOUTS, LayoutName
from cgfedrec.data.ratings import read
from cgfedrec.data.reading import read_table
from cgfedrec.data.recognising import looks_like, recognised
from cgfedrec.errors import InputError
from cgfedrec.protocol import Protocol
from cgfedrec.run.describe import show_data
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import said

ANN, BEN, BOOK, FILM = "A2CX7LUOHB2NDG", "A1B2C3D4E5F6G7", "0439893577", "B00CXLOBXU"
REVIEWS = (
    f'{{"reviewerID": "{ANN}", "asin": "{BOOK}", "text": "\\"b\\"", "overall": 5.0, "unixReviewTime": 1200000001}}',
    f'{{"asin": "{FILM}", "overall": 2.0, "unixReviewTime": 1200000003, "reviewerID": "{ANN}"}}',
    f'{{"reviewerID": "{BEN}", "asin": "{FILM}", "overall": 4.0, "unixReviewTime": 1200000002}}',
)
FILES: dict[str, tuple[str, str]] = {
    "movielens-100k": ("u.data", "1\t10\t5\t881250949\n1\t20\t2\t881250951\n2\t20\t4\t881250950\n"),
    "movielens-1m": ("ratings.dat", "1::10::5::978300760\n1::20::2::978300762\n2::20::4::978300761\n"),
    "movielens-csv": (
        "r.csv",
        "userId,movieId,rating,timestamp\n1,10,5.0,964982703\n1,20,2,964982705\n2,20,4,964982704\n",
    ),
    "hetrec-movielens": (
        "r.dat",
        "userID\tmovieID\trating\ttimestamp\n1\t10\t5\t8000001\n1\t20\t2\t8000003\n2\t20\t4\t8000002\n",
    ),
    "hetrec-lastfm": ("user_artists.dat", "userID\tartistID\tweight\n1\t10\t13883\n1\t20\t11690\n2\t20\t11351\n"),
    "recbole": (
        "r.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t10\t5\t8801.0\n1\t20\t2\t8803.0\n2\t20\t4\t8802.0\n",
    ),
    "amazon-csv": (
        "ratings_Books.csv",
        f"{ANN},{BOOK},5.0,1200000001\n{ANN},{FILM},2.0,1200000003\n{BEN},{FILM},4.0,1200000002\n",
    ),
    "amazon-2018-csv": (
        "Books.csv",
        f"{BOOK},{ANN},5.0,1200000001\n{FILM},{ANN},2.0,1200000003\n{FILM},{BEN},4.0,1200000002\n",
    ),
    "amazon-2023-csv": (
        "Books.csv",
        f"user_id,parent_asin,rating,timestamp\nAEYO,{BOOK},5.0,1200000001000\nAEYO,{FILM},2.0,1200000003000\n"
        f"AFYO,{FILM},4.0,1200000002000\n",
    ),
    "amazon-json": ("Books_5.json", "\n".join(REVIEWS) + "\n"),
    "amazon-2023-json": (
        "Books.jsonl",
        "\n".join(
            review.replace("reviewerID", "user_id")
            .replace("asin", "parent_asin")
            .replace("overall", "rating")
            .replace("unixReviewTime", "timestamp")
            for review in REVIEWS
        ),
    ),
    "yelp-json": (
        "review.json",
        '{"review_id":"r","user_id":"u1","business_id":"b1","stars":5.0,"text":"x, y","date":"2018-07-07 22:09:11"}\n'
        '{"review_id":"r","user_id":"u1","business_id":"b2","stars":2.0,"text":"{}","date":"2018-07-09 22:09:11"}\n'
        '{"review_id":"r","user_id":"u2","business_id":"b2","stars":4.0,"text":"","date":"2018-07-08 22:09:11"}\n',
    ),
    "gowalla": (
        "loc-gowalla_totalCheckins.txt",
        "0\t2010-10-19T23:55:27Z\t30.2359\t-97.7951\t22847\n0\t2010-10-21T22:17:43Z\t30.26\t-97.74\t420315\n"
        "1\t2010-10-20T17:48:53Z\t30.26\t-97.74\t420315\n",
    ),
    "netflix": ("combined_data_1.txt", "10:\n1,5,2005-09-06\n20:\n1,2,2005-09-08\n2,4,2005-09-07\n"),
    "retailrocket": (
        "events.csv",
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,1,view,10,\n1433221332119,1,view,20,\n"
        "1433221332118,2,transaction,20,4000\n",
    ),
    "yoochoose": (
        "yoochoose-clicks.dat",
        "1,2014-04-07T10:51:09.277Z,10,0\n1,2014-04-07T10:57:00.306Z,20,S\n2,2014-04-07T10:54:09.868Z,20,0\n",
    ),
}
"""In each, one user has two items, the first of them alone, and another user has the second, in time between them."""


def write(folder: Path, name: str) -> Path:
    file, text = FILES[name]
    path = folder / file
    path.write_text(text)
    return path


def settings(*options: str, config: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> Format:
    given = said([config] if config else [], ["--data.split", "none", *options], environment or {})
    layout: Format = instantiate(parse(given)).data.format
    return layout


def test_every_layout_has_a_name_and_a_file_here() -> None:
    assert list(LAYOUTS) == list(get_args(LayoutName)) == list(FILES)


@pytest.mark.parametrize("name", FILES)
def test_each_is_read_and_recognised(name: LayoutName, tmp_path: Path) -> None:
    path = write(tmp_path, name)
    data = read(path, Format(layout=name))
    assert data.users.tolist() in ([0, 0, 1], [1, 1, 0])
    assert len(set(data.items.tolist())) == 2
    assert data.items[1] == data.items[2] != data.items[0]
    if name == "hetrec-lastfm":
        assert data.times is None
    else:
        assert data.times is not None
        assert data.times.argsort().tolist() == [0, 2, 1]
    if LAYOUTS[name].values.get("rating_column") and name != "hetrec-lastfm":
        assert read(path, Format(layout=name, threshold=3)).positive.tolist() == [True, False, True]
    assert looks_like(path) == name
    assert recognised(path, Format(layout=name)) is None
    packed = tmp_path / f"{path.name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert looks_like(packed) == name
    assert read(packed, Format(layout=name)).users.tolist() == data.users.tolist()


@pytest.mark.parametrize("name", [name for name in FILES if name != "hetrec-lastfm"])
def test_an_unreadable_file_that_looks_like_one_says_which(name: LayoutName, tmp_path: Path) -> None:
    path = write(tmp_path, name)
    with pytest.raises(InputError) as failed:
        read(path)
    assert failed.value.problems[-1] == f"{path}: looks like {name}: add --data.format.layout {name}"
    assert len(failed.value.problems) > 1


def test_without_times_the_advice_names_a_split(tmp_path: Path) -> None:
    hint = recognised(write(tmp_path, "hetrec-lastfm"), Format())
    assert hint is not None
    assert hint.endswith("--data.format.layout hetrec-lastfm --data.split random (it has no times)")


@pytest.mark.parametrize(
    "text",
    [
        "user,item,timestamp\n1,10,3\n",
        "1::10::5::978300760\n1::20::2::978300762\nx::20::2::978300762\n",
        "1:\nabc\n",
        "",
        "\x00\xff",
    ],
)
def test_other_files_look_like_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, "latin-1")
    assert looks_like(path) is None
    assert looks_like(tmp_path) is None
    assert looks_like(tmp_path / "none.csv") is None


def test_what_is_recognised_is_not_applied_and_told_by_describe(tmp_path: Path) -> None:
    """Here users and items are exchanged, as somebody may mean it."""
    path = write(tmp_path, "movielens-csv")
    swapped = Format(user_column="movieId", item_column="userId")
    data = FederatedDataModule(str(path), swapped, split="none", min_interactions=1, negatives=1)
    data.attach(Protocol(), 0)
    path.write_text(path.read_text() + "".join(f"{user},{10 * user},3,964982800\n" for user in range(3, 9)))
    data.setup()
    assert data.user_ids.to_list() == [10, 20, *range(30, 90, 10)]
    console = Console(record=True, width=200)
    show_data(console, data, details=True)
    assert f"{path}: looks like movielens-csv: add --data.format.layout movielens-csv" in console.export_text()
    show_data(console, data)  # fit goes on without a word: whoever says columns means them
    assert "looks like" not in console.export_text()


def test_the_command_line_says_it_and_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text("".join(f"{u}::{u + i}::5::{978300760 + i}\n" for u in range(9) for i in range(4)))
    assert main(["data", "describe", "--data.path", str(path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: {path}: looks like movielens-1m: add --data.format.layout movielens-1m"
    assert main(["data", "describe", "--data.path", str(path), *line.rpartition("add ")[2].split()]) == 0
    assert "9 users, 12 items, 36 interactions" in capsys.readouterr().out


class TestWhoWins:
    """A layout is what its options are, said by whoever names it: one rule for all that is said."""

    def test_alone(self) -> None:
        assert settings("--data.format.layout", "gowalla") == Format(**laid_out("gowalla"))  # type: ignore[arg-type]
        assert settings("--data.format.layout", "null") == Format()

    @pytest.mark.parametrize("turn", [1, -1])
    def test_an_option_beside_it_wins_in_any_order_though_it_is_the_default(self, turn: int) -> None:
        options = ["--data.format.layout=movielens-csv", "--data.format.user_column=user"][::turn]
        assert settings(*options).user_column == "user"
        assert settings(*options).item_column == "movieId"

    def test_an_option_above_it_wins(self) -> None:
        config = {"data": {"format": {"layout": "movielens-1m", "threshold": 4}}}
        layout = settings("--data.format.timestamp_column", "null", "--data.format.encoding", "latin-1", config=config)
        assert (layout.timestamp_column, layout.encoding) == (None, "latin-1")
        assert (layout.header, layout.separator, layout.user_column, layout.threshold) == (False, "::", 0, 4)

    def test_it_wins_over_options_below_and_leaves_what_is_no_layout(self) -> None:
        lower = {"header": False, "user_column": 7, "separator": ";", "threshold": 4, "bad_rows": "drop"}
        layout = settings("--data.format.layout", "recbole", config={"data": {"format": lower}})
        assert (layout.header, layout.user_column, layout.separator) == (True, "user_id:token", "\t")
        assert (layout.threshold, layout.bad_rows, layout.rating_column) == (4, "drop", "rating:float")

    def test_one_layout_takes_nothing_from_another(self) -> None:
        config = {"data.format.layout": "netflix"}
        assert settings("--data.format.layout", "movielens-csv", config=config) == settings(
            "--data.format.layout", "movielens-csv"
        )

    def test_null_takes_a_layout_of_below_back(self) -> None:
        config = {"data.format.layout": "movielens-1m"}
        assert settings("--data.format.layout", "null", config=config) == Format()

    def test_in_the_environment_it_lies_below_other_variables(self) -> None:
        variables = {
            "CGFEDREC_FIT_DATA__FORMAT__LAYOUT": "movielens-1m",
            "CGFEDREC_FIT_DATA__FORMAT__HEADER": "true",
            "CGFEDREC_FIT_DATA__FORMAT__USER_COLUMN": "who",
        }
        layout = settings(environment=variables)
        assert (layout.header, layout.user_column, layout.item_column, layout.separator) == (True, "who", 1, "::")

    def test_in_python(self) -> None:
        layout = Format(layout="movielens-1m", item_column=4, threshold=2.0)
        assert (layout.header, layout.user_column, layout.item_column, layout.separator) == (False, 0, 4, "::")

    def test_a_wrong_name_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"data\.format\.layout: must be movielens-100k, .*, not movielens"):
            settings("--data.format.layout", "movielens")
        with pytest.raises(InputError, match=r"data\.format\.layout: no 'movielens'; there are movielens-100k"):
            Format(layout="movielens")  # type: ignore[arg-type]


JSON = Format(timestamp_column="when")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"user":1,"item":2,"when":3}\n\n{"user":1,"when":4}\n', "r.jsonl, line 3: the item is missing"),
        ('{"user":1,"item":2,"when":3}\n{"user":1,"item":2,"when"\n', "r.jsonl, line 2: the user is missing"),
        ('{"user":1,"item":2,"when":"soon"}\n', "line 1: the time is 'soon', expected a number or an ISO date"),
        ('{"user":1,"item":"","when":3}\n', "line 1: the item is missing"),
        ('[{"user":1}]\n', "holds one list; write a line for each of its entries"),
        ("user,item\n", "holds no JSON object on its first line"),
        ('{"user":1,"thing":2,"when":3}\n', "no column 'item'; the file has 3 columns: user, thing, when"),
        ("\n \n", "the file is empty"),
    ],
)
def test_json_that_cannot_be_read_is_refused_by_line(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as failed:
        read(path, JSON)
    assert problem in str(failed.value)


def test_json_lines_and_their_bad_ones_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.ndjson"
    path.write_text('\ufeff{"when":1.5,"it\'s":"ü","user":"007"}\r\n{"user":"7","it\'s":"b","when":2}\r\n{}\r\n')
    data = read(path, Format(item_column="it's", timestamp_column="when", bad_rows="drop"))
    assert (data.user_ids.to_list(), data.item_ids.to_list()) == (["007", "7"], ["b", "ü"])
    assert data.report["unreadable rows"] == 1
    assert read_table(path, Format()).fields["1"].to_list() == ["ü", "b", None]  # as for titles of items


def test_blocks_that_cannot_be_read_are_refused_by_line(tmp_path: Path) -> None:
    path, layout = tmp_path / "c.txt", Format(layout="netflix")
    path.write_text("1,5,2005-09-06\n10:\n1,5\n2,5,2005-09-06,x\n3,5,2005-09-07\n")
    with pytest.raises(InputError) as failed:
        read(path, layout)
    assert "line 4: 4 fields, expected 3" in str(failed.value)
    data = read(path, Format(layout="netflix", bad_rows="drop"))
    assert (data.user_ids.to_list(), data.report["unreadable rows"], data.report["rows"]) == ([3], 3, 4)
    path.write_text("1,5,2005-09-06\n10:\n1,5\n")
    with pytest.raises(InputError) as failed:
        read(path, layout)
    assert [text.partition(": ")[0] for text in failed.value.problems] == [
        f"{path}, line 1",
        f"{path}, line 3",
        str(path),
    ]
    assert "line 1: the item is missing" in str(failed.value)
    assert "line 3: the time is missing" in str(failed.value)


def test_what_a_kind_does_not_have_is_refused() -> None:
    with pytest.raises(InputError) as failed:
        Format(kind="json", separator=";", quoted=True)
    assert [text.split(":")[0] for text in failed.value.problems] == ["data.format.separator", "data.format.quoted"]
