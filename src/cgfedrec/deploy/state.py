"""What a node keeps of a run between two messages, in one file that is replaced in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgfedrec.deploy.parcels import Parcel
from cgfedrec.run.checkpoint import Header, read_checkpoint, write_checkpoint


@dataclass(frozen=True)
class NodeState:
    """A node after a round that it has trained, and as it was before: the server may close a round without it.

    Args:
        round: The last one that it has trained; 0 before the first.
        now: Its clients' state after it (`Clients.state_dict`); nothing where they are at their start.
        before_round: The last one that the server had taken in when it trained that round.
        before: Its clients' state after that one.
        reply: What it answered to the last one.
        kept: Bulletins that have come: what they are, and their layouts, by name.
    """

    round: int = 0
    now: Mapping[str, Any] | None = None
    before_round: int = 0
    before: Mapping[str, Any] | None = None
    reply: Parcel | None = None
    kept: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)

    def after(self, taken: int) -> Mapping[str, Any] | None:
        """The clients' state after the last round that the server has taken in.

        Raises:
            LookupError: where that is not here any more.
        """
        if taken == self.round:
            return self.now
        if taken == self.before_round:
            return self.before
        raise LookupError(f"private state is of round {self.round}, and the server has taken in round {taken}")

    def write(self, path: Path, header: Header) -> None:
        """Write it, for its owner alone, to be read by `read`. Raises `RunError` if there is no room."""
        reply = None
        if self.reply is not None:
            reply = {"head": self.reply.head, "body": _tensors(self.reply.body)}
        kept = {name: _tensors({"data": data, "layout": layout}) for name, (data, layout) in self.kept.items()}
        write_checkpoint(
            path,
            header,
            {
                "round": self.round,
                "now": self.now,
                "before_round": self.before_round,
                "before": self.before,
                "reply": reply,
                "kept": kept,
            },
            private=True,
        )

    @classmethod
    def read(cls, path: Path) -> tuple[Header | None, NodeState]:
        """What was written and for which run; nothing where there is no file.

        Raises:
            InputError: if it is damaged.
        """
        if not path.exists():
            return None, cls()
        state = read_checkpoint(path)
        loop = state["loop"]
        reply = loop["reply"]
        if reply is not None:
            reply = Parcel(reply["head"], _bytes(reply["body"]))
        kept = {name: (_bytes(one)["data"], _bytes(one)["layout"]) for name, one in loop["kept"].items()}
        return Header.of(state), cls(loop["round"], loop["now"], loop["before_round"], loop["before"], reply, kept)


def _tensors(body: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Bytes as tensors, `[bytes]` each, which is what a checkpoint holds."""
    return {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in body.items() if data}


def _bytes(body: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in body.items()}
