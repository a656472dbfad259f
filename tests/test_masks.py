"""The protocol of secure sums: masks cancel to the bit whoever drops out, and a message alone says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.secure import SecureSums, masks, member
from cgfedrec.wire.secure.collector import Collector
from cgfedrec.wire.secure.member import Member
from cgfedrec.wire.secure.neighbours import Traffic, circle
from cgfedrec.wire.secure.shares import joined, split
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire

CONTEXT = b"run, round 1"


def uploads(clients: int, items: int = 6) -> Upload:
    """A table of floats, whole numbers with bounds of several widths, some of none, and signed sparse ones."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 2, (clients, 4), generator=generator)
    signs = torch.randint(-1, 2, (clients, items, 2), generator=generator)
    signs[:, 1] = 0
    return Upload(
        torch.arange(clients) * 3 + 1,
        {
            "table": torch.randn(clients, items, 5, generator=generator),
            "count": counts * torch.tensor([1, 0, 1, 1]),
            "signs": signs.to_sparse(2),
        },
        bounds={
            "count": Bounds(torch.tensor([clients, 0, 4 * clients, 1000])),
            "signs": Bounds(torch.full((items, 2), clients), signed=True),
        },
    )


class Play:
    """One round, played by members and a collector that pass each other bytes.

    Args:
        upload: What clients would send.
        step: The settings.
        silent: Who drops out before sharing.
        lost: Who drops out before sending.
        late: Who drops out before telling shares.
    """

    def __init__(
        self,
        upload: Upload,
        step: SecureSums,
        silent: set[int] = frozenset(),  # type: ignore[assignment]
        lost: set[int] = frozenset(),  # type: ignore[assignment]
        late: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> None:
        self.step, self.upload, self.fields = step, upload, upload.fields
        encoded = step.forward(upload, 1, 7)
        self.sent_fields = step.fields(self.fields)
        members = {one: Member(one, CONTEXT, step.neighbours, 2) for one in upload.clients.tolist()}
        self.collector = Collector({one: m.keys() for one, m in members.items()}, CONTEXT, step.neighbours)
        sealed = {
            one: m.shares(len(members), self.collector.roster(one)) for one, m in members.items() if one not in silent
        }
        for one, messages in self.collector.passed_on(sealed).items():
            members[one].take(messages)
        self.messages: dict[int, dict[str, Tensor]] = {}
        for row, one in enumerate(upload.clients.tolist()):
            if one not in silent | lost:
                values = {name: value[row] for name, value in encoded.values.items()}
                self.messages[one] = members[one].masked(values, self.sent_fields)
        self.members = members
        self.told = {one: members[one].told(self.messages.keys()) for one in self.messages if one not in late}

    def closed(self) -> dict[str, Tensor]:
        """The sum of messages, masks and all."""
        return {name: sum(one[name] for one in self.messages.values()) for name in self.sent_fields}  # type: ignore[misc]

    def opened(self) -> Sum:
        masked, off = self.closed(), self.collector.masks(self.messages.keys(), self.told, self.sent_fields)
        total = Sum({name: masked[name] - off[name] for name in masked}, len(self.messages))
        return Wire([self.step]).opened(total, self.fields)


def simulated(step: SecureSums, upload: Upload, clients: set[int]) -> Sum:
    rows = torch.tensor([one in clients for one in upload.clients.tolist()])
    values = {name: value.to_dense()[rows] if name == "signs" else value[rows] for name, value in upload.values.items()}
    some = Upload.of_fields(upload.clients[rows], values, upload.fields)
    wire = Wire([step])
    return wire.opened(wire.up(some, some.fields, 1, 7)[0].sum(), upload.fields)


@pytest.mark.parametrize("neighbours", [64, 6])
@pytest.mark.parametrize(
    ("silent", "lost", "late"),
    [
        (set(), set(), set()),
        ({4, 13, 22}, set(), set()),
        (set(), {1, 16, 28}, set()),
        (set(), set(), {7, 10, 19}),
        ({4}, {16}, {25}),
    ],
)
def test_masks_cancel_to_the_bit_with_thirty_percent_of_dropouts(
    silent: set[int], lost: set[int], late: set[int], neighbours: int
) -> None:
    step, upload = SecureSums(neighbours=neighbours), uploads(10)
    played = Play(upload, step, silent, lost, late)
    total = played.opened()
    expected = simulated(step, upload, set(upload.clients.tolist()) - silent - lost)
    assert total.clients == expected.clients
    assert total.told == expected.told
    for name, value in expected.values.items():
        assert total.values[name].equal(value), name
    closed = played.closed()["table"]
    assert not closed.equal(Wire([step]).sent(upload, 1, 7).values["table"].sum(0)), "nothing was masked"


def told_apart(numbers: Tensor, bits: int) -> float:
    """The probability that uniform numbers `[numbers]` of so many bits are spread at least as unevenly over 64 bins."""
    counts = torch.bincount(numbers >> (bits - 6), minlength=64)
    return float(chisquare(counts.numpy()).pvalue)


def fixed_bytes(seed: int) -> Callable[[int], bytes]:
    """In place of the system's randomness: other bytes at each call, the same in each test."""
    generator = torch.Generator().manual_seed(seed)
    return lambda number: bytes(torch.randint(0, 256, (number,), generator=generator).tolist())


def test_a_message_alone_is_like_chance_and_would_not_be_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_bytes", fixed_bytes(5))
    upload = Upload(torch.arange(4), {"table": 0.1 * torch.randn(4, 4000, 2)})
    step = SecureSums()
    one = Play(upload, step).messages[2]["table"].flatten()
    assert 0.001 < told_apart(one, 32) < 0.999
    # The low bits too, and what is left of the sum of two.
    assert 0.001 < told_apart(one & 63, 6) < 0.999
    assert abs(float(torch.corrcoef(torch.stack((one.double(), upload.values["table"][2].flatten())))[0, 1])) < 0.05

    def nothing(seed: bytes, fields: Mapping[str, Field]) -> dict[str, Tensor]:
        return {name: torch.zeros(field.shape, dtype=torch.int64) for name, field in fields.items()}

    monkeypatch.setattr(member, "mask", nothing)
    assert told_apart(Play(upload, step).messages[2]["table"].flatten(), 32) < 1e-100


def test_the_own_mask_hides_a_message_that_comes_after_its_neighbours_have_given_up_theirs() -> None:
    played = Play(uploads(5), SecureSums(), lost={4})
    late = played.members[4]
    values = {name: value[1] for name, value in played.step.forward(played.upload, 1, 7).values.items()}
    message = late.masked(values, played.sent_fields)
    off = played.collector.masks(played.messages.keys(), played.told, played.sent_fields)
    everything = {name: value + message[name] for name, value in played.closed().items()}
    found = Sum({name: everything[name] - off[name] for name in everything}, 5)
    with pytest.raises(RunError, match="cannot be one of what clients send"):
        Wire([played.step]).opened(found, played.fields)


def test_too_few_shares_leave_the_sum_closed_and_nobody_tells_twice() -> None:
    played = Play(uploads(10), SecureSums(), late={1, 4, 7, 10, 13})
    with pytest.raises(RunError, match=r"the sum stays closed: of client 1, 5 shares .* and 6 "):
        played.opened()
    again = played.members[16]
    assert again.told(played.messages.keys()) == played.told[16], "the same question has the same answer"
    with pytest.raises(RunError, match="tells them for one list"):
        again.told(played.messages.keys() - {1})
    values = {name: torch.zeros(field.shape, dtype=torch.int64) for name, field in played.sent_fields.items()}
    with pytest.raises(RunError, match="its masks hide one"):
        again.masked(values, played.sent_fields)
    with pytest.raises(RunError, match="too few of its neighbours"):
        played.members[1].told({1, 4, 7})
    with pytest.raises(RunError, match="too few of its neighbours"):
        played.members[4].told(played.messages.keys() - {4})


def test_who_would_get_too_few_shares_is_left_out_before_anybody_trains() -> None:
    """Of four neighbours and itself a client needs three: whose neighbours are all silent is not waited for."""
    keys = {one: Member(one, CONTEXT, 4, 3).keys() for one in range(12)}
    collector = Collector(keys, CONTEXT, 4)
    lonely = 5
    messages = {one: dict.fromkeys(collector.neighbours[one], b"") for one in keys}
    for silent in collector.neighbours[lonely][:3]:
        del messages[silent]
    passed = collector.passed_on(messages)
    assert lonely not in passed
    assert len(passed) >= 6
    assert all(lonely not in of and len(of) + 1 >= collector.threshold for of in passed.values())
    assert all(set(collector.holds(one)) == {one, *passed[one]} for one in passed)


def test_members_refuse_small_sums_strangers_and_shares_that_were_changed() -> None:
    one, two, three = (Member(number, CONTEXT, 64, 3) for number in range(3))
    with pytest.raises(RunError, match="takes no part in a sum of 2 clients"):
        one.shares(2, {1: two.keys()})
    with pytest.raises(RunError, match="with 1 neighbours"):
        one.shares(3, {1: two.keys()})
    one.shares(3, {1: two.keys(), 2: three.keys()})
    message = two.shares(3, {0: one.keys(), 2: three.keys()})[0]
    with pytest.raises(ValueError, match="not come as it was sent"):
        one.take({1: message[:-1] + bytes([message[-1] ^ 1])})
    with pytest.raises(ValueError, match="has no neighbour 9"):
        one.take({9: message})
    with pytest.raises(RunError, match="has shares of 1 clients"):
        one.take({})
    fields = {"x": Field((1,), torch.int64, bounds=Bounds(torch.tensor([4])))}
    with pytest.raises(RunError, match="masks nothing"):
        one.masked({"x": torch.tensor([1])}, fields)
    one.take({1: message})
    with pytest.raises(ValueError, match="not between"):
        one.masked({"x": torch.tensor([9])}, fields)


def test_a_secret_needs_its_threshold() -> None:
    secret = bytes(range(32))
    shares = dict(enumerate(split(secret, 3, 5)))
    assert joined({place: shares[place] for place in (4, 0, 2)}, 3) == secret
    with pytest.raises(ValueError, match="2 shares of a secret"):
        joined({0: shares[0], 1: shares[1]}, 3)
    assert joined({place: shares[place] for place in (4, 0)} | {2: shares[1]}, 3) != secret


def test_neighbours_are_mutual_and_known_to_all() -> None:
    found = circle(range(100), CONTEXT, 10)
    assert all(len(others) == 10 and one not in others for one, others in found.items())
    assert all(one in found[other] for one, others in found.items() for other in others)
    assert found != circle(range(100), b"run, round 2", 10)
    assert Traffic(100, 11).neighbours == 10


def test_simulated_bytes_are_those_that_the_protocol_sends() -> None:
    clients, step = 10, SecureSums(neighbours=4)
    played = Play(uploads(clients), step)
    up = sum(2 * 32 + 32 * len(told) for told in played.told.values())
    sealed = [len(message) for one in played.members.values() for message in _again(one).values()]
    assert Wire([step]).traffic(clients)[0] == up + sum(sealed)


def _again(one: Member) -> dict[int, bytes]:
    return one.shares(10, one._keys)


def test_masks_of_a_field_are_modulo_its_bits() -> None:
    bounds = Bounds(torch.tensor([0, 1, 4, 1000]))
    (found,) = masks.mask(bytes(32), {"x": Field((4,), torch.int64, bounds=bounds)}).values()
    assert (found <= torch.tensor([0, 1, 7, 1023])).all()
    assert found[0] == 0
