"""Dense layers on CUDA: ``y = g(x W + b)`` and its three gradients.

Memory contract: outputs are overwritten; ``z`` is written only where it is given, which is when the derivative of
the activation reads it. The activation runs in the epilogue of the product, on sums that are still in registers; where
cuBLASLt was measured to be faster, it is a pass of its own behind the library's product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..precision import get_matmul_precision
from . import choices, cublaslt, gemm, gemm_tensor
from .column_sums import column_sums, partials, sum_partials
from .elements import element_pass
from .launch import CHUNK, Launch, ceil_div, device_function


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


def dense_backward_z(rule: Any, dy: Any, z: Any, y: Any, dz: Any, db: Any) -> list[Launch]:
    """``dz = dy * g'(z, y)`` and, where it is given, ``db`` = sum of the rows of ``dz``."""
    partial = None if db is None else partials(db, ceil_div(y.shape[0], CHUNK))
    vectors = {"dy": dy, "y": y} if z is None else {"dy": dy, "y": y, "z": z}
    lines = [f"dz{{k}} = dy{{k}} * slope({'y' if z is None else 'z'}{{k}}, y{{k}})"]
    launch = column_sums(
        "slope_and_sum",
        vectors,
        {} if db is None else {"db": partial},
        lines if db is None else [*lines, "db{k} += dz{k}"],
        ("dz", dz, "dz{k}"),
        functions={"slope": device_function(rule, "slope", dy.dtype)},
    )
    return [launch, *([] if db is None else sum_partials(partial, db))]


def dense_backward_w(x: Any, dz: Any, dw: Any) -> list[Any]:
    """``dW = x^T dz``."""
    return multiply(x, dz, dw, "a^Tb")


def dense_backward_x(dz: Any, w: Any, dx: Any) -> list[Any]:
    """``dx = dz W^T``."""
    return multiply(dz, w, dx, "ab^T")


def activation_forward(rule: Any, z: Any, y: Any) -> list[Launch]:
    """``y = g(z)``."""
    functions = {"value": device_function(rule, "value", z.dtype)}
    return [element_pass("activation_value", {"z": z}, {"y": (y, "value(z{k})")}, functions=functions)]


def activation_backward(rule: Any, dy: Any, z: Any, y: Any, dz: Any) -> list[Launch]:
    """``dz = dy * g'(z, y)``."""
    functions = {"slope": device_function(rule, "slope", z.dtype)}
    gradient = {"dz": (dz, "dy{k} * slope(z{k}, y{k})")}
    return [element_pass("activation_slope", {"dy": dy, "z": z, "y": y}, gradient, functions=functions)]
