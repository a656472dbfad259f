"""A run of a comparison: what its folder says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgfedrec.experiments.compare import job as module
from cgfedrec.experiments.compare.job import Job
from cgfedrec.files import file_digest, write_json


def test_a_finished_run_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def digest(path: Path) -> str:
        read.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(module, "file_digest", digest)
    job = Job("one", "Local", 0, tmp_path, "method: Local\n")
    (tmp_path / "config.yaml").write_text(job.config)
    (tmp_path / "metrics.csv").write_text("round\n1\n")
    write_json(tmp_path / "summary.json", {"files": {"metrics.csv": file_digest(tmp_path / "metrics.csv")}})
    assert [job.state() for _ in range(3)] == ["finished"] * 3
    assert read == ["metrics.csv"]
    (tmp_path / "metrics.csv").write_text("round\n2\n")
    assert [job.state() for _ in range(2)] == ["new"] * 2
    assert read == ["metrics.csv"] * 2
    (tmp_path / "config.yaml").write_text("method: Other\n")
    assert job.state() == "changed"
    assert job.differences() == ["method"]
