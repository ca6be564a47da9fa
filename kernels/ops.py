"""The kernels as functions on arrays, for people who bring their own loop.

The backend follows from where the arrays lie: NumPy runs on the CPU, CuPy on the GPU of the arrays. Arrays of other
libraries (PyTorch, JAX, Numba, whatever has DLPack, ``__cuda_array_interface__``, ``__array_interface__`` or
``__array__``) are taken over without a copy; results are arrays of NumPy or CuPy. Inputs may be read-only, strided or
in Fortran order: what is not C-contiguous is copied. float32 and float64 are computed as they come; all floating arrays
of a call have one dtype. Raises :class:`ShapeError` where operands do not fit, or lie on two devices.

On a GPU the work goes to CuPy's current stream there, behind what other libraries have to do with their arrays, and the
host does not wait; only class and row numbers are fetched, two of them, to be checked.

On the CPU, results of 256 KiB and more lie in memory that is used again once no array refers to it: to clear fresh
pages takes longer than most kernels. At most 256 MiB are kept that way.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np

from .cpu import eager, memory
from .exchange import check_writeable, device_of, place, shared, to_numpy
from .instructions import Instruction, ShapeError
from .rule import find

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class _Cpu:
    """NumPy arrays and the CPU engine."""

    empty = staticmethod(memory.empty)
    zeros = staticmethod(np.zeros)
    run = staticmethod(eager.execute)
    array = staticmethod(to_numpy)
    current = staticmethod(nullcontext)

    @staticmethod
    def in_place(name: str, array: Any, contiguous: bool = True) -> Any:
        found = shared(name, array)
        check_writeable(name, found, contiguous)
        return found

    @staticmethod
    def contiguous(array: Any, dtype: Any = None) -> Any:
        return np.ascontiguousarray(array, dtype)

    @staticmethod
    def limits(array: Any) -> tuple[int, int]:
        return int(array.min()), int(array.max())


def _backend(**arrays: Any) -> Any:
    """The backend of the arrays, by the names of the arguments; all must live on one device."""
    for a in arrays.values():
        if type(a) is not np.ndarray and a is not None:
            break
    else:
        return _Cpu
    devices = {name: device_of(name, a) for name, a in arrays.items() if a is not None}
    name, device = next(iter(devices.items()))
    for other, found in devices.items():
        if found != device:
            what = (
                "some arrays are on the GPU and some are not" if None in (device, found) else "arrays are on two GPUs"
            )
            raise ShapeError(f"{what}: {name} is on {place(device)}, {other} on {place(found)}; move them to one side")
    if device is None:
        return _Cpu
    from .cuda.arrays import backend_on

    return backend_on(device)


def _float(name: str, array: Any, backend: Any) -> Any:
    """``array`` as a C-contiguous array of float32 or float64; lists and integers are refused."""
    if type(array) is np.ndarray and array.dtype in _FLOATS and array.flags.c_contiguous:
        return array
    array = backend.array(name, array)
    if array.dtype not in _FLOATS:
        raise ShapeError(f"{name} is {array.dtype}; expected float32 or float64")
    return backend.contiguous(array)


def _run(backend: Any, op: str, operands: list[Any], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
    if operands[0].size:
        backend.run(op, operands, rule, scalars)
    else:  # zero rows: there is nothing to do, if they fit
        Instruction(op, operands, rule, scalars)


def _matrix(name: str, array: Any) -> None:
    if array.ndim != 2:
        raise ShapeError(f"{name} has shape {array.shape}; expected (batch, features)")


def dense_forward(x: Any, w: Any, b: Any = None, activation: Any = "linear", *, return_z: bool = False) -> Any:
    """``g(x W + b)`` with ``x (batch, n_in)``, ``W (n_in, n_out)``, ``b (n_out,)`` or None; ``(batch, n_out)``.

    With ``return_z`` also ``z = x W + b``, which the derivative of some activations reads.
    """
    rule = find("activation", activation)
    results = eager.known("dense_forward", (x, w, b), rule, results=1 + bool(return_z))
    if results is not None:
        return (results[1], results[0]) if return_z else results[0]
    backend = _backend(x=x, w=w, b=b)
    x, w = _float("x", x, backend), _float("w", w, backend)
    b = None if b is None else _float("b", b, backend)
    _matrix("x", x)
    _matrix("w", w)
    y = backend.empty((x.shape[0], w.shape[1]), x.dtype)
    z = backend.empty(y.shape, x.dtype) if return_z else None
    _run(backend, "dense_forward", [x, w, b, z, y], rule)
    return (y, z) if return_z else y


def dense_backward(
    dy: Any, x: Any, w: Any, y: Any, activation: Any = "linear", *, z: Any = None, bias: bool = True
) -> tuple[Any, Any, Any]:
    """``(dx, dW, db)`` from the gradient ``dy`` of ``y = g(x W + b)``; ``db`` is None where ``bias`` is False.

    ``dz = dy * g'(z)``, ``dW = x^T dz``, ``db = sum_rows dz``, ``dx = dz W^T``. ``z`` is needed where the derivative
    of the activation reads it (GELU, SiLU, leaky ReLU, ...).
    """
    backend = _backend(dy=dy, x=x, w=w, y=y, z=z)
    rule = find("activation", activation)
    if rule.uses_input and z is None:
        raise ShapeError(f"z is missing: the derivative of {rule.name} reads it; dense_forward(..., return_z=True)")
    dy, x, w, y = (_float(n, a, backend) for n, a in (("dy", dy), ("x", x), ("w", w), ("y", y)))
    z = None if z is None else _float("z", z, backend)
    for name, array in (("dy", dy), ("x", x), ("w", w), ("y", y)):
        _matrix(name, array)
    dz = backend.empty(dy.shape, dy.dtype)
    new = backend.empty if len(dy) else backend.zeros  # sums over no rows are 0
    db = new(w.shape[1:], w.dtype) if bias else None
    dw, dx = new(w.shape, w.dtype), backend.empty(x.shape, x.dtype)
    _run(backend, "dense_backward_z", [dy, z, y, dz, db], rule)
    _run(backend, "dense_backward_w", [x, dz, dw])
    _run(backend, "dense_backward_x", [dz, w, dx])
    return dx, dw, db


def activation_forward(z: Any, activation: Any) -> Any:
    """``g(z)`` for each element of an array of any shape."""
    backend = _backend(z=z)
    z = _float("z", z, backend)
    y = backend.empty(z.shape, z.dtype)
    _run(backend, "activation_forward", [z.reshape(-1, 1), y.reshape(-1, 1)], find("activation", activation))
    return y


def activation_backward(dy: Any, z: Any, activation: Any) -> Any:
    """``dy * g'(z)`` for each element; ``dy`` and ``z`` have one shape."""
    backend = _backend(dy=dy, z=z)
    rule = find("activation", activation)
    dy, z = _float("dy", dy, backend), _float("z", z, backend)
    if dy.shape != z.shape:
        raise ShapeError(f"dy has shape {dy.shape}; expected {z.shape}, that of z")
    y, dz = activation_forward(z, rule), backend.empty(z.shape, z.dtype)
    _run(backend, "activation_backward", [a.reshape(-1, 1) for a in (dy, z, y, dz)], rule)
    return dz


