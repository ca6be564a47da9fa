"""Dropout on CUDA: the mask is computed from a counter, never stored; see the CPU file for its definition.

A thread takes the four neighbouring columns that share one counter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from ..philox import philox4x32
from .launch import CUDA, Launch, ceil_div, flat, kernel


@kernel
def _dropout(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    philox = CUDA.inline(philox4x32)

    def dropout(x, seed, step, y, scale, threshold, layer):  # type: ignore[no-untyped-def]
        rows, columns = x.shape
        groups = (columns + 3) // 4
        low = np.uint32(seed[0] & 0xFFFFFFFF)
        high = np.uint32((seed[0] >> 32) & 0xFFFFFFFF)
        now = np.uint32(step[0] & 0xFFFFFFFF)
        for i in range(cuda.grid(1), rows * groups, cuda.gridsize(1)):
            row = i // groups
            group = i % groups
            w0, w1, w2, w3 = philox(np.uint32(group), np.uint32(row), now, layer, low, high)
            j = 4 * group
            y[row, j] = x[row, j] * scale if w0 >= threshold else zero
            if j + 1 < columns:
                y[row, j + 1] = x[row, j + 1] * scale if w1 >= threshold else zero
            if j + 2 < columns:
                y[row, j + 2] = x[row, j + 2] * scale if w2 >= threshold else zero
            if j + 3 < columns:
                y[row, j + 3] = x[row, j + 3] * scale if w3 >= threshold else zero

    return dropout


def dropout(x: Any, seed: Any, step: Any, y: Any, rate: float, layer: float) -> list[Launch]:
    """``y = keep * x / (1 - rate)``."""
    scale = x.dtype.type(1.0 / (1.0 - rate))
    threshold = np.uint32(int(rate * 4294967296.0))
    grid, block = flat(x.shape[0] * ceil_div(x.shape[1], 4))
    return [Launch(_dropout(x.dtype), grid, block, (x, seed, step, y, scale, threshold, np.uint32(int(layer))))]
