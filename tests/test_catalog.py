"""Downloads from a server on loopback."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cgfedrec.cli import main
from cgfedrec.data import catalog
from cgfedrec.data.catalog import CATALOG, Entry

RATINGS = "".join(f"{u}\t{(u * 3 + i * i) % 70}\t5\t{i}\n" for u in range(30) for i in range(12))


class Server(HTTPServer):
    """Serves one archive; can break off a first attempt half-way, and can do without ranges."""

    archive: bytes = b""
    breaks = 0
    ranges = True
    asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range") if self.server.ranges else None
        self.server.asked.append(self.headers.get("Range"))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(self.server.archive):
            self.send_error(416)
            return
        body = self.server.archive[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("ml-100k/u.data", RATINGS)
        file.writestr("ml-100k/README", "terms")
    server = Server(("127.0.0.1", 0), Handler)
    server.archive, server.asked = buffer.getvalue(), []
    digest = hashlib.sha256(server.archive).hexdigest()
    url = f"http://127.0.0.1:{server.server_port}/ml-100k.zip"
    entry = Entry(url, f"sha256:{digest}", "u.data", CATALOG["ml-100k"].options)
    monkeypatch.setitem(CATALOG, "ml-100k", entry)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_download_verify_unpack_and_train(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "download", "ml-100k"]) == 0
    out = capsys.readouterr().out
    assert "no redistribution" in out
    assert Path("data/ml-100k/u.data").read_text() == RATINGS
    assert Path("data/ml-100k/README").exists()
    assert [path.name for path in Path("data").iterdir()] == ["ml-100k"]
    options = out.splitlines()[-1].split("cgfedrec fit ")[1].split()
    assert main(["data", "describe", *options]) == 0
    assert "30 users" in capsys.readouterr().out


def test_a_broken_download_goes_on(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.breaks = 1
    assert main(["data", "download", "ml-100k"]) == 1
    assert "goes on where this one ended" in capsys.readouterr().err
    half = Path("data/ml-100k.zip.part").stat().st_size
    assert 0 < half < len(server.archive)
    assert main(["data", "download", "ml-100k"]) == 0
    assert server.asked == [None, f"bytes={half}-"]
    assert Path("data/ml-100k/u.data").read_text() == RATINGS


def test_a_server_without_ranges_starts_over(server: Server) -> None:
    server.ranges, server.breaks = False, 1
    assert main(["data", "download", "ml-100k"]) == 1
    assert main(["data", "download", "ml-100k"]) == 0
    assert Path("data/ml-100k/u.data").read_text() == RATINGS


def test_an_archive_put_there_by_hand_is_used(server: Server) -> None:
    Path("data").mkdir()
    Path("data/ml-100k.zip.part").write_bytes(server.archive)
    assert main(["data", "download", "ml-100k"]) == 0
    assert Path("data/ml-100k/u.data").exists()


def test_what_is_there_is_not_fetched_again(server: Server) -> None:
    for _ in range(2):
        assert main(["data", "download", "ml-100k"]) == 0
    assert len(server.asked) == 1


def test_a_wrong_checksum_is_refused(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.archive = server.archive.replace(b"terms", b"tests")
    assert main(["data", "download", "ml-100k"]) == 1
    assert "not used" in capsys.readouterr().err
    assert not Path("data/ml-100k").exists()


def test_a_closed_network_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(catalog, "TIMEOUT", 1)
    assert main(["data", "download", "ml-1m", "--url", "http://127.0.0.1:9/ml-1m.zip"]) == 1
    message = capsys.readouterr().err
    assert "Without a network" in message
    assert "ml-1m.zip.part" in message


def test_what_a_user_put_there_is_used_or_left_alone(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/ml-100k/ml-100k").mkdir(parents=True)
    Path("data/ml-100k/ml-100k/notes").write_text("mine")
    assert main(["data", "download", "ml-100k"]) == 2
    assert "move it away" in capsys.readouterr().err
    assert Path("data/ml-100k/ml-100k/notes").read_text() == "mine"
    Path("data/ml-100k/ml-100k/u.data").write_text(RATINGS)
    assert main(["data", "download", "ml-100k"]) == 0
    assert "data/ml-100k/ml-100k/u.data" in capsys.readouterr().out
    assert not server.asked


def test_an_unknown_name_lists_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "download", "ml-7"]) == 2
    assert "ml-100k, ml-1m" in capsys.readouterr().err


def test_every_entry_is_complete() -> None:
    assert {"ml-100k", "ml-1m", "ml-latest-small"} <= set(CATALOG)
    for entry in CATALOG.values():
        algorithm, digest = entry.checksum.split(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
        assert entry.url.startswith("https://")


def test_a_download_that_is_stopped_between_any_two_writes_comes_to_the_same(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = {name: getattr(Path, name) for name in ("replace", "unlink", "mkdir")}
    left = [0]

    def dying(name: str) -> Any:
        def operation(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise SystemExit(9)
            return operations[name](*arguments, **named)

        return operation

    for moment in range(1, 30):
        folder, left[0] = f"data{moment}", moment
        with monkeypatch.context() as patched:
            for name in operations:
                patched.setattr(Path, name, dying(name))
            try:
                main(["data", "download", "ml-100k", "--dir", folder])
                break
            except SystemExit:
                pass
        assert main(["data", "download", "ml-100k", "--dir", folder]) == 0
        assert Path(folder, "ml-100k/u.data").read_text() == RATINGS
        assert [path.name for path in Path(folder).iterdir()] == ["ml-100k"], "nothing is left over"
    assert moment > 4
