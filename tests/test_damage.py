"""Damaged files, full disks, runs side by side: nothing damaged is used, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import pytest
import torch
import yaml

import cgfedrec
from cgfedrec import files
from cgfedrec.cli import main
from cgfedrec.errors import InputError, RunError
from cgfedrec.run.checkpoint import Header, link_or_copy, read_checkpoint, write_checkpoint
from cgfedrec.run.recommend import write
from tests.commands import Command
from tests.commands import cgfedrec as command
from tests.conftest import TINY
from tests.test_store import full_disk

HEADER = Header("run", "config", "method", "fingerprint")
LAST = Path("run/checkpoints/last.ckpt")


@pytest.fixture
def small() -> Path:
    """A small checkpoint."""
    path = Path("small.ckpt")
    write_checkpoint(path, HEADER, {"round": 1, "table": torch.arange(600.0).reshape(20, 30), "names": ["a", "b"]})
    return path


def test_a_checkpoint_comes_back_as_it_was(small: Path) -> None:
    state = read_checkpoint(small)
    assert state["loop"]["table"].equal(torch.arange(600.0).reshape(20, 30))
    assert (state["run"], state["loop"]["names"]) == ("run", ["a", "b"])
    assert not list(Path().glob(".*.part"))


@pytest.mark.parametrize(
    "value",
    [torch.ones(3, 4).T, torch.ones(1).expand(5), torch.eye(3).to_sparse(), torch.ones(2, requires_grad=True), {1}],
    ids=["transposed", "expanded", "sparse", "with a gradient", "no value"],
)
def test_what_could_not_be_read_again_is_not_written(small: Path, value: object) -> None:
    before = small.read_bytes()
    with pytest.raises(RunError, match=r"server\.directions cannot be saved: .* contiguous"):
        write_checkpoint(small, HEADER, {"server": {"average": torch.ones(2), "directions": value}})
    assert small.read_bytes() == before


def test_no_flipped_byte_goes_unseen(small: Path) -> None:
    whole = small.read_bytes()
    places = [*range(0, len(whole), 13), *range(len(whole) - 40, len(whole))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        small.write_bytes(damaged)
        with pytest.raises(InputError, match=r"small\.ckpt is (damaged|no checkpoint)"):
            read_checkpoint(small)


def test_no_checkpoint_that_is_cut_off_or_grew_is_used(small: Path) -> None:
    whole = small.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        small.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"small\.ckpt is"):
            read_checkpoint(small)
    small.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=r"small\.ckpt is"):
        read_checkpoint(small)
    small.write_bytes(b"\0" + whole)
    with pytest.raises(InputError, match=r"small\.ckpt is"):
        read_checkpoint(small)


def test_a_checkpoint_of_before_is_refused_by_what_it_is() -> None:
    torch.save({"format": 1, "config": "", "method": "", "fingerprint": "", "loop": {}}, "old.ckpt")
    with pytest.raises(InputError, match=r"before 0\.2 cannot be read"):
        read_checkpoint(Path("old.ckpt"))


def test_what_can_still_be_used_is_said(small: Path) -> None:
    last, best = Path("last.ckpt"), Path("best.ckpt")
    last.write_bytes(small.read_bytes()[:-1])
    best.write_bytes(small.read_bytes())
    with pytest.raises(InputError, match=r"last\.ckpt .*Try best\.ckpt"):
        read_checkpoint(last)


def test_a_full_disk_is_said_and_leaves_what_was_there(small: Path) -> None:
    before = small.read_bytes()
    state = {"table": torch.zeros(1000, 1000)}
    # the device is always full, and the partial file is looked up by its name
    Path(".small.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"the disk of \. is full"):
        write_checkpoint(small, HEADER, state)
    assert small.read_bytes() == before
    assert not Path(".small.ckpt.part").is_symlink()
    missing = files.no_room(small, 10, 2**60)
    assert "bytes are missing" in missing


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_a_full_disk_is_told_of_tables_too(name: str) -> None:
    """Polars has a full disk as an error of its own, or without the system's number."""
    table = pl.DataFrame({"user": range(100_000), "item": range(100_000)})
    with full_disk(4096), pytest.raises(RunError, match=f"{name}: the disk of . is full: 4,096 bytes were written"):
        write(table, Path(name))
    # Where a header falls across its buffer, as in many a `ranks.parquet`, polars says "transport error" alone.
    for rows in range(1100, 1300, 2):
        ids = {"user": [f"u{n}" for n in range(rows)], "item": [f"i{7 * n * n % 1600}" for n in range(rows)]}
        short = pl.DataFrame(ids | {name: [k * n * n % 1699 for n in range(rows)] for k, name in ((3, "a"), (4, "b"))})
        with full_disk(100), pytest.raises(RunError, match=f"{name}: the disk of . is full: 100 bytes were"):
            write(short, Path(name))
    assert not list(Path().iterdir())


