"""Softmax, and its cross-entropy with class numbers and with probabilities, on CUDA.

Memory contract: outputs are overwritten. Gradients are those of the mean over the batch, 1/m included. A warp takes a
row and keeps it in registers (warp.py); of rows too long for that, its lanes go over every 32nd element several times.
Sums are of the model's dtype, in one fixed order.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from .launch import CUDA, Launch, kernel
from .warp import WARPS, Row, row_kernel, row_max, row_of, rows_of, scalar_name, warp_sum

# -------------------------------------------------------------------------------------------- rows in registers

_FORWARD = """
def {name}(z, y, rows, columns):
{begin}
{z}
    peak = lowest
{peak}
    peak = warp_max(peak)
    total = zero
{exponentials}
    scale = one / warp_sum(total)
{y}
"""

_BACKWARD = """
def {name}(dy, y, dz, rows, columns):
{begin}
{dy}
{y}
    total = zero
{dot}
    total = warp_sum(total)
{dz}
"""

_LABELS = """
def {name}(z, labels, weight, loss, dz, inverse, rows, columns):
{begin}
{z}
    peak = lowest
{peak}
    peak = warp_max(peak)
    total = zero
{exponentials}
    total = warp_sum(total)
    label = labels[row] - column
    w = {w}
    share = w * inverse
    scale = share / total
    mine = False
    logit = zero
{find}
    if mine:
        loss[row] = w * (log(total) - (logit - peak))
{dz}
"""

_TARGETS = """
def {name}(z, target, weight, loss, dz, inverse, rows, columns):
{begin}
{z}
{t}
    peak = lowest
{peak}
    peak = warp_max(peak)
    total = zero
    mass = zero
    dot = zero
{sums}
    total = warp_sum(total)
    mass = warp_sum(mass)
    dot = warp_sum(dot)
    w = {w}
    share = w * inverse
    scale = mass * share / total
    if cuda.threadIdx.x == 0:
        loss[row] = w * (mass * log(total) - dot)
{dz}
"""

_PEAK = "peak = z{e} if z{e} > peak else peak"


@functools.cache
def _forward_of_rows(dtype: Any, row: Row) -> Any:
    name = scalar_name("softmax_row", row)
    text = _FORWARD.format(
        name=name,
        begin=row.begin,
        z=row.load("z", "z", "lowest"),
        peak=row.each(_PEAK),
        exponentials=row.each("z{e} = exp(z{e} - peak); total += z{e}"),
        y=row.store("y", "z{e} * scale"),
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _backward_of_rows(dtype: Any, row: Row) -> Any:
    name = scalar_name("softmax_gradient_row", row)
    text = _BACKWARD.format(
        name=name,
        begin=row.begin,
        dy=row.load("d", "dy"),
        y=row.load("y", "y"),
        dot=row.each("total += d{e} * y{e}"),
        dz=row.store("dz", "y{e} * (d{e} - total)"),
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _cross_entropy_of_rows(dtype: Any, row: Row, dense: bool, weighted: bool, with_gradient: bool) -> Any:
    name = scalar_name("cross_entropy_targets_row" if dense else "cross_entropy_row", row)
    keep = "e{e} = exp(z{e} - peak); total += e{e}"
    # a class without mass costs nothing, whatever its logit
    dot = "mass += t{e}; dot += t{e} * (z{e} - peak) if t{e} != zero else zero"
    gradient = "e{e} * scale - share * t{e}" if dense else "e{e} * scale - (share if label + column == {j} else zero)"
    text = (_TARGETS if dense else _LABELS).format(
        name=name,
        begin=row.begin,
        z=row.load("z", "z", "lowest"),
        t=row.load("t", "target"),
        peak=row.each(_PEAK),
        exponentials=row.each(keep),
        sums=row.each(f"{keep}; {dot}"),
        find="\n".join(f"    if label == {row.offset(e)}:\n        mine = True; logit = z{e}" for e in range(row.kept)),
        w="weight[row]" if weighted else "one",
        dz=row.store("dz", gradient) if with_gradient else "",
    )
    return row_kernel(text, name, dtype)


# -------------------------------------------------------------------------------------------------- longer rows


@kernel
def _softmax_forward(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)
    exp = CUDA.math("exp", dtype)

    def softmax_forward(z, y):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= z.shape[0]:
            return
        peak = row_max(z, row, lowest)
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


@kernel
def _cross_entropy(dtype: Any, weighted: bool, with_gradient: bool) -> Any:
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)
    exp, log = CUDA.math("exp", dtype), CUDA.math("log", dtype)

    def cross_entropy(z, labels, weight, loss, dz, inverse):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= z.shape[0]:
            return
        peak = row_max(z, row, lowest)
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

    def cross_entropy_dense(z, target, weight, loss, dz, inverse):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * WARPS + cuda.threadIdx.y
        if row >= z.shape[0]:
            return
        peak = row_max(z, row, lowest)
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


# ------------------------------------------------------------------------------------------------- instructions


def _sizes(z: Any) -> tuple[Any, ...]:
    return tuple(np.int64(size) for size in z.shape)


def softmax_forward(z: Any, y: Any) -> list[Launch]:
    """``y = exp(z - max z) / sum exp(z - max z)`` for each row."""
    row = row_of(z.shape[1], z, y)
    if row is None:
        return [Launch(_softmax_forward(z.dtype), *rows_of(z.shape[0]), (z, y))]
    return [Launch(_forward_of_rows(z.dtype, row), *rows_of(z.shape[0]), (z.ravel(), y.ravel(), *_sizes(z)))]


def softmax_backward(dy: Any, y: Any, dz: Any) -> list[Launch]:
    """``dz = y * (dy - sum(dy * y))`` for each row."""
    row = row_of(y.shape[1], dy, y, dz)
    if row is None:
        return [Launch(_softmax_backward(y.dtype), *rows_of(y.shape[0]), (dy, y, dz))]
    arrays = (a.ravel() for a in (dy, y, dz))
    return [Launch(_backward_of_rows(y.dtype, row), *rows_of(y.shape[0]), (*arrays, *_sizes(y)))]


def loss_operands(z: Any, weight: Any, loss: Any, dz: Any) -> tuple[Any, ...]:
    """What kernels of losses take: the weight, the loss, the gradient, each or one of its kind, and 1/m."""
    inverse = z.dtype.type(1.0 / z.shape[0])
    return loss if weight is None else weight, loss, z if dz is None else dz, inverse


def softmax_cross_entropy(z: Any, labels: Any, weight: Any, loss: Any, dz: Any) -> list[Launch]:
    """``loss = log sum exp z - z[label]``, ``dz = weight (softmax z - onehot) / m``."""
    flags = weight is not None, dz is not None
    weight, loss, dz, inverse = loss_operands(z, weight, loss, dz)
    row = row_of(z.shape[1], z, dz)
    if row is None:
        return [Launch(_cross_entropy(z.dtype, *flags), *rows_of(z.shape[0]), (z, labels, weight, loss, dz, inverse))]
    made = _cross_entropy_of_rows(z.dtype, row, False, *flags)
    arguments = z.ravel(), labels, weight, loss, dz.ravel(), inverse, *_sizes(z)
    return [Launch(made, *rows_of(z.shape[0]), arguments)]


def softmax_cross_entropy_dense(z: Any, target: Any, weight: Any, loss: Any, dz: Any) -> list[Launch]:
    """``loss = sum_j t_j (log sum exp z - z_j)``, ``dz = weight (softmax(z) sum t - t) / m``."""
    flags = weight is not None, dz is not None
    weight, loss, dz, inverse = loss_operands(z, weight, loss, dz)
    row = row_of(z.shape[1], z, target, dz)
    if row is None:
        made = _cross_entropy_dense(z.dtype, *flags)
        return [Launch(made, *rows_of(z.shape[0]), (z, target, weight, loss, dz, inverse))]
    made = _cross_entropy_of_rows(z.dtype, row, True, *flags)
    arguments = z.ravel(), target.ravel(), weight, loss, dz.ravel(), inverse, *_sizes(z)
    return [Launch(made, *rows_of(z.shape[0]), arguments)]
