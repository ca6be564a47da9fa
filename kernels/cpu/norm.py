"""Batch normalisation on the CPU.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx`` and sums are overwritten, the running statistics updated. Where a
channel has several columns, its figures are repeated for each, and sums of columns added: the loops run over columns.
Statistics are taken over slabs of rows, shifted by about their mean, and the slabs are merged in order in
float64 (Chan, Golub & LeVeque 1983): sums over a whole batch of 8192 rows would lose two digits in float32.
"""

from __future__ import annotations

import math

from ..native import view, view_double
from ..program import PAGE
from .dense import sum_chunks
from .steps import chunk_rows
from .stream import AHEAD, LARGE, fetch, stream, streamed

_SLAB = 64
_TILE = 128  # columns that are worked at while as many are fetched
_APART = 256  # bytes; what begins as far apart is not mistaken


def beside(scratch, first, second, row):
    """``scratch``, moved on by less than a page, away from where rows of ``row`` bytes at two addresses begin.

    Where all rows begin alike in their pages, as those of 1024 float32 do, and sums a little before them there, loads
    of the rows are taken for those of sums just stored (see PAGE) at every element; it takes up to twice as long.
    """
    step = min(row & -row, PAGE)  # the places in a page at which rows begin repeat with it
    best = 0
    farthest = -1
    for offset in range(0, step, _APART):
        before = (first - scratch - offset) & (step - 1)
        other = (second - scratch - offset) & (step - 1)
        distance = min(min(before, step - before), min(other, step - other))
        if distance > farthest:
            best = offset
            farthest = distance
    return scratch + best


def repeat(values, count):
    """Each of the first ``count`` values as often in a row as they fit into ``values``, in place."""
    times = values.size // count
    if times == 1:
        return
    for back in range(count):
        c = count - 1 - back  # from the last, or one would be overwritten before it is read
        v = values[c]
        part = values[c * times : (c + 1) * times]
        for j in range(part.size):
            part[j] = v


def add_neighbours(values, totals):
    """``totals``, which may begin where ``values`` does: sums over as many neighbours as come to each, in float64."""
    times = values.size // totals.size
    for c in range(totals.size):
        part = values[c * times : (c + 1) * times]
        t0 = 0.0
        t1 = 0.0
        t2 = 0.0
        t3 = 0.0
        j = 0
        while j + 4 <= part.size:
            t0 += float(part[j])
            t1 += float(part[j + 1])
            t2 += float(part[j + 2])
            t3 += float(part[j + 3])
            j += 4
        while j < part.size:
            t0 += float(part[j])
            j += 1
        totals[c] = totals.dtype.type((t0 + t1) + (t2 + t3))


def batch_norm_moments(scratch, rows, x, shift, offset, squares):
    """Of each channel in a chunk: ``shift + offset`` is its mean, ``squares`` its sum of squared deviations."""
    m, n = x.shape
    channels = shift.size
    spatial = n // channels
    scratch = beside(scratch, x.ctypes.data, x.ctypes.data, n * x.itemsize)
    sums = view(scratch, n)
    spread = view(scratch + n * x.itemsize, n)
    base = view(scratch + 2 * n * x.itemsize, n)
    number = x.dtype.type
    far = rows * n * x.itemsize > LARGE
    for first in range(0, m, _SLAB):
        count = min(_SLAB, m - first)
        slab = x[first : first + count]
        _average_of_first(slab, base)
        if spatial > 1:
            share = number(1.0 / spatial)
            add_neighbours(base, base[:channels])
            for c in range(channels):
                base[c] *= share
            repeat(base, channels)
        _shifted_sums(slab, base, sums, spread, far)
        if spatial > 1:
            add_neighbours(sums, sums[:channels])
            add_neighbours(spread, spread[:channels])
            for c in range(channels):
                base[c] = base[c * spatial]
        weight = count / (first + count)
        cross = first * count / (first + count) * spatial
        inverse = 1.0 / (count * spatial)
        if first == 0:
            for j in range(channels):
                s = float(sums[j])
                shift[j] = base[j]
                offset[j] = number(s * inverse)
                squares[j] = number(float(spread[j]) - s * s * inverse)
        else:
            for j in range(channels):
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