def test_an_error_that_no_full_disk_made_stays_what_it_is() -> None:
    def fails(file: BinaryIO) -> None:
        file.write(b"a part")
        raise ValueError("no table")

    with full_disk(4096), pytest.raises(ValueError, match="no table"):
        files.write_atomically(Path("r.parquet"), fails)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written_is_named(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), "some.part")

    monkeypatch.setattr(files, "_opened", closed)
    monkeypatch.setattr(Path, "open", closed)
    monkeypatch.setattr(os, "open", closed)
    why = re.escape(f" cannot be written ({os.strerror(number)}); choose another place")
    with pytest.raises(InputError, match=f"^r.json:{why}"):
        files.write_json(Path("r.json"), {"a": 1})
    with pytest.raises(InputError, match=f"^r.csv:{why}"):
        files.append(Path("r.csv"), "1")
    with pytest.raises(InputError, match=f"^folder:{why}"), files.locked(Path("folder"), "is held"):
        pass
    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(InputError, match=f"^there/r.json:{why}"):
        files.write_json(Path("there/r.json"), {"a": 1})


def test_a_folder_that_cannot_be_written_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    cgfedrec.fit("tiny.yaml", {"run_dir": "mine"})
    monkeypatch.setattr(os, "access", lambda *_: False)
    last = "mine/checkpoints/last.ckpt"
    for words, folder in (
        (["fit", "--config", "tiny.yaml"], "run_dir: runs/tiny"),
        (["fit", "--ckpt_path", last], f"run_dir: {Path('mine').absolute()}"),
        (["recommend", "--ckpt_path", "none", "--output", "to/r.csv"], "--output: to"),
        (["data", "download", "ml-100k", "--dir", "there"], "--dir: there"),
    ):
        assert main(words) == 2
        assert f"error: {folder}: nothing may be written into" in capsys.readouterr().err


