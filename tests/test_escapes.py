"""What files hold cannot command a terminal, whichever way it comes to be printed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cgfedrec.errors import printable
from tests.commands import cgfedrec

ESCAPES = "\x1b[31m", "\x07", "\x9b2J", "\x7f", "\u202e", "\u2066", "\u2028"
NASTY = "".join(ESCAPES)


def clean(text: str) -> bool:
    """Whether a text holds none of what a terminal would obey."""
    return not set(text) & {"\x1b", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\u2028"}


def write(path: str, rows: list[list[Any]]) -> None:
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_what_a_terminal_would_obey_is_spelt_out_and_all_else_stays() -> None:
    assert printable(NASTY) == r"\x1b[31m\x07\x9b2J\x7f\u202e\u2066\u2028"
    plain = "Amélie 千と千尋 🎬 עברית\ttab\nline [red] C:\\new"
    assert printable(plain) == plain


@pytest.mark.parametrize("verb", ["recommend", "describe", "refused column", "refused row", "unknown user"])
def test_no_output_of_the_command_line_holds_escapes(verb: str) -> None:
    rows = [[f"u{user}{NASTY}", f"i{item}{NASTY}", item] for user in range(8) for item in range(user, user + 12)]
    write("r.csv", [["user", "item", "timestamp"], *rows])
    write(
        "items.csv",
        [["item", f"title{NASTY}"], *([f"i{item}{NASTY}", f"Film {item}{NASTY}\nTwo"] for item in range(20))],
    )
    data = ("--data.path", "r.csv", "--data.negatives", "1")
    if verb == "describe":
        done = cgfedrec("data", "describe", *data)
        assert done.returncode == 0, done.stderr
    elif verb == "refused column":
        write("r.csv", [[f"us{NASTY}er", "item", "timestamp"], *rows])
        done = cgfedrec("data", "describe", *data)
        assert r"us\x1b[31m" in done.stderr
    elif verb == "refused row":
        write("r.csv", [["user", "item", "timestamp"], *rows, ["u", "i", f"now{NASTY}"]])
        done = cgfedrec("data", "describe", *data)
        assert done.returncode == 2
        assert r"now\x1b[31m" in done.stderr
    else:
        quick = (
            "--loop.rounds",
            "1",
            "--method",
            "CGFedRec",
            "--method.clusters",
            "2",
            "--method.dim",
            "4",
            "--logger",
            "null",
        )
        done = cgfedrec("fit", *data, *quick, "--run_dir", "run")
        assert done.returncode == 0, done.stderr
        ckpt = ("--ckpt_path", "run/checkpoints/last.ckpt")
        if verb == "unknown user":
            done = cgfedrec("recommend", *ckpt, "--user", f"nobody{NASTY}")
            assert r"nobody\x1b[31m" in done.stderr
        else:
            titles = ("--items", "items.csv")
            done = cgfedrec("recommend", *ckpt, *titles)
            assert done.returncode == 0, done.stderr
            assert r"u3\x1b[31m\x07" in done.stdout
            assert r"Two" in done.stdout
            assert cgfedrec("recommend", *ckpt, *titles, "--output", "out.csv").returncode == 0
            table = pl.read_csv("out.csv")
            assert f"u3{NASTY}" in table["user"], "a file holds what the data hold"
    assert clean(done.stdout), ascii(done.stdout)
    assert clean(done.stderr), ascii(done.stderr)
