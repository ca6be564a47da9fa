"""Measurements: ``pytest bench --benchmark-only`` for speed, ``python -m bench.offline`` for machine code."""