def test_json_that_was_changed_is_refused() -> None:
    path = Path("summary.json")
    files.write_json(path, {"a": 1, "nested": {"b": [1.5, None]}})
    assert files.read_json(path) == {"a": 1, "nested": {"b": [1.5, None]}}
    text = path.read_text()
    for damaged in (text.replace("1.5", "1.6"), text[: len(text) // 2], "", "[]", text.replace('"a"', '"c"')):
        path.write_text(damaged)
        with pytest.raises(files.DamagedError, match=r"summary\.json"):
            files.read_json(path)


def test_a_write_that_fails_leaves_no_part() -> None:
    def fails(file: Any) -> None:
        file.write(b"half")
        raise ValueError

    Path("target").write_text("before")
    with pytest.raises(ValueError):  # noqa: PT011, there is no message
        files.write_atomically(Path("target"), fails)
    assert (Path("target").read_text(), list(Path().glob(".*"))) == ("before", [])


def test_nobody_else_can_open_a_private_file_at_any_moment() -> None:
    path = Path("secret")
    files.partial_of(path).write_text("of a killed writer")
    with files.partial_of(path).open() as opened_before:
        modes = []

        def writes(file: BinaryIO) -> None:
            modes.append(files.partial_of(path).stat().st_mode & 0o777)
            file.write(b"1234")

        before = os.umask(0)
        try:
            with pytest.MonkeyPatch.context() as patch:  # the mode is that of its first moment
                patch.setattr(os, "fchmod", lambda *_: None)
                patch.setattr(os, "chmod", lambda *_: None)
                files.write_atomically(path, writes, private=True)
        finally:
            os.umask(before)
        assert modes == [0o600]
        assert (path.read_text(), path.stat().st_mode & 0o777) == ("1234", 0o600)
        assert "1234" not in opened_before.read()


def test_damaged_checkpoints_are_refused_by_every_verb() -> None:
    cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 2}})
    data = bytearray(LAST.read_bytes())
    for place in random.Random(0).sample(range(len(data)), 3):
        data[place] ^= 16
    LAST.unlink()
    LAST.write_bytes(data)
    for verb in ("test", "recommend", "fit"):
        done = command(verb, "--ckpt_path", LAST)
        assert done.returncode == 2, done
        assert f"{LAST} is damaged" in done.stderr
        assert "Try run/checkpoints/best.ckpt" in done.stderr


def test_a_best_round_of_another_run_is_not_taken() -> None:
    """Of the same data, settings and round; only the run differs."""
    settings = {"loop": {"rounds": 8, "patience": None, "monitor": "val/hr@5"}, "seed_everything": 3}
    for name in ("one", "other"):
        run = cgfedrec.fit(TINY, settings, {"run_dir": name})
    assert run.summary["best_round"] < 8
    best = Path("one/checkpoints/best.ckpt")
    best.unlink()
    link_or_copy(Path("other/checkpoints/best.ckpt"), best)
    with pytest.raises(InputError, match=r"best\.ckpt is not round \d of this run"):
        cgfedrec.fit({"ckpt_path": "one/checkpoints/last.ckpt", "loop": {"rounds": 9}, "logger": None})
    assert "run" in cgfedrec.fit(TINY, settings, {"run_dir": "third"}).summary


def test_a_run_has_an_id_that_a_continuation_keeps() -> None:
    first = cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 2}})
    more = cgfedrec.fit({"ckpt_path": str(LAST), "run_dir": "more", "loop": {"rounds": 3}, "logger": None})
    other = cgfedrec.fit(TINY, {"run_dir": "other", "loop": {"rounds": 2}})
    assert first.summary["run"] == more.summary["run"] != other.summary["run"]
    assert read_checkpoint(Path("more/checkpoints/last.ckpt"))["run"] == first.summary["run"]
    assert json.loads(Path("run/summary.json").read_text())["run"] == first.summary["run"]
    assert first.summary["files"]["ranks.parquet"] == files.file_digest(Path("run/ranks.parquet"))


def test_a_best_round_that_is_taken_away_is_found_out_at_once() -> None:
    class Thief:
        def on_round_end(self, loop: Any) -> None:
            if loop.round == 3:
                Path("run/checkpoints/best.ckpt").unlink()

    class Worse:
        """Makes round 1 the best one."""

        def on_cohort_end(self, loop: Any, users: Any) -> None:
            if loop.round > 1:
                loop.history[0][loop.monitor] = 2.0

    with pytest.raises(RunError, match=r"best\.ckpt was removed .* the best round, 1,"):
        cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 6}}, callbacks=[Thief(), Worse()])
    assert read_checkpoint(LAST)["loop"]["round"] == 2


