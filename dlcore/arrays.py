"""What a user passes as data, checked once and laid out for the kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .losses import UNBOUNDED, Loss


def _array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "get") and hasattr(value, "__cuda_array_interface__"):
        value = value.get()  # CuPy
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not an array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}; expected numbers")
    return array


def samples(x: Any, shape: tuple[int, ...] | None, dtype: np.dtype, name: str = "x") -> np.ndarray:
    """``x (n, *shape)`` as a C-contiguous matrix ``(n, features)``."""
    array = _array(name, x)
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise ValueError(f"{name} has shape {array.shape}; expected (samples, features)")
    if shape is not None and array.shape[1:] != shape:
        raise ValueError(f"{name} has shape {array.shape}; this model expects (samples, {', '.join(map(str, shape))})")
    return np.ascontiguousarray(array.reshape(array.shape[0], math.prod(array.shape[1:])), dtype)


def _check_count(name: str, array: np.ndarray, count: int) -> None:
    if array.ndim == 0 or array.shape[0] != count:
        raise ValueError(f"{name} has shape {array.shape}; expected {count} samples, as many as x has")


def targets(y: Any, count: int, outputs: int, loss: Loss, logits: bool, dtype: np.dtype) -> np.ndarray:
    """``y`` as class numbers ``(n,)`` int64, or as a matrix ``(n, outputs)``; which one follows from the loss."""
    array = _array("y", y)
    _check_count("y", array, count)
    if loss.kind != "categorical":
        if array.ndim == 1:
            array = array[:, None]
        if array.shape != (count, outputs):
            raise ValueError(
                f"y has shape {np.shape(y)}; {loss.name} on {outputs} outputs expects ({count}, {outputs})"
            )
        matrix = np.ascontiguousarray(array, dtype)
        if loss.bounds is not None and matrix.size:
            low, high = loss.bounds
            if not (matrix.min() >= low and matrix.max() <= high):
                expected = f"at least {low}" if high == UNBOUNDED else f"{low} to {high}"
                raise ValueError(f"y ranges from {matrix.min():g} to {matrix.max():g}; {loss.name} expects {expected}")
        return _signed(matrix, loss) if loss.kind == "signed" else matrix
    if array.ndim == 2 and array.shape[1] == outputs and (outputs > 1 or array.dtype.kind == "f"):
        return np.ascontiguousarray(array, dtype)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"y has shape {array.shape}; {loss.name} on {outputs} classes expects class numbers ({count},) or "
            f"probabilities ({count}, {outputs})"
        )
    numbers = array.astype(np.int64)
    if array.dtype.kind == "f" and not np.array_equal(numbers, array):
        raise ValueError("y holds fractions; class numbers are integers")
    if count and (numbers.min() < 0 or numbers.max() >= outputs):
        wrong = numbers.min() if numbers.min() < 0 else numbers.max()
        raise ValueError(f"y holds class {wrong}; the model has {outputs} outputs, so classes are 0 to {outputs - 1}")
    if logits:
        return np.ascontiguousarray(numbers)
    return np.ascontiguousarray(np.eye(outputs, dtype=dtype)[numbers])


def _signed(matrix: np.ndarray, loss: Loss) -> np.ndarray:
    """Targets -1 and 1; those of 0 and 1 are taken as -1 and 1, as in Keras."""
    found = np.unique(matrix)
    wrong = found[~np.isin(found, (-1, 0, 1))]
    if wrong.size or {-1, 0} <= set(found.tolist()):
        values = f"{wrong[0]:g}" if wrong.size else "both -1 and 0"
        raise ValueError(f"y holds {values}; {loss.name} expects -1 and 1, or 0 and 1")
    return np.where(matrix == 0, matrix.dtype.type(-1), matrix)


def weights(
    sample_weight: Any, class_weight: dict[int, float] | None, target: np.ndarray, dtype: np.dtype
) -> np.ndarray | None:
    """One weight for each sample: its own times that of its class; None where there are neither."""
    count = target.shape[0]
    if sample_weight is None and class_weight is None:
        return None
    result = np.ones(count, dtype)
    if sample_weight is not None:
        array = _array("sample_weight", sample_weight)
        if array.shape != (count,):
            raise ValueError(f"sample_weight has shape {array.shape}; expected ({count},)")
        if array.size and not array.min() >= 0:
            raise ValueError(f"sample_weight must not be negative, got {array.min():g}")
        result *= array.astype(dtype)
    if class_weight is not None:
        if target.ndim == 2:
            classes = target.argmax(axis=1) if target.shape[1] > 1 else (target[:, 0] > 0.5).astype(np.int64)
        else:
            classes = target
        missing = sorted(set(classes.tolist()) - set(class_weight))
        if missing:
            raise ValueError(f"class_weight has no weight for class {missing[0]}")
        result *= np.array([class_weight[c] for c in classes.tolist()], dtype)
    return result
