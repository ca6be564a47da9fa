"""Optimizer steps on the CPU that look at each tensor: clipping by its norm, and layer-wise rules.

Memory contract: as in update.py; sums read what they need once more. ``blocks`` cuts the tensors into ranges
``(first, last, tensor)`` that threads share. Sums of few hundred elements are taken by vectors in the model's dtype,
and added in order, in float64.
"""

from __future__ import annotations

import math

from ..native import call_summands, call_update
from .update import square_sum


def block_squares(thread, threads, g, blocks, partial):
    """``partial[b]`` = sum of ``g^2`` over block ``b`` of a tensor, in float64."""
    count = blocks.shape[0]
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        partial[b, 0] = square_sum(g[blocks[b, 0] : blocks[b, 1]])


def block_sums(rule, thread, threads, w, g, slots, uniforms, blocks, partial):
    """``partial[b]`` = sums of the rule's summands over block ``b`` of a tensor, in float64."""
    count = blocks.shape[0]
    stride = slots.shape[1] * w.itemsize
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        at = blocks[b, 0] * w.itemsize
        call_summands(
            rule, w.ctypes.data + at, g.ctypes.data + at, slots.ctypes.data + at, stride, uniforms.ctypes.data,
            blocks[b, 1] - blocks[b, 0], partial.ctypes.data + b * partial.shape[1] * partial.itemsize,
        )  # fmt: skip


def sums_of_tensors(partial, uniforms, blocks, rows):
    """``rows[t]`` = uniforms, and behind them the sums over the blocks of tensor ``t``, in order."""
    for t in range(rows.shape[0]):
        for k in range(uniforms.size):
            rows[t, k] = uniforms[k]
    for k in range(partial.shape[1]):
        b = 0
        while b < blocks.shape[0]:
            tensor = blocks[b, 2]
            total = 0.0
            while b < blocks.shape[0] and blocks[b, 2] == tensor:
                total += partial[b, k]
                b += 1
            rows[tensor, uniforms.size + k] = total


def norms_of_tensors(partial, hyper, uniforms, blocks, rows):
    """``rows[t]`` = uniforms, the scale of the gradient times ``c / max(c, ||scale g_t||)``."""
    limit = hyper[hyper.size - 1]
    for t in range(rows.shape[0]):
        for k in range(uniforms.size):
            rows[t, k] = uniforms[k]
    b = 0
    while b < blocks.shape[0]:
        tensor = blocks[b, 2]
        total = 0.0
        while b < blocks.shape[0] and blocks[b, 2] == tensor:
            total += partial[b, 0]
            b += 1
        norm = math.sqrt(total) * abs(uniforms[0])
        if limit > 0 and not norm <= limit:
            rows[tensor, 0] = uniforms[0] * (limit / norm)


def block_update(rule, thread, threads, w, g, slots, rows, blocks):
    """``optimizer_update`` with ``rows[t]`` as the uniforms of tensor ``t``."""
    count = blocks.shape[0]
    stride = slots.shape[1] * w.itemsize
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        at = blocks[b, 0] * w.itemsize
        u = rows.ctypes.data + blocks[b, 2] * rows.shape[1] * w.itemsize
        n = blocks[b, 1] - blocks[b, 0]
        call_update(rule, w.ctypes.data + at, g.ctypes.data + at, slots.ctypes.data + at, stride, u, n)
