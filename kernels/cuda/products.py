"""Elementwise and Kronecker products on CUDA.

Memory contract: ``out`` is overwritten. A thread takes 128 bits of neighbouring columns where columns and addresses
allow it, else one element. Every element of the result is written once; the factors, of which the result has many
times as many elements, come from the cache again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .columns import lanes_of, marked
from .elements import element_pass
from .launch import CUDA, DEPTH, WIDTH, Launch, ceil_div, kernel
from .vector import access

_MOST = 65535  # blocks of a grid along y


def _scaled_1(a, b):  # type: ignore[no-untyped-def]
    return (a * b[0],)


def _scaled_2(a, b):  # type: ignore[no-untyped-def]
    return a * b[0], a * b[1]


def _scaled_4(a, b):  # type: ignore[no-untyped-def]
    return a * b[0], a * b[1], a * b[2], a * b[3]


_SCALED = {1: _scaled_1, 2: _scaled_2, 4: _scaled_4}


def hadamard(a: Any, b: Any, out: Any) -> list[Launch]:
    """``out = a b``, element by element."""
    return [element_pass("hadamard", {"a": a, "b": b}, {"out": (out, "a{k} * b{k}")})]


@kernel
def _outer_rows(dtype: Any, lanes: int, crossed: bool) -> Any:
    _, load, store = access(dtype, lanes)
    scaled = CUDA.inline(_SCALED[lanes])

    def outer_rows(a, b, out, period, inner, columns):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        width = inner * columns
        if row * width >= out.size:
            return
        upper = row
        lower = row
        if crossed:
            upper = row // period
            lower = row - upper * period
        first = lanes * (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x)
        for column in range(first, width, lanes * cuda.gridDim.y * cuda.blockDim.x):
            j = column // columns
            factor = a[upper * inner + j]
            store(out, row * width + column, scaled(factor, load(b, lower * columns + column - j * columns)))

    return marked(outer_rows, lanes)


def _rows_by_rows(a: Any, b: Any, out: Any, crossed: bool) -> list[Launch]:
    rows, width = out.shape
    columns = b.shape[1]
    lanes = lanes_of(columns, b, out)
    grid = ceil_div(rows, DEPTH), min(ceil_div(width // lanes, WIDTH), _MOST)
    sizes = (np.int64(n) for n in (b.shape[0], a.shape[1], columns))
    arguments = a.ravel(), b.ravel(), out.ravel(), *sizes
    return [Launch(_outer_rows(out.dtype, lanes, crossed), grid, (WIDTH, DEPTH), arguments)]


def khatri_rao(a: Any, b: Any, out: Any) -> list[Launch]:
    """``out[i] = a[i] x b[i]``"""
    return _rows_by_rows(a, b, out, False)


def kronecker(a: Any, b: Any, out: Any) -> list[Launch]:
    """``out[i p + r] = a[i] x b[r]`` with the ``p`` rows of ``b``."""
    return _rows_by_rows(a, b, out, True)
