"""Layer normalisation on CUDA.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx``, ``dgamma``, ``dbeta`` are overwritten; ``dx`` may be ``dy``. A warp
takes a row, as in rowwise.py. The sums over rows are taken as in norm.py, with a warp along 32 columns and 256 rows a
block, and before ``dx`` overwrites ``dy``. The order is fixed: no atomics, and a result repeats bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .dense import partials_of, sum_partials
from .launch import CHUNK, CUDA, DEPTH, WIDTH, Launch, ceil_div, element, kernel, tiled
from .rowwise import ALL, WARPS


def _rows(rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (ceil_div(rows, WARPS),), (WIDTH, WARPS)


def _warp_sum(v):  # type: ignore[no-untyped-def]
    """That of rowwise.py; here again because the simulator gives shuffles only to the module of the kernel."""
    for offset in (16, 8, 4, 2, 1):
        v += cuda.shfl_xor_sync(ALL, v, offset)
    return v


@kernel
def _forward(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    sqrt = CUDA.math("sqrt", dtype)
    warp_sum = CUDA.inline(_warp_sum)

    def layer_norm_forward(x, gamma, beta, mean, rstd, y, share, epsilon):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= x.shape[0]:
            return
        base = x[row, 0]  # relative to it, a mean that is large beside the deviation loses nothing
        total = zero
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            total += x[row, j] - base
        offset = warp_sum(total) * share
        square = zero
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            d = (x[row, j] - base) - offset
            square += d * d
        scale = one / sqrt(warp_sum(square) * share + epsilon)
        if cuda.threadIdx.x == 0:
            mean[row] = base + offset
            rstd[row] = scale
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            y[row, j] = gamma[j] * (((x[row, j] - base) - offset) * scale) + beta[j]

    return layer_norm_forward


def layer_norm_forward(x: Any, gamma: Any, beta: Any, mean: Any, rstd: Any, y: Any, epsilon: float) -> list[Launch]:
    """``y = gamma (x - mean) rstd + beta`` with the mean and the biased variance of each row."""
    number = x.dtype.type
    factors = number(1.0 / x.shape[1]), number(epsilon)
    return [Launch(_forward(x.dtype), *_rows(x.shape[0]), (x, gamma, beta, mean, rstd, y, *factors))]


@kernel
def _sums(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def layer_norm_sums(dy, x, mean, rstd, dgammas, dbetas):  # type: ignore[no-untyped-def]
        shared_gamma = cuda.shared.array((DEPTH, WIDTH), kind)
        shared_beta = cuda.shared.array((DEPTH, WIDTH), kind)
        rows, columns = x.shape
        lane = cuda.threadIdx.x
        depth = cuda.threadIdx.y
        column = cuda.blockIdx.y * WIDTH + lane
        dgamma = zero
        dbeta = zero
        if column < columns:
            last = min(rows, (cuda.blockIdx.x + 1) * CHUNK)
            for row in range(cuda.blockIdx.x * CHUNK + depth, last, DEPTH):
                d = dy[row, column]
                dbeta += d
                dgamma += d * ((x[row, column] - mean[row]) * rstd[row])
        shared_gamma[depth, lane] = dgamma
        shared_beta[depth, lane] = dbeta
        cuda.syncthreads()
        if depth == 0 and column < columns:
            for k in range(1, DEPTH):
                dgamma += shared_gamma[k, lane]
                dbeta += shared_beta[k, lane]
            dgammas[cuda.blockIdx.x, column] = dgamma
            dbetas[cuda.blockIdx.x, column] = dbeta

    return layer_norm_sums


@kernel
def _gradient(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    warp_sum = CUDA.inline(_warp_sum)

    def layer_norm_gradient(dy, x, gamma, mean, rstd, dx, share):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= x.shape[0]:
            return
        centre = mean[row]
        scale = rstd[row]
        level = zero
        slope = zero
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            g = dy[row, j] * gamma[j]
            level += g
            slope += g * ((x[row, j] - centre) * scale)
        level = warp_sum(level) * share
        slope = warp_sum(slope) * share
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            xhat = (x[row, j] - centre) * scale
            dx[row, j] = scale * (dy[row, j] * gamma[j] - level - xhat * slope)

    return layer_norm_gradient


def layer_norm_backward(
    dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any
) -> list[Launch]:
    """``dx = rstd (g - mean_j g - xhat mean_j(g xhat))``, ``g = gamma dy``; ``dgamma, dbeta`` = sums over rows."""
    m, n = x.shape
    dgammas, dbetas = partials_of(dgamma, m), partials_of(dbeta, m)
    share = x.dtype.type(1.0 / n)
    return [
        Launch(_sums(x.dtype), *tiled(m, n, depth=CHUNK), (dy, x, mean, rstd, dgammas, dbetas)),
        *sum_partials(dgammas, dgamma),
        *sum_partials(dbetas, dbeta),
        Launch(_gradient(x.dtype), *_rows(m), (dy, x, gamma, mean, rstd, dx, share)),
    ]
