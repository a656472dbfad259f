"""Runs that are really killed, and go on to the same end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

import cgfedrec as cgfedrec_package
from cgfedrec import cli
from cgfedrec.__main__ import main
from cgfedrec.files import read_json
from cgfedrec.run import console
from cgfedrec.run.checkpoint import read_checkpoint
from tests.commands import Command, cgfedrec
from tests.conftest import TINY

ROUNDS = 16
OF_ONE_RUN: dict[str, Any] = {"run": "", "seconds": 0, "time/round": 0, "files": {}}
"""What differs between two runs of the same settings."""


@pytest.fixture(autouse=True)
def _no_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A continuation logs as any run does, whatever its checkpoint says; here nobody looks at it."""
    monkeypatch.setenv("CGFEDREC_FIT_LOGGER", "null")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Rounds long enough to be killed in."""
    settings = TINY | {
        "data": {"init_args": {"synthetic": {"users": 60, "items": 100, "groups": 5, "skew": 0.5, "interactions": 15}}},
        "loop": {"rounds": ROUNDS, "cohort_size": 3, "participation": 0.7, "patience": None, "checkpoint_every": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def wait_for_round(process: Command, directory: Path, round: int) -> None:
    path = directory / "metrics.csv"
    deadline = time.monotonic() + 200
    while not path.exists() or len(path.read_text().splitlines()) <= round:  # one read: the file is replaced meanwhile
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no round {round} in {directory}"
        time.sleep(0.005)


def same_end(one: Path, other: Path, options: Sequence[str] = ()) -> None:
    """Bit-identical parameters, server and metrics. Only times may differ, and where clients' state lies."""
    for name in ("last.ckpt", "best.ckpt"):
        paths = [run / "checkpoints" / name for run in (one, other)]
        ours, theirs = (read_checkpoint(path)["loop"] for path in paths)
        assert ours["round"] == theirs["round"]
        assert ours["bytes"] == theirs["bytes"]
        our_store, their_store = (cgfedrec_package.load(path, options=options).loop.clients.store for path in paths)
        assert our_store.known.equal(their_store.known)
        users = our_store.known.nonzero().squeeze(1)
        torch.testing.assert_close(our_store.read(users), their_store.read(users), rtol=0, atol=0)
        assert ours["held"].keys() == theirs["held"].keys()
        torch.testing.assert_close(ours["held"], theirs["held"], rtol=0, atol=0)
        torch.testing.assert_close(ours["server"], theirs["server"], rtol=0, atol=0)
    our_rows, their_rows = (pl.read_csv(run / "metrics.csv").drop("time/round") for run in (one, other))
    assert our_rows.equals(their_rows)
    our_summary, their_summary = (read_json(run / "summary.json") for run in (one, other))
    assert our_summary | OF_ONE_RUN == their_summary | OF_ONE_RUN


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_killed_and_resumed_ends_where_the_whole_run_ends(number: int, code: int, config: Path) -> None:
    whole = cgfedrec("fit", "--config", config, "--run_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    resumed = Path("resumed")
    arguments: list[str | Path] = ["--config", config, "--run_dir", resumed]
    for killed_after in (3, 6):
        process = Command("fit", *arguments)
        wait_for_round(process, resumed, killed_after)
        os.kill(process.pid, number)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == code, "the run ended before it could be killed"
        if number != signal.SIGKILL:
            assert "go on with: cgfedrec fit --ckpt_path resumed/checkpoints/last.ckpt" in out.replace("\n", "")
        assert not (resumed / "summary.json").exists()
        arguments = ["--ckpt_path", "./resumed/checkpoints/last.ckpt"]
    done = cgfedrec("fit", *arguments)
    assert done.returncode == 0, done.stderr
    same_end(Path("whole"), resumed)


def test_a_polite_signal_saves_the_round_it_came_in(config: Path) -> None:
    sparse = ("--loop.checkpoint_every", "1000", "--loop.monitor", "val/hr@5")
    process = Command("fit", "--config", config, "--run_dir", "run", *sparse)
    wait_for_round(process, Path("run"), 4)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "SIGTERM: ending round" in err
    rounds = len(pl.read_csv("run/metrics.csv"))
    assert 4 <= rounds < ROUNDS
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["loop"]["round"] == rounds


def test_a_signal_before_the_first_round_is_told() -> None:
    process = Command("fit", "--data.synthetic.users", "200000", "--run_dir", "run")
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; no round was under way" in err


def test_a_signal_when_all_is_written_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its table has been printed then, and a run that is said to be stopped would be started again."""
    monkeypatch.setattr(console, "show_result", lambda *given: os.kill(os.getpid(), signal.SIGINT))
    small = ("--data.synthetic.users", "60", "--data.synthetic.items", "40", "--run_dir", "run")
    assert cli.main(["fit", *small]) == 0
    assert capsys.readouterr().err.endswith("\nSIGINT: the run is over; nothing is left to stop\n")
    assert Path("run/summary.json").exists()


def test_a_second_signal_says_how_to_go_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(SLOW)
    monkeypatch.setenv("SLOW", "1")
    process = Command(
        "fit", "--config", config, "--method", "mine.Slow", "--loop.checkpoint_every", "1", "--run_dir", "run"
    )
    while not Path("slow").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    while "once more to stop at once" not in process.stderr:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    while process.stderr.count("round 3 is given up, and the last checkpoint stands; go on with: cgfedrec fit") != 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()  # what trains sleeps


def test_a_signal_while_python_starts_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Imported:
        @property
        def main(self) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "cgfedrec.cli", Imported())
    assert main() == 130
    assert capsys.readouterr().err == "error: interrupted\n"


SLOW = """
import os, time
from dataclasses import dataclass
from typing import ClassVar
from cgfedrec.methods.pfedrec import PFedRec, PFedRecClient


class SlowClient(PFedRecClient):
    def batches(self):
        if self.own.round == 3 and "SLOW" in os.environ:
            open("slow", "w").close()
            time.sleep(60)
        return super().batches()

@dataclass(frozen=True, kw_only=True)
class Slow(PFedRec):
    client_class: ClassVar[type[PFedRecClient]] = SlowClient
"""


def test_a_long_round_is_given_up_and_the_last_checkpoint_stands(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends the process in two seconds, whatever its threads do."""
    Path("mine.py").write_text(SLOW)
    line = ["fit", "--config", config, "--method", "mine.Slow", "--loop.checkpoint_every", "1", "--run_dir"]
    assert cgfedrec(*line, "whole").returncode == 0
    monkeypatch.setenv("SLOW", "1")
    process = Command(*line, "run")
    while not Path("slow").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    started = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 10  # two seconds, and what a busy machine needs
    assert process.returncode == 128 + signal.SIGTERM
    assert "If that takes longer than 1.5 s, the round is given up" in err
    assert "round 3 is given up, and the last checkpoint stands; go on with" in err
    assert "cgfedrec fit --ckpt_path run/checkpoints/last.ckpt" in err
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["loop"]["round"] == 2
    monkeypatch.delenv("SLOW")
    done = cgfedrec("fit", "--ckpt_path", "run/checkpoints/last.ckpt", "--method", "mine.Slow")
    assert done.returncode == 0, done.stderr
    same_end(Path("whole"), Path("run"), ["--method", "mine.Slow"])


def test_a_finished_run_can_be_given_more_rounds(config: Path) -> None:
    for rounds, more in ((4, ()), (ROUNDS, ("--ckpt_path", "run/checkpoints/last.ckpt"))):
        done = cgfedrec("fit", "--config", config, "--run_dir", "run", "--loop.rounds", rounds, *more)
        assert done.returncode == 0, done.stderr
    assert cgfedrec("fit", "--config", config, "--run_dir", "whole").returncode == 0
    same_end(Path("whole"), Path("run"))


def test_fewer_rounds_than_are_behind_a_run_are_refused(config: Path) -> None:
    """They had been written into its settings, which then told of another run than its results."""
    last = "run/checkpoints/last.ckpt"
    assert cgfedrec("fit", "--config", config, "--run_dir", "run", "--loop.rounds", "4").returncode == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*")}
    refused = cgfedrec("fit", "--ckpt_path", last, "--loop.rounds", "2")
    assert refused.returncode == 2
    assert refused.stderr == ("error: loop.rounds: the checkpoint is of round 4, and 2 are fewer; give 4 or more\n")
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*")} == before
    assert cgfedrec("fit", "--ckpt_path", last, "--loop.rounds", "4").returncode == 0


def test_rounds_that_were_too_few_to_rank_with_are_no_best_ones() -> None:
    """While CGFedCo counts there is popularity alone. It was evaluated, since no more rounds were asked for."""
    few = cgfedrec_package.fit(TINY, {"method": "CGFedCo", "loop.rounds": 2, "run_dir": "few"})
    assert few.history["val/ndcg@10"].count() == 1
    more = cgfedrec_package.fit({"ckpt_path": str(few.checkpoints / "last.ckpt"), "loop.rounds": 50, "logger": None})
    whole = cgfedrec_package.fit(TINY, {"method": "CGFedCo", "loop.rounds": 50, "run_dir": "whole"})
    found = [one.history.select(pl.col("^(round|val/.*)$")) for one in (more, whole)]
    assert found[0].equals(found[1])
    assert more.summary["best_round"] == whole.summary["best_round"] > 2
    assert more.summary["test/ndcg@10"] == whole.summary["test/ndcg@10"]


def test_early_stopping_stops_a_resumed_run_where_it_stopped(config: Path) -> None:
    stopping = ["--loop.patience", "2", "--loop.rounds", "50"]
    assert cgfedrec("fit", "--config", config, "--run_dir", "run", *stopping).returncode == 0
    before = pl.read_csv("run/metrics.csv")
    assert len(before) == before["val/ndcg@10"].arg_max() + 1 + 2  # type: ignore[operator]
    assert cgfedrec("fit", "--ckpt_path", "run/checkpoints/last.ckpt").returncode == 0
    assert pl.read_csv("run/metrics.csv").equals(before)


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"format": 1, "loop": Evil()}, tmp_path / "evil.ckpt")
    refused = cgfedrec("recommend", "--ckpt_path", tmp_path / "evil.ckpt")
    assert refused.returncode == 2
    assert "is no checkpoint" in refused.stderr
    assert not (tmp_path / "executed").exists()


