"""What runs along rows on CUDA: gather, elementwise losses, metrics; for softmax see softmax.py.

Memory contract: outputs are overwritten. Gradients of losses are those of the mean over the batch, 1/m included. One
warp goes along a row; its lanes take neighbours, 128 bits at once where columns and addresses allow it, and meet in
butterfly shuffles, which add in one fixed order. The sums are of the model's dtype: in a tree over 32 lanes the error
grows with n/32, where the CPU file, which adds one after another, keeps float64. ``record`` alone sums in float64.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import cuda

from .block import block_sum
from .columns import lanes_of, marked
from .launch import BLOCK, Launch, device_function, flat, kernel, tiled
from .softmax import loss_launch
from .vector import access
from .warp import Passes, Row, first_largest, row_kernel, row_launch, row_name, row_of

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

    return marked(gather_rows, lanes)


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


_ARGMAX = """
    best{which} = {array}[row * columns]
    place{which} = 0
{search}
{meet}"""


def _argmax(row: Row, array: str, which: str = "") -> str:
    """The lines that find ``place``, of the first largest element of a row; 0 where the row begins with NaN."""
    line = f"if v{{e}} > best{which}: best{which} = v{{e}}; place{which} = {{j}}"
    meet = first_largest(f"best{which}", f"place{which}")
    return _ARGMAX.format(array=array, which=which, search=Passes(row, {"v": array})("v", line), meet=meet)


# --------------------------------------------------------------------------------------------------- losses

_LOSS = """
def {name}(p, target, dp, weight, loss, inverse, share, rows, columns):
{begin}
    w = {w}
    scale = w * inverse
    total = zero
{elements}
    total = warp_sum(total)
    if cuda.threadIdx.x == 0:
        loss[row] = w * total
"""


@functools.cache
def _elementwise_loss(dtype: Any, row: Row, weighted: bool, with_gradient: bool, value: Any, slope: Any) -> Any:
    name, go = row_name("elementwise_loss", row), Passes(row, {"q": "p", "t": "target"})
    puts = {"dp": "scale * slope(q{e}, t{e})"} if with_gradient else {}
    text = _LOSS.format(
        name=name,
        begin=row.begin,
        w="share * weight[row]" if weighted else "share",
        elements=go("q t", "total += value(q{e}, t{e})", **puts),
    )
    return row_kernel(text, name, dtype, value=value, slope=slope)


def elementwise_loss(rule: Any, p: Any, target: Any, weight: Any, loss: Any, dp: Any, mean: float) -> list[Launch]:
    """Per row the sum or mean of ``L(p, t)``; ``dp = weight L'(p, t) / m``, divided by n too for the mean."""
    functions = [device_function(rule, part, p.dtype) for part in ("value", "slope")]
    row = row_of(p.shape[1], p, target, p if dp is None else dp, keep=False)
    share = p.dtype.type(1.0 / p.shape[1] if mean else 1.0)
    return [loss_launch(lambda *key: _elementwise_loss(*key, *functions), row, p, target, weight, loss, dp, share)]


# -------------------------------------------------------------------------------------------------- metrics


_ACCURACY = """
def {name}(score, {array}, hit, rows, columns):
{begin}
{place}
{expected}
    if cuda.threadIdx.x == 0:
        hit[row] = one if place == {wanted} else zero
"""


@functools.cache
def _categorical_accuracy(dtype: Any, row: Row, dense: bool) -> Any:
    name = row_name("accuracy_of_targets" if dense else "accuracy_of_labels", row)
    text = _ACCURACY.format(
        name=name,
        array="target" if dense else "labels",
        begin=row.begin,
        place=_argmax(row, "score"),
        expected=_argmax(row, "target", "_expected") if dense else "",
        wanted="place_expected" if dense else "labels[row]",
    )
    return row_kernel(text, name, dtype)


def categorical_accuracy(score: Any, labels: Any, hit: Any) -> list[Launch]:
    """``hit = 1`` where the first maximum of the scores is at the label."""
    row = row_of(score.shape[1], score, keep=False)
    return [row_launch(_categorical_accuracy(score.dtype, row, False), [score], labels, hit)]


def categorical_accuracy_dense(score: Any, target: Any, hit: Any) -> list[Launch]:
    """``hit = 1`` where the scores and the targets have their first maximum at the same place."""
    row = row_of(score.shape[1], score, target, keep=False)
    return [row_launch(_categorical_accuracy(score.dtype, row, True), [score, target], hit)]


_BINARY = """
def {name}(score, target, hit, threshold, half, all, rows, columns):
{begin}
    count = zero
{elements}
    count = warp_sum(count)
    if cuda.threadIdx.x == 0:
        hit[row] = count / all
"""


@functools.cache
def _binary_accuracy(dtype: Any, row: Row) -> Any:
    name, go = row_name("binary_accuracy", row), Passes(row, {"s": "score", "t": "target"})
    elements = go("s t", "count += one if (s{e} > threshold) == (t{e} > half) else zero")
    return row_kernel(_BINARY.format(name=name, begin=row.begin, elements=elements), name, dtype)


def binary_accuracy(score: Any, target: Any, hit: Any, threshold: float) -> list[Launch]:
    """The share of the columns in which ``score > threshold`` agrees with ``target > 1/2``."""
    number = score.dtype.type
    bound = number(threshold)
    if float(bound) > threshold:  # rounded down, so that float32 scores compare as with the float64 threshold
        bound = np.nextafter(bound, number(-np.inf))
    row = row_of(score.shape[1], score, target, keep=False)
    made = _binary_accuracy(score.dtype, row)
    return [row_launch(made, [score, target], hit, bound, number(0.5), number(score.shape[1]))]


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
