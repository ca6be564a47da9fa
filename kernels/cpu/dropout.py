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
    w0 = words[:_STRIP]
    w1 = words[_STRIP : 2 * _STRIP]
    w2 = words[2 * _STRIP : 3 * _STRIP]
    w3 = words[3 * _STRIP :]
    for i in range(m):
        for begin in range(0, n, 4 * _STRIP):
            for k in range(w0.size):
                block = np.uint32(begin // 4 + k)
                w0[k], w1[k], w2[k], w3[k] = philox4x32(block, np.uint32(first + i), now, where, low, high)
            row = x[i, begin : begin + 4 * _STRIP]
            out = y[i, begin : begin + 4 * _STRIP]
            whole = row.size // 4
            for k in range(whole):
                out[4 * k] = row[4 * k] * scale if w0[k] >= threshold else zero
                out[4 * k + 1] = row[4 * k + 1] * scale if w1[k] >= threshold else zero
                out[4 * k + 2] = row[4 * k + 2] * scale if w2[k] >= threshold else zero
                out[4 * k + 3] = row[4 * k + 3] * scale if w3[k] >= threshold else zero
            for j in range(4 * whole, row.size):
                word = words[(j % 4) * _STRIP + j // 4]
                out[j] = row[j] * scale if word >= threshold else zero
