"""Group normalisation on CUDA: of each group of channels in each row; of one group, layer normalisation.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx``, ``dgamma``, ``dbeta`` are overwritten; ``dx`` may be ``dy``. A warp
takes a group, as rowwise.py a row. The sums over rows are those of norm.py, taken before ``dx`` overwrites ``dy``. The
order is fixed: no atomics, and a result repeats bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .launch import CUDA, WIDTH, Launch, ceil_div, kernel
from .norm import gradient_sums
from .rowwise import ALL, WARPS


def _rows(rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (ceil_div(rows, WARPS),), (WIDTH, WARPS)


def _warp_sum(v):  # type: ignore[no-untyped-def]
    """That of rowwise.py; here again because the simulator gives shuffles only to the module of the kernel."""
    for offset in (16, 8, 4, 2, 1):
        v += cuda.shfl_xor_sync(ALL, v, offset)
    return v


def _spatial(x: Any, mean: Any, gamma: Any) -> tuple[Any, ...]:
    """The channels of a group, the columns of a channel, and how many of each 32 columns further on are."""
    spatial = x.shape[1] // gamma.size
    return tuple(np.int64(v) for v in (gamma.size // mean.shape[1], spatial, *divmod(WIDTH, spatial)))


@kernel
def _forward(dtype: Any, grouped: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    sqrt = CUDA.math("sqrt", dtype)
    warp_sum = CUDA.inline(_warp_sum)

    def group_norm_forward(x, gamma, beta, mean, rstd, y, share, epsilon, channels, spatial, channels_on, places_on):  # type: ignore[no-untyped-def]
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
        c = cuda.threadIdx.x
        if grouped:
            c = cuda.threadIdx.x // spatial
            place = cuda.threadIdx.x - c * spatial
            c += row * channels % gamma.size
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            y[row, j] = gamma[c] * (((x[row, j] - base) - offset) * scale) + beta[c]
            c += channels_on
            if grouped:
                place += places_on
                if place >= spatial:
                    place -= spatial
                    c += 1

    return group_norm_forward


def group_norm_forward(x: Any, gamma: Any, beta: Any, mean: Any, rstd: Any, y: Any, epsilon: float) -> list[Launch]:
    """``y = gamma (x - mean) rstd + beta`` with the mean and the biased variance of each group."""
    number = x.dtype.type
    rows, size = mean.size, x.size // mean.size
    factors = number(1.0 / size), number(epsilon), *_spatial(x, mean, gamma)
    lines = x.reshape(rows, size), gamma, beta, mean.reshape(rows), rstd.reshape(rows), y.reshape(rows, size)
    return [Launch(_forward(x.dtype, size != gamma.size), *_rows(rows), (*lines, *factors))]


@kernel
def _gradient(dtype: Any, grouped: bool) -> Any:
    zero = np.dtype(dtype).type(0)
    warp_sum = CUDA.inline(_warp_sum)

    def group_norm_gradient(dy, x, gamma, mean, rstd, dx, share, channels, spatial, channels_on, places_on):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= x.shape[0]:
            return
        centre = mean[row]
        scale = rstd[row]
        level = zero
        slope = zero
        first = cuda.threadIdx.x
        first_place = 0
        if grouped:
            first = cuda.threadIdx.x // spatial
            first_place = cuda.threadIdx.x - first * spatial
            first += row * channels % gamma.size
        c = first
        place = first_place
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            g = dy[row, j] * gamma[c]
            level += g
            slope += g * ((x[row, j] - centre) * scale)
            c += channels_on
            if grouped:
                place += places_on
                if place >= spatial:
                    place -= spatial
                    c += 1
        level = warp_sum(level) * share
        slope = warp_sum(slope) * share
        c = first
        place = first_place
        for j in range(cuda.threadIdx.x, x.shape[1], WIDTH):
            xhat = (x[row, j] - centre) * scale
            dx[row, j] = scale * (dy[row, j] * gamma[c] - level - xhat * slope)
            c += channels_on
            if grouped:
                place += places_on
                if place >= spatial:
                    place -= spatial
                    c += 1

    return group_norm_gradient


def group_norm_backward(
    dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any
) -> list[Launch]:
    """``dx = rstd (h - mean_j h - xhat mean_j(h xhat))``, ``h = gamma dy``; ``dgamma, dbeta`` = sums over the rest."""
    rows, size = mean.size, x.size // mean.size
    made = _gradient(x.dtype, size != gamma.size)
    lines = (a.reshape(rows, size) for a in (dy, x, dx))
    d, line, out = lines
    arguments = d, line, gamma, mean.reshape(rows), rstd.reshape(rows), out, x.dtype.type(1.0 / size)
    return [
        *gradient_sums(dy, x, mean, rstd, dgamma, dbeta),
        Launch(made, *_rows(rows), (*arguments, *_spatial(x, mean, gamma))),
    ]
