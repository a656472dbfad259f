"""Watched: an exported folder that is opened again once another export stands there, while requests are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from cgfedrec.errors import InputError
from cgfedrec.serving.recommender import FILE, Recommender

EVERY = 1.0
"""Seconds between two looks at the folder, at least."""


class Watched:
    """The recommender of a folder, as it is now.

    Args:
        folder: Of an export.
        tell: Told in a line what was taken up, or why it was not.
        clock: Tells the time in seconds.

    Attributes:
        problem: Why what stands in the folder now is not used, if it is not.

    Raises:
        InputError: if there is no export in the folder that can be used.
    """

    def __init__(
        self, folder: Path, tell: Callable[[str], object] = print, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.tell, self.clock = folder, tell, clock
        self.problem: str | None = None
        self._mark = self._marked()
        self._recommender = Recommender.load(folder)
        self._next = clock() + EVERY
        self._loading: threading.Thread | None = None

    def now(self) -> Recommender:
        """The one that answers. It looks for another export once a second, and opens that beside the requests."""
        now = self.clock()
        if now >= self._next and (self._loading is None or not self._loading.is_alive()):
            self._next = now + EVERY
            mark = self._marked()
            if mark != self._mark:
                self._mark = mark
                self._loading = threading.Thread(target=self._load, daemon=True)
                self._loading.start()
        return self._recommender

    def settle(self) -> None:
        """Wait until nothing is being opened."""
        if self._loading is not None:
            self._loading.join()

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
            self._recommender, self.problem = found, None
            self.tell(f"taken up: version {found.version}, {found.num_items:,} items")
