"""CUDA kernels run on the simulator here; ``DLCORE_TEST_DEVICE=cuda`` runs them on a real GPU instead."""

import os
import pathlib
import sys

# bench/ is not installed; last, so that dlcore is the installed one where there is one
sys.path.append(str(pathlib.Path(__file__).parent.parent))

if os.environ.get("DLCORE_TEST_DEVICE") != "cuda":
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")  # read when Numba is imported, so before anything else

import numpy as np
import pytest
from numba.core import config

if config.ENABLE_CUDASIM:
    import simulator

    simulator.install()


@pytest.fixture
def rng():
    """Random numbers, the same each time."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch):
    """Jobs take the threads that they ask for, whatever other processes do (test_crowd.py has crowds of its own)."""
    from dlcore.kernels.cpu import crowd

    monkeypatch.setattr(crowd, "_LOST", 1.0)


@pytest.fixture(autouse=True)
def _registry():
    """Rules that a test defines are forgotten after it."""
    from dlcore.kernels.rule import REGISTRY

    before = {kind: dict(table) for kind, table in REGISTRY.items()}
    yield
    for kind, table in before.items():
        REGISTRY[kind].clear()
        REGISTRY[kind].update(table)
