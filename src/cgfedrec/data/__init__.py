"""From a table of interactions to each client's data."""

from cgfedrec.data.difference import Difference, diff
from cgfedrec.data.interactions import Interactions
from cgfedrec.data.layout import Format
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.data.ratings import of_frame
from cgfedrec.data.synthetic import Synthetic

__all__ = ["Difference", "FederatedDataModule", "Format", "Interactions", "Synthetic", "diff", "of_frame"]
