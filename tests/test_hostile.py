"""Hostile clients: what cannot be taken in is refused and named, and the others go on as if it had not been sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.errors import InputError, Notice, RunError
from cgfedrec.failures import Failures
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, CGFedRec, PFedRec
from cgfedrec.testing import trained
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.clipped import Clipped
from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.quantised import Quantised
from cgfedrec.wire.refusals import carried
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import RefusedError, Step, Wire, WireError
from tests.conftest import MakeData

HOSTILE = torch.tensor([3, 8])


class Lies(Step):
    """What hostile clients send, in place of what they should."""

    def __init__(self, lie: Callable[[Tensor], Tensor]) -> None:
        self.lie = lie

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        hostile = torch.isin(upload.clients, HOSTILE)
        values = {}
        for name, value in upload.values.items():
            if value.layout != torch.strided:
                value = value.to_dense()
            shape = (-1, *[1] * (value.ndim - 1))
            values[name] = torch.where(hostile.view(shape), self.lie(value), value)
        return Upload(upload.clients, values, upload.sparse, upload.bounds)

    def reverse(self, upload: Upload, round: int) -> Upload:
        return upload


def one_lie(value: Tensor, lie: float) -> Tensor:
    """A single number of each client replaced."""
    changed = value.clone()
    changed.view(len(value), -1)[:, 5] = lie
    return changed


LIES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda value: one_lie(value, torch.nan), "is not finite"),
    "infinity": (lambda value: one_lie(value, -torch.inf), "is not finite"),
    "huge": (lambda value: one_lie(value, 1e30), "has numbers up to 1e\\+30, where none is beyond 8192"),
}


def federation(
    data: FederatedDataModule, method: Method, steps: list[Step], failures: Failures, size: int = 7, rounds: int = 2
) -> FederatedLoop:
    loop = FederatedLoop(rounds=rounds, cohort_size=size, failures=failures)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method, wire=Wire(steps))
    loop.fit()
    return loop


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("method", [PFedRec(dim=8), CGFedRec(dim=8, clusters=6)], ids=["PFedRec", "CGFedRec"])
def test_a_round_goes_on_as_if_the_refused_had_not_been_there(lie: str, method: Method, make_data: MakeData) -> None:
    data = make_data()
    change, why = LIES[lie]
    with pytest.warns(Notice, match=rf"round 1: 2 of 30 uploads are refused; client \w+: uploaded table {why}"):
        loops = [federation(data, method, [Lies(change)], Failures(refused=0.1), size) for size in (1, 7, 100)]

    class Others(FederatedLoop):
        def sample(self) -> Tensor:
            everybody = torch.arange(data.num_users)
            return everybody[~torch.isin(everybody, HOSTILE)]

    others = Others(rounds=2, cohort_size=7)
    others.setup(Fabric(accelerator="cpu", devices=1), data, method)
    others.fit()
    for loop in loops:
        for name, value in others.server.state_dict().items():
            assert loop.server.state_dict()[name].equal(value), name
        assert not loop.clients.store.known[HOSTILE].any(), "they are where they were"
        assert (loop.refused, loop.failed) == (4, 0)
        assert loop.history[-1]["clients/refused"] == 4


def test_too_many_stop_the_run_and_by_default_the_first_one(make_data: MakeData) -> None:
    data = make_data()
    change = LIES["NaN"][0]
    with pytest.raises(RunError, match=r"2 of 30 uploads are refused; .*more than the share 0.05"):
        federation(data, PFedRec(dim=8), [Lies(change)], Failures(refused=0.05))
    with pytest.raises(NotFiniteError):
        federation(data, PFedRec(dim=8), [Lies(change)], Failures())


def test_whole_numbers_out_of_bounds_are_refused(make_data: MakeData) -> None:
    data = make_data()
    lies = Lies(lambda value: value + 10**9)
    with pytest.warns(Notice, match="2 of 30 uploads are refused"):
        loop = federation(data, CGFedCo(), [lies], Failures(refused=0.1), rounds=1)
    honest = trained(CGFedCo(), data, 7, rounds=1)
    with pytest.raises(WireError):
        federation(data, CGFedCo(), [lies], Failures(), rounds=1)
    assert loop.server.at == 1, "the sum does not wait for them"
    again = FederatedLoop(rounds=2, failures=Failures(refused=0.1))
    again.setup(Fabric(accelerator="cpu", devices=1), data, CGFedCo())
    again.load_state_dict(loop.state_dict())
    for one in (loop, again):
        wanted = one.server.wanted()
        assert wanted is not None
        assert len(wanted) == 28
        assert not torch.isin(HOSTILE, wanted).any(), "nor is the next one, also where a run goes on"
    assert honest.bytes_up == loop.bytes_up, "what was refused has been sent"


def test_more_than_one_client_can_add_is_refused_in_each_sum(make_data: MakeData) -> None:
    """Within the bounds of the sum, and ten times what a client has: each hostile one is named in every sum."""
    data = make_data(synthetic=Synthetic(users=60, items=60, groups=6, interactions=12))
    lies = Lies(lambda value: 10 * value)
    with pytest.warns(Notice) as notices:
        loop = federation(data, CGFedCo(), [lies], Failures(refused=1.0), rounds=8)
    told = "\n".join(str(notice.message) for notice in notices)
    assert "adds 10 to a number of bounds, and one client adds 1" in told
    with pytest.warns(Notice) as notices:
        loop = federation(data, CGFedCo(), [Later(lies)], Failures(refused=1.0), rounds=8)
    assert "of sketch, and one client adds" in "\n".join(str(notice.message) for notice in notices)
    honest = federation(data, CGFedCo(), [], Failures(refused=0.1), rounds=60)
    assert honest.server.finished
    assert honest.refused == 0
    assert loop.refused


def test_a_sum_beyond_its_bounds_is_said_where_nobody_looks_at_single_uploads(make_data: MakeData) -> None:
    """Each message is within the bounds of the sum, and both together are not."""
    lies = Lies(lambda value: torch.where(value > 0, 30, 0))
    with pytest.raises(RunError, match=r"the sum 'bounds' of all clients: \d+ is not between 0 and 30\. Somebody has"):
        federation(make_data(), CGFedCo(), [lies], Failures())


class Later(Lies):
    """Lies, but for the first sum."""

    def __init__(self, lies: Lies) -> None:
        super().__init__(lies.lie)

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        if "bounds" in upload.values:
            return upload
        return super().forward(upload, round, seed)


def test_what_quantisation_cannot_round_is_refused_too(make_data: MakeData) -> None:
    steps: list[Step] = [Lies(LIES["NaN"][0]), Quantised(8)]
    with pytest.warns(Notice, match="2 of 30 uploads are refused"):
        loop = federation(make_data(), PFedRec(dim=8), steps, Failures(refused=0.1))
    assert loop.refused == 4


def wrong(**changed: Any) -> Upload:
    values = {"table": torch.randn(1, 4, 3)} | changed
    return Upload(torch.tensor([5]), values)


@pytest.mark.parametrize(
    "message",
    [
        wrong(table=torch.randn(1, 5, 3)),
        wrong(table=torch.randn(1, 4, 3).double()),
        wrong(more=torch.zeros(1, 2)),
        Upload(torch.tensor([5]), {"tables": torch.randn(1, 4, 3)}),
        Upload(torch.tensor([5]), {"table": torch.zeros(1, 4, 3)}, frozenset({"table"})),
    ],
    ids=["shape", "dtype", "one more", "name", "sparse"],
)
def test_messages_of_another_layout_are_refused_one_by_one(message: Upload) -> None:
    expected = {"table": Field((4, 3))}
    honest = Upload(torch.tensor([2, 9]), {"table": torch.randn(2, 4, 3)})
    messages = [honest.pack()[0], message.pack()[0], honest.pack()[1]]
    with pytest.raises(ValueError, match="client 5"):
        Upload.unpack(torch.tensor([2, 5, 9]), messages, expected)
    refused: dict[int, str] = {}
    arrived = Upload.unpack(torch.tensor([2, 5, 9]), messages, expected, refused)
    assert list(refused) == [5]
    assert arrived.clients.tolist() == [2, 9]
    assert arrived.values["table"].equal(honest.values["table"])
    assert Upload.unpack(torch.tensor([5]), messages[1:2], expected, refused).fields == expected
    # In a simulation all of a cohort have one layout.
    taken, _, named = carried(message, lambda one: Wire().up(one, expected, 1, 7), expected, True, lambda arrived: {})
    assert list(named) == [5]
    assert not len(taken.clients)


def test_sparse_tensors_of_counts_are_left_out_by_client() -> None:
    counts = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [2, 3]], [[0, 0], [0, 1]]]).to_sparse(2).coalesce()
    upload = Upload(torch.tensor([4, 6, 7]), {"n": counts}, bounds={"n": Bounds(torch.full((2, 2), 3))})
    some = upload.only(torch.tensor([7, 4]))
    assert some.clients.tolist() == [4, 7]
    assert some.values["n"].is_coalesced()
    assert some.values["n"].to_dense().equal(counts.to_dense()[[0, 2]])
    assert [len(one) for one in some.pack()] == [len(one) for one in upload.pack()][:2]


def test_what_is_clipped_has_the_norm_that_is_asked() -> None:
    upload = Upload(torch.arange(3), {"a": torch.randn(3, 4, 5), "b": torch.randn(3, 6), "n": torch.ones(3, 2).long()})
    upload.values["a"][1] *= 1e-3
    upload.values["b"][1] *= 1e-3
    for each, names in ((False, [["a", "b"]]), (True, [["a"], ["b"]])):
        clipped = Wire([Clipped(0.5, each)]).up(upload, upload.fields, 1, 7)[0]
        for group in names:
            norms = torch.cat([clipped.values[name].flatten(1) for name in group], 1).norm(dim=1)
            torch.testing.assert_close(norms[[0, 2]], torch.tensor([0.5, 0.5]))
        for name, value in upload.values.items():
            assert clipped.values[name][1].equal(value[1]), "what is small enough stays as it is"
        assert clipped.values["n"].equal(upload.values["n"])
    zeros = Upload(torch.arange(2), {"a": torch.zeros(2, 3)})
    assert Wire([Clipped(0.5)]).up(zeros, zeros.fields, 1, 7)[0].values["a"].equal(torch.zeros(2, 3))


def test_a_client_that_does_not_clip_is_refused(make_data: MakeData) -> None:
    step = Clipped(0.5)
    upload = Upload(torch.tensor([4, 9]), {"a": torch.tensor([[0.3, 0.4], [3.0, 4.0]])})
    with pytest.raises(RefusedError, match=r"client 9: the norm of a is 5, and at most 0.5 is taken") as error:
        step.reverse(upload, 1)
    assert list(error.value.refused) == [9]

    class Unclipped(Clipped):
        def forward(self, upload: Upload, round: int, seed: int) -> Upload:
            return Lies(lambda value: 100 * value).forward(super().forward(upload, round, seed), round, seed)

    with pytest.warns(Notice, match="2 of 30 uploads are refused; .*the norm of table is"):
        loop = federation(make_data(), PFedRec(dim=8), [Unclipped(2.0)], Failures(refused=0.1))
    assert loop.refused == 4


def test_wrong_bounds_are_refused() -> None:
    with pytest.raises(InputError, match=r"Clipped.norm: 0 is not positive"):
        Clipped(0)


def test_the_command_line_clips(capsys: pytest.CaptureFixture[str]) -> None:
    steps = '[{"class_path": "cgfedrec.wire.clipped.Clipped", "init_args": {"norm": 3}}]'
    words = ["--data.synthetic.users", "30", "--data.synthetic.items", "40", "--method", "PFedRec", "--logger", "null"]
    assert main(["fit", *words, "--loop.rounds", "1", "--wire.steps", steps, "--run_dir", "run"]) == 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    capsys.readouterr()
