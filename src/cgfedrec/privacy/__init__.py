"""Differential privacy: how much noise a budget asks for, and the noise itself."""
