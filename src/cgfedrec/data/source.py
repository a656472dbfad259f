"""From a path to the text in it: how it is packed, whether it is UTF-8, and whether its quotes are in order."""

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

import numpy as np

from cgfedrec.data.layout import Format
from cgfedrec.errors import InputError

CHUNK = 1 << 24
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_PACKED = {b"BZh91AY&SY": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
"""How files begin that are packed in ways which are not read."""
_BOM = codecs.BOM_UTF8
_QUOTE, _LINE_END = b'"', b"\n"


@dataclass(frozen=True)
class Source:
    """A file, unpacked as far as polars does not do it itself."""

    path: Path
    """As the user gave it."""
    name: str
    """Of the file within, without what only says how it is packed, in lower case: r.tsv of R.TSV.GZ."""
    content: Path | bytes
    """What polars reads."""

    @property
    def is_parquet(self) -> bool:
        """Whether it is no text."""
        return self.name.endswith(".parquet")

    def open(self) -> BinaryIO:
        """The bytes, unpacked."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        if _begins(self.content).startswith(_GZIP):
            return cast(BinaryIO, gzip.open(self.content))
        return self.content.open("rb")


def find(path: Path, layout: Format) -> Source:
    """The source of a file, as UTF-8 where it is text in another encoding.

    Raises:
        InputError: where it is no file, or packed in a way that is not read.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    start = _begins(path)
    packed = next((how for magic, how in _PACKED.items() if start.startswith(magic)), None)
    if packed:
        raise InputError(f"{path}: is packed with {packed}, which is not read; unpack it, or pack it with gzip")
    name = path.name.lower()
    source = _only_member(path) if start.startswith(_ZIP) else Source(path, name.removesuffix(".gz"), path)
    if source.is_parquet or codecs.lookup(layout.encoding).name == "utf-8":
        return source
    return _in_utf8(source, layout)


@contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """What a damaged archive does while it is read, in words."""
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


@dataclass
class Quotes:
    """What is known of the quotes in a text."""

    any: bool = False
    breaks: int = 0
    """Line ends within quotes."""


def check_text(source: Source, layout: Format, separator: str | None) -> Quotes:
    """Go once through a text, and see that it can be read without a loss.

    In a text whose quotes are in order, every one begins a field, ends it, or stands doubled within it. Of any other
    text, readers make what they like: rows vanish.

    Args:
        source: The text.
        layout: Says which option may be wrong.
        separator: One byte, where fields may be quoted; ``None`` where quotes are literal.

    Raises:
        InputError: where it is not UTF-8 or its quotes are out of order, with the line.
    """
    decoder, quotes = codecs.getincrementaldecoder("utf-8")(), Quotes()
    opened, position, before = 0, 0, _LINE_END  # the last quote that opened a field; bytes before this chunk
    inside = False
    with unpacking(source.path), source.open() as file:
        chunk = file.read(CHUNK)
        if b"\r" in chunk and _LINE_END not in chunk:
            raise InputError(f"{source.path}: its lines end in CR alone, as on old Macs; convert them to LF")
        while chunk:
            following = file.read(CHUNK)
            if not chunk.isascii() or decoder.getstate()[0]:
                _decode(source, layout, decoder, chunk, position, last=not following)
            if separator and _QUOTE in chunk:
                start = len(_BOM) if position == 0 and chunk.startswith(_BOM) else 0
                window = np.frombuffer(before + chunk[start:] + (following[:1] or _LINE_END), np.uint8)
                places = np.flatnonzero(window[1:-1] == ord(_QUOTE)) + 1
                opens = np.arange(len(places)) % 2 == int(inside)
                ends = np.frombuffer(separator.encode() + b'\r\n"', np.uint8)
                beside = np.where(opens, window[places - 1], window[places + 1])
                wrong = np.flatnonzero(~np.isin(beside, ends))
                if len(wrong):
                    raise InputError(_stray(source, layout, position + start + int(places[wrong[0]]) - 1))
                line_ends = np.flatnonzero(window[1:-1] == ord(_LINE_END)) + 1
                within = (np.searchsorted(places, line_ends) + inside) % 2 == 1
                quotes.any, quotes.breaks = True, quotes.breaks + int(within.sum())
                if opens.any():
                    opened = position + start + int(places[opens][-1]) - 1
                inside ^= len(places) % 2 == 1
            elif inside:
                quotes.breaks += chunk.count(_LINE_END)
            position, before, chunk = position + len(chunk), chunk[-1:], following
        if inside:
            raise InputError(
                f"{source.path}, line {_line_of(source, opened)}: a quoted field begins that never ends"
                f"{_or_literal(layout)}"
            )
    return quotes


def _decode(
    source: Source, layout: Format, decoder: codecs.IncrementalDecoder, chunk: bytes, position: int, last: bool
) -> None:
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(chunk, last)
    except UnicodeDecodeError as error:
        utf16 = position == 0 and chunk[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        raise InputError(
            f"{source.path}, line {_line_of(source, position - pending + error.start)}: not UTF-8 text (byte "
            f"0x{error.object[error.start]:02x}: {error.reason}); say what it is with {layout.option('encoding')}, "
            f"{'utf-16' if utf16 else 'such as latin-1 or cp1252'}, or check that it is text"
        ) from error


def _stray(source: Source, layout: Format, position: int) -> str:
    return (
        f"{source.path}, line {_line_of(source, position)}: a quote that neither begins nor ends a field; within a "
        f'quoted field it is doubled (""){_or_literal(layout)}'
    )


def _or_literal(layout: Format) -> str:
    return f". With {layout.option('quoted')} false, quotes are characters like any other"


def _line_of(source: Source, position: int) -> int:
    """The line, from 1, of a byte of the text."""
    line, left = 1, position
    with source.open() as file:
        while left > 0 and (chunk := file.read(min(left, CHUNK))):
            line, left = line + chunk.count(_LINE_END), left - len(chunk)
    return line
