"""One file a published method: a client and a server, and nothing else."""

from cgfedrec.methods.cgfedrec import CGFedRec
from cgfedrec.methods.local import Local

__all__ = ["CGFedRec", "Local"]
