"""Batch normalisation on the CPU.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx`` and sums are overwritten, the running statistics updated.
Statistics are taken over slabs of rows, shifted by about their mean, and the slabs are merged in order in
float64 (Chan, Golub & LeVeque 1983): sums over a whole batch of 8192 rows would lose two digits in float32.
"""

from __future__ import annotations

import math

from ..native import view, view_double
from .dense import sum_chunks
from .steps import chunk_rows
from .stream import LARGE, stream, streamed

_SLAB = 64


def batch_norm_moments(scratch, x, shift, offset, squares):
    """Of each column of a chunk: ``shift + offset`` is its mean, ``squares`` its sum of squared deviations."""
    m, n = x.shape
    sums = view(scratch, n)
    spread = view(scratch + n * x.itemsize, n)
    base = view(scratch + 2 * n * x.itemsize, n)
    number = x.dtype.type
    for first in range(0, m, _SLAB):
        count = min(_SLAB, m - first)
        slab = x[first : first + count]
        _average_of_first(slab, base)
        _shifted_sums(slab, base, sums, spread)
        weight = count / (first + count)
        cross = first * count / (first + count)
        inverse = 1.0 / count
        if first == 0:
            for j in range(n):
                s = float(sums[j])
                shift[j] = base[j]
                offset[j] = number(s * inverse)
                squares[j] = number(float(spread[j]) - s * s * inverse)
        else:
            for j in range(n):
                s = float(sums[j])
                delta = float(base[j] - shift[j]) + s * inverse - float(offset[j])
                offset[j] += number(delta * weight)
                squares[j] += number(float(spread[j]) - s * s * inverse + delta * delta * cross)


def _average_of_first(x, base):
    """A value near the mean of each column: that of up to four rows, whose rounding does not matter."""
    count = min(4, x.shape[0])
    share = x.dtype.type(1.0 / count)
    base[:] = 0
    for i in range(count):
        row = x[i]
        for j in range(row.size):
            base[j] += share * row[j]


