"""The clients of a node as members of a masked sum: their part in each of its exchanges, and what waits between them.

Flower starts a process for each message, so secrets lie in a file of the node meanwhile. It is written before anything
that was made of it is answered: whoever comes back gives the same answers, and never another story of who has sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from cgfedrec.deploy.parcels import DONE, REFUSED, Parcel, declined
from cgfedrec.errors import InputError
from cgfedrec.files import write_atomically
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.secure.member import Keys, Member, masked
from cgfedrec.wire.secure.neighbours import PUBLIC, SHARES
from cgfedrec.wire.secure.step import SecureSums


class LateError(ValueError):
    """What is asked is of a round whose secrets are not here any more, or not yet."""


class Members:
    """The clients of a node.

    Args:
        file: Where secrets wait.
        run: Which run it is.
        step: Whose messages are masked.

    Raises:
        InputError: for a file that is damaged.
    """

    def __init__(self, file: Path, run: str, step: SecureSums) -> None:
        self.file, self.run, self.step = file, run, step
        self.round, self.members = 0, dict[int, Member]()
        if not file.exists():
            return
        try:
            state = json.loads(file.read_text())
            self.round = int(state["round"])
            for client, one in state["members"].items():
                self.members[int(client)] = Member.of(one, int(client), *self._terms(self.round))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: is damaged; remove it: the next round begins with new secrets") from error

    def _terms(self, round: int) -> tuple[bytes, int, int]:
        return context_of(self.run, round), self.step.neighbours, self.step.least_clients

    def write(self) -> None:
        """Put all secrets into the file, in one step. Raises `RunError` if there is no room."""
        state = {"round": self.round, "members": {one: member.state() for one, member in self.members.items()}}
        write_atomically(self.file, json.dumps(state), private=True)

    def answer(self, asked: Parcel, clients: Sequence[int], round: int, trained: int) -> Parcel:
        """What clients tell in one of the exchanges of a round.

        Args:
            asked: What the server asks: ``keys``, ``shares`` or ``unmask``.
            clients: Whom.
            round: From 1.
            trained: The last round of which something has been sent from here; looked at for ``unmask`` alone.

        Raises:
            ValueError: for a parcel that cannot be read.
            RunError: as of `Member`.
        """
        what = asked.text("what")
        if what == "unmask" and trained != round:
            return declined(REFUSED, f"round {round}: nothing has been sent from here")
        try:
            if what == "keys":
                told = self.keys(clients, round)
            elif what == "shares":
                told = self.shares(clients, round, asked)
            else:
                told = self.told(clients, round, asked.wholes("sent").tolist())
        except LateError as error:
            return declined(REFUSED, str(error))
        return told.joined(Parcel({"status": DONE}, {}))

    def keys(self, clients: Iterable[int], round: int) -> Parcel:
        """The public keys of clients for a round. With a later round the secrets of those before are gone.

        Raises:
            LateError: where there has been a later round.
        """
        if round < self.round:
            raise LateError(f"round {round} is closed: keys of round {self.round} have been told since")
        if round > self.round:
            self.round, self.members = round, {}
        for client in clients:
            if client not in self.members:
                self.members[client] = Member(client, *self._terms(round))
        self.write()
        return Parcel({}, {"keys": b"".join(b"".join(self.members[client].keys()) for client in clients)})

    def shares(self, clients: Sequence[int], round: int, asked: Parcel) -> Parcel:
        """What clients have sealed for their neighbours, ascending, whose keys are in the parcel.

        Raises:
            ValueError: for a parcel that cannot be read; `LateError` where there are no secrets of this round.
            RunError: as of `Member.shares`.
        """
        members = self._of(clients, round)
        others, neighbours = asked.wholes("others").tolist(), iter(asked.wholes("neighbours").tolist())
        pieces = asked.cut("keys", 2 * PUBLIC, len(others))
        known = {other: Keys(piece[:PUBLIC], piece[PUBLIC:]) for other, piece in zip(others, pieces, strict=True)}
        total, each = asked.whole("total"), asked.whole("each")
        messages = []
        for member in members:
            sealed = member.shares(total, {other: known[other] for other in islice(neighbours, each)})
            messages += [sealed[other] for other in sorted(sealed)]
        self.write()
        return Parcel({}, {"sealed": b"".join(messages)})

    def take(self, clients: Sequence[int], round: int, asked: Parcel) -> str:
        """Read what neighbours have sealed for clients: before these train, so that nobody trains in vain.

        Nothing has come where nothing is to be sent in this round.

        Returns:
            Why it is too late for this round, if it is.

        Raises:
            ValueError: for a parcel that cannot be read.
            RunError: as of `Member.take`.
        """
        if "senders" not in asked.head:
            return ""
        try:
            members = self._of(clients, round)
        except LateError as error:
            return str(error)
        if any(member.spent for member in members):
            return f"round {round}: a message of it has been masked already, and what was answered is lost"
        senders, numbers = asked.wholes("senders").tolist(), asked.wholes("senders/numbers").tolist()
        if len(numbers) != len(members) or sum(numbers) != len(senders):
            raise ValueError("senders are not those of the clients who are asked")
        messages = iter(zip(senders, asked.cut("sealed", SHARES, len(senders)), strict=True))
        for member, number in zip(members, numbers, strict=True):
            member.take(dict(islice(messages, number)))
        return ""

    def has_masked(self, round: int) -> bool:
        """Whether what has been sent in a round is under the masks that are here."""
        return round == self.round and any(member.spent for member in self.members.values())

    def masked(self, uploads: Sequence[Upload], round: int) -> list[Upload]:
        """What clients send, `[clients, ...]` by name, under their masks; from here on the file knows what they hold.

        Raises:
            ValueError: for numbers out of bounds; `LateError` where there are no secrets of this round.
            RunError: as of `Member.masked`.
        """
        found = []
        for upload in uploads:
            if not upload.values:  # no message at all
                return list(uploads)
            self._of(upload.clients.tolist(), round)
            found.append(masked(upload, self.members))
        self.write()
        return found

    def told(self, clients: Sequence[int], round: int, sent: Sequence[int]) -> Parcel:
        """The shares that clients tell, each those of whom it has any, ascending.

        Args:
            clients: Who.
            round: From 1.
            sent: Those among them and their neighbours whose messages have come.

        Raises:
            LateError: where there are no secrets of this round.
            RunError: as of `Member.told`.
        """
        told = [member.told(sent) for member in self._of(clients, round)]
        self.write()
        return Parcel({}, {"shares": b"".join(shares[one] for shares in told for one in sorted(shares))})

    def _of(self, clients: Iterable[int], round: int) -> list[Member]:
        if round != self.round or any(client not in self.members for client in clients):
            raise LateError(f"round {round}: its secrets are not here (those of round {self.round} are)")
        return [self.members[client] for client in clients]


def context_of(run: str, round: int) -> bytes:
    """What tells the sums of all runs and rounds apart, alike for server and nodes."""
    return f"{run}, round {round}".encode()
