"""Charts as SVG that follows the page's colours: lines with labels at their ends, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 600, 360
LEFT, RIGHT, TOP, BOTTOM = 58, 192, 14, 46
LABEL_GAP = 14.5
STYLES = 7
"""Colours, as the page defines them; then dashes tell apart."""
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKS = (
    '<circle r="4"/>',
    '<rect x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
    '<path d="M0-4.9 4.6 3.4H-4.6Z"/>',
    '<path d="M0-5 5 0 0 5-5 0Z"/>',
)


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        name: Its label.
        style: Chooses colour, dash and mark; -1 for the muted one.
        xs, ys: `[points]`.
        low, high: `[points]`, a band around it; may be empty.
        mark: The point that carries a mark, if any.
        dots: Whether every point carries one.
    """

    name: str
    style: int
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    mark: int | None = None
    dots: bool = False


class Figure(NamedTuple):
    """A chart and what is said below it."""

    name: str
    """Of the file that holds it alone."""
    svg: Markup
    caption: str


def chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    title: str,
    log: bool = False,
    levels: Sequence[tuple[str, int, float]] = (),
    front: Sequence[tuple[float, float]] = (),
    x_ticks: Sequence[float] = (),
    x_format: Callable[[float], str] = lambda value: f"{value:g}",
) -> str:
    """An SVG of lines.

    Args:
        lines: What is drawn; where ``log``, all xs must be positive.
        x_label: Of the x axis.
        y_label: Of the y axis.
        title: For those who cannot see it.
        log: Whether the x axis is logarithmic.
        levels: Names, styles and heights of dotted lines from edge to edge.
        front: Corners (x, y) of a rising step line, by rising x.
        x_ticks: Where the x axis has numbers, and begins and ends; by default at round ones.
        x_format: Writes a number at the x axis.
    """
    xs = [x for line in lines for x in line.xs] or [1.0, 10.0]
    ys = [y for line in lines for y in (*line.ys, *line.low, *line.high)] + [height for *_, height in levels] or [0, 1]
    ticks_x = x_ticks or (log_ticks(min(xs), max(xs)) if log else linear_ticks(min(0, *xs), max(xs), 6))
    ticks_y = linear_ticks(0, max(ys), 5)
    x_of, y_of = _scale(ticks_x, LEFT, WIDTH - RIGHT, log), _scale(ticks_y, HEIGHT - BOTTOM, TOP)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    out = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    ]
    decimals = _decimals(ticks_y)
    for tick in ticks_y:
        y = y_of(tick)
        out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        out.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.{decimals}f}</text>')
    for tick in ticks_x:
        x = x_of(tick)
        out.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
        out.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(x_format(tick))}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    out.append(
        f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    ends: list[tuple[float, float, str, int]] = []
    for name, style, height in levels:
        y = y_of(height)
        out.append(f'<path class="line level {_class(style)}" d="M{LEFT} {y:.1f}H{right}"/>')
        ends.append((right, y, name, style))
    for line in lines:
        points = [(x_of(x), y_of(y)) for x, y in zip(line.xs, line.ys, strict=True)]
        if len(line.low) > 1 and any(high > low for low, high in zip(line.low, line.high, strict=True)):
            band = [(x_of(x), y_of(y)) for x, y in zip(line.xs, line.high, strict=True)]
            band += [(x_of(x), y_of(y)) for x, y in zip(line.xs, line.low, strict=True)][::-1]
            out.append(f'<path class="band {_class(line.style)}" d="{_path(band)}Z"/>')
        dash = DASHES[max(line.style, 0) // STYLES % len(DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        out.append(f'<path class="line {_class(line.style)}"{dashed} d="{_path(points)}"/>')
        if line.dots:
            out += [_mark(x, y, line.style) for x, y in points]
        if line.mark is not None:
            out.append(_mark(*points[line.mark], line.style))
        ends.append((*points[-1], line.name, line.style))
    if front:
        steps = [(x_of(front[0][0]), y_of(front[0][1]))]
        for x, y in front[1:]:
            steps += [(x_of(x), steps[-1][1]), (x_of(x), y_of(y))]
        steps.append((right, steps[-1][1]))
        out.append(f'<path class="front" d="{_path(steps)}"/>')
    for (x, y, name, style), label in zip(ends, _apart([y for _, y, *_ in ends]), strict=True):
        out.append(
            f'<path class="leader {_class(style)}" d="M{x + 3:.1f} {y:.1f}L{right + 6} {label:.1f}H{right + 12}"/>'
        )
        out.append(_mark(right + 18, label, style))
        out.append(f'<text class="name" x="{right + 27}" y="{label + 4:.1f}">{escape(_short(name))}</text>')
    return "\n".join([*out, "</svg>"])


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from ``low`` or below to ``high`` or above."""
    span = (high - low) or abs(high) or 1.0
    power: float = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around ``low`` and ``high``; within two decades, 2 and 5 times those as well."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [10.0**power for power in range(first, max(last, first + 1) + 1)]
    if len(ticks) > 3:
        return ticks
    fine = [factor * tick for tick in ticks[:-1] for factor in (1, 2, 5)] + ticks[-1:]
    start = max((i for i, tick in enumerate(fine) if tick <= low), default=0)
    end = next((i for i, tick in enumerate(fine) if tick >= high), len(fine) - 1)
    return fine[start : max(end, start + 1) + 1]


def _scale(ticks: Sequence[float], start: float, end: float, log: bool = False) -> Callable[[float], float]:
    def place(value: float) -> float:
        return math.log10(value) if log else value

    first, last = place(ticks[0]), place(ticks[-1])
    return lambda value: start + (place(value) - first) / (last - first) * (end - start)


def _decimals(ticks: Sequence[float]) -> int:
    return next((n for n in range(6) if all(abs(round(tick, n) - tick) < 1e-9 for tick in ticks)), 6)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _mark(x: float, y: float, style: int) -> str:
    mark = MARKS[style % len(MARKS)] if style >= 0 else MARKS[0]
    return f'<g class="mark {_class(style)}" transform="translate({x:.1f} {y:.1f})">{mark}</g>'


def _class(style: int) -> str:
    return "muted" if style < 0 else f"c{style % STYLES}"


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights for labels, near those of what they name, no two closer than a line of text."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [0.0] * len(heights)
    previous = -math.inf
    for i in order:
        placed[i] = previous = max(heights[i], previous + LABEL_GAP, TOP + 4)
    limit = min(max(HEIGHT - BOTTOM - 2, TOP + 4 + LABEL_GAP * (len(heights) - 1)), HEIGHT - 8)
    for i in reversed(order):
        placed[i] = limit = min(placed[i], limit)
        limit -= LABEL_GAP
    return placed
