"""Measurements: speed (``pytest bench --benchmark-only``), and what a compiler tells without a GPU (``bench.offline``)."""
