"""Federated recommendation that shares structure instead of embedding tables.

The public names are imported on first use, so that ``import cgfedrec`` and ``cgfedrec --help`` do not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgfedrec.run.api import fit as fit
    from cgfedrec.run.api import load as load
    from cgfedrec.run.run import Run as Run

__version__ = "0.3.0"

_PUBLIC = {"fit": "run.api", "load": "run.api", "Run": "run.run"}
__all__ = ["Run", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"cgfedrec.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'cgfedrec' has no attribute {name!r}")
