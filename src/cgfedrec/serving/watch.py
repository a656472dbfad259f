"""Watched: an exported folder that is opened again once another export stands there, while requests are answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cgfedrec.errors import InputError
from cgfedrec.serving.recommender import FILE, Recommender

EVERY = 1.0
"""Seconds from one look at the folder to the next."""


class Watched:
    """The recommender of a folder, as it is now. Within a ``with``, a thread looks for another export all the time.

    Args:
        folder: Of an export.
        tell: Told in a line what was taken up, or why it was not.

    Attributes:
        now: The one that answers.
        problem: Why what stands in the folder now is not used, if it is not.

    Raises:
        InputError: if there is no export in the folder that can be used.
    """

    def __init__(self, folder: Path, tell: Callable[[str], object] = print) -> None:
        self.folder, self.tell = folder, tell
        self.problem: str | None = None
        self._mark = self._marked()
        self.now = Recommender.load(folder)
        self._stopped = threading.Event()

    def __enter__(self) -> None:
        """Look from now on."""
        threading.Thread(target=self._watch, args=(self._stopped,), name="watch", daemon=True).start()

    def __exit__(self, *error: object) -> None:
        """Look no more. What is being opened is not waited for."""
        self._stopped.set()

    def look(self) -> None:
        """Look once, and open what stands there if it is another file. Requests are answered meanwhile."""
        mark = self._marked()
        if mark != self._mark:
            self._mark = mark
            self._load()

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(EVERY):
            with suppress(OSError):  # nobody reads any more what is told
                self.look()

    def _marked(self) -> tuple[int, int, int] | None:
        """What tells one file from the one that replaces it."""
        try:
            found = (self.folder / FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> None:
        """Open what stands there now. Where that cannot be, the one of before goes on."""
        try:
            found = Recommender.load(self.folder)
        except InputError as error:
            self.problem = str(error)
            self.tell(f"not taken up: {error}")
        except Exception as error:  # whatever it is, requests are answered from the one that is there
            self.problem = f"{self.folder}: cannot be opened: {type(error).__name__}"
            self.tell(f"not taken up: {self.problem}")
        else:
            self.now, self.problem = found, None
            self.tell(f"taken up: version {found.version}, {found.num_items:,} items")
