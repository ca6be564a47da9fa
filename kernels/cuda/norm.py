"""Batch normalisation on CUDA.

Memory contract: ``y``, ``mean``, ``rstd``, ``dx``, ``dgamma``, ``dbeta`` are overwritten, the running statistics
updated. A warp lies along columns and a thread takes 128 bits of them where columns and addresses allow it. A block
takes 256 rows: each thread runs Welford's recurrence over every 8th row, the eight are merged in shared memory, and the
blocks by one thread a column (Chan, Golub & LeVeque 1983). The order is fixed: no atomics, and a result repeats bit for
bit. Where a channel has several columns, its sums are those of channels.py; the last passes run over columns, too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from .channels import PART, channel_gradient_sums, channel_moments, parts_of
from .column_sums import column_sums, partials, sum_partials
from .columns import column_pass, each, lanes_of, load
from .launch import BLOCK, CHUNK, CUDA, DEPTH, WIDTH, Launch, ceil_div, element, generated, kernel, scratch, tiled
from .vector import access

_MOMENTS = """
def {name}(x, means, squares, rows, columns):
    shared_mean = cuda.shared.array(({DEPTH}, {WIDTH} * {lanes}), element)
    shared_square = cuda.shared.array(({DEPTH}, {WIDTH} * {lanes}), element)
    lane = {lanes} * cuda.threadIdx.x
    depth = cuda.threadIdx.y
    column = {lanes} * {WIDTH} * cuda.blockIdx.y + lane
    first = cuda.blockIdx.x * {CHUNK}
    last = min(rows, first + {CHUNK})
{begin}
    count = zero
    if column < columns:
        for row in range(first + depth, last, {DEPTH}):
            at = row * columns + column
            {load}
            count += one
{add}
{keep}
    cuda.syncthreads()
    if depth == 0 and column < columns:
        for k in range(1, min({DEPTH}, last - first)):
            n = number((last - first - k + {DEPTH} - 1) // {DEPTH})
            total = count + n
            share = n / total
            both = count * n / total
{merge}
            count = total
{put}
"""


@functools.cache
def _moments(dtype: np.dtype, lanes: int) -> Any:
    name = "moments" if lanes > 1 else "moments_scalar"
    merge = (
        "d{k} = shared_mean[k, lane + {k}] - mean{k}; mean{k} += d{k} * share; "
        "square{k} += shared_square[k, lane + {k}] + d{k} * d{k} * both"
    )
    text = _MOMENTS.format(
        name=name, DEPTH=DEPTH, WIDTH=WIDTH, CHUNK=CHUNK, lanes=lanes,
        begin=each("mean{k} = square{k} = zero", lanes, 4),
        load=load("v", "x", "at", lanes),
        add=each("d{k} = v{k} - mean{k}; mean{k} += d{k} / count; square{k} += d{k} * (v{k} - mean{k})", lanes, 12),
        keep=each("shared_mean[depth, lane + {k}] = mean{k}; shared_square[depth, lane + {k}] = square{k}", lanes, 4),
        merge=each(merge, lanes, 12),
        put=each("means[cuda.blockIdx.x, column + {k}] = mean{k}", lanes, 8)
        + "\n"
        + each("squares[cuda.blockIdx.x, column + {k}] = square{k}", lanes, 8),
    )  # fmt: skip
    scope = {"cuda": cuda, "load": access(dtype).load, "element": element(dtype)}
    scope |= {"number": dtype.type, "zero": dtype.type(0), "one": dtype.type(1)}
    return generated(text, name, scope, dtype)


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
    chunks, full = (parts_of(m, n, channels), PART) if n > channels else (ceil_div(m, CHUNK), CHUNK)
    means, squares = scratch(x, (chunks, channels)), scratch(x, (chunks, channels))
    if n > channels:
        moments = channel_moments(x, means, squares)
    else:
        lanes = lanes_of(n, x)
        sizes = x.ravel(), means, squares, np.int64(m), np.int64(n)
        moments = Launch(_moments(x.dtype, lanes), *tiled(m, ceil_div(n, lanes), depth=CHUNK), sizes)
    points = m * (n // channels)
    counts = full, points - (chunks - 1) * full
    factors = map(x.dtype.type, (*counts, momentum, 1 - momentum, 1 / max(points - 1, 1), 1 / points, epsilon))
    columns = (ceil_div(channels, BLOCK),), (BLOCK,)
    return [
        moments,
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


def gradient_sums(dy: Any, x: Any, mean: Any, rstd: Any, dgamma: Any, dbeta: Any) -> list[Launch]:
    """``dgamma = sum dy xhat``, ``dbeta = sum dy`` of each channel; ``mean, rstd`` are of channels, or ``(m, g)``."""
    m, n = x.shape
    channels, by_row = dgamma.size, mean.ndim == 2
    parts = parts_of(m, n, channels) if n > channels else ceil_div(m, CHUNK)
    dgammas, dbetas = partials(dgamma, parts), partials(dbeta, parts)
    if n > channels:
        launch = channel_gradient_sums(dy, x, mean, rstd, dgammas, dbetas)
    else:
        figures = {"mean": mean, "rstd": rstd}
        xhat = "(x{k} - centre) * scale" if by_row else "(x{k} - mean{k}) * rstd{k}"
        where: dict[str, Any] = {"figures": figures}
        if by_row:  # a group's columns share the figures of a row
            where = {
                "begin": ["group = column // (columns // mean.shape[1])"],
                "of_row": ["centre = mean[row, group]", "scale = rstd[row, group]"],
                "neighbours": n // mean.shape[1],
                **figures,
            }
        lines = ["dbeta{k} += dy{k}", f"dgamma{{k}} += dy{{k}} * ({xhat})"]
        sums = {"dgamma": dgammas, "dbeta": dbetas}
        launch = column_sums("gradient_sums", {"dy": dy, "x": x}, sums, lines, **where)
    return [launch, *sum_partials(dgammas, dgamma), *sum_partials(dbetas, dbeta)]


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
