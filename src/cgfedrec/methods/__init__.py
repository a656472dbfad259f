"""One file a published method: a client and a server, and nothing else."""

from cgfedrec.methods.cgfedco import CGFedCo
from cgfedrec.methods.cgfedrec import CGFedRec
from cgfedrec.methods.cofedrec import CoFedRec
from cgfedrec.methods.colr import CoLR
from cgfedrec.methods.fedca import FedCA
from cgfedrec.methods.fedcia import FedCIA
from cgfedrec.methods.fedgf import FedGF
from cgfedrec.methods.fedmf import FedMF
from cgfedrec.methods.fedncf import FedNCF
from cgfedrec.methods.fedrap import FedRAP
from cgfedrec.methods.gpfedrec import GPFedRec
from cgfedrec.methods.local import Local
from cgfedrec.methods.pfedrec import PFedRec

__all__ = [
    "CGFedCo",
    "CGFedRec",
    "CoFedRec",
    "CoLR",
    "FedCA",
    "FedCIA",
    "FedGF",
    "FedMF",
    "FedNCF",
    "FedRAP",
    "GPFedRec",
    "Local",
    "PFedRec",
]
