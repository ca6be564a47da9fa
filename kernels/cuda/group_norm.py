"""Group normalisation on CUDA: of each group of channels in each row; of one group, layer normalisation.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx``, ``dgamma``, ``dbeta`` are overwritten; ``dx`` may be ``dy``. A warp
takes a group and keeps it in registers (warp.py); over groups too long for that, its lanes go several times. The sums
over rows are those of norm.py, taken before ``dx`` overwrites ``dy``; where a group is a row of registers, and each
channel one column, they are taken along with ``dx``, by warps with several rows each. The order is fixed: no atomics,
and a result repeats bit for bit.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from .dense import partials, sum_partials
from .launch import CUDA, WIDTH, Launch, ceil_div, element, kernel
from .norm import gradient_sums
from .warp import KEPT, WARPS, Row, row_kernel, row_of, rows_of, scalar_name, warp_sum

# ----------------------------------------------------------------------------------------- groups in registers

_FORWARD = """
def {name}(x, gamma, beta, mean, rstd, y, share, epsilon, rows, columns, channels, spatial, channels_on, places_on):
{begin}
{x}
    base = warp_first(x0)
    total = zero
{deviations}
    offset = warp_sum(total) * share
    square = zero
{squares}
    scale = one / sqrt(warp_sum(square) * share + epsilon)
    if cuda.threadIdx.x == 0:
        mean[row] = base + offset
        rstd[row] = scale
{channel}
{y}
"""

_GRADIENT = """
def {name}(dy, x, gamma, mean, rstd, dx, share, rows, columns, channels, spatial, channels_on, places_on):
{begin}
    centre = mean[row]
    scale = rstd[row]
{dy}
{x}
{channel}
{products}
    level = zero
    slope = zero
{sums}
    level = warp_sum(level) * share
    slope = warp_sum(slope) * share
{dx}
"""

_BACKWARD = """
def {name}(dy, x, gamma, mean, rstd, dx, dgammas, dbetas, share, rows, columns, turns):
    shared_gamma = cuda.shared.array({size}, element)
    shared_beta = cuda.shared.array({size}, element)
{place}
{none}
    for turn in range(turns):
        row = (cuda.blockIdx.x * turns + turn) * {WARPS} + cuda.threadIdx.y
        if row < rows:
            first = row * columns + column
            centre = mean[row]
            scale = rstd[row]
{one}
    for warp in range({WARPS}):
        if cuda.threadIdx.y == warp:
            if warp == 0:
{begin_sums}
            else:
{add_sums}
        cuda.syncthreads()
    for j in range(cuda.threadIdx.y * {WIDTH} + cuda.threadIdx.x, columns, {WIDTH} * {WARPS}):
        dgammas[cuda.blockIdx.x, j] = shared_gamma[j]
        dbetas[cuda.blockIdx.x, j] = shared_beta[j]
"""

# where a lane's channel begins, and the channel of each of its elements, from that of the one before
_CHANNEL = """\
    c = column // spatial
    place = column - c * spatial
    c += row * channels % gamma.size"""
_NEXT = """\
place += {by}
c += {channels}
if place >= spatial:
    place -= spatial
    c += 1"""


def _factors(row: Row, grouped: bool, **arrays: str) -> list[Callable[[range], str]]:
    """Steps that take, of each array of channels, those of the elements."""
    if not grouped:
        return [row.take(name, array, "column") for name, array in arrays.items()]

    def lines(elements: range) -> str:
        parts = []
        for e in elements:
            last = e == elements[-1]
            parts += [f"{name}{e} = {array}[c]" for name, array in arrays.items()]
            parts.append(_NEXT.format(by="places_on" if last else 1, channels="channels_on" if last else 0))
        return "\n".join(parts)

    return [lines]


@functools.cache
def _forward_of_rows(dtype: Any, row: Row, grouped: bool) -> Any:
    name = scalar_name("group_norm_row", row)
    text = _FORWARD.format(
        name=name,
        begin=row.begin,
        x=row.load("x", "x"),
        deviations=row.each("x{e} = x{e} - base if {inside} else zero; total += x{e}"),
        squares=row.each("x{e} = x{e} - offset if {inside} else zero; square += x{e} * x{e}"),
        channel=_CHANNEL if grouped else "",
        y=row.by_vector(*_factors(row, grouped, g="gamma", b="beta"), row.put("y", "g{e} * (x{e} * scale) + b{e}")),
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _gradient_of_rows(dtype: Any, row: Row, grouped: bool) -> Any:
    name = scalar_name("group_norm_gradient_row", row)
    text = _GRADIENT.format(
        name=name,
        begin=row.begin,
        dy=row.load("d", "dy"),
        x=row.load("x", "x"),
        channel=_CHANNEL if grouped else "",
        products=row.by_vector(*_factors(row, grouped, g="gamma"), _scaled),
        sums=row.each("x{e} = (x{e} - centre) * scale; level += d{e}; slope += d{e} * x{e}"),
        dx=row.store("dx", "scale * (d{e} - level - x{e} * slope)"),
    )
    return row_kernel(text, name, dtype)


def _scaled(elements: range) -> str:
    return "\n".join(f"d{e} = d{e} * g{e}" for e in elements)


@functools.cache
def _backward_of_rows(dtype: Any, row: Row) -> Any:
    name = scalar_name("group_norm_backward_row", row)
    one = [
        row.load("d", "dy"),
        row.load("x", "x"),
        row.each("x{e} = (x{e} - centre) * scale; dgamma{e} += d{e} * x{e}; dbeta{e} += d{e}"),
        row.by_vector(row.take("g", "gamma", "column"), _scaled),
        "    level = zero\n    slope = zero",
        row.each("level += d{e}; slope += d{e} * x{e}"),
        "    level = warp_sum(level) * share\n    slope = warp_sum(slope) * share",
        row.store("dx", "scale * (d{e} - level - x{e} * slope)"),
    ]
    text = _BACKWARD.format(
        name=name,
        size=row.kept * WIDTH,
        WARPS=WARPS,
        WIDTH=WIDTH,
        place=row.place,
        none=row.each("dgamma{e} = dbeta{e} = zero"),
        one=textwrap.indent("\n".join(one), 8 * " "),
        begin_sums=textwrap.indent(row.each("shared_gamma[{j}] = dgamma{e}; shared_beta[{j}] = dbeta{e}"), 12 * " "),
        add_sums=textwrap.indent(row.each("shared_gamma[{j}] += dgamma{e}; shared_beta[{j}] += dbeta{e}"), 12 * " "),
    )
    return row_kernel(text, name, dtype, element=element(dtype))


# ------------------------------------------------------------------------------------------------ longer groups


@kernel
def _forward(dtype: Any, grouped: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    sqrt = CUDA.math("sqrt", dtype)

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


@kernel
def _gradient(dtype: Any, grouped: bool) -> Any:
    zero = np.dtype(dtype).type(0)

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


# ------------------------------------------------------------------------------------------------ instructions

# Sums over rows along with dx: beyond 64 bytes a lane, rows of single elements would leave the registers.
TURNS, BLOCKS = 8, 512  # rows of a warp that takes sums over rows along, at least; blocks, at most


def _spatial(x: Any, mean: Any, gamma: Any, step: int) -> tuple[Any, ...]:
    """The channels of a group, the columns of a channel, and how many of each ``step`` columns further on are."""
    spatial = x.shape[1] // gamma.size
    return tuple(np.int64(v) for v in (gamma.size // mean.shape[1], spatial, *divmod(step, spatial)))


def _step(row: Row) -> int:
    """From the last element of a lane's vector to the first of its next."""
    return row.lanes * (WIDTH - 1) + 1


