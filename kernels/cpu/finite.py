"""The scale of the loss on the CPU, and steps that are skipped because a gradient is not finite.

Memory contract: ``dz`` is updated in place, ``g`` is read. Threads share blocks of fixed size.
"""

from __future__ import annotations

import math

from ..loss_scale import move
from .steps import NORM_BLOCK


def count_not_finite(thread, threads, g, counts):
    """``counts[b]`` = how many elements of block ``b`` are NaN or infinite."""
    count = counts.size
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        block = g[b * NORM_BLOCK : min(g.size, (b + 1) * NORM_BLOCK)]
        found = 0
        for i in range(block.size):
            found += 0 if abs(block[i]) < math.inf else 1
        counts[b] = found


def move_scale(counts, scaler, step, uniforms):
    """``uniforms[0] /= scale``; skip where something is not finite."""
    total = 0.0
    for b in range(counts.size):
        total += counts[b]
    uniforms[0] /= scaler[0]
    move(total, scaler, step, uniforms)


def scale_loss(dz, scaler):
    """``dz *= scaler[0]``"""
    factor = dz.dtype.type(scaler[0])
    for i in range(dz.shape[0]):
        row = dz[i]
        for j in range(row.size):
            row[j] *= factor
