"""What a server discovers, and what a client does with it."""

from cgfedrec.structure.clusterlabels import ClusterLabels
from cgfedrec.structure.labelsets import LabelSets
from cgfedrec.structure.neighbours import Neighbours

__all__ = ["ClusterLabels", "LabelSets", "Neighbours"]
