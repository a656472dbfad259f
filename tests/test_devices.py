"""One client's file and the server's: each holds its own, works alone, and tells nothing of anybody else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import cgfedrec
from cgfedrec import methods
from cgfedrec.cli import main
from cgfedrec.data.own import Own
from cgfedrec.errors import InputError
from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.devices import CLIENT, SERVER, read_client, read_server, write_client, write_server
from cgfedrec.serving.container import read_container, write_container
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.labelsets import LabelSets
from cgfedrec.structure.neighbours import Neighbours
from cgfedrec.testing import prepared, trained
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.codec import encode
from cgfedrec.wire.parts import put_together, taken_apart
from cgfedrec.wire.values import Counts, IdLists, Labels, SparseRows, Value, Weights

HEADER = Header("a run", "method: {class_path: some}", "some", "fingerprint")
METHODS: dict[str, Method] = {
    "CGFedCo": methods.CGFedCo(columns=8),
    "CGFedCo, trained": methods.CGFedCo(columns=8, structure=Neighbours(reading="trained")),
    "CGFedCo, label sets": methods.CGFedCo(columns=8, structure=LabelSets(sets=2, clusters=5, rounds=2)),
    "FedGF": methods.FedGF(rank=8),
    "CGFedRec": methods.CGFedRec(dim=8, clusters=5, silent_rounds=1),
    "PFedRec": methods.PFedRec(dim=8),
    "FedMF": methods.FedMF(dim=8),
    "FedRAP": methods.FedRAP(dim=8),
    "GPFedRec": methods.GPFedRec(dim=8),
    "CoFedRec": methods.CoFedRec(dim=8),
    "Local": methods.Local(dim=8),
}
SINGLE = ("GPFedRec", "CoFedRec")
"""Methods whose server looks at single uploads."""
CLIENT_FILE, SERVER_FILE = Path("client.safetensors"), Path("server.safetensors")


def ended(name: str) -> FederatedLoop:
    rounds = 30 if name.startswith(("CGFedCo", "FedGF")) else 3
    return trained(METHODS[name], prepared(), 8, rounds=rounds)


@pytest.mark.parametrize("name", METHODS)
def test_a_client_scores_alone_as_it_did_in_the_federation(name: str) -> None:
    """From its file, its own history, and a module that knows nothing else."""
    loop = ended(name)
    for user in (0, 17):
        write_client(loop, HEADER, loop.data.user_ids[user], CLIENT_FILE)
        state = read_client(CLIENT_FILE)
        assert (state.num_items, state.about["round"]) == (loop.data.num_items, loop.round)
        client = METHODS[name].client(state.num_items, 12345)
        state.give_to(client)
        client.own = Own(loop.data, torch.tensor([user]), loop.round + 1, 1)
        with torch.no_grad():
            assert torch.equal(client.score(), loop.score(torch.tensor([user])))


@pytest.mark.parametrize("name", METHODS)
def test_a_clients_file_tells_of_no_other(name: str) -> None:
    loop = ended(name)
    others = [user for user in range(loop.data.num_users) if user != 4]
    write_client(loop, HEADER, loop.data.user_ids[4], CLIENT_FILE)
    written = CLIENT_FILE.read_bytes()
    rows = loop.clients.store.read(torch.tensor([4, *others]))
    compared = 0
    for value in rows.values():
        own, *rest = (one.contiguous().numpy().tobytes()[:64] for one in value)
        assert own in written
        for one in rest:
            if one != own and len(set(one)) > 8:
                assert one not in written
                compared += 1
    assert compared or name.startswith(("CGFedCo", "FedGF"))
    assert loop.data.num_users not in {len(one) for one in read_container(CLIENT_FILE, CLIENT).arrays.values()}


@pytest.mark.parametrize("name", METHODS)
def test_a_server_sends_alone_what_it_sent_in_the_federation(name: str) -> None:
    loop = ended(name)
    if name in SINGLE:
        with pytest.raises(InputError, match="server: that of some looks at single uploads"):
            write_server(loop, HEADER, SERVER_FILE)
        assert not SERVER_FILE.exists()
        return
    write_server(loop, HEADER, SERVER_FILE)
    state = read_server(SERVER_FILE)
    assert state.item_ids == loop.data.item_ids.to_list()
    server = METHODS[name].server(len(state.item_ids), 0 if name == "Local" else loop.server.seed)  # type: ignore[arg-type]
    state.give_to(server)
    users = torch.arange(3)
    sent, expected = (one.broadcast(users, loop.round + 1) for one in (server, loop.server))
    assert (sent is None) == (expected is None)
    if sent is not None and expected is not None:
        assert sent.pack() == expected.pack()
        assert list(sent.kept) == list(expected.kept)
        for key, bulletin in expected.kept.items():
            assert encode(sent.kept[key].values) == encode(bulletin.values)
    greeted, before = server.welcome(), loop.server.welcome()
    assert (greeted and greeted.pack()) == (before and before.pack())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SINGLE])
@pytest.mark.parametrize("whole", [False, True])
def test_a_servers_file_holds_no_user(name: str, whole: bool) -> None:
    """Nor what only some clients have added to a sum that is not complete: rounds of a few leave one half-counted."""
    loop = ended(name) if whole else trained(METHODS[name], prepared(), 8, rounds=1, participants=7)
    data, server = loop.data, loop.server
    if isinstance(server, SumsServer):  # as in a run that goes on with other data
        server.changed = torch.ones(data.num_users, dtype=torch.bool)
    write_server(loop, HEADER, SERVER_FILE)
    arrays = read_container(SERVER_FILE, SERVER).arrays
    assert data.num_users not in {length for one in arrays.values() for length in one.shape}
    left_out = set(loop.server.state_dict()) - {one.removeprefix("state/") for one in arrays}
    assert left_out == set(loop.server.of_clients) & set(loop.server.state_dict())
    written = SERVER_FILE.read_bytes()
    if isinstance(server, SumsInTurn):
        assert bool(server.part.numel()) != whole
        assert whole or server.part.numpy().tobytes() not in written
    for rows in loop.clients.store.read(loop.clients.store.known.nonzero().squeeze(1)).values():
        for row in rows:
            own = row.contiguous().numpy().tobytes()[:64]
            assert len(set(own)) < 8 or own not in written


def test_the_command_line_writes_both(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = prepared()
    whose = np.repeat(drawn.people.ids.to_numpy(), drawn.people.items.lengths)
    rows = {
        "user": [f"-person-{one}" for one in whose],
        "item": drawn.people.items.items,
        "timestamp": range(len(whose)),
    }
    pl.DataFrame(rows).with_columns(pl.format("thing {}", "item").alias("item")).write_csv("people.csv")
    settings = {"method": {"class_path": "CGFedCo", "columns": 8}, "logger": None, "seed_everything": 918273645}
    run = cgfedrec.fit({**settings, "data.path": "people.csv", "run_dir": "run"})
    line = ["export", "--ckpt_path", "run/checkpoints/best.ckpt", "--output"]
    assert main([*line, str(CLIENT_FILE), "--client=-person-7"]) == 0
    assert main([*line, str(SERVER_FILE), "--server"]) == 0
    assert f"{SERVER_FILE}: {SERVER_FILE.stat().st_size:,} bytes" in capsys.readouterr().out
    for path in (CLIENT_FILE, SERVER_FILE):
        written = path.read_bytes()
        assert b"person" not in written
        assert b"918273645" not in written
    assert read_client(CLIENT_FILE).about["method"] == "cgfedrec.methods.cgfedco.CGFedCo"
    assert read_server(SERVER_FILE).item_ids == run.data.item_ids.to_list()
    with pytest.raises(InputError, match="holds a client, and not a server"):
        read_server(CLIENT_FILE)


def test_another_method_is_refused() -> None:
    loop = ended("FedMF")
    write_client(loop, HEADER, loop.data.user_ids[0], CLIENT_FILE)
    write_server(loop, HEADER, SERVER_FILE)
    with pytest.raises(InputError, match="give it the method and settings of the file"):
        read_client(CLIENT_FILE).give_to(METHODS["PFedRec"].client(loop.data.num_items, 0))
    with pytest.raises(InputError, match="server: cannot have the state of the file"):
        read_server(SERVER_FILE).give_to(METHODS["CGFedCo"].server(loop.data.num_items, 0))
    with pytest.raises(InputError, match="server: cannot have the state of the file"):
        read_server(SERVER_FILE).give_to(methods.FedMF(dim=9).server(loop.data.num_items, 0))


@pytest.mark.parametrize("kind", [CLIENT, SERVER])
def test_damaged_files_are_refused(kind: str) -> None:
    loop = ended("CGFedCo")
    path, read = {CLIENT: (CLIENT_FILE, read_client), SERVER: (SERVER_FILE, read_server)}[kind]
    write_client(loop, HEADER, loop.data.user_ids[0], CLIENT_FILE)
    write_server(loop, HEADER, SERVER_FILE)
    whole, before = path.read_bytes(), str(read(path))
    head = 8 + int.from_bytes(whole[:8], "little")
    generator, told = random.Random(0), set[str]()
    for place in [*range(0, head, 3), *generator.sample(range(head, len(whole)), 200)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            assert str(read(path)) == before  # JSON that says the same
        except InputError as error:
            told.add(str(error))
    assert len(told) > 1
    assert all(one.startswith(f"{path}: ") for one in told)
    for length in range(0, len(whole), 499):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=str(path)):
            read(path)
    with pytest.raises(InputError, match="no such file"):
        read("nowhere")


def test_files_that_are_wrong_on_purpose_are_refused() -> None:
    """With a checksum that agrees: headers and arrays of any kind, and none of another error."""
    loop = ended("CGFedCo")
    write_client(loop, HEADER, loop.data.user_ids[0], CLIENT_FILE)
    write_server(loop, HEADER, SERVER_FILE)
    generator = random.Random(0)
    odd: list[Any] = [None, -1, 2**70, "x", [], {}, {"kind": "Weights"}, True, 1.5]
    refused = 0
    for path, kind in ((CLIENT_FILE, CLIENT), (SERVER_FILE, SERVER)):
        header, arrays, _ = read_container(path, kind)
        for _ in range(150):
            changed, had = _changed(header, odd, generator), dict(arrays)
            name = generator.choice(list(had))
            had[name] = generator.choice([had[name][:-1] if had[name].ndim else had[name], np.zeros(3), np.array(5)])
            write_container(path, kind, {**changed, "kind": kind, "format": header["format"]}, had)
            try:
                if kind == CLIENT:
                    read_client(path).give_to(METHODS["CGFedCo"].client(loop.data.num_items, 0))
                else:
                    read_server(path).give_to(METHODS["CGFedCo"].server(loop.data.num_items, 0))
            except InputError:
                refused += 1
    assert refused > 150


def _changed(value: Any, odd: list[Any], generator: random.Random) -> Any:
    """A copy of plain values in which one of them is something else."""
    if isinstance(value, dict) and value:
        key = generator.choice(list(value))
        return {**value, key: _changed(value[key], odd, generator)}
    return generator.choice(odd)


VALUES: list[Value] = [
    torch.arange(6.0).reshape(2, 3),
    torch.tensor(7),
    Labels(torch.tensor([6, 1]), 8),
    SparseRows(torch.tensor([[0.0, 0], [1, 2]])),
    Counts(torch.tensor([[1], [-2]]), Bounds(torch.tensor([[3], [3]]), signed=True)),
    Counts(torch.tensor([5, 2]), Bounds(torch.tensor(9).expand(2), bits=20)),
    IdLists(torch.tensor([[0, 4], [2, -1]]), torch.tensor([2, 1]), 5, "plain"),
    Weights(
        torch.tensor([[True, False]]), torch.tensor([[3, 0]]), torch.tensor([0.5]).half(), torch.tensor([2]), bits=2
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_put_together_as_they_were(value: Value) -> None:
    words, tensors = taken_apart(value)
    again = put_together(words, tensors)
    if isinstance(value, torch.Tensor):
        assert isinstance(again, torch.Tensor)
        assert again.equal(value)
    else:
        assert again == value
    for wrong in ({**words, "kind": "Other"}, {**words, "more": 1}, {"kind": "Labels"}, {}):
        with pytest.raises(ValueError, match="there is no"):
            put_together(wrong, tensors | {"odd": torch.zeros(1)})
