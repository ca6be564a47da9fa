"""Measurements: ``python -m bench --help``; single kernels by ``pytest bench --benchmark-only``."""
