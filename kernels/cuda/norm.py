"""Batch normalisation on CUDA.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx``, ``dgamma``, ``dbeta`` are overwritten, the running statistics
updated. A warp lies along 32 columns, so that every read is coalesced. A block takes 256 rows: each thread runs
Welford's recurrence over every 8th row, the eight are merged in shared memory, and the blocks by one thread a column
(Chan, Golub & LeVeque 1983). The order is fixed: no atomics, and a result repeats bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .dense import partials_of, sum_partials
from .launch import BLOCK, CHUNK, CUDA, DEPTH, WIDTH, Launch, ceil_div, element, kernel, scratch, tiled

SPAN = 32  # rows of a block of the last pass: a thread reads what belongs to its column once for four of them


@kernel
def _moments(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    kind = element(dtype)

    def moments(x, means, squares):  # type: ignore[no-untyped-def]
        shared_mean = cuda.shared.array((DEPTH, WIDTH), kind)
        shared_square = cuda.shared.array((DEPTH, WIDTH), kind)
        shared_count = cuda.shared.array((DEPTH, WIDTH), kind)
        rows, columns = x.shape
        lane = cuda.threadIdx.x
        depth = cuda.threadIdx.y
        column = cuda.blockIdx.y * WIDTH + lane
        mean = zero
        square = zero
        count = zero
        if column < columns:
            last = min(rows, (cuda.blockIdx.x + 1) * CHUNK)
            for row in range(cuda.blockIdx.x * CHUNK + depth, last, DEPTH):
                v = x[row, column]
                count += one
                d = v - mean
                mean += d / count
                square += d * (v - mean)
        shared_mean[depth, lane] = mean
        shared_square[depth, lane] = square
        shared_count[depth, lane] = count
        cuda.syncthreads()
        if depth == 0 and column < columns:
            for k in range(1, DEPTH):
                n = shared_count[k, lane]
                if n > zero:
                    total = count + n
                    d = shared_mean[k, lane] - mean
                    mean += d * (n / total)
                    square += shared_square[k, lane] + d * d * (count * n / total)
                    count = total
            means[cuda.blockIdx.x, column] = mean
            squares[cuda.blockIdx.x, column] = square

    return moments


@kernel
def _statistics(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    sqrt = CUDA.math("sqrt", dtype)

    def statistics(
        means, squares, running_mean, running_var, mean, rstd, full, rest, keep, move, unbiased, inverse, epsilon
    ):  # type: ignore[no-untyped-def]
        """Merge the blocks (``full`` rows each, the last one ``rest``) and move the running statistics."""
        column = cuda.grid(1)
        if column < mean.size:
            m = zero
            square = zero
            count = zero
            blocks = means.shape[0]
            for k in range(blocks):
                n = full if k + 1 < blocks else rest
                total = count + n
                d = means[k, column] - m
                m += d * (n / total)
                square += squares[k, column] + d * d * (count * n / total)
                count = total
            mean[column] = m
            rstd[column] = one / sqrt(square * inverse + epsilon)
            running_mean[column] = keep * running_mean[column] + move * m
            running_var[column] = keep * running_var[column] + move * (square * unbiased)

    return statistics


@kernel
def _normalise() -> Any:
    def normalise(x, gamma, beta, mean, rstd, y):  # type: ignore[no-untyped-def]
        j = cuda.blockIdx.y * WIDTH + cuda.threadIdx.x
        if j < y.shape[1]:
            centre = mean[j]
            scale = rstd[j]
            slope = gamma[j]
            shift = beta[j]
            last = min(y.shape[0], (cuda.blockIdx.x + 1) * SPAN)
            for row in range(cuda.blockIdx.x * SPAN + cuda.threadIdx.y, last, DEPTH):
                y[row, j] = slope * ((x[row, j] - centre) * scale) + shift

    return normalise


def batch_norm_forward(
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Any,
    running_var: Any,
    mean: Any,
    rstd: Any,
    y: Any,
    momentum: float,
    epsilon: float,
) -> list[Launch]:
    """``y = gamma (x - mean) rstd + beta``; the running statistics move by ``1 - momentum`` towards the batch's.

    The batch is normalised with the biased variance; the running variance takes the unbiased one.
    """
    m, n = x.shape
    number = x.dtype.type
    chunks = ceil_div(m, CHUNK)
    means, squares = scratch(x, (chunks, n)), scratch(x, (chunks, n))
    counts = CHUNK, m - (chunks - 1) * CHUNK
    factors = [number(v) for v in (*counts, momentum, 1 - momentum, 1 / max(m - 1, 1), 1 / m, epsilon)]
    columns = (ceil_div(n, BLOCK),), (BLOCK,)
    return [
        Launch(_moments(x.dtype), *tiled(m, n, depth=CHUNK), (x, means, squares)),
        Launch(_statistics(x.dtype), *columns, (means, squares, running_mean, running_var, mean, rstd, *factors)),
        Launch(_normalise(), *tiled(m, n, depth=SPAN), (x, gamma, beta, mean, rstd, y)),
    ]


@kernel
def _inference(dtype: Any) -> Any:
    sqrt = CUDA.math("sqrt", dtype)

    def batch_norm_inference(x, gamma, beta, mean, var, y, epsilon):  # type: ignore[no-untyped-def]
        j = cuda.blockIdx.y * WIDTH + cuda.threadIdx.x
        if j < y.shape[1]:
            centre = mean[j]
            slope = gamma[j] / sqrt(var[j] + epsilon)
            shift = beta[j]
            last = min(y.shape[0], (cuda.blockIdx.x + 1) * SPAN)
            for row in range(cuda.blockIdx.x * SPAN + cuda.threadIdx.y, last, DEPTH):
                y[row, j] = (x[row, j] - centre) * slope + shift

    return batch_norm_inference


def batch_norm_inference(
    x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any, y: Any, epsilon: float
) -> list[Launch]:
    """``y = gamma (x - running_mean) / sqrt(running_var + epsilon) + beta``."""
    arguments = (x, gamma, beta, running_mean, running_var, y, x.dtype.type(epsilon))
    return [Launch(_inference(x.dtype), *tiled(*x.shape, depth=SPAN), arguments)]


@kernel
def _gradient_sums(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def gradient_sums(dy, x, mean, rstd, dgammas, dbetas):  # type: ignore[no-untyped-def]
        shared_gamma = cuda.shared.array((DEPTH, WIDTH), kind)
        shared_beta = cuda.shared.array((DEPTH, WIDTH), kind)
        rows, columns = x.shape
        lane = cuda.threadIdx.x
        depth = cuda.threadIdx.y
        column = cuda.blockIdx.y * WIDTH + lane
        dgamma = zero
        dbeta = zero
        if column < columns:
            centre = mean[column]
            scale = rstd[column]
            last = min(rows, (cuda.blockIdx.x + 1) * CHUNK)
            for row in range(cuda.blockIdx.x * CHUNK + depth, last, DEPTH):
                d = dy[row, column]
                dbeta += d
                dgamma += d * ((x[row, column] - centre) * scale)
        shared_gamma[depth, lane] = dgamma
        shared_beta[depth, lane] = dbeta
        cuda.syncthreads()
        if depth == 0 and column < columns:
            for k in range(1, DEPTH):
                dgamma += shared_gamma[k, lane]
                dbeta += shared_beta[k, lane]
            dgammas[cuda.blockIdx.x, column] = dgamma
            dbetas[cuda.blockIdx.x, column] = dbeta

    return gradient_sums


@kernel
def _gradient() -> Any:
    def gradient(dy, x, gamma, mean, rstd, dx, dgamma, dbeta, share):  # type: ignore[no-untyped-def]
        j = cuda.blockIdx.y * WIDTH + cuda.threadIdx.x
        if j < x.shape[1]:
            centre = mean[j]
            scale = rstd[j]
            factor = gamma[j] * scale
            level = dbeta[j] * share
            slope = dgamma[j] * share
            last = min(x.shape[0], (cuda.blockIdx.x + 1) * SPAN)
            for row in range(cuda.blockIdx.x * SPAN + cuda.threadIdx.y, last, DEPTH):
                dx[row, j] = factor * (dy[row, j] - level - (x[row, j] - centre) * scale * slope)

    return gradient


def batch_norm_backward(
    dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any
) -> list[Launch]:
    """``dbeta = sum dy``, ``dgamma = sum dy xhat``, ``dx = gamma rstd (dy - dbeta/m - xhat dgamma/m)``."""
    m, n = x.shape
    dgammas, dbetas = partials_of(dgamma, m), partials_of(dbeta, m)
    share = x.dtype.type(1.0 / m)
    return [
        Launch(_gradient_sums(x.dtype), *tiled(m, n, depth=CHUNK), (dy, x, mean, rstd, dgammas, dbetas)),
        *sum_partials(dgammas, dgamma),
        *sum_partials(dbetas, dbeta),
        Launch(_gradient(), *tiled(m, n, depth=SPAN), (dy, x, gamma, mean, rstd, dx, dgamma, dbeta, share)),
    ]
