"""Dense layers on CUDA: ``y = g(x W + b)`` and its three gradients.

Memory contract: outputs are overwritten; ``z`` is written only where it is given, which is when the derivative of
the activation reads it. The activation runs in the epilogue of the product, on sums that are still in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from ..precision import get_matmul_precision
from . import gemm, gemm_tensor
from .launch import (
    BLOCK,
    CHUNK,
    DEPTH,
    WIDTH,
    Launch,
    ceil_div,
    device_function,
    element,
    flat,
    kernel,
    scratch,
    tiled,
)


def multiply(a: Any, b: Any, out: Any, *rest: Any) -> list[Launch]:
    """A product as gemm.py computes it, or on tensor cores where that was chosen."""
    precision = get_matmul_precision()
    if precision == "float32" or out.dtype != np.float32:
        return gemm.multiply(a, b, out, *rest)
    return gemm_tensor.multiply(precision, a, b, out, *rest)


def dense_forward(rule: Any, x: Any, w: Any, b: Any, z: Any, y: Any) -> list[Launch]:
    """``z = x W + b``, ``y = g(z)``."""
    value = device_function(rule, "value", x.dtype)
    return multiply(x, w, y, "ab", value, b, z)


@kernel
def _slope_and_sum(dtype: Any, slope: Any, sums: bool) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def slope_and_sum(dy, before, y, dz, partial):  # type: ignore[no-untyped-def]
        """A block takes 32 columns of 256 rows; thread (c, d) rows d, d + 8, ...; the 8 sums are added in order."""
        shared = cuda.shared.array((DEPTH, WIDTH), kind)
        rows, columns = y.shape
        lane = cuda.threadIdx.x
        depth = cuda.threadIdx.y
        column = cuda.blockIdx.y * WIDTH + lane
        total = zero
        if column < columns:
            last = min(rows, (cuda.blockIdx.x + 1) * CHUNK)
            for row in range(cuda.blockIdx.x * CHUNK + depth, last, DEPTH):
                d = dy[row, column] * slope(before[row, column], y[row, column])
                dz[row, column] = d
                total += d
        if sums:
            shared[depth, lane] = total
            cuda.syncthreads()
            if depth == 0 and column < columns:
                for k in range(1, DEPTH):
                    total += shared[k, lane]
                partial[cuda.blockIdx.x, column] = total

    return slope_and_sum


@kernel
def _add_partials(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)

    def add_partials(partial, out):  # type: ignore[no-untyped-def]
        column = cuda.grid(1)
        if column < out.size:
            total = zero
            for k in range(partial.shape[0]):
                total += partial[k, column]
            out[column] = total

    return add_partials


def sum_partials(partial: Any, out: Any) -> list[Launch]:
    """The launch that adds the rows of ``partial`` in order; none where ``partial`` is ``out`` itself."""
    if partial.shape[0] == 1:
        return []
    return [Launch(_add_partials(out.dtype), (ceil_div(out.size, BLOCK),), (BLOCK,), (partial, out))]


def partials(out: Any, parts: int) -> Any:
    """Room for ``parts`` rows of sums: ``out`` itself where that is one."""
    return out.reshape(1, out.size) if parts == 1 else scratch(out, (parts, out.size))


def dense_backward_z(rule: Any, dy: Any, z: Any, y: Any, dz: Any, db: Any) -> list[Launch]:
    """``dz = dy * g'(z, y)`` and, where it is given, ``db`` = sum of the rows of ``dz``."""
    made = _slope_and_sum(dy.dtype, device_function(rule, "slope", dy.dtype), db is not None)
    partial = dz if db is None else partials(db, ceil_div(y.shape[0], CHUNK))
    launch = Launch(made, *tiled(*y.shape, depth=CHUNK), (dy, y if z is None else z, y, dz, partial))
    return [launch, *([] if db is None else sum_partials(partial, db))]


def dense_backward_w(x: Any, dz: Any, dw: Any) -> list[Launch]:
    """``dW = x^T dz``."""
    return multiply(x, dz, dw, "a^Tb")


def dense_backward_x(dz: Any, w: Any, dx: Any) -> list[Launch]:
    """``dx = dz W^T``."""
    return multiply(dz, w, dx, "ab^T")


@kernel
def _value(value: Any) -> Any:
    def activation_value(z, y):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
            y[i] = value(z[i])

    return activation_value


@kernel
def _slope(slope: Any) -> Any:
    def activation_slope(dy, z, y, dz):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), dz.size, cuda.gridsize(1)):
            dz[i] = dy[i] * slope(z[i], y[i])

    return activation_slope


def activation_forward(rule: Any, z: Any, y: Any) -> list[Launch]:
    """``y = g(z)``."""
    return [Launch(_value(device_function(rule, "value", z.dtype)), *flat(z.size), (z.ravel(), y.ravel()))]


def activation_backward(rule: Any, dy: Any, z: Any, y: Any, dz: Any) -> list[Launch]:
    """``dz = dy * g'(z, y)``."""
    made = _slope(device_function(rule, "slope", z.dtype))
    return [Launch(made, *flat(z.size), tuple(a.ravel() for a in (dy, z, y, dz)))]
