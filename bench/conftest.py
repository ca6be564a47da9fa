"""The columns that relate a kernel to the ceilings of this machine, which are measured once a run."""

from __future__ import annotations

import os

import pytest

from . import roofline as machine


@pytest.fixture(scope="session")
def ceilings() -> machine.Ceilings:
    """Those of as many threads as there are cores, as the BLAS under NumPy uses unless told otherwise."""
    return machine.measure(os.cpu_count() or 1)


@pytest.fixture
def roofline(benchmark, ceilings):
    """Run ``function`` and record bytes and operations against the ceilings."""

    def run(function, *, moved: int, flops: int = 0):
        benchmark(function)
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["GB/s"] = round(moved / seconds / 1e9, 2)
        if flops:
            benchmark.extra_info["GFLOP/s"] = round(flops / seconds / 1e9, 2)
        benchmark.extra_info["% of roofline"] = round(100 * ceilings.seconds(flops, moved) / seconds, 1)
        benchmark.extra_info["calls/s"] = round(1 / seconds, 1)

    return run
