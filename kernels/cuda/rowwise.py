"""What runs along rows on CUDA: gather, softmax, losses, metrics.

Memory contract: outputs are overwritten. Gradients of losses are those of the mean over the batch, 1/m included. One
warp takes a row; its lanes hold every 32nd element and meet in butterfly shuffles, which add in one fixed order. The
sums are of the model's dtype: in a tree over 32 lanes the error grows with n/32, where the CPU file, which adds one
after another, keeps float64. ``record`` alone sums in float64.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import cuda

from .launch import BLOCK, CUDA, Launch, ceil_div, device_function, flat, kernel, tiled

WARPS = 4  # rows a block takes
ALL = 0xFFFFFFFF


def _rows(rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (ceil_div(rows, WARPS),), (32, WARPS)


# --------------------------------------------------------------------------------------------------- gather


@kernel
def _gather_rows() -> Any:
    def gather_rows(cursor, source, order, out):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        column = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if row < out.shape[0] and column < out.shape[1]:
            out[row, column] = source[order[cursor[0] + row], column]

    return gather_rows


@kernel
def _gather_values() -> Any:
    def gather_values(cursor, source, order, out):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] = source[order[cursor[0] + i]]

    return gather_values


def gather_rows(cursor: Any, source: Any, order: Any, out: Any) -> list[Launch]:
    """``out[r] = source[order[cursor[0] + r]]`` for matrices."""
    return [Launch(_gather_rows(), *tiled(*out.shape), (cursor, source, order, out))]


def gather_labels(cursor: Any, source: Any, order: Any, out: Any) -> list[Launch]:
    """``out[r] = source[order[cursor[0] + r]]`` for vectors."""
    return [Launch(_gather_values(), *flat(out.size), (cursor, source, order, out))]


gather_values = gather_labels


# ------------------------------------------------------------------------------------------ reductions of a warp


def _warp_sum(v):  # type: ignore[no-untyped-def]
    """The sum over the lanes, the same in each."""
    for offset in (16, 8, 4, 2, 1):
        v += cuda.shfl_xor_sync(ALL, v, offset)
    return v


def _warp_max(v):  # type: ignore[no-untyped-def]
    """The largest over the lanes, the same in each; NaN is no maximum."""
    for offset in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync(ALL, v, offset)
        if other > v:
            v = other
    return v


def _warp_argmax(values, row):  # type: ignore[no-untyped-def]
    """The first place of the largest element of a row; 0 where the row begins with NaN."""
    best = values[row, 0]
    place = 0
    for j in range(cuda.threadIdx.x, values.shape[1], 32):
        v = values[row, j]
        if v > best:
            best = v
            place = j
    for offset in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync(ALL, best, offset)
        other_place = cuda.shfl_xor_sync(ALL, place, offset)
        if other > best or (other == best and other_place < place):
            best = other
            place = other_place
    return place


# -------------------------------------------------------------------------------------------------- softmax


@kernel
def _softmax_forward(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)
    exp = CUDA.math("exp", dtype)
    warp_sum, warp_max = CUDA.inline(_warp_sum), CUDA.inline(_warp_max)

    def softmax_forward(z, y):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= z.shape[0]:
            return
        peak = lowest
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            v = z[row, j]
            if v > peak:
                peak = v
        peak = warp_max(peak)
        total = zero
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            e = exp(z[row, j] - peak)
            y[row, j] = e
            total += e
        scale = one / warp_sum(total)
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            y[row, j] *= scale

    return softmax_forward


@kernel
def _softmax_backward(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    warp_sum = CUDA.inline(_warp_sum)

    def softmax_backward(dy, y, dz):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= y.shape[0]:
            return
        total = zero
        for j in range(cuda.threadIdx.x, y.shape[1], 32):
            total += dy[row, j] * y[row, j]
        total = warp_sum(total)
        for j in range(cuda.threadIdx.x, y.shape[1], 32):
            dz[row, j] = y[row, j] * (dy[row, j] - total)

    return softmax_backward


def softmax_forward(z: Any, y: Any) -> list[Launch]:
    """``y = exp(z - max z) / sum exp(z - max z)`` for each row."""
    return [Launch(_softmax_forward(z.dtype), *_rows(z.shape[0]), (z, y))]


def softmax_backward(dy: Any, y: Any, dz: Any) -> list[Launch]:
    """``dz = y * (dy - sum(dy * y))`` for each row."""
    return [Launch(_softmax_backward(y.dtype), *_rows(y.shape[0]), (dy, y, dz))]


# --------------------------------------------------------------------------------------------------- losses


@kernel
def _cross_entropy(dtype: Any, weighted: bool, with_gradient: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)
    exp, log = CUDA.math("exp", dtype), CUDA.math("log", dtype)
    warp_sum, warp_max = CUDA.inline(_warp_sum), CUDA.inline(_warp_max)

    def cross_entropy(z, labels, weight, loss, dz, inverse):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= z.shape[0]:
            return
        peak = lowest
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            v = z[row, j]
            if v > peak:
                peak = v
        peak = warp_max(peak)
        total = zero
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            e = exp(z[row, j] - peak)
            if with_gradient:
                dz[row, j] = e
            total += e
        total = warp_sum(total)
        label = labels[row]
        w = one
        if weighted:
            w = weight[row]
        if with_gradient:
            share = w * inverse
            scale = share / total
            for j in range(cuda.threadIdx.x, z.shape[1], 32):
                d = dz[row, j] * scale
                if j == label:
                    d -= share
                dz[row, j] = d
        if cuda.threadIdx.x == 0:
            loss[row] = w * (log(total) - (z[row, label] - peak))

    return cross_entropy


@kernel
def _cross_entropy_dense(dtype: Any, weighted: bool, with_gradient: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)
    exp, log = CUDA.math("exp", dtype), CUDA.math("log", dtype)
    warp_sum, warp_max = CUDA.inline(_warp_sum), CUDA.inline(_warp_max)

    def cross_entropy_dense(z, target, weight, loss, dz, inverse):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= z.shape[0]:
            return
        peak = lowest
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            v = z[row, j]
            if v > peak:
                peak = v
        peak = warp_max(peak)
        total = zero
        mass = zero
        dot = zero
        for j in range(cuda.threadIdx.x, z.shape[1], 32):
            d = z[row, j] - peak
            t = target[row, j]
            e = exp(d)
            if with_gradient:
                dz[row, j] = e
            total += e
            mass += t
            if t != zero:  # a class without mass costs nothing, whatever its logit
                dot += t * d
        total = warp_sum(total)
        mass = warp_sum(mass)
        dot = warp_sum(dot)
        w = one
        if weighted:
            w = weight[row]
        if with_gradient:
            share = w * inverse
            scale = mass * share / total
            for j in range(cuda.threadIdx.x, z.shape[1], 32):
                dz[row, j] = dz[row, j] * scale - share * target[row, j]
        if cuda.threadIdx.x == 0:
            loss[row] = w * (mass * log(total) - dot)

    return cross_entropy_dense


def _loss_operands(z: Any, weight: Any, loss: Any, dz: Any) -> tuple[Any, ...]:
    inverse = z.dtype.type(1.0 / z.shape[0])
    return loss if weight is None else weight, loss, z if dz is None else dz, inverse


def softmax_cross_entropy(z: Any, labels: Any, weight: Any, loss: Any, dz: Any) -> list[Launch]:
    """``loss = log sum exp z - z[label]``, ``dz = weight (softmax z - onehot) / m``."""
    made = _cross_entropy(z.dtype, weight is not None, dz is not None)
    return [Launch(made, *_rows(z.shape[0]), (z, labels, *_loss_operands(z, weight, loss, dz)))]


def softmax_cross_entropy_dense(z: Any, target: Any, weight: Any, loss: Any, dz: Any) -> list[Launch]:
    """``loss = sum_j t_j (log sum exp z - z_j)``, ``dz = weight (softmax(z) sum t - t) / m``."""
    made = _cross_entropy_dense(z.dtype, weight is not None, dz is not None)
    return [Launch(made, *_rows(z.shape[0]), (z, target, *_loss_operands(z, weight, loss, dz)))]


@kernel
def _elementwise_loss(dtype: Any, value: Any, slope: Any, weighted: bool, with_gradient: bool) -> Any:
    zero = np.dtype(dtype).type(0)
    warp_sum = CUDA.inline(_warp_sum)

    def elementwise_loss(p, target, weight, loss, dp, inverse, share):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= p.shape[0]:
            return
        w = share
        if weighted:
            w *= weight[row]
        total = zero
        scale = w * inverse
        for j in range(cuda.threadIdx.x, p.shape[1], 32):
            q = p[row, j]
            t = target[row, j]
            total += value(q, t)
            if with_gradient:
                dp[row, j] = scale * slope(q, t)
        total = warp_sum(total)
        if cuda.threadIdx.x == 0:
            loss[row] = w * total

    return elementwise_loss


def elementwise_loss(rule: Any, p: Any, target: Any, weight: Any, loss: Any, dp: Any, mean: float) -> list[Launch]:
    """Per row the sum or mean of ``L(p, t)``; ``dp = weight L'(p, t) / m``, divided by n too for the mean."""
    value, slope = (device_function(rule, part, p.dtype) for part in ("value", "slope"))
    made = _elementwise_loss(p.dtype, value, slope, weight is not None, dp is not None)
    share = p.dtype.type(1.0 / p.shape[1] if mean else 1.0)
    return [Launch(made, *_rows(p.shape[0]), (p, target, *_loss_operands(p, weight, loss, dp), share))]


