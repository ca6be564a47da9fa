"""Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011): random words from a counter and a key, without state.

One scalar function serves the CPU kernels, the CUDA kernels and plain Python.
"""

from __future__ import annotations

import numpy as np

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(c0, c1, c2, c3, k0, k1):
    """The four random uint32 words of counter ``(c0, c1, c2, c3)`` under key ``(k0, k1)``; all arguments are uint32."""
    for _ in range(10):
        p0 = _MULTIPLIER_0 * np.uint64(c0)
        p1 = _MULTIPLIER_1 * np.uint64(c2)
        c0 = np.uint32(np.uint32(p1 >> _HALF) ^ c1 ^ k0)
        c2 = np.uint32(np.uint32(p0 >> _HALF) ^ c3 ^ k1)
        c1 = np.uint32(p1 & _MASK)
        c3 = np.uint32(p0 & _MASK)
        k0 = np.uint32((np.uint64(k0) + _WEYL_0) & _MASK)
        k1 = np.uint32((np.uint64(k1) + _WEYL_1) & _MASK)
    return c0, c1, c2, c3
