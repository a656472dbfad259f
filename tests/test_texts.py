"""The packaged texts are those that the parser would make now, and a shell can use them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cgfedrec.cli import main
from cgfedrec.texts import FOLDER, SETTINGS, SHELLS, packaged
from cgfedrec.write_texts import WIDTH, choices, completion, settings_help
from tests.conftest import ROOT

STALE = "options have changed: python -m cgfedrec.write_texts (make texts)"


def test_the_packaged_help_is_that_of_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Word by word: versions of Python lay lines out in other ways."""
    monkeypatch.setenv("COLUMNS", "43")
    assert settings_help().split() == packaged(SETTINGS).split(), STALE


@pytest.mark.parametrize("shell", SHELLS)
def test_the_packaged_completion_is_of_these_options(shell: str) -> None:
    pytest.importorskip("shtab", "1.8")
    assert completion(shell) == packaged(f"completion.{shell}"), STALE


def test_texts_hold_no_path_of_a_machine_and_are_not_wide() -> None:
    texts = {path.name: path.read_text() for path in FOLDER.glob("*.*") if path.suffix != ".py"}
    assert set(texts) == {SETTINGS, *(f"completion.{shell}" for shell in SHELLS)}
    for name, text in texts.items():
        assert not any(str(place) in text for place in (ROOT, Path.home(), Path(shutil.__file__).parent)), name
    assert max(map(len, texts[SETTINGS].splitlines())) <= WIDTH


@pytest.mark.parametrize("words", [["fit", "--help"], ["fit", "-h"], ["data", "describe", "--config", "x", "--help"]])
def test_help_prints_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(packaged(SETTINGS))
    before = shown.removesuffix(packaged(SETTINGS))
    if words[0] == "fit":
        assert not before
    else:  # it says what it is itself
        assert before.startswith("cgfedrec data describe: print what a data set holds")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == packaged(f"completion.{shell}")


def test_choices_are_those_of_the_type() -> None:
    assert choices("loop.resample", bool) == ["true", "false"]
    assert choices("loop.patience", int | None) == ["null"]
    assert {"CGFedCo", "EASE"} <= set(choices("method", object))
    assert choices("loop.rounds", int) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes() -> None:
    lines = {
        "": "fit estimate test validate recommend",
        "fit --loop.r": "--loop.rounds --loop.resample",
        "fit --loop.store ": "auto memory disk",
        "fit --method CGFedR": "CGFedRec",
        "recommend --top": "--top_k",
        "data describe --data.synthetic.u": "--data.synthetic.users",
    }
    script = [f"source {FOLDER / 'completion.bash'}", "complete -p cgfedrec"]
    for line in lines:
        words = " ".join(f"'{word}'" for word in ["cgfedrec", *line.split(" ")])
        script.append(
            f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
            '_shtab_cgfedrec cgfedrec "${COMP_WORDS[COMP_CWORD]}"; echo "${COMPREPLY[@]}"'
        )
    done = subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    registered, *found = done.stdout.splitlines()
    assert re.search("-F _shtab_cgfedrec cgfedrec", registered)
    for told, wanted in zip(found, lines.values(), strict=True):
        assert told.startswith(wanted)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_reads_it() -> None:
    """Version 1.11 of shtab writes what zsh does not take."""
    done = subprocess.run(["zsh", "-n", FOLDER / "completion.zsh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
