"""Dropout on the CPU: the mask is computed from a counter, never stored.

Element ``(row, column)`` of layer ``layer`` at step ``t`` takes word ``column % 4`` of Philox4x32-10 with counter
``(column // 4, row, t, layer)`` and the seed as key; it is kept where the word is at least ``rate * 2^32``. The
backward pass is the same instruction on the gradient.
"""

from __future__ import annotations

import numpy as np

from ..native import view_bits
from ..philox import philox4x32

_STRIP = 16  # blocks of four words computed together, so that they fill vectors
SCRATCH = 4 * 4 * _STRIP  # bytes a thread needs


def dropout(scratch, first, x, seed, step, y, rate, layer):
    """``y = keep * x / (1 - rate)``; ``first`` is the number of the first row."""
    m, n = x.shape
    zero = x.dtype.type(0)
    scale = x.dtype.type(1.0 / (1.0 - rate))
    threshold = np.uint32(rate * 4294967296.0)
    low = np.uint32(seed[0] & 0xFFFFFFFF)
    high = np.uint32((seed[0] >> 32) & 0xFFFFFFFF)
    now = np.uint32(step[0] & 0xFFFFFFFF)
    where = np.uint32(layer)
    words = view_bits(scratch, 4 * _STRIP)
    for i in range(m):
        for begin in range(0, n, 4 * _STRIP):
            for k in range(_STRIP):
                block = np.uint32(begin // 4 + k)
                w0, w1, w2, w3 = philox4x32(block, np.uint32(first + i), now, where, low, high)
                words[4 * k] = w0
                words[4 * k + 1] = w1
                words[4 * k + 2] = w2
                words[4 * k + 3] = w3
            row = x[i, begin : begin + 4 * _STRIP]
            out = y[i, begin : begin + 4 * _STRIP]
            if out.ctypes.data == row.ctypes.data:  # twice: arrays that might overlap in any way are not vectorised
                for j in range(out.size):
                    out[j] = out[j] * scale if words[j] >= threshold else zero
            else:
                for j in range(out.size):
                    out[j] = row[j] * scale if words[j] >= threshold else zero
