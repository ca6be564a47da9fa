"""Compiling the kernels of a program ahead, for GPUs that are not here."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..program import ALIGNMENT, Program
from .batched import Stack, batched
from .launch import SIMULATED, Launch, launches
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


def compile_ahead(program: Program, arch: int, many: bool = False) -> None:
    """Put the machine code of every kernel of ``program`` for ``sm_<arch>`` on the disk.

    With ``many`` also of those that train many models of its architecture at once.

    Raises :class:`~dlcore.kernels.device.DeviceError` where it cannot be assembled.
    """
    for rows in BATCHES:
        planned = [launch for name in program.lists for launch in _planned(program, name, rows, Stack(1))]
        if many and "train" in program.lists:
            stack = Stack(2)  # the kernels are the same for any number
            with stack.planning():
                planned += batched(_planned(program, "train", rows, stack), stack)
        for launch in planned:
            cubin(launch.kernel, argument_types(launch.arguments), arch)


def _planned(program: Program, name: str, rows: int, stack: Stack) -> list[Launch]:
    """The launches of a list for the first model of ``stack``, on arrays that nobody computes with."""
    _, _, total = program.layout(rows)
    memory = np.zeros(stack.models * total + ALIGNMENT, np.uint8)
    parts = memory[-memory.ctypes.data % ALIGNMENT :][: stack.models * total].reshape(stack.models, total)
    views: dict[Any, Any] = dict(program.views(stack.add(parts), rows))
    for extern in program.externs.values():
        shape = [size or rows for size in extern.shape]
        if extern.name == "order" or extern.name.startswith("history_"):
            views[extern] = stack.add(np.zeros([stack.models, *shape], extern.dtype))
        else:
            views[extern] = np.zeros(shape, extern.dtype)
            stack.share(views[extern])
    cursor = np.zeros(2, np.int64)
    stack.share(cursor)
    return launches(program, name, views.__getitem__, cursor, rows)
