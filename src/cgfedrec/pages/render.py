"""Templates into pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from cgfedrec import __version__
from cgfedrec.units import nbytes


def page(template: str, **values: Any) -> str:
    """Render a template of this package. Whatever is no `Markup` is escaped.

    Args:
        template: Its file.
        **values: What it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(version=__version__, nbytes=nbytes, **values)
