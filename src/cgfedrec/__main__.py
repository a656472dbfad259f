"""`python -m cgfedrec`."""

import sys

from cgfedrec.cli import main

sys.exit(main())
