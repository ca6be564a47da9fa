"""Ceilings of this machine, measured once a run, and the columns that relate a kernel to them."""

from __future__ import annotations

import time

import numpy as np
import pytest


def _best(function, repeats: int = 7) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    """Bytes a second of a copy of 64 MiB, read and written bytes counted."""
    source = np.ones(1 << 24, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / _best(lambda: np.copyto(target, source))


@pytest.fixture(scope="session")
def fma_peak() -> float:
    """Floating-point operations a second of the BLAS under NumPy on 1024^3 in float32, on all its threads."""
    a = np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / _best(lambda: a @ a)


@pytest.fixture
def roofline(benchmark, copy_bandwidth, fma_peak):
    """Run ``function`` and record bytes and operations against the ceilings."""

    def run(function, *, moved: int, flops: int = 0):
        benchmark(function)
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["GB/s"] = round(moved / seconds / 1e9, 2)
        benchmark.extra_info["% of copy"] = round(100 * moved / seconds / copy_bandwidth, 1)
        if flops:
            benchmark.extra_info["GFLOP/s"] = round(flops / seconds / 1e9, 2)
            benchmark.extra_info["% of BLAS"] = round(100 * flops / seconds / fma_peak, 1)
        benchmark.extra_info["calls/s"] = round(1 / seconds, 1)

    return run
