"""From a path to the bytes in it: how they are packed, and in which encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, cast

from cgfedrec.data.layout import Format
from cgfedrec.errors import InputError

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_PACKED = {b"BZh91AY&SY": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
"""How files begin that are packed in ways which are not read."""


@dataclass(frozen=True)
class Source:
    """A file, unpacked as far as polars does not do it itself."""

    path: Path
    """As the user gave it."""
    name: str
    """The file's name in lower case, without an ending that only says how it is packed. For R.TSV.GZ it is r.tsv."""
    content: Path | bytes
    """What polars reads: a path if it can unpack the file itself, else its bytes."""

    @property
    def is_parquet(self) -> bool:
        """Whether it is no text."""
        return self.name.endswith(".parquet")

    def open(self) -> BinaryIO:
        """The file's bytes, unpacked."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        if _begins(self.content).startswith(_GZIP):
            return cast(BinaryIO, gzip.open(self.content))
        return self.content.open("rb")


def find(path: Path, layout: Format) -> Source:
    """The source of a file; a text in another encoding becomes UTF-8.

    How a file is packed is told from its first bytes, since names may say anything.

    Raises:
        InputError: where it is no file, or packed in a way that is not read.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}")
    start = _begins(path)
    packed = next((how for magic, how in _PACKED.items() if start.startswith(magic)), None)
    if packed:
        raise InputError(f"{path}: is packed with {packed}, which is not read; unpack it, or pack it with gzip")
    name = path.name.lower()
    source = Source(path, name.removesuffix(".gz"), path)
    if start.startswith(_ZIP):
        source = _only_member(path)
    if source.is_parquet or codecs.lookup(layout.encoding).name == "utf-8":
        return source
    return _in_utf8(source, layout)


@contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """Raise `InputError` where the body finds that a file cannot be unpacked, whatever the library raises then."""
    try:
        yield
    except (zlib.error, EOFError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is damaged, or was cut short ({error})") from error
    except (OSError, RuntimeError, NotImplementedError) as error:  # a password, a way of packing
        raise InputError(f"{path}: cannot be read ({error})") from error


def _begins(path: Path) -> bytes:
    with unpacking(path), path.open("rb") as file:
        return file.read(16)


def _only_member(path: Path) -> Source:
    """The one file of a zip archive; what a Mac adds does not count."""
    with unpacking(path), zipfile.ZipFile(path) as archive:
        names = [m.filename for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        if len(names) != 1:
            raise InputError(
                f"{path}: holds {len(names)} files ({', '.join(names[:5])}), expected one; unpack it, and name one"
            )
        return Source(path, PurePath(names[0]).name.lower(), archive.read(names[0]))


def _in_utf8(source: Source, layout: Format) -> Source:
    with unpacking(source.path), source.open() as file:
        content = file.read()
    try:
        return Source(source.path, source.name, content.decode(layout.encoding).encode())
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(layout.encoding, "ignore").count("\n") + 1
        raise InputError(
            f"{source.path}, line {line}: not text in {layout.encoding} (byte 0x{content[error.start]:02x}: "
            f"{error.reason}), which {layout.option('encoding')} asks for"
        ) from error
    except UnicodeError as error:  # of UTF-16, no byte order mark
        raise InputError(f"{source.path}: not text in {layout.encoding} ({error})") from error