def test_the_folder_of_a_run_is_answered_with_the_checkpoint_that_is_meant() -> None:
    """To go on from the best round would repeat the rounds after it."""
    cgfedrec_package.fit(TINY, {"loop.rounds": 1, "run_dir": "run"})
    for arguments, name in (
        (["fit", "--ckpt_path"], "last"),
        (["fit", "--update_from"], "last"),
        (["recommend", "--ckpt_path"], "best"),
    ):
        for folder in ("run", "run/checkpoints"):
            refused = cgfedrec(*arguments, folder)
            assert refused.returncode == 2
            assert refused.stderr.endswith(f"which is a folder; try run/checkpoints/{name}.ckpt\n")


def test_a_run_goes_on_wherever_its_checkpoint_is_named(config: Path) -> None:
    """In a config file, in another directory, from a copy: always to the end of the whole run."""
    assert cgfedrec("fit", "--config", config, "--run_dir", "whole").returncode == 0
    assert cgfedrec("fit", "--config", config, "--run_dir", "part", "--loop.rounds", "9").returncode == 0
    best = pl.read_csv("part/metrics.csv")["val/ndcg@10"].arg_max()
    assert best is not None
    assert best < 8, "the best round so far is not the one that is resumed"
    last = Path("part/checkpoints/last.ckpt")

    named = yaml.safe_load(config.read_text()) | {"ckpt_path": str(last), "run_dir": "elsewhere"}
    Path("named.yaml").write_text(yaml.safe_dump(named))
    done = cgfedrec("fit", "--config", "named.yaml")
    assert done.returncode == 0, done.stderr
    same_end(Path("whole"), Path("elsewhere"))

    Path("copies").mkdir()
    copy = Path("copies/last.ckpt")
    copy.write_bytes(last.read_bytes())
    cases: list[tuple[list[str | Path], str]] = [
        (["--ckpt_path", copy], "say where the run is to go"),
        (["--ckpt_path", copy, "--run_dir", "third"], "no file copies/best.ckpt"),
        (["--ckpt_path", last, "--run_dir", "whole"], "whole already holds a run"),
    ]
    for arguments, message in cases:
        refused = cgfedrec("fit", *arguments)
        assert refused.returncode == 2
        assert message in refused.stderr
    Path("copies/best.ckpt").write_bytes(Path("whole/checkpoints/last.ckpt").read_bytes())
    assert "is not round" in cgfedrec("fit", "--ckpt_path", copy, "--run_dir", "third").stderr
    Path("copies/best.ckpt").write_bytes(Path("part/checkpoints/best.ckpt").read_bytes())
    done = cgfedrec("fit", "--ckpt_path", copy, "--run_dir", "third", "--loop.rounds", ROUNDS)
    assert done.returncode == 0, done.stderr
    same_end(Path("whole"), Path("third"))


