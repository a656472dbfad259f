"""FedGF."""
from __future__ import annotations
from typing import Any, ClassVar
from cgfedrec.method import Method
from cgfedrec.methods import FedGF
from cgfedrec.testing import Conformance

class TestFedGF(Conformance):
    uploads: ClassVar = {"product"}
    optimizers: ClassVar = {}
    wrong: ClassVar = {"rank": 0}
    odd: ClassVar = {"rank": 7}
    good: ClassVar = {"rank": 16, "iterations": 3}

    def method(self, **settings: Any) -> Method:
        return FedGF(**{"rank": 8, "iterations": 6} | settings)