def test_of_two_runs_in_one_folder_the_second_is_refused() -> None:
    Path("config.yaml").write_text(yaml.safe_dump(TINY | {"loop": {"rounds": 400, "patience": None}}))
    first = Command("fit", "--config", "config.yaml", "--run_dir", "run")
    while not LAST.exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    before = {path: path.stat().st_mtime_ns for path in Path("run").glob("*.yaml")}
    for second in (("--config", "config.yaml", "--run_dir", "run"), ("--ckpt_path", str(LAST))):
        done = command("fit", *second)
        assert done.returncode == 2, done
        assert "a run is at work in run" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").glob("*.yaml")}
    first.kill()
    first.communicate()
    Path("run/.metrics.csv.part").touch()
    Path("run/checkpoints/.last.ckpt.part").touch()
    done = command("fit", "--ckpt_path", LAST, "--loop.rounds", read_checkpoint(LAST)["loop"]["round"] + 1)
    assert done.returncode == 0, done.stderr
    assert not [*Path("run").rglob(".*.part")], "what the killed run left behind is gone, and its lock with it"


def test_two_runs_that_start_at_once_do_not_share_a_folder() -> None:
    Path("config.yaml").write_text(yaml.safe_dump(TINY))
    both = [Command("fit", "--config", "config.yaml", "--run_dir", "run") for _ in range(2)]
    codes = [one.wait(timeout=200) for one in both]
    errors = [one.stderr for one in both]
    assert sorted(codes) == [0, 2], errors
    assert "run_dir: " in errors[codes.index(2)]
    assert files.read_json(Path("run/summary.json"))["rounds"] == 3


def test_a_run_that_moves_may_be_killed_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"loop": {"rounds": 8, "patience": None, "monitor": "val/hr@5", "store": "disk"}, "seed_everything": 3}
    cgfedrec.fit(TINY, settings, {"run_dir": "run"})
    more: dict[str, Any] = {"ckpt_path": str(LAST), "run_dir": "moved", "loop": {"rounds": 10}, "logger": None}
    replace, writes = Path.replace, [0]
    for killed_at in range(1, 20):
        writes[0] = 0

        def dies(source: Path, target: Path, at: int = killed_at) -> Path:
            writes[0] += 1
            if writes[0] == at:
                raise SystemExit(9)
            return replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", dies)
            patched.setattr(cgfedrec.Run, "fit", lambda self: None)
            try:
                cgfedrec.fit(more)
                break
            except SystemExit:
                continue
    assert killed_at > 3, "the clients' file, the best and the last checkpoint"
    (Path("moved") / ".lock").unlink()
    moved = cgfedrec.fit({"ckpt_path": "moved/checkpoints/last.ckpt", "loop": {"rounds": 10}, "logger": None})
    whole = cgfedrec.fit(TINY, settings, {"run_dir": "whole", "loop": {"rounds": 10}})
    assert moved.summary["test/ndcg@10"] == whole.summary["test/ndcg@10"]
    assert moved.history.drop("time/round").equals(whole.history.drop("time/round"))


def test_a_folder_of_a_refused_run_is_as_before() -> None:
    Path("mine").mkdir()
    for folder in ("mine", "new/deep", None):
        given = {"loop": {"participants": 10**6}} | ({"run_dir": folder} if folder else {})
        with pytest.raises(InputError, match="participants"):
            cgfedrec.fit(TINY, given)
    assert {path.name for path in Path("mine").iterdir()} <= {files.LOCK}
    assert not Path("new").exists()
    assert not Path("runs").exists()


def test_a_state_is_used_with_the_seed_that_it_was_trained_with() -> None:
    """Clients that never trained start as the seed says."""
    fixed = {"data": {"init_args": {"synthetic": {"seed": 5}}}}
    cgfedrec.fit(TINY, fixed, {"run_dir": "run", "loop": {"rounds": 1, "participants": 3}})
    with pytest.raises(InputError, match="seed_everything: the checkpoint has 0, which cannot be changed to 1"):
        cgfedrec.load(LAST, {"seed_everything": 1})
    assert cgfedrec.load(LAST, {"seed_everything": 0}).loop.round == 1
