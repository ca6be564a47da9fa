"""Products of arrays element by element, of rows with rows, and of everything with everything; see ops.py.

For the matrices ``[[1, 2], [3, 4]]`` and ``[[0, 5], [6, 7]]``:

>>> import numpy as np
>>> a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 5.0], [6.0, 7.0]])
>>> hadamard(a, b)
array([[ 0., 10.],
       [18., 28.]])
>>> dot(a, b)
array([[10., 20.],
       [20., 46.]])
>>> kronecker(a, b)
array([[ 0.,  5.,  0., 10.],
       [ 6.,  7., 12., 14.],
       [ 0., 15.,  0., 20.],
       [18., 21., 24., 28.]])
>>> khatri_rao(a, b)
array([[ 0.,  5.,  0., 10.],
       [18., 21., 24., 28.]])
"""

from __future__ import annotations

from typing import Any

from .instructions import ShapeError
from .ops import _backend, _float, _run


def _pair(a: Any, b: Any, matrices: bool = True) -> tuple[Any, Any, Any]:
    backend = _backend(a=a, b=b)
    a, b = _float("a", a, backend), _float("b", b, backend)
    if a.dtype != b.dtype:
        raise ShapeError(f"b is {b.dtype}; expected {a.dtype}, the dtype of a")
    for name, array in (("a", a), ("b", b)) if matrices else ():
        if array.ndim != 2:
            raise ShapeError(f"{name} has shape {array.shape}; expected a matrix")
    return backend, a, b


def hadamard(a: Any, b: Any) -> Any:
    """``c_ij = a_ij b_ij`` for arrays of one shape, any shape."""
    backend, a, b = _pair(a, b, matrices=False)
    if a.shape != b.shape:
        raise ShapeError(f"b has shape {b.shape}; expected {a.shape}, that of a")
    out = backend.empty(a.shape, a.dtype)
    rows = a.size if a.ndim < 2 else a.shape[0]
    columns = a.size // rows if rows else 0
    _run(backend, "hadamard", [x.reshape(rows, columns) for x in (a, b, out)])
    return out


def dot(a: Any, b: Any) -> Any:
    """``c = a b^T``: the dot product of every row of ``a (m, k)`` with every row of ``b (n, k)``, ``(m, n)``."""
    backend, a, b = _pair(a, b)
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"b has shape {b.shape}; expected (n, {a.shape[1]}), the columns of a")
    new = backend.empty if a.shape[1] else backend.zeros  # a sum over nothing is 0
    out = new((a.shape[0], b.shape[0]), a.dtype)
    if out.size:
        _run(backend, "dense_backward_x", [a, b, out])
    return out


def kronecker(a: Any, b: Any) -> Any:
    """Every element of ``a (m, k)`` times all of ``b (p, n)``: ``(m p, k n)``, ``c_(ip+r, jn+s) = a_ij b_rs``."""
    backend, a, b = _pair(a, b)
    out = backend.empty((a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]), a.dtype)
    if out.size:
        _run(backend, "kronecker", [a, b, out])
    return out


def khatri_rao(a: Any, b: Any) -> Any:
    """Row by row the Kronecker product of ``a (m, k)`` and ``b (m, n)``: ``(m, k n)``, ``c_(i, jn+s) = a_ij b_is``.

    The face-splitting product; of the transposed matrices it is the column-wise Khatri-Rao product, transposed.
    """
    backend, a, b = _pair(a, b)
    if a.shape[0] != b.shape[0]:
        raise ShapeError(f"b has shape {b.shape}; expected ({a.shape[0]}, n), the rows of a")
    out = backend.empty((a.shape[0], a.shape[1] * b.shape[1]), a.dtype)
    if out.size:
        _run(backend, "khatri_rao", [a, b, out])
    return out
