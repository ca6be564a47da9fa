"""Log-softmax, the losses that couple the elements of a row, and label smoothing on CUDA.

Memory contract: outputs are overwritten. Gradients of losses are those of the mean over the batch, 1/m included. A warp
takes a row, as in rowwise.py; sums are of the model's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .launch import CUDA, Launch, kernel, tiled
from .warp import ALL, WARPS, row_max, rows_of, warp_sum

# ---------------------------------------------------------------------------------------------- log-softmax


@kernel
def _log_softmax_forward(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, lowest = number(0), number(-np.inf)
    exp, log = CUDA.math("exp", dtype), CUDA.math("log", dtype)

    def log_softmax_forward(z, y):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= z.shape[0]:
            return
        peak = row_max(z, row, lowest)
        total = zero
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            total += exp(z[row, j] - peak)
        shift = log(warp_sum(total))
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            y[row, j] = (z[row, j] - peak) - shift

    return log_softmax_forward


@kernel
def _log_softmax_backward(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    exp = CUDA.math("exp", dtype)

    def log_softmax_backward(dy, y, dz):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= y.shape[0]:
            return
        total = zero
        for j in range(cuda.threadIdx.x, y.shape[1], 32):
            total += dy[row, j]
        total = warp_sum(total)
        for j in range(cuda.threadIdx.x, y.shape[1], 32):
            dz[row, j] = dy[row, j] - exp(y[row, j]) * total

    return log_softmax_backward


def log_softmax_forward(z: Any, y: Any) -> list[Launch]:
    """``y = z - max z - log sum exp(z - max z)`` for each row."""
    return [Launch(_log_softmax_forward(z.dtype), *rows_of(z.shape[0]), (z, y))]


def log_softmax_backward(dy: Any, y: Any, dz: Any) -> list[Launch]:
    """``dz = dy - exp(y) * sum(dy)`` for each row."""
    return [Launch(_log_softmax_backward(y.dtype), *rows_of(y.shape[0]), (dy, y, dz))]


# ------------------------------------------------------------------------------------------ label smoothing


@kernel
def _smooth(dense: bool) -> Any:
    def smooth(target, out, keep, share):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        column = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if row < out.shape[0] and column < out.shape[1]:
            if dense:
                out[row, column] = keep * target[row, column] + share
            else:
                out[row, column] = keep + share if column == target[row] else share

    return smooth


def smooth_targets(target: Any, out: Any, keep: float, share: float) -> list[Launch]:
    """``out = keep * target + share``."""
    number = out.dtype.type
    return [Launch(_smooth(True), *tiled(*out.shape), (target, out, number(keep), number(share)))]


def smooth_labels(labels: Any, out: Any, keep: float, share: float) -> list[Launch]:
    """``out = keep * onehot + share``."""
    number = out.dtype.type
    return [Launch(_smooth(False), *tiled(*out.shape), (labels, out, number(keep), number(share)))]


# --------------------------------------------------------------------------------------------------- losses


@kernel
def _cosine_similarity(dtype: Any, weighted: bool, with_gradient: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one, least = number(0), number(1), number(1e-12)
    sqrt = CUDA.math("sqrt", dtype)

    def cosine_similarity(p, target, weight, loss, dp, inverse):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= p.shape[0]:
            return
        dot = zero
        squares = zero
        others = zero
        for j in range(cuda.threadIdx.x, p.shape[1], 32):
            a = p[row, j]
            b = target[row, j]
            dot += a * b
            squares += a * a
            others += b * b
        dot = warp_sum(dot)
        squares = warp_sum(squares)
        others = warp_sum(others)
        held = squares < least  # then only the product depends on p
        if held:
            squares = least
        if others < least:
            others = least
        across = one / (sqrt(squares) * sqrt(others))
        w = one
        if weighted:
            w = weight[row]
        if with_gradient:
            share = w * inverse
            along = zero if held else dot * across / squares
            for j in range(cuda.threadIdx.x, p.shape[1], 32):
                dp[row, j] = share * (along * p[row, j] - across * target[row, j])
        if cuda.threadIdx.x == 0:
            loss[row] = -w * (dot * across)

    return cosine_similarity


@kernel
def _categorical_hinge(dtype: Any, weighted: bool, with_gradient: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)

    def categorical_hinge(p, target, weight, loss, dp, inverse):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= p.shape[0]:
            return
        correct = zero
        largest = lowest
        worst = p.shape[1]
        for j in range(cuda.threadIdx.x, p.shape[1], 32):
            t = target[row, j]
            correct += t * p[row, j]
            other = (one - t) * p[row, j]
            if other > largest:
                largest = other
                worst = j
        correct = warp_sum(correct)
        for offset in (16, 8, 4, 2, 1):
            other = cuda.shfl_xor_sync(ALL, largest, offset)
            place = cuda.shfl_xor_sync(ALL, worst, offset)
            if other > largest or (other == largest and place < worst):
                largest = other
                worst = place
        margin = one + largest - correct
        w = one
        if weighted:
            w = weight[row]
        share = w * inverse
        if margin < zero:
            margin = zero
            share = zero
        if with_gradient:
            for j in range(cuda.threadIdx.x, p.shape[1], 32):
                t = target[row, j]
                d = -share * t
                if j == worst:
                    d += share * (one - t)
                dp[row, j] = d
        if cuda.threadIdx.x == 0:
            loss[row] = w * margin

    return categorical_hinge


@kernel
def _hellinger_distance(dtype: Any, weighted: bool, with_gradient: bool) -> Any:
    number = np.dtype(dtype).type
    zero, half, one, eight, clip = number(0), number(0.5), number(1), number(8), number(1e-7)
    sqrt = CUDA.math("sqrt", dtype)

    def hellinger_distance(p, target, weight, loss, dp, inverse):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= p.shape[0]:
            return
        total = zero
        for j in range(cuda.threadIdx.x, p.shape[1], 32):
            q = p[row, j]
            t = target[row, j]
            d = sqrt(clip if q < clip else q) - sqrt(zero if t < zero else t)
            total += d * d
        total = warp_sum(total)
        w = one
        if weighted:
            w = weight[row]
        if with_gradient:
            share = zero
            if total != zero:
                share = w * inverse / sqrt(eight * total)
            for j in range(cuda.threadIdx.x, p.shape[1], 32):
                q = p[row, j]
                t = target[row, j]
                root = sqrt(clip if q < clip else q)
                dp[row, j] = share * (root - sqrt(zero if t < zero else t)) / root
        if cuda.threadIdx.x == 0:
            loss[row] = w * sqrt(half * total)

    return hellinger_distance


def _launch(make: Any, p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    made = make(p.dtype, weight is not None, dp is not None)
    rest = loss if weight is None else weight, loss, p if dp is None else dp, p.dtype.type(1.0 / p.shape[0])
    return [Launch(made, *rows_of(p.shape[0]), (p, target, *rest))]


def cosine_similarity(p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    """``loss = -p t / (|p| |t|)``, squared norms at least 1e-12; ``dp = weight (c p / |p|^2 - t / (|p| |t|)) / m``."""
    return _launch(_cosine_similarity, p, target, weight, loss, dp)


def categorical_hinge(p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    """``loss = max(0, 1 + max_j (1 - t_j) p_j - sum_j t_j p_j)``; the first maximum takes the gradient."""
    return _launch(_categorical_hinge, p, target, weight, loss, dp)


def hellinger_distance(p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    """``loss = |sqrt p - sqrt t| / sqrt 2``, ``p`` at least 1e-7; the gradient at distance 0 is 0."""
    return _launch(_hellinger_distance, p, target, weight, loss, dp)
