"""Limits of what one request, and one address, may ask of a server."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cgfedrec.errors import check, no_count, not_between

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADDRESSES = 100_000
"""How many are remembered at most; beyond that, those that have asked least lately are forgotten."""


@dataclass(frozen=True)
class Limits:
    """What is refused, and with which status.

    Args:
        max_body: Bytes of a request; 413 above.
        max_history: Items in a history, or excluded; 422 above.
        max_top_k: Items in an answer; 422 above.
        rate: Requests a second of one address, in the long run; 429 above. 0 for any number.
        burst: Requests that an address which was quiet may send at once.
    """

    max_body: int = 2**18
    max_history: int = 5000
    max_top_k: int = 100
    rate: float = 50.0
    burst: int = 100

    def __post_init__(self) -> None:
        """Raises `InputError` for limits that are none, all at once."""
        check(
            *(no_count(f"--{name}", getattr(self, name)) for name in ("max_body", "max_history", "max_top_k", "burst")),
            not_between("--rate", self.rate, 0, 1e6),
        )


class Buckets:
    """A bucket of tokens for each address: a request takes one, and they come back at a steady rate.

    Who has asked for nothing long enough has a full bucket again, and is forgotten.

    Args:
        rate: Tokens a second.
        burst: Tokens in a full bucket.
        clock: Tells the time in seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def wait(self, address: str) -> float:
        """Take a token: 0 where there is one, else in how many seconds there will be."""
        now = self.clock()
        tokens, then = self._left.pop(address, (float(self.burst), now))
        tokens = min(self.burst, tokens + self.rate * (now - then))
        missing = max(0.0, 1 - tokens)
        if not missing:
            tokens -= 1
        self._left[address] = tokens, now
        self._forget(now)
        return missing / self.rate

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._left)

    def _forget(self, now: float) -> None:
        """Forget whoever has a full bucket by now; at most two in one call, so that none takes long."""
        for _ in range(2):
            _, then = next(iter(self._left.values()))
            full = now - then > self.burst / self.rate
            if not full and len(self._left) <= ADDRESSES:
                return
            self._left.popitem(last=False)


class Guard:
    """Refuses requests that come too often or are too long before anything reads them, by an answer in JSON.

    It stands before ``POST`` requests alone: others have no body that is read, and answer from memory.

    Args:
        app: What answers the others.
        limits: See `Limits`.
        clock: As of `Buckets`.
    """

    def __init__(self, app: ASGIApp, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.limits = app, limits
        self.buckets = Buckets(limits.rate, limits.burst, clock) if limits.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        client = scope.get("client") or ("", 0)
        wait = 0.0
        if self.buckets is not None:
            wait = self.buckets.wait(client[0])
        if wait:
            seconds = max(1, math.ceil(wait))
            problem = f"more than {self.limits.rate:g} requests a second; come again in {seconds} s"
            await refuse(send, 429, problem, {"retry-after": str(seconds)})
            return
        body = await self._body(scope, receive)
        if body is None:
            # What is left of the request is not read, so the connection cannot be used again.
            problem = f"body: is longer than {self.limits.max_body:,} bytes"
            await refuse(send, 413, problem, {"connection": "close"})
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, read, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; ``None`` if it is too long, of which no more is read than shows that."""
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or len(told) > 18 or int(told) > self.limits.max_body:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.limits.max_body:
                return None
            if not message.get("more_body"):
                return bytes(body)


async def refuse(send: Send, status: int, problem: str, headers: Mapping[str, str]) -> None:
    """Answer with a problem."""
    body = json.dumps({"problems": [problem]}).encode()
    named = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
