"""Batch normalisation on the CPU.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx``, ``dgamma``, ``dbeta`` are overwritten, the running statistics
updated. Statistics are taken over slabs of rows, in two passes, and the slabs are merged (Chan, Golub & LeVeque
1983): sums over a whole batch of 8192 rows would lose two digits in float32.
"""

from __future__ import annotations

import math

import numpy as np

_SLAB = 128


def batch_norm_forward(x, gamma, beta, running_mean, running_var, mean, rstd, y, momentum, epsilon):
    """``y = gamma (x - mean) rstd + beta``; the running statistics move by ``1 - momentum`` towards the batch's.

    The batch is normalised with the biased variance; the running variance takes the unbiased one.
    """
    m, n = x.shape
    number = x.dtype.type
    _moments(x, mean, rstd)  # rstd holds the sum of squared deviations for now
    keep = number(momentum)
    move = number(1.0 - momentum)
    unbiased = number(1.0 / max(m - 1, 1))
    for j in range(n):
        running_mean[j] = keep * running_mean[j] + move * mean[j]
        running_var[j] = keep * running_var[j] + move * (rstd[j] * unbiased)
        rstd[j] = number(1.0 / math.sqrt(float(rstd[j]) / m + epsilon))
    for i in range(m):
        row = x[i]
        out = y[i]
        for j in range(n):
            out[j] = gamma[j] * ((row[j] - mean[j]) * rstd[j]) + beta[j]


def batch_norm_inference(x, gamma, beta, running_mean, running_var, y, epsilon):
    """``y = gamma (x - running_mean) / sqrt(running_var + epsilon) + beta``, folded into one scale a column."""
    m, n = x.shape
    scale = np.empty(n, x.dtype)
    for j in range(n):
        scale[j] = x.dtype.type(float(gamma[j]) / math.sqrt(float(running_var[j]) + epsilon))
    for i in range(m):
        row = x[i]
        out = y[i]
        for j in range(n):
            out[j] = (row[j] - running_mean[j]) * scale[j] + beta[j]


def batch_norm_backward(dy, x, gamma, mean, rstd, dx, dgamma, dbeta):
    """``dbeta = sum dy``, ``dgamma = sum dy xhat``, ``dx = gamma rstd (dy - dbeta/m - xhat dgamma/m)``."""
    m, n = x.shape
    number = x.dtype.type
    dbeta[:] = 0
    dgamma[:] = 0
    for i in range(m):
        row = x[i]
        d = dy[i]
        for j in range(n):
            dbeta[j] += d[j]
            dgamma[j] += d[j] * ((row[j] - mean[j]) * rstd[j])
    share = number(1.0 / m)
    for i in range(m):
        row = x[i]
        d = dy[i]
        out = dx[i]
        for j in range(n):
            xhat = (row[j] - mean[j]) * rstd[j]
            out[j] = gamma[j] * rstd[j] * (d[j] - dbeta[j] * share - xhat * (dgamma[j] * share))


def _moments(x, mean, deviation):
    """Column means and sums of squared deviations: two passes over each slab, slabs merged in order in float64.

    Means are kept as offsets from the first row of the batch, which are small where the data lies far from 0.
    """
    m, n = x.shape
    shift = x[0]
    total = np.zeros(n)
    squares = np.zeros(n)
    offset = np.empty(n)
    spread = np.empty(n, x.dtype)
    for start in range(0, m, _SLAB):
        count = min(_SLAB, m - start)
        _slab(x[start : start + count], shift, offset, spread)
        weight = count / (start + count)
        cross = start * count / (start + count)
        for j in range(n):
            delta = offset[j] - total[j]
            total[j] += delta * weight
            squares[j] += float(spread[j]) + delta * delta * cross
    for j in range(n):
        mean[j] = x.dtype.type(float(shift[j]) + total[j])
        deviation[j] = x.dtype.type(squares[j])


def _slab(x, shift, offset, spread):
    """Offset of the mean from ``shift``, and the sum of squares around the mean, of rows that stay in the cache."""
    m, n = x.shape
    mean = np.empty(n, x.dtype)
    offset[:] = 0
    spread[:] = 0
    for i in range(m):
        row = x[i]
        for j in range(n):
            offset[j] += float(row[j] - shift[j])
    for j in range(n):
        offset[j] /= m
        mean[j] = x.dtype.type(float(shift[j]) + offset[j])
    for i in range(m):
        row = x[i]
        for j in range(n):
            d = row[j] - mean[j]
            spread[j] += d * d
