"""Gradients of several mini-batches summed up on the CPU, for one update.

Memory contract: ``g`` is read once, ``total`` read (but at the first of a turn) and written once. Threads share blocks
of fixed size.
"""

from __future__ import annotations

from .steps import NORM_BLOCK


def add_gradient(thread, threads, g, total, turn, uniforms):
    """``total = scale g``, and what it was where this is not the first of the turn; nothing where it is skipped."""
    blocks = (g.size + NORM_BLOCK - 1) // NORM_BLOCK
    first = blocks * thread // threads * NORM_BLOCK
    last = min(g.size, blocks * (thread + 1) // threads * NORM_BLOCK)
    scale = uniforms[0]
    if uniforms[4] == 0:
        if turn[0] == 0:
            for i in range(first, last):
                total[i] = scale * g[i]
        else:
            for i in range(first, last):
                total[i] += scale * g[i]


def end_turn(turn, batches, step, uniforms, steps):
    """Count; after ``steps`` gradients the scale of their total is ``1 / steps``, before there is no update."""
    batches[0] += 1
    if uniforms[4] == 0:
        turn[0] += 1
        if turn[0] >= steps:
            turn[0] = 0
            uniforms[0] = 1.0 / steps
        else:
            uniforms[4] = 1
            step[0] -= 1
