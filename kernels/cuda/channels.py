"""Sums over a channel that has several columns, ``(batch, channels, *spatial)``, for batch normalisation and its kin.

A block takes 8192 elements of a channel in the order in which they lie, and a thread every 256th group of neighbours:
128 bits of them where the columns of a channel allow it, at once where addresses do. What the threads found is put
together in a tree, and the blocks by one thread a channel: a result repeats bit for bit, wherever its arrays begin.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from .block import block_sum
from .columns import each, load
from .launch import BLOCK, Launch, ceil_div, element, generated
from .vector import access, aligned

PART = 8192  # elements of a channel that a block adds up

_FIRST = """\
    t = cuda.threadIdx.x
    part = cuda.blockIdx.x // channels
    channel = cuda.blockIdx.x - part * channels
    i = part * {PART} + {lanes} * t
    last = min(rows * spatial, (part + 1) * {PART})
    row = i // spatial
    place = i - row * spatial"""

# the place of a thread's next group follows from that of the last, without a division
_NEXT = """\
        i += {step}
        row += rows_on
        place += places_on
        if place >= spatial:
            place -= spatial
            row += 1"""

_SIZES = "rows, columns, channels, spatial, rows_on, places_on"

_MOMENTS = """
def {name}(x, means, squares, {SIZES}):
    shared_mean = cuda.shared.array({BLOCK}, element)
    shared_square = cuda.shared.array({BLOCK}, element)
    shared_count = cuda.shared.array({BLOCK}, element)
{first}
    mean = zero
    square = zero
    count = zero
    while i < last:
        at = row * columns + channel * spatial + place
        {x}
{add}
{next}
    shared_mean[t] = mean
    shared_square[t] = square
    shared_count[t] = count
    cuda.syncthreads()
    half = {BLOCK} // 2
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
"""

_GRADIENT_SUMS = """
def {name}(dy, x, mean, rstd, dgammas, dbetas, {SIZES}):
    shared_gamma = cuda.shared.array({BLOCK}, element)
    shared_beta = cuda.shared.array({BLOCK}, element)
{first}
    dgamma = zero
    dbeta = zero
{figures}
    while i < last:
        at = row * columns + channel * spatial + place
{of_row}
        {dy}
        {x}
{add}
{next}
    block_sum(dgamma, shared_gamma)
    block_sum(dbeta, shared_beta)
    if t == 0:
        dgammas[part, channel] = shared_gamma[0]
        dbetas[part, channel] = shared_beta[0]
"""


def _made(text: str, name: str, dtype: np.dtype, lanes: int, wide: bool, **parts: str) -> Any:
    name = name if wide else f"{name}_scalar"
    parts |= {"first": _FIRST.format(lanes=lanes, PART=PART), "next": _NEXT.format(step=lanes * BLOCK)}
    text = text.format(name=name, SIZES=_SIZES, BLOCK=BLOCK, **parts)
    scope = {"cuda": cuda, "load": access(dtype).load, "block_sum": block_sum, "element": element(dtype)}
    return generated(text, name, scope | {"zero": dtype.type(0), "one": dtype.type(1)}, dtype)


@functools.cache
def _moments(dtype: np.dtype, lanes: int, wide: bool) -> Any:
    line = "count += one; d = x{k} - mean; mean += d / count; square += d * (x{k} - mean)"
    parts = {"x": load("x", "x", "at", lanes, wide), "add": each(line, lanes, 8)}
    return _made(_MOMENTS, "channel_moments", dtype, lanes, wide, **parts)


@functools.cache
def _gradient_sums(dtype: np.dtype, lanes: int, wide: bool, by_row: bool) -> Any:
    """``mean`` and ``rstd`` are those of a channel, or in each row those of one of its groups of channels."""
    figures = "    centre = mean[channel]\n    scale = rstd[channel]"
    of_row = ""
    if by_row:
        figures = "    group = channel // (channels // mean.shape[1])"
        of_row = "        centre = mean[row, group]\n        scale = rstd[row, group]"
    line = "dbeta += dy{k}; dgamma += dy{k} * ((x{k} - centre) * scale)"
    vectors = {name: load(name, name, "at", lanes, wide) for name in ("dy", "x")}
    parts = {"figures": figures, "of_row": of_row, "add": each(line, lanes, 8), **vectors}
    return _made(_GRADIENT_SUMS, "channel_gradient_sums", dtype, lanes, wide, **parts)


def parts_of(rows: int, columns: int, channels: int) -> int:
    """How many parts a channel has."""
    return ceil_div(rows * (columns // channels), PART)


def _launch(make: Any, matrices: Sequence[Any], others: Sequence[Any], sums: Sequence[Any], *key: Any) -> Launch:
    rows, columns = matrices[0].shape
    parts, channels = sums[0].shape
    spatial = columns // channels
    dtype = matrices[0].dtype
    lanes = access(dtype).lanes
    lanes = 1 if spatial % lanes else lanes
    made = make(dtype, lanes, lanes > 1 and aligned(*matrices), *key)
    sizes = (np.int64(v) for v in (rows, columns, channels, spatial, *divmod(lanes * BLOCK, spatial)))
    return Launch(made, (parts * channels,), (BLOCK,), (*(a.ravel() for a in matrices), *others, *sums, *sizes))


def channel_moments(x: Any, means: Any, squares: Any) -> Launch:
    """Mean, and sum of squares around it, of each part of each channel."""
    return _launch(_moments, [x], [], [means, squares])


def channel_gradient_sums(dy: Any, x: Any, mean: Any, rstd: Any, dgammas: Any, dbetas: Any) -> Launch:
    """``sum dy xhat`` and ``sum dy`` over each part of each channel; ``mean, rstd`` are of channels, or ``(m, g)``."""
    return _launch(_gradient_sums, [dy, x], [mean, rstd], [dgammas, dbetas], mean.ndim == 2)