def _shifted_sums(x, shift, sums, spread):
    """Sums of ``x - shift`` and of its square; four rows at a time, so that the sums are seldom loaded and stored."""
    m, n = x.shape
    sums[:] = 0
    spread[:] = 0
    i = 0
    while i + 4 <= m:
        x0 = x[i]
        x1 = x[i + 1]
        x2 = x[i + 2]
        x3 = x[i + 3]
        for j in range(n):
            d0 = x0[j] - shift[j]
            d1 = x1[j] - shift[j]
            d2 = x2[j] - shift[j]
            d3 = x3[j] - shift[j]
            sums[j] += (d0 + d1) + (d2 + d3)
            spread[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        i += 4
    while i < m:
        row = x[i]
        for j in range(n):
            d = row[j] - shift[j]
            sums[j] += d
            spread[j] += d * d
        i += 1


def batch_norm_apply(
    scratch,
    thread,
    rows,
    x,
    gamma,
    beta,
    running_mean,
    running_var,
    shifts,
    offsets,
    squares,
    mean,
    rstd,
    y,
    momentum,
    epsilon,
):
    """``y = gamma (x - mean) rstd + beta``; the running statistics move by ``1 - momentum`` towards the batch's.

    The batch is normalised with the biased variance; the running variance takes the unbiased one. Every thread
    merges the moments of all chunks for itself, which is cheaper than to meet once more.
    """
    m, n = x.shape
    number = x.dtype.type
    total = view_double(scratch, n)
    spread = view_double(scratch + 8 * n, n)
    scale = view(scratch + 16 * n, n)
    base = view_double(scratch + 24 * n, n)
    _merge(shifts, offsets, squares, rows, base, total, spread)
    keep = number(momentum)
    move = number(1.0 - momentum)
    unbiased = 1.0 / max(rows - 1, 1)
    if thread == 0:
        for j in range(n):
            running_mean[j] = keep * running_mean[j] + move * number(total[j])
            running_var[j] = keep * running_var[j] + move * number(spread[j] * unbiased)
    share = 1.0 / rows
    for j in range(n):
        mean[j] = number(total[j])
        rstd[j] = number(1.0 / math.sqrt(spread[j] * share + epsilon))
        scale[j] = gamma[j] * rstd[j]
    large = rows * n * x.itemsize > LARGE
    line = view(scratch + 32 * n, n)
    last = (m - 1) // _SLAB
    for back in range(last + 1):  # from the last rows, which are still in the cache, to the first
        first = (last - back) * _SLAB
        for i in range(first, min(m, first + _SLAB)):
            row = x[i]
            out = line if large else y[i]
            for j in range(n):
                out[j] = (row[j] - mean[j]) * scale[j] + beta[j]
            if large:
                stream(line, y[i])
    if large:
        streamed()


def _merge(shifts, offsets, squares, rows, base, total, spread):
    """Mean and sum of squared deviations of all rows, from those of the chunks, all of ``size`` rows but the last.

    Until the end, means are taken relative to that of the first chunk, the ``base``: what is lost in the rounding of
    a mean that is large beside the deviation would be missing in the variance.
    """
    chunks, n = shifts.shape
    size = chunk_rows(rows)
    for j in range(n):
        spread[j] = squares[0, j]
        base[j] = float(shifts[0, j]) + float(offsets[0, j])
        total[j] = float(shifts[0, j]) - base[j] + float(offsets[0, j])  # what the rounding of the base left over
    for c in range(1, chunks):
        before = c * size
        count = min(size, rows - before)
        weight = count / (before + count)
        cross = before * count / (before + count)
        shift = shifts[c]
        offset = offsets[c]
        square = squares[c]
        for j in range(n):
            delta = float(shift[j]) - base[j] + float(offset[j]) - total[j]
            total[j] += delta * weight
            spread[j] += float(square[j]) + delta * delta * cross
    for j in range(n):
        total[j] += base[j]


def batch_norm_inference(scratch, x, gamma, beta, running_mean, running_var, y, epsilon):
    """``y = gamma (x - running_mean) / sqrt(running_var + epsilon) + beta``, folded into one scale a column."""
    m, n = x.shape
    scale = view(scratch, n)
    for j in range(n):
        scale[j] = x.dtype.type(float(gamma[j]) / math.sqrt(float(running_var[j]) + epsilon))
    for i in range(m):
        row = x[i]
        out = y[i]
        for j in range(n):
            out[j] = (row[j] - running_mean[j]) * scale[j] + beta[j]


def batch_norm_sums(dy, x, mean, rstd, dgamma, dbeta):
    """``dbeta = sum dy``, ``dgamma = sum dy xhat`` over a chunk of rows."""
    m, n = x.shape
    dbeta[:] = 0
    dgamma[:] = 0
    i = 0
    while i + 4 <= m:
        x0 = x[i]
        x1 = x[i + 1]
        x2 = x[i + 2]
        x3 = x[i + 3]
        d0 = dy[i]
        d1 = dy[i + 1]
        d2 = dy[i + 2]
        d3 = dy[i + 3]
        for j in range(n):
            dbeta[j] += (d0[j] + d1[j]) + (d2[j] + d3[j])
            upper = d0[j] * (x0[j] - mean[j]) + d1[j] * (x1[j] - mean[j])
            dgamma[j] += upper + (d2[j] * (x2[j] - mean[j]) + d3[j] * (x3[j] - mean[j]))
        i += 4
    while i < m:
        row = x[i]
        d = dy[i]
        for j in range(n):
            dbeta[j] += d[j]
            dgamma[j] += d[j] * (row[j] - mean[j])
        i += 1
    for j in range(n):
        dgamma[j] *= rstd[j]


def batch_norm_gradient(scratch, rows, dy, x, gamma, mean, rstd, dgamma, dbeta, dx):
    """``dx = gamma rstd (dy - dbeta/m - xhat dgamma/m)``, with ``dgamma`` and ``dbeta`` summed over the chunks."""
    m, n = x.shape
    scale = view(scratch, n)
    slope = view(scratch + n * x.itemsize, n)
    level = view(scratch + 2 * n * x.itemsize, n)
    sum_chunks(dgamma, slope)
    sum_chunks(dbeta, level)
    share = x.dtype.type(1.0 / rows)
    for j in range(n):
        scale[j] = gamma[j] * rstd[j]
        slope[j] *= scale[j] * rstd[j] * share
        level[j] *= scale[j] * share
    in_place = dy.ctypes.data == dx.ctypes.data
    large = rows * n * x.itemsize > LARGE and not in_place
    line = view(scratch + 24 * n, n)
    last = (m - 1) // _SLAB
    for back in range(last + 1):  # as in batch_norm_apply
        first = (last - back) * _SLAB
        for i in range(first, min(m, first + _SLAB)):
            row = x[i]
            out = line if large else dx[i]
            if in_place:  # twice, or the compiler takes one element at a time: the two might overlap in any way
                for j in range(n):
                    out[j] = (out[j] * scale[j] - level[j]) - (row[j] - mean[j]) * slope[j]
            else:
                d = dy[i]
                for j in range(n):
                    out[j] = (d[j] * scale[j] - level[j]) - (row[j] - mean[j]) * slope[j]
                if large:
                    stream(line, dx[i])
    if large:
        streamed()
