"""What every command needs before its own work, for the process that commands are forked from (`tests.commands`).

The parser of settings is among it: to make it takes as long as a small run. So is what numba needs to load a loop.
"""

from contextlib import redirect_stdout, suppress
from io import StringIO

import numpy as np
import optuna  # noqa: F401
import sklearn.cluster  # noqa: F401

import cgfedrec.experiments.compare
import cgfedrec.experiments.tune
import cgfedrec.run.api
import cgfedrec.run.recommend  # noqa: F401
import tests.commands  # noqa: F401
from cgfedrec.cli import main
from cgfedrec.kernels import sums

with suppress(SystemExit), redirect_stdout(StringIO()):
    main(["fit", "--print_config"])
sums.add(np.zeros(1), np.zeros((1, 1), np.float32), np.float32(1))