def group_norm_forward(x: Any, gamma: Any, beta: Any, mean: Any, rstd: Any, y: Any, epsilon: float) -> list[Launch]:
    """``y = gamma (x - mean) rstd + beta`` with the mean and the biased variance of each group."""
    number = x.dtype.type
    rows, size = mean.size, x.size // mean.size
    lines, figures = [a.reshape(rows, size) for a in (x, y)], [a.reshape(rows) for a in (mean, rstd)]
    grouped = size != gamma.size
    row = row_of(size, *lines, *([] if grouped else [gamma, beta]))
    factors = number(1.0 / size), number(epsilon)
    if row is None:
        arguments = lines[0], gamma, beta, *figures, lines[1], *factors, *_spatial(x, mean, gamma, WIDTH)
        return [Launch(_forward(x.dtype, grouped), *rows_of(rows), arguments)]
    sizes = np.int64(rows), np.int64(size), *_spatial(x, mean, gamma, _step(row))
    arguments = x.ravel(), gamma, beta, *figures, y.ravel(), *factors, *sizes
    return [Launch(_forward_of_rows(x.dtype, row, grouped), *rows_of(rows), arguments)]


def group_norm_backward(
    dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any
) -> list[Launch]:
    """``dx = rstd (h - mean_j h - xhat mean_j(h xhat))``, ``h = gamma dy``; ``dgamma, dbeta`` = sums over the rest."""
    rows, size = mean.size, x.size // mean.size
    lines, figures = [a.reshape(rows, size) for a in (dy, x, dx)], [a.reshape(rows) for a in (mean, rstd)]
    grouped = size != gamma.size
    row = row_of(size, *lines, *([] if grouped else [gamma]))
    share = x.dtype.type(1.0 / size)
    flat = [a.ravel() for a in (dy, x, dx)]
    if row is not None and not grouped and (row.lanes > 1 or 2 * row.kept * x.itemsize <= KEPT):
        turns = max(TURNS, ceil_div(rows, BLOCKS * WARPS))
        blocks = ceil_div(rows, turns * WARPS)
        sums = partials(dgamma, blocks), partials(dbeta, blocks)
        sizes = (np.int64(v) for v in (rows, size, turns))
        arguments = *flat[:2], gamma, *figures, flat[2], *sums, share, *sizes
        return [
            Launch(_backward_of_rows(x.dtype, row), (blocks,), (WIDTH, WARPS), arguments),
            *sum_partials(sums[0], dgamma),
            *sum_partials(sums[1], dbeta),
        ]
    if row is None:
        made = _gradient(x.dtype, grouped)
        arguments = *lines[:2], gamma, *figures, lines[2], share, *_spatial(x, mean, gamma, WIDTH)
    else:
        made = _gradient_of_rows(x.dtype, row, grouped)
        sizes = np.int64(rows), np.int64(size), *_spatial(x, mean, gamma, _step(row))
        arguments = *flat[:2], gamma, *figures, flat[2], share, *sizes
    return [*gradient_sums(dy, x, mean, rstd, dgamma, dbeta), Launch(made, *rows_of(rows), arguments)]
