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
from typing import Any

import numpy as np

from .column_sums import partials, sum_partials
from .launch import WIDTH, Launch, ceil_div, element
from .norm import gradient_sums
from .warp import KEPT, WARPS, Passes, Row, Step, row_kernel, row_launch, row_name, row_of

# ----------------------------------------------------------------------------------------- groups in registers

_FORWARD = """
def {name}(x, y, gamma, beta, mean, rstd, share, epsilon, channels, spatial, channels_on, places_on, rows, columns):
{begin}
{x}
    base = {base}  # relative to it, a mean that is large beside the deviation loses nothing
    total = zero
{deviations}
    offset = warp_sum(total) * share
    square = zero
{squares}
    scale = one / sqrt(warp_sum(square) * share + epsilon)
    if cuda.threadIdx.x == 0:
        mean[row] = base + offset
        rstd[row] = scale
{y}
"""

_GRADIENT = """
def {name}(dy, x, dx, gamma, mean, rstd, share, channels, spatial, channels_on, places_on, rows, columns):
{begin}
    centre = mean[row]
    scale = rstd[row]
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


def _factors(row: Row, grouped: bool, **arrays: str) -> list[Step]:
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
def _forward(dtype: Any, row: Row, grouped: bool) -> Any:
    name = row_name("group_norm", row)
    around = {"d": "x{e} - base if {inside} else zero", "c": "d{e} - offset if {inside} else zero"}
    go = Passes(row, {"x": "x"}, around, _CHANNEL if grouped else "")
    text = _FORWARD.format(
        name=name,
        begin=row.begin,
        x=go("x") if row.vectors else "",
        base="warp_first(x0)" if row.vectors else "x[row * columns]",
        deviations=go("x d", "total += d{e}"),
        squares=go("x d c", "square += c{e} * c{e}"),
        y=go("x d c", before=_factors(row, grouped, g="gamma", b="beta"), y="g{e} * (c{e} * scale) + b{e}"),
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _gradient(dtype: Any, row: Row, grouped: bool) -> Any:
    name = row_name("group_norm_gradient", row)
    defines = {"h": [*_factors(row, grouped, g="gamma"), _scaled], "n": "(x{e} - centre) * scale"}
    go = Passes(row, {"d": "dy", "x": "x"}, defines, _CHANNEL if grouped else "")
    text = _GRADIENT.format(
        name=name,
        begin=row.begin,
        sums=go("d x h n", "level += d{e}; slope += d{e} * n{e}"),
        dx=go("d x h n", dx="scale * (d{e} - level - n{e} * slope)"),
    )
    return row_kernel(text, name, dtype)


def _scaled(elements: range) -> str:
    return "\n".join(f"d{e} = d{e} * g{e}" for e in elements)


@functools.cache
def _backward_of_rows(dtype: Any, row: Row) -> Any:
    name = row_name("group_norm_backward", row)
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


# ------------------------------------------------------------------------------------------------ instructions

# Sums over rows along with dx: beyond 64 bytes a lane, rows of single elements would leave the registers.
TURNS, BLOCKS = 8, 512  # rows of a warp that takes sums over rows along, at least; blocks, at most


def _steps(row: Row, x: Any, mean: Any, gamma: Any) -> tuple[Any, ...]:
    """The channels of a group, the columns of a channel, and how many of each lie between two vectors of a lane."""
    spatial = x.shape[1] // gamma.size
    step = row.lanes * (WIDTH - 1) + 1  # from the last element of one to the first of the next
    return tuple(np.int64(v) for v in (gamma.size // mean.shape[1], spatial, *divmod(step, spatial)))


def group_norm_forward(x: Any, gamma: Any, beta: Any, mean: Any, rstd: Any, y: Any, epsilon: float) -> list[Launch]:
    """``y = gamma (x - mean) rstd + beta`` with the mean and the biased variance of each group."""
    number = x.dtype.type
    rows, size = mean.size, x.size // mean.size
    lines, figures = [a.reshape(rows, size) for a in (x, y)], [a.reshape(rows) for a in (mean, rstd)]
    grouped = size != gamma.size
    row = row_of(size, *lines, *([] if grouped else [gamma, beta]))
    factors = number(1.0 / size), number(epsilon)
    made = _forward(x.dtype, row, grouped)
    return [row_launch(made, lines, gamma, beta, *figures, *factors, *_steps(row, x, mean, gamma))]


def group_norm_backward(
    dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any
) -> list[Launch]:
    """``dx = rstd (h - mean_j h - xhat mean_j(h xhat))``, ``h = gamma dy``; ``dgamma, dbeta`` = sums over the rest."""
    rows, size = mean.size, x.size // mean.size
    lines, figures = [a.reshape(rows, size) for a in (dy, x, dx)], [a.reshape(rows) for a in (mean, rstd)]
    grouped = size != gamma.size
    row = row_of(size, *lines, *([] if grouped else [gamma]))
    share = x.dtype.type(1.0 / size)
    if row.vectors and not grouped and (row.lanes > 1 or 2 * row.kept * x.itemsize <= KEPT):
        turns = max(TURNS, ceil_div(rows, BLOCKS * WARPS))
        blocks = ceil_div(rows, turns * WARPS)
        sums = partials(dgamma, blocks), partials(dbeta, blocks)
        sizes = (np.int64(v) for v in (rows, size, turns))
        flat = [a.ravel() for a in lines]
        arguments = *flat[:2], gamma, *figures, flat[2], *sums, share, *sizes
        return [
            Launch(_backward_of_rows(x.dtype, row), (blocks,), (WIDTH, WARPS), arguments),
            *sum_partials(sums[0], dgamma),
            *sum_partials(sums[1], dbeta),
        ]
    made = _gradient(x.dtype, row, grouped)
    last = row_launch(made, lines, gamma, *figures, share, *_steps(row, x, mean, gamma))
    return [*gradient_sums(dy, x, mean, rstd, dgamma, dbeta), last]
