"""What a user passes as data, checked once and laid out for the kernels."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .kernels.device import ordinal
from .kernels.exchange import device_of, module_of, place, to_numpy
from .kernels.instructions import ShapeError
from .losses import UNBOUNDED, Loss


def as_array(name: str, value: Any, device: str) -> Any:
    """``value`` as an array of numbers, of NumPy; one on the model's GPU as an array of CuPy, without a copy.

    Arrays of a GPU are fetched for a model on the CPU.
    """
    if type(value) is np.ndarray or isinstance(value, (list, tuple)):
        found = None
    else:
        try:
            found = device_of(name, value)
        except ShapeError:
            found = None  # what is no array NumPy may still be able to read
    if found is not None:
        return _on_device(name, value, found, device)
    if hasattr(value, "__dlpack_device__") and not isinstance(value, np.ndarray):
        array = to_numpy(name, value)
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} is not an array: {error}") from None
    return _numbers(name, array)


def _numbers(name: str, array: Any) -> Any:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}; expected numbers")
    return array


def _on_device(name: str, value: Any, found: int, device: str) -> Any:
    from .kernels.cuda.arrays import backend_on

    if device != "cpu" and ordinal(device) != found:
        raise ValueError(f"{name} is on {place(found)}, the model on {place(ordinal(device))}; move one to the other")
    array = _numbers(name, backend_on(found).array(name, value))
    return array if device != "cpu" else array.get()


def on(array: Any) -> AbstractContextManager[Any]:
    """CuPy's current device is that of the array meanwhile, where it is on a GPU."""
    return nullcontext() if module_of(array) is np else array.device


def shape_of(x: Any, device: str) -> tuple[int, ...]:
    """The shape of the samples ``x``."""
    return tuple(x.shape) if hasattr(x, "shape") else tuple(as_array("x", x, device).shape)


def samples(x: Any, shape: tuple[int, ...] | None, dtype: np.dtype, name: str = "x", device: str = "cpu") -> Any:
    """``x (n, *shape)`` as a C-contiguous matrix ``(n, features)``, for a model on ``device``."""
    array = as_array(name, x, device)
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise ValueError(f"{name} has shape {array.shape}; expected (samples, features)")
    if shape is not None and array.shape[1:] != shape:
        raise ValueError(f"{name} has shape {array.shape}; this model expects (samples, {', '.join(map(str, shape))})")
    with on(array):
        return module_of(array).ascontiguousarray(array.reshape(array.shape[0], math.prod(array.shape[1:])), dtype)


def _check_count(name: str, array: np.ndarray, count: int) -> None:
    if array.ndim == 0 or array.shape[0] != count:
        raise ValueError(f"{name} has shape {array.shape}; expected {count} samples, as many as x has")


def targets(y: Any, count: int, outputs: int, loss: Loss, logits: bool, dtype: np.dtype, device: str = "cpu") -> Any:
    """``y`` as class numbers ``(n,)`` int64, or as a matrix ``(n, outputs)``; which one follows from the loss."""
    array = as_array("y", y, device)
    _check_count("y", array, count)
    with on(array):
        return _targets(array, module_of(array), count, outputs, loss, logits, dtype)


def _targets(array: Any, xp: Any, count: int, outputs: int, loss: Loss, logits: bool, dtype: np.dtype) -> Any:
    given = array.shape
    if loss.kind != "categorical":
        if array.ndim == 1:
            array = array[:, None]
        if array.shape != (count, outputs):
            raise ValueError(f"y has shape {given}; {loss.name} on {outputs} outputs expects ({count}, {outputs})")
        matrix = xp.ascontiguousarray(array, dtype)
        if loss.bounds is not None and matrix.size:
            low, high = loss.bounds
            least, most = float(matrix.min()), float(matrix.max())
            if not (least >= low and most <= high):
                expected = f"at least {low}" if high == UNBOUNDED else f"{low} to {high}"
                raise ValueError(f"y ranges from {least:g} to {most:g}; {loss.name} expects {expected}")
        return _signed(matrix, xp, loss) if loss.kind == "signed" else matrix
    if array.ndim == 2 and array.shape[1] == outputs and (outputs > 1 or array.dtype.kind == "f"):
        return xp.ascontiguousarray(array, dtype)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"y has shape {array.shape}; {loss.name} on {outputs} classes expects class numbers ({count},) or "
            f"probabilities ({count}, {outputs})"
        )
    numbers = whole(array, xp)
    if numbers is None:
        raise ValueError("y holds fractions; class numbers are integers")
    least, most = (int(numbers.min()), int(numbers.max())) if count else (0, 0)
    if least < 0 or most >= outputs:
        wrong = least if least < 0 else most
        raise ValueError(f"y holds class {wrong}; the model has {outputs} outputs, so classes are 0 to {outputs - 1}")
    if logits:
        return numbers
    return xp.ascontiguousarray(xp.eye(outputs, dtype=dtype)[numbers])


def whole(array: Any, xp: Any = np) -> Any:
    """Class numbers as int64, C-contiguous; None where they are not all whole."""
    with np.errstate(invalid="ignore"):  # of NaN
        numbers = xp.ascontiguousarray(array.astype(np.int64))
    return numbers if array.dtype.kind != "f" or xp.array_equal(numbers, array) else None


def _signed(matrix: Any, xp: Any, loss: Loss) -> Any:
    """Targets -1 and 1; those of 0 and 1 are taken as -1 and 1, as in Keras."""
    found = np.array(xp.unique(matrix).tolist())
    wrong = found[~np.isin(found, (-1, 0, 1))]
    if wrong.size or {-1, 0} <= set(found.tolist()):
        values = f"{wrong[0]:g}" if wrong.size else "both -1 and 0"
        raise ValueError(f"y holds {values}; {loss.name} expects -1 and 1, or 0 and 1")
    return xp.where(matrix == 0, matrix.dtype.type(-1), matrix)


def weights(
    sample_weight: Any, class_weight: dict[int, float] | None, target: Any, dtype: np.dtype
) -> np.ndarray | None:
    """One weight for each sample: its own times that of its class; None where there are neither.

    It is an array of NumPy; weights and targets on a GPU are fetched for it.
    """
    count = target.shape[0]
    if sample_weight is None and class_weight is None:
        return None
    if module_of(target) is not np:
        target = target.get()
    result = np.ones(count, dtype)
    if sample_weight is not None:
        array = as_array("sample_weight", sample_weight, "cpu")
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
