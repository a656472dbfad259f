"""A server's whole numbers are compressed in checkpoints, and what does not unfold to what it says is refused."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import cgfedrec
from cgfedrec.errors import InputError
from cgfedrec.run.checkpoint import LAST, Header, read_checkpoint, write_checkpoint
from cgfedrec.run.packed import KINDS, packed, unpacked

HEADER = Header("run", "config", "method", "fingerprint")


@pytest.mark.parametrize("kind", list(KINDS.values()))
def test_whole_numbers_come_back_as_they_were(kind: torch.dtype) -> None:
    value = torch.arange(4096).remainder(7).to(kind).view(64, 64).T  # as it lies in memory, not in order
    stored = packed({"sum": value})
    assert isinstance(stored["sum"], dict)
    assert stored["sum"]["zlib"].nbytes < value.nbytes
    (back,) = unpacked(stored).values()
    assert isinstance(back, torch.Tensor)
    assert back.dtype == kind
    assert torch.equal(back, value)


def test_what_gains_nothing_stays_as_it_is() -> None:
    random = torch.randint(-(2**62), 2**62, (4096,))
    state = {"small": torch.zeros(8, dtype=torch.int64), "floats": torch.zeros(4096), "random": random}
    stored = packed(state)
    assert all(stored[name] is value for name, value in state.items())
    assert unpacked(stored) == stored


def stored(**changes: Any) -> dict[str, Any]:
    data = zlib.compress(torch.zeros(1000, dtype=torch.int64).numpy().tobytes())
    value = {"zlib": torch.frombuffer(bytearray(data), dtype=torch.uint8), "kind": "int64", "shape": [1000]}
    return {"sum": value | changes}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": [999]}, "another length than the 7992 bytes"),  # it would unfold to more
        ({"shape": [1001]}, "another length than the 8008 bytes"),
        ({"shape": [-1000]}, "has no shape"),
        ({"shape": [10.0]}, "has no shape"),
        ({"shape": None}, "has no shape"),
        ({"kind": "float64"}, "not known"),
        ({"more": 1}, "not known"),
        ({"zlib": b"bytes"}, "not known"),
        ({"zlib": torch.zeros(20, dtype=torch.uint8)}, "cannot be unfolded"),
        ({"zlib": stored()["sum"]["zlib"][:-3]}, "another length"),  # cut off before its end
    ],
)
def test_what_is_not_what_it_says_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        unpacked(stored(**changes))


def test_a_checkpoint_of_such_a_tensor_is_refused() -> None:
    write_checkpoint(Path("a.ckpt"), HEADER, {"server": stored(shape=[2000])})
    with pytest.raises(InputError, match=r"is no checkpoint .a compressed tensor unfolds to another length"):
        read_checkpoint(Path("a.ckpt"))


def test_a_run_goes_on_from_either_to_the_same_end() -> None:
    tiny = {"data.synthetic.users": 60, "data.synthetic.items": 80, "data.synthetic.groups": 4, "logger": None}
    sizes, states = {}, {}
    for compress in (True, False):
        settings = tiny | {"loop.compress": compress, "loop.rounds": 3, "run_dir": str(compress)}
        cgfedrec.fit(settings)
        last = Path(str(compress)) / "checkpoints" / LAST
        run = cgfedrec.fit({**settings, "loop.rounds": 9, "run_dir": f"{compress}-on", "ckpt_path": str(last)})
        sizes[compress] = last.stat().st_size
        states[compress] = run.server.state_dict()
    assert sizes[True] < 0.6 * sizes[False]
    assert all(torch.equal(value, states[False][name]) for name, value in states[True].items())
