"""Batch normalisation on CUDA.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx``, ``dgamma``, ``dbeta`` are overwritten, the running statistics
updated. A warp lies along 32 columns, so that every read is coalesced. A block takes 256 rows: each thread runs
Welford's recurrence over every 8th row, the eight are merged in shared memory, and the blocks by one thread a column
(Chan, Golub & LeVeque 1983). The order is fixed: no atomics, and a result repeats bit for bit.

Where a channel has several columns, ``(batch, channels, *spatial)``, the sums of a channel are those of blocks that
take 8192 of its elements each, in the order in which they lie. The last passes run over columns in either case.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .block import block_sum
from .columns import column_pass
from .dense import partials, sum_partials
from .launch import BLOCK, CHUNK, CUDA, DEPTH, WIDTH, Launch, ceil_div, element, kernel, scratch, tiled

PART = 8192  # elements of a channel with several columns that a block adds up


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
def _channel_moments(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    kind = element(dtype)

    def channel_moments(x, means, squares, spatial, rows_on, places_on):  # type: ignore[no-untyped-def]
        """A thread takes every 256th element; their places follow from the one before, without a division."""
        shared_mean = cuda.shared.array(BLOCK, kind)
        shared_square = cuda.shared.array(BLOCK, kind)
        shared_count = cuda.shared.array(BLOCK, kind)
        t = cuda.threadIdx.x
        part = cuda.blockIdx.x // means.shape[1]
        channel = cuda.blockIdx.x - part * means.shape[1]
        mean = zero
        square = zero
        count = zero
        i = part * PART + t
        last = min(x.shape[0] * spatial, (part + 1) * PART)
        row = i // spatial
        place = i - row * spatial
        while i < last:
            v = x[row, channel * spatial + place]
            count += one
            d = v - mean
            mean += d / count
            square += d * (v - mean)
            i += BLOCK
            row += rows_on
            place += places_on
            if place >= spatial:
                place -= spatial
                row += 1
        shared_mean[t] = mean
        shared_square[t] = square
        shared_count[t] = count
        cuda.syncthreads()
        half = BLOCK // 2
        while half > 0:
            if t < half:
                n = shared_count[t + half]
                if n > zero:
                    count = shared_count[t]
                    total = count + n
                    d = shared_mean[t + half] - shared_mean[t]
                    shared_mean[t] += d * (n / total)
                    shared_square[t] += shared_square[t + half] + d * d * (count * n / total)
                    shared_count[t] = total
            cuda.syncthreads()
            half //= 2
        if t == 0:
            means[part, channel] = shared_mean[0]
            squares[part, channel] = shared_square[0]

    return channel_moments


def _parts(rows: int, columns: int, channels: int) -> tuple[Any, ...]:
    """How many parts the channels have, the grid and block of their blocks, and their last arguments."""
    spatial = columns // channels
    parts = ceil_div(rows * spatial, PART)
    steps = (np.int64(v) for v in (spatial, *divmod(BLOCK, spatial)))
    return parts, (parts * channels,), (BLOCK,), tuple(steps)


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
    channels = gamma.size
    if n > channels:
        chunks, *shape, steps = _parts(m, n, channels)
        made, full = _channel_moments(x.dtype), PART
    else:
        chunks, shape, steps = ceil_div(m, CHUNK), tiled(m, n, depth=CHUNK), ()
        made, full = _moments(x.dtype), CHUNK
    means, squares = scratch(x, (chunks, channels)), scratch(x, (chunks, channels))
    points = m * (n // channels)
    counts = full, points - (chunks - 1) * full
    factors = map(x.dtype.type, (*counts, momentum, 1 - momentum, 1 / max(points - 1, 1), 1 / points, epsilon))
    columns = (ceil_div(channels, BLOCK),), (BLOCK,)
    return [
        Launch(made, *shape, (x, means, squares, *steps)),
        Launch(_statistics(x.dtype), *columns, (means, squares, running_mean, running_var, mean, rstd, *factors)),
        column_pass(
            "normalise",
            {"x": x},
            {"gamma": gamma, "beta": beta, "mean": mean, "rstd": rstd},
            ("y", y),
            "gamma{k} * ((x{k} - mean{k}) * rstd{k}) + beta{k}",
        ),
    ]


def batch_norm_inference(
    x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any, y: Any, epsilon: float
) -> list[Launch]:
    """``y = gamma (x - running_mean) / sqrt(running_var + epsilon) + beta``."""
    launch = column_pass(
        "batch_norm_inference",
        {"x": x},
        {"gamma": gamma, "beta": beta, "mean": running_mean, "var": running_var},
        ("y", y),
        "(x{k} - mean{k}) * gamma{k} + beta{k}",
        ["gamma{k} = gamma{k} / sqrt(var{k} + epsilon)"],
        epsilon=x.dtype.type(epsilon),
    )
    return [launch]


@kernel
def _gradient_sums(dtype: Any, by_row: bool) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def gradient_sums(dy, x, mean, rstd, dgammas, dbetas):  # type: ignore[no-untyped-def]
        """``mean`` and ``rstd`` are those of a column, or in each row those of one of its groups of columns."""
        shared_gamma = cuda.shared.array((DEPTH, WIDTH), kind)
        shared_beta = cuda.shared.array((DEPTH, WIDTH), kind)
        rows, columns = x.shape
        lane = cuda.threadIdx.x
        depth = cuda.threadIdx.y
        column = cuda.blockIdx.y * WIDTH + lane
        dgamma = zero
        dbeta = zero
        if column < columns:
            if by_row:
                group = column // (columns // mean.shape[1])
            else:
                centre = mean[column]
                scale = rstd[column]
            last = min(rows, (cuda.blockIdx.x + 1) * CHUNK)
            for row in range(cuda.blockIdx.x * CHUNK + depth, last, DEPTH):
                if by_row:
                    centre = mean[row, group]
                    scale = rstd[row, group]
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
def _channel_gradient_sums(dtype: Any, by_row: bool) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def channel_gradient_sums(dy, x, mean, rstd, dgammas, dbetas, spatial, rows_on, places_on):  # type: ignore[no-untyped-def]
        """As channel_moments goes."""
        shared_gamma = cuda.shared.array(BLOCK, kind)
        shared_beta = cuda.shared.array(BLOCK, kind)
        t = cuda.threadIdx.x
        part = cuda.blockIdx.x // dgammas.shape[1]
        channel = cuda.blockIdx.x - part * dgammas.shape[1]
        if by_row:
            group = channel // (dgammas.shape[1] // mean.shape[1])
        else:
            centre = mean[channel]
            scale = rstd[channel]
        dgamma = zero
        dbeta = zero
        i = part * PART + t
        last = min(x.shape[0] * spatial, (part + 1) * PART)
        row = i // spatial
        place = i - row * spatial
        while i < last:
            if by_row:
                centre = mean[row, group]
                scale = rstd[row, group]
            d = dy[row, channel * spatial + place]
            dbeta += d
            dgamma += d * ((x[row, channel * spatial + place] - centre) * scale)
            i += BLOCK
            row += rows_on
            place += places_on
            if place >= spatial:
                place -= spatial
                row += 1
        block_sum(dgamma, shared_gamma)
        block_sum(dbeta, shared_beta)
        if t == 0:
            dgammas[part, channel] = shared_gamma[0]
            dbetas[part, channel] = shared_beta[0]

    return channel_gradient_sums


def gradient_sums(dy: Any, x: Any, mean: Any, rstd: Any, dgamma: Any, dbeta: Any) -> list[Launch]:
    """``dgamma = sum dy xhat``, ``dbeta = sum dy`` of each channel; ``mean, rstd`` are of channels, or ``(m, g)``."""
    m, n = x.shape
    channels, by_row = dgamma.size, mean.ndim == 2
    if n > channels:
        parts, *shape, steps = _parts(m, n, channels)
        made = _channel_gradient_sums(x.dtype, by_row)
    else:
        parts, shape, steps = ceil_div(m, CHUNK), tiled(m, n, depth=CHUNK), ()
        made = _gradient_sums(x.dtype, by_row)
    dgammas, dbetas = partials(dgamma, parts), partials(dbeta, parts)
    return [
        Launch(made, *shape, (dy, x, mean, rstd, dgammas, dbetas, *steps)),
        *sum_partials(dgammas, dgamma),
        *sum_partials(dbetas, dbeta),
    ]


def batch_norm_backward(
    dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any
) -> list[Launch]:
    """``dbeta = sum dy``, ``dgamma = sum dy xhat``, ``dx = gamma rstd (dy - mean dy - xhat mean(dy xhat))``."""
    last = column_pass(
        "gradient",
        {"dy": dy, "x": x},
        {"gamma": gamma, "mean": mean, "rstd": rstd, "dgamma": dgamma, "dbeta": dbeta},
        ("dx", dx),
        "gamma{k} * (dy{k} - dbeta{k} - (x{k} - mean{k}) * rstd{k} * dgamma{k})",
        ["gamma{k} = gamma{k} * rstd{k}", "dbeta{k} = dbeta{k} * share", "dgamma{k} = dgamma{k} * share"],
        share=x.dtype.type(gamma.size / x.size),
    )
    return [*gradient_sums(dy, x, mean, rstd, dgamma, dbeta), last]
