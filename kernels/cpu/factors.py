"""Optimizer rules with state of rows and columns on the CPU: a pass over panels of each tensor for each part of a step.

Memory contract: a pass reads what its part needs once, and an update writes what it moves once. ``panels`` cuts the
tensors into rows and columns (see program.py); threads share them by their elements. A strip (see panel_text.py) does a
panel: over each of its rows and columns it takes sums in the model's dtype, over all of it in float64.
"""

from __future__ import annotations

import math

from ..native import call_factored, view, view_double
from ..program import PANEL_COLUMNS, PANEL_ROWS

SCRATCH = 2 * 8 * PANEL_COLUMNS  # bytes: state of a panel's columns, and sums over them


def factor_sums(rule, scratch, thread, threads, w, g, factors, uniforms, tensors, panels, sums):
    """Over each row of a panel, and behind them each column: sums of terms beside factors, or the largest term."""
    u, out = uniforms.ctypes.data, sums.ctypes.data
    _panels(rule, scratch, thread, threads, w, g, 0, 0, factors, u, 0, tensors, panels, out, 0)


def factored_update(rule, scratch, thread, threads, w, g, slots, factors, uniforms, tensors, panels, sums):
    """``factor_sums``, and the update of each element with the factors there are."""
    u, out, state, stride = uniforms.ctypes.data, sums.ctypes.data, slots.ctypes.data, slots.shape[1] * w.itemsize
    _panels(rule, scratch, thread, threads, w, g, state, stride, factors, u, 0, tensors, panels, out, 0)


def panel_sums(rule, scratch, thread, threads, w, g, slots, factors, uniforms, tensors, panels, partial):
    """``partial[p]`` = sums of the rule's summands over panel ``p``, in float64."""
    u, out, state, stride = uniforms.ctypes.data, partial.ctypes.data, slots.ctypes.data, slots.shape[1] * w.itemsize
    one = partial.shape[1] * partial.itemsize
    _panels(rule, scratch, thread, threads, w, g, state, stride, factors, u, 0, tensors, panels, out, one)


def panel_update(rule, scratch, thread, threads, w, g, slots, factors, rows, tensors, panels):
    """``optimizer_update`` with ``rows[t]`` as the uniforms of tensor ``t``, and the factors of row and column."""
    u, state, stride = rows.ctypes.data, slots.ctypes.data, slots.shape[1] * w.itemsize
    one = rows.shape[1] * w.itemsize
    _panels(rule, scratch, thread, threads, w, g, state, stride, factors, u, one, tensors, panels, 0, 0)


def _panels(
    rule, scratch, thread, threads, w, g, state, stride, factors, u, u_step, tensors, panels, out, out_step
):  # fmt: skip
    """The strip on the thread's panels; ``u_step`` bytes lie between the uniforms of tensors.

    ``out_step`` bytes lie between the results of panels, or those of a panel begin at its first sum and are followed by
    the sums over its columns; ``out`` is 0 where there are none.
    """
    size = w.itemsize
    end = panels[panels.shape[0] - 1]
    elements = end[6] + (end[1] - end[0]) * (end[4] - end[3])
    for p in range(panels.shape[0]):
        if panels[p, 6] * threads // elements != thread:
            continue
        top, t, left = panels[p, 0], panels[p, 2], panels[p, 3]
        height, width = panels[p, 1] - top, panels[p, 4] - left
        start, rows, columns, place = tensors[t, 0], tensors[t, 1], tensors[t, 2], tensors[t, 3] + 1
        here = (start + top * columns + left) * size
        along = factors[place + rows + left : place + rows + left + width]
        column = view(scratch, width)  # begins with a cache line
        for i in range(width):
            column[i] = along[i]
        below = view(scratch + 8 * PANEL_COLUMNS, width)
        result = out + (p * out_step if out_step != 0 else panels[p, 5] * size)
        call_factored(
            rule, w.ctypes.data + here, g.ctypes.data + here, state + here, stride, u + t * u_step, width, height,
            columns * size, float(factors[place - 1]), factors.ctypes.data + (place + top) * size, column.ctypes.data,
            below.ctypes.data, result,
        )  # fmt: skip
        if out != 0 and out_step == 0:
            part = view(result + height * size, width)
            for i in range(width):
                part[i] = below[i]


def factor_update(scratch, thread, threads, sums, uniforms, tensors, panels, factors, largest):
    """Means over rows and columns, or the largest, from those of panels; in front, what rows are divided by."""
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
                at = panels[p, 5] + panels[p, 1] - panels[p, 0] + left
                part = sums[at : at + below.size]
                for i in range(below.size):
                    below[i] = merge(below[i], float(part[i]), largest)
            at = place + rows + k * PANEL_COLUMNS + left
            for i in range(below.size):
                factors[at + i] = below[i] if largest != 0 else factors[at + i] + below[i] / rows


def merge(a, b, largest):
    return max(a, b) if largest != 0 else a + b
