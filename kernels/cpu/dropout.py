"""Dropout on the CPU: the mask is computed from a counter, never stored.

Element ``(row, column)`` of layer ``layer`` at step ``t`` takes word ``column % 4`` of Philox4x32-10 with counter
``(column // 4, row, t, layer)`` and the seed as key; it is kept where the word is at least ``rate * 2^32``. The
backward pass is the same instruction on the gradient.
"""

from __future__ import annotations

import numpy as np

from ..philox import philox4x32


def dropout(x, seed, step, y, rate, layer):
    """``y = keep * x / (1 - rate)``."""
    m, n = x.shape
    zero = x.dtype.type(0)
    scale = x.dtype.type(1.0 / (1.0 - rate))
    threshold = np.uint64(rate * 4294967296.0)
    low = np.uint32(seed[0] & 0xFFFFFFFF)
    high = np.uint32((seed[0] >> 32) & 0xFFFFFFFF)
    now = np.uint32(step[0] & 0xFFFFFFFF)
    where = np.uint32(layer)
    for i in range(m):
        row = x[i]
        out = y[i]
        for block in range((n + 3) // 4):
            words = philox4x32(np.uint32(block), np.uint32(i), now, where, low, high)
            for k in range(min(4, n - 4 * block)):
                j = 4 * block + k
                word = words[k]
                out[j] = row[j] * scale if np.uint64(word) >= threshold else zero
