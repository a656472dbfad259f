"""One file a published method: a client and a server, and nothing else."""

from cgfedrec.methods.cgfedrec import CGFedRec
from cgfedrec.methods.fedmf import FedMF
from cgfedrec.methods.local import Local
from cgfedrec.methods.pfedrec import PFedRec

__all__ = ["CGFedRec", "FedMF", "Local", "PFedRec"]