def test_a_run_beside_the_current_folder_goes_on_by_its_absolute_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is called `../run` then, which is the same one."""
    run = Path("run").absolute()
    cgfedrec_package.fit(TINY, {"loop.rounds": 1, "run_dir": str(run)})
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    more = cgfedrec_package.fit({"ckpt_path": str(run / "checkpoints/last.ckpt"), "loop.rounds": 2})
    assert more.summary["rounds"] == 2
    assert more.directory.resolve() == run


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_kill_between_the_two_names_of_a_checkpoint_loses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A best round is written under two names; whichever is not there yet, the run goes on to the same end."""
    settings = {"seed_everything": 3, "loop": {"rounds": 8, "patience": None}}
    cgfedrec_package.fit(TINY, settings, {"run_dir": "whole"})
    best = pl.read_csv("whole/metrics.csv")["val/ndcg@10"].cum_max()
    later = [n + 1 for n in range(1, len(best)) if best[n] > best[n - 1]]
    assert later, "some round after the first must be the best so far"
    replace, round = Path.replace, [0]

    class Watch:
        def on_round_end(self, loop: Any) -> None:
            round[0] = loop.round

    def dies(source: Path, target: Path) -> Path:
        if Path(target).name == name and round[0] == later[0]:
            raise SystemExit(9)
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dies)
        with pytest.raises(SystemExit):
            cgfedrec_package.fit(TINY, settings, {"run_dir": "killed"}, callbacks=[Watch()])
    cgfedrec_package.fit({"ckpt_path": "killed/checkpoints/last.ckpt"})
    same_end(Path("whole"), Path("killed"))


