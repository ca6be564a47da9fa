"""Matrix products on the CPU: ``x W``, ``x^T dz`` and ``dz W^T``.

Memory contract: the result is overwritten, never accumulated into; all arrays are C-contiguous. Sums run over the
inner index in ascending order, four terms at a time, so that a result repeats bit for bit.
"""

from __future__ import annotations

import numpy as np


def multiply(x, w, y):
    """``y = x w`` with ``x (m, k)``, ``w (k, n)``, ``y (m, n)``."""
    m, k = x.shape
    n = w.shape[1]
    for i in range(m):
        row = y[i]
        row[:] = 0
        j = 0
        while j + 4 <= k:
            a0 = x[i, j]
            a1 = x[i, j + 1]
            a2 = x[i, j + 2]
            a3 = x[i, j + 3]
            w0 = w[j]
            w1 = w[j + 1]
            w2 = w[j + 2]
            w3 = w[j + 3]
            for c in range(n):
                row[c] = row[c] + a0 * w0[c] + a1 * w1[c] + a2 * w2[c] + a3 * w3[c]
            j += 4
        while j < k:
            a0 = x[i, j]
            w0 = w[j]
            for c in range(n):
                row[c] += a0 * w0[c]
            j += 1


def multiply_transposed_left(x, dz, dw):
    """``dw = x^T dz`` with ``x (m, k)``, ``dz (m, n)``, ``dw (k, n)``."""
    m, k = x.shape
    n = dz.shape[1]
    for j in range(k):
        row = dw[j]
        row[:] = 0
        i = 0
        while i + 4 <= m:
            a0 = x[i, j]
            a1 = x[i + 1, j]
            a2 = x[i + 2, j]
            a3 = x[i + 3, j]
            d0 = dz[i]
            d1 = dz[i + 1]
            d2 = dz[i + 2]
            d3 = dz[i + 3]
            for c in range(n):
                row[c] = row[c] + a0 * d0[c] + a1 * d1[c] + a2 * d2[c] + a3 * d3[c]
            i += 4
        while i < m:
            a0 = x[i, j]
            d0 = dz[i]
            for c in range(n):
                row[c] += a0 * d0[c]
            i += 1


def transposed(w):
    """A C-contiguous copy of ``w^T``, in tiles that stay in the cache."""
    k, n = w.shape
    result = np.empty((n, k), w.dtype)
    tile = 16
    for j0 in range(0, k, tile):
        for c0 in range(0, n, tile):
            for j in range(j0, min(k, j0 + tile)):
                for c in range(c0, min(n, c0 + tile)):
                    result[c, j] = w[j, c]
    return result
