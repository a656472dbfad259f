"""Certificates and keys for a federation: what is there stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="pip install 'cgfedrec[flower]'")


from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cgfedrec.deploy.certificates import main

KEYS = Path("keys")


def files() -> dict[str, bytes]:
    """What stands in the folder."""
    return {path.name: path.read_bytes() for path in KEYS.glob("*")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said; nothing has been written."""
    before = sorted(Path().rglob("*")), files()
    assert main(arguments) == 2
    assert (sorted(Path().rglob("*")), files()) == before
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


@pytest.mark.parametrize("server", ["server.example", "192.0.2.7", "::1"])
def test_keys_of_further_nodes_are_added_and_nothing_else_changes(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0o022)
    try:
        assert main([server, "keys", "node-0", "node-1"]) == 0
        first = files()
        assert main([server, "keys", "node-2"]) == 0
    finally:
        os.umask(before)
    assert capsys.readouterr().out.splitlines()[-1] == "written: keys/node-2, keys/node-2.pub"
    added = {name: content for name, content in files().items() if name not in first}
    assert {**files(), **first} == files()
    assert added.keys() == {"node-2", "node-2.pub"}
    secret = serialization.load_ssh_private_key(added["node-2"], None)
    public = serialization.load_ssh_public_key(added["node-2.pub"])
    assert secret.public_key() == public
    own, root = (x509.load_pem_x509_certificate(first[name]) for name in ("server.crt", "ca.crt"))
    own.verify_directly_issued_by(root)
    modes = {path.name: path.stat().st_mode & 0o777 for path in KEYS.iterdir()}
    private = {"server.key", "node-0", "node-1", "node-2"}
    assert modes == {name: 0o600 if name in private else 0o644 for name in files()}


def test_what_is_there_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server.example", "keys", "node-0"]) == 0
    capsys.readouterr()
    assert "keys has certificates already" in refused(capsys, "server.example", "keys")
    told = refused(capsys, "server.example", "keys", "node-1", "node-0")
    assert told.startswith("NODE: keys/node-0 is there already")
    assert "server.crt is not of other.example" in refused(capsys, "other.example", "keys", "node-1")
    (KEYS / "node-1.pub").write_text("the node made its key itself")
    assert "keys/node-1.pub is there already" in refused(capsys, "server.example", "keys", "node-1")
    for name in ("ca.crt", "server.crt", "server.key"):
        assert f"keys/{name} is there already" in refused(capsys, "server.example", "keys", name)
    (KEYS / "server.crt").write_text("no certificate")
    assert "is no certificate of a server" in refused(capsys, "server.example", "keys", "node-2")
    (KEYS / "server.crt").unlink()
    assert "keys has ca.crt and server.key alone" in refused(capsys, "server.example", "keys", "node-2")


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        (["server.key"], "keys/server.key is there already, or is another's"),
        (["node", "node"], "keys/node is there already, or is another's"),
        (["node", "node.pub"], "keys/node.pub is there already, or is another's"),
        (["../node"], "'../node' is no plain name"),
        (["/tmp/node"], "no plain name"),
        ([".."], "no plain name"),
        ([""], "no plain name"),
        (["-node"], "no plain name"),
        (["a b"], "no plain name"),
        (["node\n"], "no plain name"),
        (["n" * 201], "no plain name"),
    ],
)
def test_names_that_clash_or_are_no_names_are_refused(
    nodes: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in refused(capsys, "server.example", "keys", *nodes)
    assert not KEYS.exists()


@pytest.mark.parametrize("server", ["", "https://server.example", "server.example:8000", "bücher.example", "s" * 65])
def test_a_server_has_a_name_or_an_address(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a name" in refused(capsys, server, "keys")


def test_the_command_says_what_it_takes() -> None:
    done = subprocess.run([sys.executable, "-m", "cgfedrec.deploy.certificates", "s"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split()[0]) == (2, "usage:")
    Path("file").write_text("")
    line = [sys.executable, "-m", "cgfedrec.deploy.certificates", "server.example", "file"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "FOLDER: file is a file\n")