def test_killed_in_the_middle_of_a_round_on_disk(config: Path) -> None:
    """The files of clients' state go on to change after the last checkpoint; what it refers to does not."""
    disk = ("--config", config, "--loop.store", "disk", "--run_dir")
    whole = cgfedrec("fit", *disk, "whole")
    assert whole.returncode == 0, whole.stderr
    assert " in files; about" in whole.stdout
    process = Command("fit", *disk, "killed")
    wait_for_round(process, Path("killed"), 5)
    process.kill()
    process.communicate(timeout=60)
    moved = cgfedrec("fit", "--ckpt_path", "killed/checkpoints/last.ckpt", "--run_dir", "moved")
    assert moved.returncode == 0, moved.stderr
    for run in ("whole", "moved"):
        for name in ("last", "best"):
            done = cgfedrec("test", "--ckpt_path", f"{run}/checkpoints/{name}.ckpt")
            assert done.returncode == 0, done.stderr
    ours, theirs = (pl.read_csv(Path(run) / "metrics.csv").drop("time/round") for run in ("whole", "moved"))
    assert ours.equals(theirs)
    whole_summary, moved_summary = (read_json(Path(run) / "summary.json") for run in ("whole", "moved"))
    assert whole_summary | OF_ONE_RUN == moved_summary | OF_ONE_RUN
    Path("moved/checkpoints/clients/records.float32").unlink()
    done = cgfedrec("test", "--ckpt_path", "moved/checkpoints/best.ckpt")
    assert done.returncode == 2
    assert "the clients' state is not beside it" in done.stderr
