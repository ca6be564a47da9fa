"""What runs along rows on CUDA: gather, elementwise losses, metrics; for softmax see softmax.py.

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

from .block import block_sum
from .columns import lanes_of
from .launch import BLOCK, CUDA, Launch, device_function, flat, kernel, tiled
from .softmax import loss_operands
from .vector import access
from .warp import ALL, WARPS, rows_of, warp_sum

# --------------------------------------------------------------------------------------------------- gather


@kernel
def _gather_rows(dtype: Any, lanes: int) -> Any:
    _, load, store = access(dtype, lanes)

    def gather_rows(cursor, source, order, out, groups):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        group = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if lanes * row * groups < out.size and group < groups:
            place = order[cursor[0] + row] * groups + group
            store(out, lanes * (row * groups + group), load(source, lanes * place))

    return gather_rows


@kernel
def _gather_values() -> Any:
    def gather_values(cursor, source, order, out):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] = source[order[cursor[0] + i]]

    return gather_values


def gather_rows(cursor: Any, source: Any, order: Any, out: Any) -> list[Launch]:
    """``out[r] = source[order[cursor[0] + r]]`` for matrices."""
    rows, columns = out.shape
    lanes = lanes_of(columns, source, out)
    groups = columns // lanes
    arguments = cursor, source.ravel(), order, out.ravel(), np.int64(groups)
    return [Launch(_gather_rows(out.dtype, lanes), *tiled(rows, groups), arguments)]


def gather_labels(cursor: Any, source: Any, order: Any, out: Any) -> list[Launch]:
    """``out[r] = source[order[cursor[0] + r]]`` for vectors."""
    return [Launch(_gather_values(), *flat(out.size), (cursor, source, order, out))]


gather_values = gather_labels


# ------------------------------------------------------------------------------------------ reductions of a warp


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


# --------------------------------------------------------------------------------------------------- losses


@kernel
def _elementwise_loss(dtype: Any, value: Any, slope: Any, weighted: bool, with_gradient: bool) -> Any:
    zero = np.dtype(dtype).type(0)

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
    return [Launch(made, *rows_of(p.shape[0]), (p, target, *loss_operands(p, weight, loss, dp), share))]


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
    return [Launch(_categorical_accuracy(score.dtype, False), *rows_of(score.shape[0]), (score, labels, hit))]


def categorical_accuracy_dense(score: Any, target: Any, hit: Any) -> list[Launch]:
    """``hit = 1`` where the scores and the targets have their first maximum at the same place."""
    return [Launch(_categorical_accuracy(score.dtype, True), *rows_of(score.shape[0]), (score, target, hit))]


@kernel
def _binary_accuracy(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one, half = number(0), number(1), number(0.5)

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
    return [Launch(_binary_accuracy(score.dtype), *rows_of(score.shape[0]), arguments)]


@kernel
def _record(dtype: Any) -> Any:
    def record(cursor, value, history):  # type: ignore[no-untyped-def]
        """One block: strided sums, then a tree in shared memory."""
        sums = cuda.shared.array(BLOCK, numba.float64)
        t = cuda.threadIdx.x
        total = 0.0
        for i in range(t, value.size, BLOCK):
            total += float(value[i])
        block_sum(total, sums)
        if t == 0:
            history[cursor[1]] = sums[0] / float(value.size)

    return record


def record(cursor: Any, value: Any, history: Any) -> list[Launch]:
    """``history[cursor[1]] = mean(value)``, summed in float64."""
    return [Launch(_record(value.dtype), (1,), (BLOCK,), (cursor, value, history))]