def _shifted_sums(x, shift, sums, spread, far):
    """Sums of ``x - shift`` and of its square; four rows at a time, so that the sums are seldom loaded and stored."""
    m, n = x.shape
    sums[:] = 0
    spread[:] = 0
    tile = _TILE if far else n
    i = 0
    while i + 4 <= m:
        for left in range(0, n, tile):
            right = min(n, left + tile)
            if far:
                fetch(x, i + AHEAD, 4, left, right)
            x0 = x[i, left:right]
            x1 = x[i + 1, left:right]
            x2 = x[i + 2, left:right]
            x3 = x[i + 3, left:right]
            base = shift[left:right]
            total = sums[left:right]
            squares = spread[left:right]
            for j in range(total.size):
                d0 = x0[j] - base[j]
                d1 = x1[j] - base[j]
                d2 = x2[j] - base[j]
                d3 = x3[j] - base[j]
                total[j] += (d0 + d1) + (d2 + d3)
                squares[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
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
    channels = mean.size
    spatial = n // channels
    number = x.dtype.type
    scratch = beside(scratch, y.ctypes.data, y.ctypes.data, n * x.itemsize)
    total = view_double(scratch, channels)
    spread = view_double(scratch + 8 * n, channels)
    scale = view(scratch + 16 * n, channels)
    base = view_double(scratch + 24 * n, channels)
    _merge(shifts, offsets, squares, rows, spatial, base, total, spread)
    keep = number(momentum)
    move = number(1.0 - momentum)
    unbiased = 1.0 / max(rows * spatial - 1, 1)
    if thread == 0:
        for j in range(channels):
            running_mean[j] = keep * running_mean[j] + move * number(total[j])
            running_var[j] = keep * running_var[j] + move * number(spread[j] * unbiased)
    share = 1.0 / (rows * spatial)
    for j in range(channels):
        mean[j] = number(total[j])
        rstd[j] = number(1.0 / math.sqrt(spread[j] * share + epsilon))
        scale[j] = gamma[j] * rstd[j]
    centre = of_columns(mean, view(scratch, n))  # the sums are done with
    level = of_columns(beta, view(scratch + 8 * n, n))
    if spatial > 1:
        scale = of_columns(scale, view(scratch + 24 * n, n))
    large = rows * n * x.itemsize > LARGE
    line = view(scratch + 32 * n, n)
    last = (m - 1) // _SLAB
    for back in range(last + 1):  # from the last rows, which are still in the cache, to the first
        first = (last - back) * _SLAB
        for i in range(first, min(m, first + _SLAB)):
            if large:
                fetch(x, row_on(i, first), 1, 0, n)
            row = x[i]
            out = line if large else y[i]
            for j in range(n):
                out[j] = (row[j] - centre[j]) * scale[j] + level[j]
            if large:
                stream(line, y[i])
    if large:
        streamed()


def row_on(i, first):
    """The row AHEAD of row ``i`` in the slab that begins at ``first``, on the way from slab to the slab before it."""
    row = i + AHEAD
    return row if row < first + _SLAB else row - 2 * _SLAB


def of_columns(values, out):
    """``out``, with each value for every column of its channel."""
    for c in range(values.size):
        out[c] = values[c]
    repeat(out, values.size)
    return out


def _merge(shifts, offsets, squares, rows, spatial, base, total, spread):
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
        cross = before * count / (before + count) * spatial
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
    """``y = gamma (x - running_mean) / sqrt(running_var + epsilon) + beta``, folded into one scale a channel."""
    m, n = x.shape
    scale = view(scratch, gamma.size)
    for j in range(gamma.size):
        scale[j] = x.dtype.type(float(gamma[j]) / math.sqrt(float(running_var[j]) + epsilon))
    centre = running_mean
    level = beta
    if n > gamma.size:
        centre = of_columns(running_mean, view(scratch + 8 * n, n))
        level = of_columns(beta, view(scratch + 16 * n, n))
        scale = of_columns(scale, view(scratch + 24 * n, n))
    for i in range(m):
        row = x[i]
        out = y[i]
        for j in range(n):
            out[j] = (row[j] - centre[j]) * scale[j] + level[j]


def batch_norm_sums(scratch, rows, dy, x, mean, rstd, dgamma, dbeta):
    """``dbeta = sum dy``, ``dgamma = sum dy xhat`` over a chunk of rows."""
    m, n = x.shape
    channels = mean.size
    scratch = beside(scratch, x.ctypes.data, dy.ctypes.data, n * x.itemsize)
    centre = of_columns(mean, view(scratch, n))
    slope = view(scratch + 8 * n, n)
    level = view(scratch + 16 * n, n)
    level[:] = 0
    slope[:] = 0
    far = rows * n * x.itemsize > LARGE
    tile = _TILE if far else n
    i = 0
    while i + 4 <= m:
        for left in range(0, n, tile):
            right = min(n, left + tile)
            if far:
                fetch(x, i + AHEAD, 4, left, right)
                fetch(dy, i + AHEAD, 4, left, right)
            x0 = x[i, left:right]
            x1 = x[i + 1, left:right]
            x2 = x[i + 2, left:right]
            x3 = x[i + 3, left:right]
            d0 = dy[i, left:right]
            d1 = dy[i + 1, left:right]
            d2 = dy[i + 2, left:right]
            d3 = dy[i + 3, left:right]
            average = centre[left:right]
            first = level[left:right]
            second = slope[left:right]
            for j in range(first.size):
                first[j] += (d0[j] + d1[j]) + (d2[j] + d3[j])
                upper = d0[j] * (x0[j] - average[j]) + d1[j] * (x1[j] - average[j])
                second[j] += upper + (d2[j] * (x2[j] - average[j]) + d3[j] * (x3[j] - average[j]))
        i += 4
    while i < m:
        row = x[i]
        d = dy[i]
        for j in range(n):
            level[j] += d[j]
            slope[j] += d[j] * (row[j] - centre[j])
        i += 1
    if n > channels:
        add_neighbours(slope, slope[:channels])
        add_neighbours(level, level[:channels])
    for j in range(channels):
        dgamma[j] = slope[j] * rstd[j]
        dbeta[j] = level[j]


def batch_norm_gradient(scratch, rows, dy, x, gamma, mean, rstd, dgamma, dbeta, dx):
    """``dx = gamma rstd (dy - mean dy - xhat mean(dy xhat))``, with ``dgamma`` and ``dbeta`` summed over the chunks."""
    m, n = x.shape
    channels = mean.size
    scratch = beside(scratch, dx.ctypes.data, dx.ctypes.data, n * x.itemsize)
    scale = view(scratch, channels)
    slope = view(scratch + n * x.itemsize, channels)
    level = view(scratch + 2 * n * x.itemsize, channels)
    sum_chunks(dgamma, slope)
    sum_chunks(dbeta, level)
    share = x.dtype.type(1.0 / (rows * (n // channels)))
    for j in range(channels):
        scale[j] = gamma[j] * rstd[j]
        slope[j] *= scale[j] * rstd[j] * share
        level[j] *= scale[j] * share
    centre = mean
    if n > channels:
        centre = of_columns(mean, view(scratch + 32 * n, n))
        scale = of_columns(scale, view(scratch, n))
        slope = of_columns(slope, view(scratch + n * x.itemsize, n))
        level = of_columns(level, view(scratch + 2 * n * x.itemsize, n))
    in_place = dy.ctypes.data == dx.ctypes.data
    large = rows * n * x.itemsize > LARGE and not in_place
    line = view(scratch + 24 * n, n)
    last = (m - 1) // _SLAB
    for back in range(last + 1):  # as in batch_norm_apply
        first = (last - back) * _SLAB
        for i in range(first, min(m, first + _SLAB)):
            if large:
                fetch(x, row_on(i, first), 1, 0, n)
                fetch(dy, row_on(i, first), 1, 0, n)
            row = x[i]
            out = line if large else dx[i]
            if in_place:  # twice, or the compiler takes one element at a time: the two might overlap in any way
                for j in range(n):
                    out[j] = (out[j] * scale[j] - level[j]) - (row[j] - centre[j]) * slope[j]
            else:
                d = dy[i]
                for j in range(n):
                    out[j] = (d[j] * scale[j] - level[j]) - (row[j] - centre[j]) * slope[j]
                if large:
                    stream(line, dx[i])
    if large:
        streamed()
