"""Optimizer steps on the CPU: clipping by the global norm, and one pass over all parameters.

Memory contract: ``w`` and ``slots`` are read once and written once, ``g`` is read. ``uniforms[0]`` scales the
gradient on the way. ``rule`` is the address of a strip of the optimizer (see compile.py). ``optimizer_begin`` is
generated for each rule, in compile.py. Threads share blocks of fixed size, so that sums repeat bit for bit.
"""

from __future__ import annotations

import math

from ..native import call_update
from ..program import ALIGNMENT
from .context import take_piece
from .rowsums import wide_square_sum
from .steps import NORM_BLOCK

PIECE = 4 * NORM_BLOCK  # elements of an update that a thread takes at once: smaller ones cost time between pages


def sum_of_squares(thread, threads, g, squares):
    """``squares[b]`` = sum of ``g^2`` over block ``b``, in float64."""
    count = squares.size
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        squares[b] = square_sum(g[b * NORM_BLOCK : min(g.size, (b + 1) * NORM_BLOCK)])


def square_sum(block):
    """The sum of the squares, taken in float64."""
    return wide_square_sum((block.ctypes.data,), (block.dtype.type(0),), block.size)[0]


def clip(squares, hyper, uniforms):
    """``uniforms[0] *= c / max(c, ||uniforms[0] g||)`` with ``c = hyper[-1] > 0``."""
    limit = hyper[hyper.size - 1]
    if limit > 0:
        total = 0.0
        for b in range(squares.size):
            total += squares[b]
        norm = math.sqrt(total) * abs(uniforms[0])
        if not norm <= limit:  # a norm that is not a number must not pass unseen
            uniforms[0] *= limit / norm


def optimizer_update(rule, context, thread, threads, w, g, slots, uniforms):
    """``w, slots = rule(keep w, scale g + l2 w, slots)`` for every element."""
    _update(rule, context, thread, threads, w, g, slots.ctypes.data, slots.shape[1] * w.itemsize, uniforms)


def optimizer_update_apart(rule, context, thread, threads, w, g, first, second, uniforms):
    """The same with each slot in an array of its own."""
    stride = second.ctypes.data - first.ctypes.data
    _update(rule, context, thread, threads, w, g, first.ctypes.data, stride, uniforms)


def _update(rule, context, thread, threads, w, g, state, stride, uniforms):
    """Pieces of the thread's share, then those that others have left.

    Threads that share the way to memory do not get the same of it: of two, one was done with its half 5 to 15% before
    the other. Pieces are cut at cache lines of ``w``: arrays of NumPy begin between them, and every vector would touch
    two.
    """
    size = w.itemsize
    head = min(w.size, -w.ctypes.data % ALIGNMENT // size)
    if thread == 0 and head > 0:
        call_update(rule, w.ctypes.data, g.ctypes.data, state, stride, uniforms.ctypes.data, head)
    blocks = (w.size - head + NORM_BLOCK - 1) // NORM_BLOCK
    for k in range(threads):
        owner = (thread + k) % threads
        first = head + blocks * owner // threads * NORM_BLOCK
        last = min(w.size, head + blocks * (owner + 1) // threads * NORM_BLOCK)
        pieces = (last - first + PIECE - 1) // PIECE
        piece = take_piece(context, owner, pieces, thread, threads)
        while piece >= 0:
            at = (first + piece * PIECE) * size
            count = min(PIECE, last - first - piece * PIECE)
            call_update(rule, w.ctypes.data + at, g.ctypes.data + at, state + at, stride, uniforms.ctypes.data, count)
            piece = take_piece(context, owner, pieces, thread, threads)
