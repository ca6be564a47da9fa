"""Layer normalisation on the CPU.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx`` and sums are overwritten; ``dx`` may be ``dy``. A row is read from
memory once and then again from the cache: for its mean, for the deviations from it, and for the result.
"""

from __future__ import annotations

import math

from .rowsums import projected_sums, shifted_sum, squared_sum


def layer_norm_forward(x, gamma, beta, mean, rstd, y, epsilon):
    """``y = gamma (x - mean) rstd + beta`` with the mean and the biased variance of each row."""
    m, n = x.shape
    number = x.dtype.type
    for i in range(m):
        row = x[i]
        out = y[i]
        here = (row.ctypes.data,)
        base = float(row[0])
        offset = shifted_sum(here, (row[0],), n)[0] / n
        upper = number(base + offset)
        lower = number((base - float(upper)) + offset)  # what the rounding leaves, which counts if deviations are small
        scale = number(1.0 / math.sqrt(squared_sum(here, (upper, lower), n)[0] / n + epsilon))
        mean[i] = upper
        rstd[i] = scale
        for j in range(n):
            out[j] = ((row[j] - upper) - lower) * scale * gamma[j] + beta[j]


def layer_norm_gradient(dy, x, gamma, mean, rstd, dx, dgamma, dbeta):
    """``dx = rstd (g - mean_j g - xhat mean_j(g xhat))`` with ``g = gamma dy``; sums of ``dy xhat`` and of ``dy``.

    The loop is there twice because the compiler must be told where ``dx`` is ``dy``: it takes one element at a time
    where the two could overlap in any other way, which is three times slower.
    """
    m, n = x.shape
    number = x.dtype.type
    dgamma[:] = 0
    dbeta[:] = 0
    for i in range(m):
        d = dy[i]
        row = x[i]
        out = dx[i]
        centre = mean[i]
        scale = rstd[i]
        sums = projected_sums((d.ctypes.data, gamma.ctypes.data, row.ctypes.data), (centre,), n)
        level = number(sums[0] / n)
        slope = number(sums[1] / n * float(scale) * float(scale))
        if out.ctypes.data == d.ctypes.data:
            for j in range(n):
                deviation = row[j] - centre
                dbeta[j] += out[j]
                dgamma[j] += out[j] * (deviation * scale)
                out[j] = scale * ((out[j] * gamma[j] - level) - deviation * slope)
        else:
            for j in range(n):
                deviation = row[j] - centre
                dbeta[j] += d[j]
                dgamma[j] += d[j] * (deviation * scale)
                out[j] = scale * ((d[j] * gamma[j] - level) - deviation * slope)
