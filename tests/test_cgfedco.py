"""CGFedCo as a whole: the conformance suite, and what a run promises."""

from __future__ import annotations

from typing import Any, ClassVar

from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo
from cgfedrec.testing import Conformance


class TestCGFedCo(Conformance):
    uploads: ClassVar = {"bounds", "sketch", "labels", "verify", "choose"}
    rounds: ClassVar = 5
    optimizers: ClassVar = {}
    wrong: ClassVar = {"columns": 0}
    odd: ClassVar = {"columns": 7}
    good: ClassVar = {"columns": 16}

    def method(self, **settings: Any) -> Method:
        return CGFedCo(**{"columns": 8} | settings)
