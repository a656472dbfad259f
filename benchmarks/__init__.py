"""Benchmarks. Torch takes memory in them as it does under ``cgfedrec``, whoever it works for."""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
