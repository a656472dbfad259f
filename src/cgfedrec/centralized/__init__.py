"""References that see everyone's data: ``fit(data)``, ``score(users)``; outside the loop, same evaluation."""

from cgfedrec.centralized.ease import EASE
from cgfedrec.centralized.itemknn import ItemKNN
from cgfedrec.centralized.lightgcn import LightGCN
from cgfedrec.centralized.mf import MF
from cgfedrec.centralized.popularity import Popularity
from cgfedrec.centralized.sasrec import SASRec

__all__ = ["EASE", "MF", "ItemKNN", "LightGCN", "Popularity", "SASRec"]
