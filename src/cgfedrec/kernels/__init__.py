"""Inner loops that numba compiles, where one pass over what a cache holds takes a part of what many torch calls do.

Each is a faster way to a result that torch code beside it defines, on a CPU and in float32. Clients are gone through
one after another, each as if it were alone, so nothing depends on who trains beside whom.
"""
