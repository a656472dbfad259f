"""Structure: what a server discovers from sums and sends down, and what a client does with it.

A new kind of structure is one file: a `Structure` with its settings, and the `SumsClient` that reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cgfedrec.client import Batch, Client, StepOutput, empty_parameter
from cgfedrec.evaluation.metrics import NDCG, rank, rank_sampled
from cgfedrec.structure.timeline import CHOOSE, TRAIN, Discovery, known_of
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field, Value
