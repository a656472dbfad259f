"""The private state of all clients, loaded and saved a cohort at a time: in memory, in files, or where it lies."""

from cgfedrec.simulation.store.base import ClientStore
from cgfedrec.simulation.store.blocks import Dtype
from cgfedrec.simulation.store.disk import DiskStore
from cgfedrec.simulation.store.memory import MemoryStore
from cgfedrec.simulation.store.opened import OpenedStore
from cgfedrec.simulation.store.whole import WholeStore

STORES: dict[str, type[ClientStore]]
STORES = {"memory": MemoryStore, "whole": WholeStore, "disk": DiskStore, "checkpoint": OpenedStore}
"""By the place that a plan has chosen (`cgfedrec.simulation.capacity`)."""

__all__ = ["STORES", "ClientStore", "DiskStore", "Dtype", "MemoryStore", "OpenedStore", "WholeStore"]
