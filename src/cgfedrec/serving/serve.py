"""`cgfedrec serve`: an exported folder behind HTTP, until it is stopped."""

from __future__ import annotations

import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from cgfedrec.errors import InputError, check, no_count, printable
from cgfedrec.serving.limits import Limits
from cgfedrec.serving.watch import Watched

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


def serve(folder: Path, host: str, port: int, limits: Limits) -> int:
    """Answer requests until a signal comes.

    Args:
        folder: What ``cgfedrec export`` wrote.
        host: The address to listen at.
        port: The port, or 0 for any that is free.
        limits: What is refused.

    Returns:
        The exit code.

    Raises:
        InputError: without an export, where nobody can listen there, or where FastAPI is not installed.
    """
    check(no_count("--port", port, 0, 65535))
    try:
        import uvicorn

        from cgfedrec.serving.app import app_of
    except ImportError as error:
        raise InputError(f"serve: needs {error.name}; pip install 'cgfedrec[serve]' brings it") from error
    watched = Watched(folder, _tell)
    with _listening(host, port) as listening, watched:
        config = uvicorn.Config(
            _quiet(app_of(watched, limits)),
            # What is logged of a request is nothing at all, errors of this program excepted.
            access_log=False,
            log_config=None,
            log_level="warning",
            lifespan="off",
            ws="none",
            server_header=False,
        )
        recommender = watched.now
        shown, name = f"[{host}]" if ":" in host else host, listening.getsockname()
        _tell(f"serving {folder}: version {recommender.version}, {recommender.num_items:,} items")
        _tell(f"http://{shown}:{name[1]}/recommend, described at http://{shown}:{name[1]}/docs; Ctrl-C ends it")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn has answered what it had begun with, and hands the signal on
            return 130
    return 0


def _quiet(app: ASGIApp) -> ASGIApp:
    """The same, which tells of a fault of this program where it arose, and not by its message: that may hold an id."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:  # an answer, 500, has been sent
            frames = "".join(traceback.format_tb(error.__traceback__))
            _tell(f"a request could not be answered: {type(error).__name__}\n{frames}")

    return answer


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `InputError` where nobody can."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host, --port: cannot listen at {host}, port {port}: {error}") from error