def softmax(z: Any) -> Any:
    """``exp(z - max z) / sum exp(z - max z)`` for each row of ``z (batch, classes)``.

    >>> import numpy as np
    >>> softmax(np.array([[5.0, 2.0, -1.0, 3.0]])).round(3)
    array([[0.842, 0.042, 0.002, 0.114]])
    """
    backend = _backend(z=z)
    z = _float("z", z, backend)
    _matrix("z", z)
    y = backend.empty(z.shape, z.dtype)
    _run(backend, "softmax_forward", [z, y])
    return y


def softmax_backward(dy: Any, y: Any) -> Any:
    """``y * (dy - sum(dy * y))`` for each row of ``y = softmax(z)``: the gradient in ``z``."""
    backend = _backend(dy=dy, y=y)
    dy, y = _float("dy", dy, backend), _float("y", y, backend)
    dz = backend.empty(y.shape, y.dtype)
    _run(backend, "softmax_backward", [dy, y, dz])
    return dz


def log_softmax(z: Any) -> Any:
    """``z - max z - log sum exp(z - max z)`` for each row of ``z (batch, classes)``.

    >>> import numpy as np
    >>> log_softmax(np.array([[5.0, 2.0, -1.0, 3.0]])).round(3)
    array([[-0.172, -3.172, -6.172, -2.172]])
    """
    backend = _backend(z=z)
    z = _float("z", z, backend)
    _matrix("z", z)
    y = backend.empty(z.shape, z.dtype)
    _run(backend, "log_softmax_forward", [z, y])
    return y


