"""Whether a text can be read without a loss: whether it is UTF-8, and whether its quotes are in order."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import numpy as np

from cgfedrec.data.layout import Format
from cgfedrec.data.source import Source, unpacking
from cgfedrec.errors import InputError

CHUNK = 1 << 24
"""Bytes that are looked at together."""
_BOM = codecs.BOM_UTF8
_QUOTE, _LINE_END = b'"', b"\n"


@dataclass
class Quotes:
    """What is known of the quotes in a text."""

    any: bool = False
    """Whether there are some."""
    breaks: int = 0
    """Line ends within quotes."""


def check_text(source: Source, layout: Format, separator: str | None) -> Quotes:
    """Go through a text once, and see that it can be read without a loss.

    In a text whose quotes are in order, every one begins a field, ends it, or stands doubled within it. What a reader
    makes of any other text is up to the reader, and rows may vanish in it.

    The quotes are then opening and closing ones in turn, and a doubled one closes its field and opens it again. So it
    is enough to look beside each: before an opening quote, and behind a closing one, stands a separator, a line end or
    another quote.

    Args:
        source: The text.
        layout: Says which option may be wrong.
        separator: One byte, where fields may be quoted; ``None`` where quotes are literal.

    Raises:
        InputError: where it is not UTF-8 or its quotes are out of order, with the line.
    """
    decoder, quotes = codecs.getincrementaldecoder("utf-8")(), Quotes()
    opened = 0  # where the last quote is that opened a field
    position = 0  # of this chunk
    before = _LINE_END  # the byte before it; the text begins like a line
    inside = False  # whether this chunk begins within quotes
    with unpacking(source.path), source.open() as file:
        chunk = file.read(CHUNK)
        if b"\r" in chunk and _LINE_END not in chunk:
            raise InputError(f"{source.path}: its lines end in CR alone, as on old Macs; convert them to LF")
        while chunk:
            following = file.read(CHUNK)
            if not chunk.isascii() or decoder.getstate()[0]:
                _decode(source, layout, decoder, chunk, position, last=not following)
            if separator and _QUOTE in chunk:
                start = 0
                if position == 0 and chunk.startswith(_BOM):
                    start = len(_BOM)
                # The chunk, and one byte on either side of it.
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
    """Raise `InputError`, naming the line, if a chunk is not UTF-8."""
    pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk began
    try:
        decoder.decode(chunk, last)
    except UnicodeDecodeError as error:
        encodings = "such as latin-1 or cp1252"
        if position == 0 and chunk[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            encodings = "utf-16"
        raise InputError(
            f"{source.path}, line {_line_of(source, position - pending + error.start)}: not UTF-8 text (byte "
            f"0x{error.object[error.start]:02x}: {error.reason}); say what it is with {layout.option('encoding')}, "
            f"{encodings}, or check that it is text"
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
