"""Compiling the kernels of a program ahead, for GPUs that are not here."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..program import ALIGNMENT, Program
from .launch import SIMULATED, launches
from .machine_code import argument_types, cubin

BATCHES = (1, 32, 128, 1024)  # sizes of mini-batches, for kernels that are chosen by size


def why_not() -> str | None:
    """None where kernels can be compiled without a GPU, else one sentence that says what is missing."""
    if SIMULATED:
        return "NUMBA_ENABLE_CUDASIM is set: the simulator compiles nothing"
    try:
        import numba_cuda  # noqa: F401
    except ImportError:
        return "numba-cuda is not installed; pip install 'dlcore[cuda13]' (or cuda12) adds it"
    return None


def compile_ahead(program: Program, arch: int) -> None:
    """Put the machine code of every kernel of ``program`` for ``sm_<arch>`` on the disk.

    Raises :class:`~dlcore.kernels.device.DeviceError` where it cannot be assembled.
    """
    for rows in BATCHES:
        _, _, total = program.layout(rows)
        memory = np.zeros(total + ALIGNMENT, np.uint8)
        arena = memory[-memory.ctypes.data % ALIGNMENT :][:total]
        views: dict[Any, Any] = dict(program.views(arena, rows))
        for extern in program.externs.values():
            views[extern] = np.zeros([size or rows for size in extern.shape], extern.dtype)
        for name in program.lists:
            for launch in launches(program, name, views.__getitem__, np.zeros(2, np.int64), rows):
                cubin(launch.kernel, argument_types(launch.arguments), arch)
