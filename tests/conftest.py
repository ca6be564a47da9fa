"""CUDA kernels run on the simulator here; ``DLCORE_TEST_DEVICE=cuda`` runs them on a real GPU instead."""

import os

if os.environ.get("DLCORE_TEST_DEVICE") != "cuda":
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")  # read when Numba is imported, so before anything else

from numba.core import config

if config.ENABLE_CUDASIM:
    import simulator

    simulator.install()
