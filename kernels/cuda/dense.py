"""Dense layers on CUDA: ``y = g(x W + b)`` and its three gradients.

Memory contract: outputs are overwritten; ``z`` is written only where it is given, which is when the derivative of
the activation reads it. The activation runs in the epilogue of the product, on sums that are still in registers; where
cuBLASLt was measured to be faster, it is a pass of its own behind the library's product.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from ..precision import get_matmul_precision
from . import choices, cublaslt, gemm, gemm_tensor
from .columns import each, lanes_of, load, store
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
    generated,
    kernel,
    scratch,
    tiled,
)
from .vector import access


def multiply(
    a: Any, b: Any, out: Any, form: str = "ab", rule: Any = None, bias: Any = None, z: Any = None
) -> list[Any]:
    """``z = a b + bias``, ``out = g(z)``, by cuBLASLt where that was measured to be faster, else by our kernels.

    Those are of gemm.py, or on tensor cores where that was chosen.
    """
    precision = get_matmul_precision() if out.dtype == np.float32 else out.dtype.name
    wanted = choices.product(precision, form, a, b, *([out] if z is None else [out, z]))
    algorithm = cublaslt.chosen(wanted, out if z is None else z, bias)
    if algorithm is not None:
        try:
            return cublaslt.multiply(algorithm, precision, a, b, out, form, rule, bias, z)
        except cublaslt.LibraryError as error:
            cublaslt.refuse(f"cuBLASLt was measured to be faster for {wanted}, but {error}")
    value = None if rule is None else device_function(rule, "value", out.dtype)
    if precision in choices.STRICT:
        return gemm.multiply(a, b, out, form, value, bias, z)
    return gemm_tensor.multiply(precision, a, b, out, form, value, bias, z)


def dense_forward(rule: Any, x: Any, w: Any, b: Any, z: Any, y: Any) -> list[Any]:
    """``z = x W + b``, ``y = g(z)``."""
    return multiply(x, w, y, "ab", rule, b, z)


_SLOPE_AND_SUM = """
def {name}(dy, before, y, dz, partial, rows, columns):
    shared = cuda.shared.array(({DEPTH}, {WIDTH} * {lanes}), element)
    lane = cuda.threadIdx.x * {lanes}
    depth = cuda.threadIdx.y
    column = cuda.blockIdx.y * {WIDTH} * {lanes} + lane
{zeros}
    if column < columns:
        last = min(rows, (cuda.blockIdx.x + 1) * {CHUNK})
        for row in range(cuda.blockIdx.x * {CHUNK} + depth, last, {DEPTH}):
            at = row * columns + column
            {dy}
            {y}
            {z}
{products}
            {dz}
{sums}
"""

_SUMS = """
{shared}
    cuda.syncthreads()
    if depth == 0 and column < columns:
        for k in range(1, {DEPTH}):
{add}
{partial}
"""


@functools.cache
def _slope_and_sum(dtype: Any, slope: Any, lanes: int, given: bool, sums: bool) -> Any:
    """A block takes 32 threads' columns of 256 rows; thread (c, d) rows d, d + 8, ...; the 8 sums are added in order.

    ``given``: the input of the activation is another array than its output.
    """
    name = "slope_and_sum" if lanes > 1 else "slope_and_sum_scalar"
    text = _SLOPE_AND_SUM.format(
        name=name,
        DEPTH=DEPTH,
        WIDTH=WIDTH,
        CHUNK=CHUNK,
        lanes=lanes,
        zeros=each("total{k} = zero", lanes, 4),
        dy=load("d", "dy", "at", lanes),
        y=load("y", "y", "at", lanes),
        z=load("z", "before", "at", lanes) if given else "pass",
        products=each(
            f"d{{k}} = d{{k}} * slope({'z' if given else 'y'}{{k}}, y{{k}}); total{{k}} += d{{k}}", lanes, 12
        ),
        dz=store("dz", "at", "d{k}", lanes),
        sums=_SUMS.format(
            DEPTH=DEPTH,
            shared=each("shared[depth, lane + {k}] = total{k}", lanes, 4),
            add=each("total{k} += shared[k, lane + {k}]", lanes, 12),
            partial=each("partial[cuda.blockIdx.x, column + {k}] = total{k}", lanes, 8),
        )
        if sums
        else "",
    )
    wide = access(dtype)
    scope = {"cuda": cuda, "element": element(dtype), "zero": np.dtype(dtype).type(0), "slope": slope}
    return generated(text, name, scope | {"load": wide.load, "store": wide.store}, np.dtype(dtype), slope)


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
    rows, columns = y.shape
    lanes = lanes_of(columns, dy, y, dz, *([] if z is None else [z]))
    slope = device_function(rule, "slope", dy.dtype)
    made = _slope_and_sum(dy.dtype, slope, lanes, z is not None, db is not None)
    partial = dz if db is None else partials(db, ceil_div(rows, CHUNK))
    flat = (a.ravel() for a in (dy, y if z is None else z, y, dz))
    arguments = *flat, partial, np.int64(rows), np.int64(columns)
    launch = Launch(made, *tiled(rows, ceil_div(columns, lanes), depth=CHUNK), arguments)
    return [launch, *([] if db is None else sum_partials(partial, db))]


def dense_backward_w(x: Any, dz: Any, dw: Any) -> list[Any]:
    """``dW = x^T dz``."""
    return multiply(x, dz, dw, "a^Tb")


def dense_backward_x(dz: Any, w: Any, dx: Any) -> list[Any]:
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
