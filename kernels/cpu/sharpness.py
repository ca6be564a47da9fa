"""The step of sharpness-aware minimisation to where the loss is larger, and back, on the CPU.

Memory contract: ``g`` and ``w`` are read for the norm, then ``w`` is read and written once, ``g`` read and ``kept``
written. Threads share blocks of fixed size; sums are in float64.
"""

from __future__ import annotations

import math

from .rowsums import scaled_square_sum
from .steps import NORM_BLOCK
from .update import square_sum


def ascent_squares(thread, threads, w, g, squares, eta, adaptive):
    """``squares[b]`` = sum of ``(T g)^2`` over block ``b``; ``T = |w| + eta`` where adaptive, else 1."""
    count = squares.size
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        first, last = b * NORM_BLOCK, min(g.size, (b + 1) * NORM_BLOCK)
        if adaptive != 0:
            start = first * g.itemsize
            arrays = g.ctypes.data + start, w.ctypes.data + start
            squares[b] = scaled_square_sum(arrays, (g.dtype.type(eta),), last - first)[0]
        else:
            squares[b] = square_sum(g[first:last])


def ascend_by(thread, threads, squares, w, g, uniforms, kept, rho, eta, adaptive):
    """``kept = w``; ``w += rho T^2 g / ||T g||``, with the sign of the gradient's scale; by 0 where the norm is 0."""
    total = 0.0
    for b in range(squares.size):
        total += squares[b]
    ratio = rho / math.sqrt(total) if total > 0 else 0.0
    if uniforms[0] < 0:
        ratio = -ratio
    factor, floor = w.dtype.type(ratio), w.dtype.type(eta)
    count = squares.size
    for i in range(count * thread // threads * NORM_BLOCK, min(w.size, count * (thread + 1) // threads * NORM_BLOCK)):
        x = w[i]
        kept[i] = x
        t = abs(x) + floor
        w[i] = x + factor * (t * t * g[i] if adaptive != 0 else g[i])


def restore_weights(thread, threads, kept, w):
    """``w = kept``"""
    count = (w.size + NORM_BLOCK - 1) // NORM_BLOCK
    for i in range(count * thread // threads * NORM_BLOCK, min(w.size, count * (thread + 1) // threads * NORM_BLOCK)):
        w[i] = kept[i]
