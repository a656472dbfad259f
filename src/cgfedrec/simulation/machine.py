"""What the machine has: memory that this process may take, and room on a disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil


def resident() -> int:
    """Bytes of memory that this process has already, the data among them."""
    return int(psutil.Process().memory_info().rss)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: what is free, but no more than its container's limits leave.

    Args:
        root: The folder under which the system shows its processes (``proc``) and limits (``sys``).
    """
    free: int = psutil.virtual_memory().available
    return min([free, *_left_by_limits(root)])


class _Limits(NamedTuple):
    """Which files of a control group say how much memory it may take and takes: two versions differ in that."""

    folder: str
    limit: str
    used: str
    cache: str
    """The entry of ``memory.stat`` that counts cached files. They count as used, but the system gives them back."""


_VERSION_1 = _Limits("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Limits("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def _left_by_limits(root: Path) -> Iterator[int]:
    """The bytes that each limit leaves to this process: a limit on any group around its own holds for it too."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not every system has control groups
        return
    for line in lines:
        # A line is "number:controllers:group"; version 2 names no controllers.
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _VERSION_1 if controllers else _VERSION_2
        inner = Path(name.strip("/"))
        for group in (inner, *inner.parents):  # seen from a container, its own group may be the outermost
            yield from _left_by_limit(root / version.folder / group, version)


def _left_by_limit(group: Path, version: _Limits) -> Iterator[int]:
    try:
        limit = (group / version.limit).read_text().strip()
        used = int((group / version.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # this group has no limit
        return
    if limit != "max":  # which means that there is none
        yield max(0, int(limit) - max(0, used - int(stat.get(version.cache, 0))))


def free_disk(folder: Path) -> int:
    """Bytes free where ``folder`` is or will be, and those that this run has taken already: it will use them again."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ours = [*folder.glob("*"), *folder.parent.glob("*.ckpt")]
    return shutil.disk_usage(existing).free + sum(path.stat().st_blocks * 512 for path in ours)
