"""Secure sums: a server that learns what clients send together, and nothing of what one of them sends."""

from cgfedrec.wire.secure.step import SecureSums

__all__ = ["SecureSums"]
