"""Recommending from an exported folder: no torch, no data, no run; numpy alone."""

from cgfedrec.serving.recommender import Recommendations as Recommendations
from cgfedrec.serving.recommender import Recommended as Recommended
from cgfedrec.serving.recommender import Recommender as Recommender

__all__ = ["Recommendations", "Recommended", "Recommender"]