def log_softmax_backward(dy: Any, y: Any) -> Any:
    """``dy - exp(y) * sum(dy)`` for each row of ``y = log_softmax(z)``: the gradient in ``z``."""
    backend = _backend(dy=dy, y=y)
    dy, y = _float("dy", dy, backend), _float("y", y, backend)
    dz = backend.empty(y.shape, y.dtype)
    _run(backend, "log_softmax_backward", [dy, y, dz])
    return dz


def prelu_forward(z: Any, alpha: Any) -> Any:
    """``z`` where it is positive, else ``alpha z``; ``z (batch, features)``, ``alpha (features,)``. He et al. 2015."""
    backend = _backend(z=z, alpha=alpha)
    z, alpha = _float("z", z, backend), _float("alpha", alpha, backend)
    _matrix("z", z)
    y = backend.empty(z.shape, z.dtype)
    _run(backend, "prelu_forward", [z, alpha, y])
    return y


def prelu_backward(dy: Any, z: Any, alpha: Any) -> tuple[Any, Any]:
    """``(dz, dalpha)``: ``dz = dy`` where ``z > 0``, else ``alpha dy``; ``dalpha`` sums ``z dy`` over the others."""
    backend = _backend(dy=dy, z=z, alpha=alpha)
    dy, z, alpha = (_float(n, a, backend) for n, a in (("dy", dy), ("z", z), ("alpha", alpha)))
    dz, dalpha = backend.empty(z.shape, z.dtype), backend.zeros(alpha.shape, z.dtype)
    _run(backend, "prelu_backward", [dy, z, alpha, dz, dalpha])
    return dz, dalpha


def dropout(x: Any, rate: float, *, seed: int, step: int = 0, layer: int = 0) -> Any:
    """``x / (1 - rate)`` where the mask keeps an element of ``x (batch, features)``, else 0.

    The mask is a function of ``seed, step, layer``, row and column, the same on every backend; the gradient is the
    same call on ``dy``.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate must lie in [0, 1), got {rate!r}")
    backend = _backend(x=x)
    x = _float("x", x, backend)
    y = backend.empty(x.shape, x.dtype)
    words = [backend.contiguous(np.array([v], np.int64)) for v in (seed, step)]
    _run(backend, "dropout", [x, *words, y], None, (rate, layer))
    return y


def categorical_accuracy(score: Any, target: Any) -> Any:
    """1 where the largest score is at the label ``(batch,)``, or at the largest target ``(batch, classes)``."""
    backend = _backend(score=score, target=target)
    score = _float("score", score, backend)
    _matrix("score", score)
    target = backend.array("target", target)
    hit = backend.empty(score.shape[:1], score.dtype)
    if target.ndim == 1:
        _run(backend, "categorical_accuracy", [score, _labels(target, score.shape[1], backend), hit])
    else:
        _run(backend, "categorical_accuracy_dense", [score, _float("target", target, backend), hit])
    return hit


def binary_accuracy(score: Any, target: Any, *, threshold: float = 0.5) -> Any:
    """The share of the columns of each row where ``score > threshold`` agrees with ``target > 1/2``."""
    backend = _backend(score=score, target=target)
    score, target = _float("score", score, backend), _float("target", target, backend)
    hit = backend.empty(score.shape[:1], score.dtype)
    _run(backend, "binary_accuracy", [score, target, hit], None, (threshold,))
    return hit


def gather(source: Any, order: Any) -> Any:
    """``source[order]`` for a matrix ``(n, features)``; order holds row numbers from 0 to n - 1."""
    backend = _backend(source=source, order=order)
    source = _float("source", source, backend)
    _matrix("source", source)
    order = _labels(order, source.shape[0], backend, "order", "row numbers")
    out = backend.empty((order.shape[0], source.shape[1]), source.dtype)
    _run(backend, "gather_rows", [source, order, out])
    return out


def _labels(labels: Any, classes: int, backend: Any, name: str = "target", what: str = "class numbers") -> Any:
    labels = backend.array(name, labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ShapeError(f"{name} is {labels.dtype}; expected integer {what}")
    labels = backend.contiguous(labels, np.int64)
    if labels.size:
        low, high = backend.limits(labels)
        if low < 0 or high >= classes:
            raise ShapeError(f"{name} holds {low if low < 0 else high}; expected {what} from 0 to {classes - 1}")
    return labels
