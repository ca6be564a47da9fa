"""Measurements: what can be known of the kernels without a GPU (``python -m bench.offline``), and speed with one."""
