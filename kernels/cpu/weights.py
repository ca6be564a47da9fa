"""Penalties on weights and constraints of weights on the CPU.

Memory contract: ``w`` is read by the penalties, and updated in place by the constraints; ``dw`` and ``value`` are
updated in place. Sums are kept in float64, over blocks of rows of a fixed number, or over whole columns: they do not
depend on the number of threads.
"""

from __future__ import annotations

import math


def penalty_sums(thread, threads, w, sums, l1, l2):
    """``sums[b] = sum(l1 |w| + l2 w^2)`` over block ``b`` of the rows."""
    count = sums.size
    for b in range(count * thread // threads, count * (thread + 1) // threads):
        s = 0.0
        for i in range(w.shape[0] * b // count, w.shape[0] * (b + 1) // count):
            for j in range(w.shape[1]):
                v = float(w[i, j])
                s += l1 * abs(v) + l2 * v * v
        sums[b] = s


def penalty_add(sums, value):
    """``value += the sum of the blocks``, in each row."""
    s = 0.0
    for b in range(sums.size):
        s += sums[b]
    for i in range(value.size):
        value[i] += s


def weight_penalty_gradient(thread, threads, w, dw, l1, l2):
    """``dw += l1 sign(w) + 2 l2 w``, for the thread's part of the rows; the sign of 0 is 0."""
    k = w.shape[0]
    for i in range(k * thread // threads, k * (thread + 1) // threads):
        for j in range(w.shape[1]):
            v = float(w[i, j])
            sign = (1.0 if v > 0.0 else 0.0) - (1.0 if v < 0.0 else 0.0)
            dw[i, j] += l1 * sign + 2.0 * l2 * v


def constrain_norm(thread, threads, w, minimum, maximum):
    """Each column scaled to a norm within ``[minimum, maximum]``, for the thread's part of the columns."""
    n = w.shape[1]
    for j in range(n * thread // threads, n * (thread + 1) // threads):
        s = 0.0
        for i in range(w.shape[0]):
            s += float(w[i, j]) * float(w[i, j])
        norm = math.sqrt(s)
        scale = 1.0
        if norm > maximum:
            scale = maximum / norm
        elif 0.0 < norm < minimum:
            scale = minimum / norm
        if scale != 1.0:
            for i in range(w.shape[0]):
                w[i, j] *= scale


def constrain_non_negative(thread, threads, w):
    """``w = max(w, 0)``, for the thread's part of the rows; NaN stays NaN."""
    k = w.shape[0]
    for i in range(k * thread // threads, k * (thread + 1) // threads):
        for j in range(w.shape[1]):
            if w[i, j] < 0:
                w[i, j] = 0
