"""The file of a checkpoint: streamed to disk in one atomic step, checked before it is used, and read as data.

A checkpoint is what `torch.save` writes, and behind it a trailer: the XXH3 checksum of all that (16 bytes), its length
(8 bytes, little-endian) and a mark (8 bytes). Reading one executes nothing and imports nothing.
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, NamedTuple, TypedDict, cast

import torch
import xxhash
from torch import Tensor

from cgfedrec import __version__
from cgfedrec.errors import InputError, RunError
from cgfedrec.files import DamagedError, partial_of, sync_folder, write_atomically
from cgfedrec.run.packed import packed, unpacked

FORMAT = 6
"""Of checkpoints, raised whenever what they hold changes: one of another format is refused, whatever its version."""
LAST, BEST = "last.ckpt", "best.ckpt"
NO_STATE = (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError)
"""What loading a state may raise that was taken of something else: a file may hold anything."""
_TRAILER = struct.Struct("<16sQ8s")
_MARK = b"CGFEDREC"
_CHUNK = 2**20
_HEADER = {"format": int, "version": str, "run": str, "config": str, "method": str, "fingerprint": str}
_HEADER |= {"code": dict, "loop": dict}


class State(TypedDict):
    """What `read_checkpoint` returns."""

    format: int
    version: str
    run: str
    config: str
    method: str
    fingerprint: str
    code: dict[str, str]
    loop: dict[str, Any]


class Header(NamedTuple):
    """What a checkpoint says beside the state of the loop."""

    run: str
    """Which run wrote it: a number drawn at its start, which a continuation keeps."""
    config: str
    """The settings, as YAML."""
    method: str
    """Import path of the method's class."""
    fingerprint: str
    """Of the data (`FederatedDataModule.fingerprint`)."""
    code: Mapping[str, str] = {}
    """Of somebody's own modules that the settings name (`cgfedrec.settings.own.code_of`)."""

    @classmethod
    def of(cls, state: State) -> Header:
        """What a checkpoint that was read says."""
        return cls(state["run"], state["config"], state["method"], state["fingerprint"], state["code"])


def write_checkpoint(
    path: Path, header: Header, loop: Mapping[str, Any], compress: bool = False, private: bool = False
) -> None:
    """Write one without building it in memory.

    Args:
        path: Where to.
        header: What it says beside the state of the loop.
        loop: That state.
        compress: Whether the server's whole numbers are compressed (`cgfedrec.run.packed`).
        private: Whether it is for its owner alone.

    Raises:
        RunError: where there is no room, and for what could not be read again.
    """
    held = dict(loop)
    if compress:
        held["server"] = packed(held["server"])
    for name, value in flat(held):
        if not _is_plain(value):
            raise RunError(
                f"{name} cannot be saved: a state holds plain values and dense, contiguous tensors without gradients"
            )
    state = {"format": FORMAT, "version": __version__, **header._asdict(), "loop": held}

    def write(file: BinaryIO) -> None:
        summed = _Summed(file)
        torch.save(state, summed)  # type: ignore[arg-type]  # it needs nothing of a file but `write`
        file.write(_TRAILER.pack(summed.sum.digest(), summed.length, _MARK))

    size = sum(value.nbytes for value in _tensors(state))
    write_atomically(path, write, size, private)


class _Summed:
    """A file that adds up the checksum of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum, self.length = file, xxhash.xxh3_128(), 0

    def write(self, data: bytes | memoryview) -> int:
        self.sum.update(data)
        self.length += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, in one atomic step; a copy where the file system knows no links."""
    partial = partial_of(target)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        copy(source, target)
        return
    partial.replace(target)
    sync_folder(target.parent)


def copy(source: Path, target: Path) -> None:
    """Copy a file in one atomic step. Raises `RunError` where there is no room."""
    with source.open("rb") as opened:
        write_atomically(target, lambda file: shutil.copyfileobj(opened, file), source.stat().st_size)


