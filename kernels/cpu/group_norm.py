"""Group normalisation on the CPU: of each group of channels in each row; of one group, layer normalisation.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx`` and sums are overwritten; ``dx`` may be ``dy``. A group is read from
memory once and then again from the cache: for its mean, for the deviations from it, and for the result.
"""

from __future__ import annotations

import math

from ..native import view
from .norm import add_neighbours, of_columns
from .rowsums import projected_sums, shifted_sum, squared_sum


def group_norm_forward(scratch, x, gamma, beta, mean, rstd, y, epsilon):
    """``y = gamma (x - mean) rstd + beta`` with the mean and the biased variance of each group."""
    m, n = x.shape
    groups = mean.shape[1]
    size = n // groups
    number = x.dtype.type
    slope = gamma
    level = beta
    if n > gamma.size:
        slope = of_columns(gamma, view(scratch, n))
        level = of_columns(beta, view(scratch + 8 * n, n))
    for i in range(m):
        for g in range(groups):
            first = g * size
            line = x[i][first : first + size]
            out = y[i][first : first + size]
            scales = slope[first : first + size]
            shifts = level[first : first + size]
            here = (line.ctypes.data,)
            base = float(line[0])
            offset = shifted_sum(here, (line[0],), size)[0] / size
            upper = number(base + offset)
            # what the rounding leaves, which counts if deviations are small
            lower = number((base - float(upper)) + offset)
            scale = number(1.0 / math.sqrt(squared_sum(here, (upper, lower), size)[0] / size + epsilon))
            mean[i, g] = upper
            rstd[i, g] = scale
            for j in range(line.size):
                out[j] = ((line[j] - upper) - lower) * scale * scales[j] + shifts[j]


def group_norm_gradient(scratch, dy, x, gamma, mean, rstd, dx, dgamma, dbeta):
    """``dx = rstd (h - mean_j h - xhat mean_j(h xhat))`` with ``h = gamma dy``; sums of ``dy xhat`` and of ``dy``.

    The loop is there twice because the compiler must be told where ``dx`` is ``dy``: it takes one element at a time
    where the two could overlap in any other way, which is three times slower.
    """
    m, n = x.shape
    groups = mean.shape[1]
    size = n // groups
    number = x.dtype.type
    factors = gamma
    slopes = dgamma
    levels = dbeta
    if n > gamma.size:
        factors = of_columns(gamma, view(scratch, n))
        slopes = view(scratch + 8 * n, n)
        levels = view(scratch + 16 * n, n)
    slopes[:] = 0
    levels[:] = 0
    for i in range(m):
        for g in range(groups):
            first = g * size
            d = dy[i][first : first + size]
            line = x[i][first : first + size]
            out = dx[i][first : first + size]
            factor = factors[first : first + size]
            to_gamma = slopes[first : first + size]
            to_beta = levels[first : first + size]
            centre = mean[i, g]
            scale = rstd[i, g]
            sums = projected_sums((d.ctypes.data, factor.ctypes.data, line.ctypes.data), (centre,), size)
            level = number(sums[0] / size)
            slope = number(sums[1] / size * float(scale) * float(scale))
            if out.ctypes.data == d.ctypes.data:
                for j in range(line.size):
                    deviation = line[j] - centre
                    to_beta[j] += out[j]
                    to_gamma[j] += out[j] * (deviation * scale)
                    out[j] = scale * ((out[j] * factor[j] - level) - deviation * slope)
            else:
                for j in range(line.size):
                    deviation = line[j] - centre
                    to_beta[j] += d[j]
                    to_gamma[j] += d[j] * (deviation * scale)
                    out[j] = scale * ((d[j] * factor[j] - level) - deviation * slope)
    if n > gamma.size:
        add_neighbours(slopes, dgamma)
        add_neighbours(levels, dbeta)
