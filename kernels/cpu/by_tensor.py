"""Optimizer steps on the CPU that look at each tensor: clipping by its norm, layer-wise and factored rules.

Memory contract: as in update.py; sums read what they need once more. ``blocks`` cuts the tensors into ranges
``(first, last, tensor)`` that threads share, ``panels`` into rows and columns (see program.py). Sums of few hundred
elements are taken by vectors in the model's dtype, and added in order, in float64. With factors, a block is done row by
row, and a panel leaves sums in the model's dtype.
"""

from __future__ import annotations

import math

from ..native import call_summands, call_terms, call_update, view, view_double
from ..program import PANEL_COLUMNS, PANEL_ROWS
from .update import square_sum

SCRATCH = 8 * PANEL_COLUMNS  # bytes


def block_squares(thread, threads, g, blocks, partial):
    """``partial[b]`` = sum of ``g^2`` over block ``b`` of a tensor, in float64."""
    count = blocks.shape[0]
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        partial[b, 0] = square_sum(g[blocks[b, 0] : blocks[b, 1]])


def block_sums(rule, scratch, thread, threads, w, g, slots, uniforms, blocks, factors, tensors, partial):
    """``partial[b]`` = sums of the rule's summands over block ``b`` of a tensor, in float64."""
    count = blocks.shape[0]
    stride = slots.shape[1] * w.itemsize
    sums = view_double(scratch, partial.shape[1])
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        k = blocks[b, 0]
        for s in range(sums.size):
            partial[b, s] = 0.0
        while k < blocks[b, 1]:
            n, row, column = segment(factors, tensors, blocks[b, 2], k, blocks[b, 1])
            at = k * w.itemsize
            call_summands(
                rule, w.ctypes.data + at, g.ctypes.data + at, slots.ctypes.data + at, stride, uniforms.ctypes.data,
                n, row, column, scratch,
            )  # fmt: skip
            for s in range(sums.size):
                partial[b, s] += sums[s]
            k += n


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


def optimizer_update_by_tensor(rule, thread, threads, w, g, slots, rows, blocks, factors, tensors):
    """``optimizer_update`` with ``rows[t]`` as the uniforms of tensor ``t``, and the factors of row and column."""
    count = blocks.shape[0]
    stride = slots.shape[1] * w.itemsize
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        u = rows.ctypes.data + blocks[b, 2] * rows.shape[1] * w.itemsize
        k = blocks[b, 0]
        while k < blocks[b, 1]:
            n, row, column = segment(factors, tensors, blocks[b, 2], k, blocks[b, 1])
            at = k * w.itemsize
            call_update(rule, w.ctypes.data + at, g.ctypes.data + at, slots.ctypes.data + at, stride, u, n, row, column)
            k += n


def segment(factors, tensors, tensor, first, last):
    """How many elements from ``first`` on lie in its row, the factor of that, and the address of those of its columns.

    The factor is relative to the number in front of all, except where that is 0: before the first step. Without
    factors, all elements up to ``last``.
    """
    if factors.size == 0:
        return last - first, 0.0, 0
    start, rows, columns, place = tensors[tensor, 0], tensors[tensor, 1], tensors[tensor, 2], tensors[tensor, 3]
    row = (first - start) // columns
    column = first - start - row * columns
    whole, along = float(factors[place]), float(factors[place + 1 + row])
    if whole != 0:
        along /= whole
    address = factors.ctypes.data + (place + 1 + rows + column) * factors.itemsize
    return min(columns - column, last - first), along, address


def factor_sums(rule, scratch, thread, threads, w, g, factors, uniforms, tensors, panels, sums):
    """Over each row of a panel, and behind them each column: sums of terms beside factors, or the largest term."""
    _panels(rule, scratch, thread, threads, w, g, 0, 0, factors, uniforms, tensors, panels, sums)


def factored_update(rule, scratch, thread, threads, w, g, slots, factors, uniforms, tensors, panels, sums):
    """``factor_sums``, and the update of each element with the factors there are."""
    state, stride = slots.ctypes.data, slots.shape[1] * w.itemsize
    _panels(rule, scratch, thread, threads, w, g, state, stride, factors, uniforms, tensors, panels, sums)


def _panels(rule, scratch, thread, threads, w, g, state, stride, factors, uniforms, tensors, panels, sums):
    count = panels.shape[0]
    size = w.itemsize
    if uniforms[4] != 0:  # the step is skipped
        return
    for p in range(count * thread // threads, count * (thread + 1) // threads):
        t, top, left, at = panels[p, 0], panels[p, 1], panels[p, 3], panels[p, 5]
        height = panels[p, 2] - top
        start, rows, columns, place = tensors[t, 0], tensors[t, 1], tensors[t, 2], tensors[t, 3] + 1
        below = view(scratch, panels[p, 4] - left)
        here = (start + top * columns + left) * size
        along = factors.ctypes.data + (place + top) * size
        call_terms(
            rule, w.ctypes.data + here, g.ctypes.data + here, state + here, stride, uniforms.ctypes.data, below.size,
            height, columns * size, float(factors[place - 1]), along, along + (rows - top + left) * size, scratch,
            sums.ctypes.data + at * size,
        )  # fmt: skip
        part = sums[at + height : at + height + below.size]
        for i in range(below.size):
            part[i] = below[i]


def factor_update(scratch, thread, threads, sums, uniforms, tensors, panels, factors, largest):
    """Means over rows and columns, or the largest, from those of panels; in front, what ``segment`` divides rows by."""
    if uniforms[4] != 0:
        return
    least = -math.inf if largest != 0 else 0.0
    for t in range(tensors.shape[0]):
        rows, columns, place, first = tensors[t, 1], tensors[t, 2], tensors[t, 3] + 1, tensors[t, 4]
        across = (columns + PANEL_COLUMNS - 1) // PANEL_COLUMNS
        down = (rows + PANEL_ROWS - 1) // PANEL_ROWS
        whole = 0.0
        for row in range(rows if thread == 0 else 0):
            total = least
            for p in range(first + row // PANEL_ROWS * across, first + (row // PANEL_ROWS + 1) * across):
                total = merge(total, float(sums[panels[p, 5] + row % PANEL_ROWS]), largest)
            factors[place + row] = total if largest != 0 else factors[place + row] + total / columns
            whole += factors[place + row]
        if thread == 0:
            factors[place - 1] = 1.0 if largest != 0 else whole / rows
        for k in range(across):
            width = min(PANEL_COLUMNS, columns - k * PANEL_COLUMNS)
            left = width * thread // threads
            below = view_double(scratch, width * (thread + 1) // threads - left)
            below[:] = least
            for p in range(first + k, first + k + down * across, across):
                at = panels[p, 5] + panels[p, 2] - panels[p, 1] + left
                part = sums[at : at + below.size]
                for i in range(below.size):
                    below[i] = merge(below[i], float(part[i]), largest)
            at = place + rows + k * PANEL_COLUMNS + left
            for i in range(below.size):
                factors[at + i] = below[i] if largest != 0 else factors[at + i] + below[i] / rows


def merge(a, b, largest):
    return max(a, b) if largest != 0 else a + b