def read_checkpoint(path: Path, usual: str = BEST) -> State:
    """Read what `write_checkpoint` wrote, once all of it has been checked; nothing in the file is executed or imported.

    Tensors are mapped, and take memory as they are used.

    Args:
        path: Of the file.
        usual: Which checkpoint of a run is meant, where a folder is given: to go on with it, `LAST`.

    Raises:
        InputError: if it is no checkpoint of this version, or is damaged.
    """
    if not path.is_file():
        raise InputError(f"ckpt_path: no file {path}{_where_instead(path, usual)}")
    length = _checked_length(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # Ours are stored as they are: what is compressed may unfold to any size.
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
        state = None
        if stored:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a file of any content fails in any way
        raise InputError(f"ckpt_path: {path} is no checkpoint") from error
    if not isinstance(state, dict):
        raise InputError(f"ckpt_path: {path} is no checkpoint")
    if state.get("format") != FORMAT:
        wrote = f"cgfedrec {state.get('version')!s:.20}, in format {state.get('format')!s:.20}"
        raise InputError(f"ckpt_path: {path} is of {wrote}; this is {__version__}, which reads format {FORMAT} alone")
    if not (_is_whole(state) and _is_plain(state, length)):
        raise InputError(f"ckpt_path: {path} is no checkpoint of this version of cgfedrec")
    if isinstance(server := state["loop"].get("server"), dict):
        try:
            state["loop"]["server"] = unpacked(server)
        except ValueError as error:
            raise InputError(f"ckpt_path: {path} is no checkpoint ({error})") from error
    return cast(State, state)


def read_with_clients(path: Path, usual: str = BEST, option: str = "ckpt_path") -> State:
    """As `read_checkpoint`, for commands that need data and clients.

    Args:
        path: As of `read_checkpoint`.
        usual: Likewise.
        option: Which names the file.

    Raises:
        InputError: also where these are on the nodes of a network.
    """
    state = read_checkpoint(path, usual)
    if not over_network(state):
        return state
    raise InputError(
        f"{option}: is of a run over a network, whose interactions and clients are on their nodes. What serves people "
        "is written by cgfedrec export --catalogue items.csv, with that file of any node; "
        f"flwr run ... --run-config 'resume=\"{state['run']}\"' goes on with it (docs/deploy.md)"
    )


def over_network(state: State) -> bool:
    """Whether a checkpoint is of the server of a run over a network (`cgfedrec.deploy.nodes.Nodes.state_dict`)."""
    return "taken" in state["loop"]


def _checked_length(path: Path) -> int:
    """The bytes before the trailer, if they are those that were written."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TRAILER.size))
        trailer = file.read()
        marked = len(trailer) == _TRAILER.size and trailer.endswith(_MARK)
        if not marked:
            old = ""
            if zipfile.is_zipfile(path):
                old = "; checkpoints of cgfedrec before 0.2 cannot be read"
            raise InputError(f"ckpt_path: {path} is no checkpoint, or is cut off{old}{_what_else(path)}")
        expected, length, _ = _TRAILER.unpack(trailer)
        running = xxhash.xxh3_128()
        file.seek(0)
        for _ in range(0, size - _TRAILER.size, _CHUNK):
            running.update(file.read(min(_CHUNK, size - _TRAILER.size - file.tell())))
    if length != size - _TRAILER.size or running.digest() != expected:
        raise DamagedError(f"ckpt_path: {path} is damaged: its checksum does not agree{_what_else(path)}")
    return int(length)


def _where_instead(path: Path, usual: str) -> str:
    """Where a checkpoint is that is looked for in the wrong place, or why there is none."""
    if path.is_dir():
        inside = [one for one in (path / usual, path / "checkpoints" / usual) if one.is_file()]
        return f", which is a folder; try {inside[0]}" if inside else ", which is a folder"
    if path.name in (BEST, LAST) and (path.parent.parent / "cuts").is_dir():
        return "; a rolling evaluation leaves none: train with another split to recommend"
    config = path.parent.parent / "config.yaml"
    if path.name in (BEST, LAST) and config.is_file():
        command = f"cgfedrec fit --config {quote(str(config))}"
        return f"; its run was stopped before it had saved anything. To start again: {command}"
    return ""


def _what_else(path: Path) -> str:
    """What can still be used: the other checkpoint of the run, where there is one."""
    others = [other for name in (BEST, LAST) if (other := path.with_name(name)) != path and other.is_file()]
    different = [other for other in others if not (path.exists() and other.samefile(path))]
    if not different:
        return ""
    return f". Try {different[0]}"


def _is_whole(state: Mapping[str, object]) -> bool:
    of_kind = all(isinstance(state.get(name), kind) for name, kind in _HEADER.items()) and set(state) == set(_HEADER)
    return of_kind and all(isinstance(one, str) for one in cast(State, state)["code"].values())


def _is_plain(value: object, room: int | None = None) -> bool:
    """Whether a state holds nothing but plain values and tensors that are as large as they say.

    If it was read, from a file with so much ``room``, none is larger, and all lie in memory.
    """
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and not value.requires_grad and value.is_contiguous()
        here = room is None or (value.device.type == "cpu" and value.nbytes <= room)
        return type(value) is Tensor and dense and here
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one, room) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(one, room) for one in value)
    return value is None or isinstance(value, str | int | float | bool)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def flat(settings: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every setting by its dotted name."""
    if not isinstance(settings, dict):
        yield prefix, settings
        return
    for key, value in settings.items():
        name = str(key)
        if prefix:
            name = f"{prefix}.{name}"
        yield from flat(value, name)