# -------------------------------------------------------------------------------------------------- metrics


@kernel
def _categorical_accuracy(dtype: Any, dense: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    warp_argmax = CUDA.inline(_warp_argmax)

    def accuracy_of_labels(score, labels, hit):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= score.shape[0]:
            return
        place = warp_argmax(score, row)
        if cuda.threadIdx.x == 0:
            hit[row] = one if place == labels[row] else zero

    def accuracy_of_targets(score, target, hit):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= score.shape[0]:
            return
        place = warp_argmax(score, row)
        expected = warp_argmax(target, row)
        if cuda.threadIdx.x == 0:
            hit[row] = one if place == expected else zero

    return accuracy_of_targets if dense else accuracy_of_labels


def categorical_accuracy(score: Any, labels: Any, hit: Any) -> list[Launch]:
    """``hit = 1`` where the first maximum of the scores is at the label."""
    return [Launch(_categorical_accuracy(score.dtype, False), *_rows(score.shape[0]), (score, labels, hit))]


def categorical_accuracy_dense(score: Any, target: Any, hit: Any) -> list[Launch]:
    """``hit = 1`` where the scores and the targets have their first maximum at the same place."""
    return [Launch(_categorical_accuracy(score.dtype, True), *_rows(score.shape[0]), (score, target, hit))]


@kernel
def _binary_accuracy(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one, half = number(0), number(1), number(0.5)
    warp_sum = CUDA.inline(_warp_sum)

    def binary_accuracy(score, target, hit, threshold, columns):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= score.shape[0]:
            return
        count = zero
        for j in range(cuda.threadIdx.x, score.shape[1], 32):
            if (score[row, j] > threshold) == (target[row, j] > half):
                count += one
        count = warp_sum(count)
        if cuda.threadIdx.x == 0:
            hit[row] = count / columns

    return binary_accuracy


def binary_accuracy(score: Any, target: Any, hit: Any, threshold: float) -> list[Launch]:
    """The share of the columns in which ``score > threshold`` agrees with ``target > 1/2``."""
    number = score.dtype.type
    bound = number(threshold)
    if float(bound) > threshold:  # rounded down, so that float32 scores compare as with the float64 threshold
        bound = np.nextafter(bound, number(-np.inf))
    arguments = (score, target, hit, bound, number(score.shape[1]))
    return [Launch(_binary_accuracy(score.dtype), *_rows(score.shape[0]), arguments)]


@kernel
def _record(dtype: Any) -> Any:
    def record(cursor, value, history):  # type: ignore[no-untyped-def]
        """One block: strided sums, then a tree in shared memory."""
        sums = cuda.shared.array(BLOCK, numba.float64)
        t = cuda.threadIdx.x
        total = 0.0
        for i in range(t, value.size, BLOCK):
            total += float(value[i])
        sums[t] = total
        cuda.syncthreads()
        half = BLOCK // 2
        while half > 0:
            if t < half:
                sums[t] += sums[t + half]
            cuda.syncthreads()
            half //= 2
        if t == 0:
            history[cursor[1]] = sums[0] / float(value.size)

    return record


def record(cursor: Any, value: Any, history: Any) -> list[Launch]:
    """``history[cursor[1]] = mean(value)``, summed in float64."""
    return [Launch(_record(value.dtype), (1,), (BLOCK,), (cursor, value, history))]
