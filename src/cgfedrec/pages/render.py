"""Templates into pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

from cgfedrec import __version__
from cgfedrec.errors import printable
from cgfedrec.units import nbytes


def page(template: str, **values: Any) -> str:
    """Render a template of this package. Whatever is no `Markup` is escaped, and control characters are spelt out.

    Args:
        template: Its file.
        **values: What it shows.
    """
    return printable(_templates().get_template(template).render(version=__version__, nbytes=nbytes, **values))


def alone(svg: str) -> str:
    """A chart of a page as a file of its own, for a paper: light, with its style in it and without variables.

    Args:
        svg: Of `cgfedrec.pages.plot.chart`.
    """
    light, *_ = _templates().get_template("style.css.j2").render().split("@media")
    colours = dict(re.findall(r"--(\w+): (#\w+)", light))
    rules = _templates().get_template("chart.css.j2").render()
    style = re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], rules)
    start, rest = svg.split(">", 1)
    drawn = f'{start} xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"><style>\n{style}</style>{rest}\n'
    return printable(drawn)  # XML allows few control characters


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
