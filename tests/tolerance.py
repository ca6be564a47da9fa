"""The one tolerance policy (that of flash-attention's tests).

The oracle is float64 for kernels of float32, and the widest float there is for kernels of float64. The error of a
kernel against it may be at most twice that of plain NumPy in the same dtype, three
times for gradients, plus a small floor of the dtype: a handful of roundings of the largest value.
"""

from __future__ import annotations

import numpy as np

FORWARD, GRADIENT = 2.0, 3.0
_WIDE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps  # float64 has an oracle of its own
_FLOOR = {np.dtype(np.float32): 8, np.dtype(np.float64): 8 if _WIDE else 64}  # roundings of the largest value


def wider(dtype):
    """The dtype of the oracle for kernels of ``dtype``."""
    return np.longdouble if np.dtype(dtype) == np.float64 else np.float64


def assert_close(name, got, exact, plain, factor=FORWARD, terms=0.0):
    """``got`` against the oracle's ``exact`` (float64), allowing ``factor`` times the error of ``plain``.

    ``terms`` is the size of the largest term of a sum that cancels: the floor counts roundings of that.
    """
    got, plain = np.asarray(got), np.asarray(plain)
    exact = np.asarray(exact)
    assert got.shape == exact.shape, f"{name}: shape {got.shape}, expected {exact.shape}"
    assert np.array_equal(np.isnan(got), np.isnan(exact)), f"{name}: NaN in other places than the oracle's"
    finite = np.isfinite(exact)
    assert np.array_equal(got[~finite], exact[~finite].astype(got.dtype), equal_nan=True), f"{name}: infinities differ"
    if not finite.any():
        return
    scale = max(np.abs(exact[finite]).max(initial=0.0), terms)
    floor = _FLOOR[got.dtype] * np.finfo(got.dtype).eps * scale
    allowed = factor * np.abs(plain[finite] - exact[finite]).max(initial=0.0) + floor
    error = np.abs(got[finite] - exact[finite]).max(initial=0.0)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (values up to {scale:.3g})"


def both(function, arrays, dtype):
    """``function`` of the arrays in a wider dtype and in ``dtype``: what :func:`assert_close` takes."""
    exact = function(*[a.astype(wider(dtype)) if a.dtype.kind == "f" else a for a in arrays])
    with np.errstate(all="ignore"):
        plain = function(*[a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays])
    return (exact, plain) if isinstance(exact, tuple) else ((exact,), (plain,))
