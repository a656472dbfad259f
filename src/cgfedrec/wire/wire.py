"""The wire: the one place where messages become bytes and are read again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from cgfedrec.errors import RunError
from cgfedrec.wire.frames import Frames
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field


class WireError(RunError):
    """A message is not laid out as its receiver expects."""


class RefusedError(WireError):
    """Some clients sent what the server does not take.

    Args:
        refused: By client, why.
    """

    def __init__(self, refused: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"client {client}: {why}" for client, why in refused.items()))
        self.refused = refused


class Step(ABC):
    """Something done to every upload on its way: forward on the client, and reversed on the server.

    It may do something to broadcasts too: `send` on the server, and `receive` on the client.

    Steps are given as ``wire.steps``, as ``class_path`` and ``init_args``. They must not mix the rows of the clients
    axis. Several threads call a step at once, each for a cohort of its own. So it must not change anything in itself.
    """

    sums_only: bool = False
    """Whether what it leaves makes sense only in a sum. A server that looks at single uploads is then refused.

    Such a step is undone on the sum (`opened`), and never on a single upload (`reverse`)."""

    before_sums: ClassVar[bool] = False
    """Whether it may stand before such a step: then nobody calls its `reverse`, and all is as without."""

    def problems(self, fields: Mapping[str, Field], clients: int) -> Iterator[str]:
        """Why it cannot do its work on such uploads, before a run starts; by default it can.

        Args:
            fields: Of one client's upload.
            clients: How many are added up, at most.
        """
        yield from ()

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        """What travels where ``fields`` are to be sent; by default the same."""
        return fields

    @abstractmethod
    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        """On the client: what travels in place of this upload, from the same clients.

        Args:
            upload: What they send.
            round: From 1.
            seed: Their private one, for draws by client and round (`cgfedrec.random`).
        """

    def reverse(self, upload: Upload, round: int) -> Upload:
        """On the server, which has no private seed: what is made of what travelled; by default the same.

        It is laid out as the upload that was given to `forward`.
        """
        return upload

    def opened(self, total: Sum, fields: Mapping[str, Field]) -> Sum:
        """On the server: what is made of the sum of all that travelled; by default the same.

        Args:
            total: The sum over some clients.
            fields: Of the uploads that were given to `forward`.
        """
        return total

    def traffic(self, clients: int) -> tuple[int, int]:
        """Bytes up and down that it sends besides for a round of so many clients, of all of them; by default none."""
        return 0, 0

    def send(self, broadcast: Broadcast, round: int, seed: int) -> Broadcast:
        """On the server: what travels in place of a broadcast; by default the same.

        Args:
            broadcast: For some clients. All cohorts of a round must be sent the same ``values``.
            round: Before which it comes.
            seed: The shared one.
        """
        return broadcast

    def receive(self, broadcast: Broadcast) -> Broadcast:
        """On the client: what is made of what has come down."""
        return broadcast


class Wire:
    """Carries uploads and broadcasts as bytes, and counts them.

    Args:
        steps: What is done to every upload, in this order on the client, and reversed in the opposite order on the
            server.
    """

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self.steps = tuple(steps)

    def problems(self, sees_single_uploads: bool, method: str) -> Iterator[str]:
        """What is wrong with these steps for a method whose server looks at single uploads, or does not."""
        sums = [type(step).__name__ for step in self.steps if step.sums_only]
        if sees_single_uploads:
            for name in sums:
                yield f"wire.steps: {name} works on sums alone, and the server of {method} looks at single uploads"
        for step in self._added_up:
            if not (step.sums_only or step.before_sums):
                name, after = type(step).__name__, sums[-1]
                yield f"wire.steps: {name} is undone for each upload, and {after} behind it leaves only a sum"

    def no_sum(self, fields: Mapping[str, Field], clients: int) -> Iterator[str]:
        """Why these steps cannot carry uploads of such fields, added up over at most so many clients."""
        for step in self.steps:
            yield from step.problems(fields, clients)
            fields = step.fields(fields)

    def up(self, upload: Upload, expected: Mapping[str, Field], round: int, seed: int) -> tuple[Upload, int]:
        """Carry a cohort's messages to the server.

        Args:
            upload: What the clients send.
            expected: The fields of one client's message, as the server has declared them (`Server.expects`).
            round: From 1.
            seed: The clients' private one.

        Returns:
            The upload as it arrives, and the bytes of all messages. Under steps that leave only a sum it is not what
            was sent, and laid out as `added` says. Values that no step has changed still lie in the
            clients' memory: a server that keeps them must copy them.

        Raises:
            WireError: where a name, a shape or a type is not what the server expects.
        """
        frames = _frames(self.sent(upload, round, seed))
        return self.arrived(_read(frames, self.travelling(expected)), expected, round), frames.nbytes

    def sent(self, upload: Upload, round: int, seed: int) -> Upload:
        """The clients' half of `up`: what travels in place of this upload. Arguments as there."""
        if self.steps:
            upload = upload.whole()
        for step in self.steps:
            changed = step.forward(upload, round, seed)
            if not changed.clients.equal(upload.clients):
                raise WireError(f"wire.steps: {type(step).__name__} sends for other clients than it was given")
            upload = changed
        return upload

    def travelling(self, expected: Mapping[str, Field]) -> Mapping[str, Field]:
        """The fields of one client's message on its way, where the server expects others: a step may change them."""
        for step in self.steps:
            expected = step.fields(expected)
        return expected

    def arrived(self, upload: Upload, expected: Mapping[str, Field], round: int) -> Upload:
        """The server's half of `up`: what it makes of what has travelled. Raises `WireError` as there."""
        for step in reversed(self.steps[len(self._added_up) :]):
            upload = step.reverse(upload, round)
        expected = self.added(expected)
        if upload.fields != expected:
            raise WireError(f"wire.steps: turn an upload of {expected} into one of {upload.fields}")
        return upload

    @property
    def sums_only(self) -> bool:
        """Whether what arrives makes sense only in a sum."""
        return any(step.sums_only for step in self.steps)

    @property
    def _added_up(self) -> Sequence[Step]:
        """The steps up to the last one that leaves only a sum: they are undone on the sum."""
        last = max((place for place, step in enumerate(self.steps, 1) if step.sums_only), default=0)
        return self.steps[:last]

    def added(self, expected: Mapping[str, Field]) -> Mapping[str, Field]:
        """The fields of what arrives, and is added up, where the server expects others: those before `opened`."""
        for step in self._added_up:
            expected = step.fields(expected)
        return expected

    def opened(self, total: Sum, expected: Mapping[str, Field]) -> Sum:
        """What the server expects, from the sum of what has arrived (`Step.opened`)."""
        steps, before = self._added_up, [expected]
        for step in steps:
            before.append(step.fields(before[-1]))
        for step, fields in zip(reversed(steps), reversed(before[:-1]), strict=True):
            total = step.opened(total, fields)
        return total

    def traffic(self, clients: int) -> tuple[int, int]:
        """Bytes up and down that steps send besides for a round of so many clients."""
        sent = [step.traffic(clients) for step in self.steps]
        return sum(up for up, _ in sent), sum(down for _, down in sent)

    def down(
        self, broadcast: Broadcast | None, clients: int, round: int = 0, seed: int = 0
    ) -> tuple[Broadcast | None, int]:
        """Carry a broadcast to so many clients.

        Args:
            broadcast: From the server.
            clients: How many.
            round: Before which it comes; 0 for what is sent once.
            seed: The shared one.

        Returns:
            The message as it arrives, and the bytes that all of them receive. What is the same for all counts once for
            each client. What only some of them get counts besides. Bulletins do not count: they have travelled
            already, and the loop knows who has them.
        """
        return self.received(self.sending(broadcast, round, seed), clients)

    def sending(self, broadcast: Broadcast | None, round: int, seed: int) -> Broadcast | None:
        """The server's half of `down`: what travels. Arguments as there."""
        if broadcast is not None:
            for step in self.steps:
                broadcast = step.send(broadcast, round, seed)
        return broadcast

    def received(self, broadcast: Broadcast | None, clients: int) -> tuple[Broadcast | None, int]:
        """The clients' half of `down`: what they make of what travels, and its bytes."""
        if broadcast is None:
            return None, 0
        arrived, nbytes = _travelled(broadcast, clients)
        for step in reversed(self.steps):
            arrived = step.receive(arrived)
        return arrived, nbytes


def _travelled(broadcast: Broadcast, clients: int) -> tuple[Broadcast, int]:
    """A broadcast as its bytes say it, and how many they are for so many clients."""
    try:
        packed = broadcast.pack()
    except ValueError as error:
        raise WireError(f"what is to be sent: {error}") from error
    values = Broadcast.unpack(packed, broadcast.fields).values
    nbytes = len(packed) * clients
    if not broadcast.values:  # no message for all, then
        nbytes = 0
    if broadcast.own is None:
        return Broadcast(values, kept=broadcast.kept), nbytes
    frames = _frames(broadcast.own)
    own = _read(frames, broadcast.own.fields)
    # A copy: the clients go on to train in what they make of it, and it is still the server's memory.
    copied = replace(own, values={name: value.clone() for name, value in own.values.items()})
    return Broadcast(values, copied, broadcast.kept), nbytes + frames.nbytes


def _frames(upload: Upload) -> Frames:
    try:
        return Frames.of(upload)
    except ValueError as error:
        raise WireError(f"what is to be sent: {error}") from error


def _read(frames: Frames, expected: Mapping[str, Field]) -> Upload:
    try:
        return frames.read(expected)
    except ValueError as error:
        raise WireError(f"{error} (Server.expects says what the server expects)") from error
