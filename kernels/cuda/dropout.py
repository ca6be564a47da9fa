"""Dropout on CUDA: the mask is computed from a counter, never stored; see the CPU file for its definition.

A thread takes the four neighbouring columns that share one counter, 128 bits at a time where columns and addresses
allow it; else it reads only what it keeps.
"""

from __future__ import annotations

import functools
import textwrap
from typing import Any

import numpy as np
from numba import cuda

from ..philox import philox4x32
from .launch import CUDA, Launch, ceil_div, flat, generated
from .vector import access, aligned

_COLUMNS = 4  # of a counter

_TEXT = """
def {name}(x, seed, step, y, scale, threshold, layer, rows, columns):
    groups = (columns + {more}) // {COLUMNS}
    low = uint32(seed[0] & 0xFFFFFFFF)
    high = uint32((seed[0] >> 32) & 0xFFFFFFFF)
    now = uint32(step[0] & 0xFFFFFFFF)
    for i in range(cuda.grid(1), rows * groups, cuda.gridsize(1)):
        row = i // groups
        group = i % groups
        w0, w1, w2, w3 = philox(uint32(group), uint32(row), now, layer, low, high)
        column = {COLUMNS} * group
        at = row * columns + column
{body}
"""


def _one(k: int) -> str:
    line = f"y[at + {k}] = x[at + {k}] * scale if w{k} >= threshold else zero"
    return f"if column + {k} < columns:\n    {line}" if k else line


def _several(first: int, lanes: int) -> str:
    each = range(first, first + lanes)
    kept = ", ".join(f"x{k} * scale if w{k} >= threshold else zero" for k in each)
    return f"{', '.join(f'x{k}' for k in each)} = load(x, at + {first})\nstore(y, at + {first}, ({kept}))"


@functools.cache
def _dropout(dtype: np.dtype, wide: bool) -> Any:
    lanes, take, put = access(dtype)
    lines = [_several(k, lanes) for k in range(0, _COLUMNS, lanes)] if wide else [_one(k) for k in range(_COLUMNS)]
    name = "dropout" if wide else "dropout_scalar"
    body = textwrap.indent("\n".join(lines), 8 * " ")
    text = _TEXT.format(name=name, COLUMNS=_COLUMNS, more=_COLUMNS - 1, body=body)
    scope = {"cuda": cuda, "uint32": np.uint32, "zero": dtype.type(0), "philox": CUDA.inline(philox4x32)}
    return generated(text, name, scope | {"load": take, "store": put}, dtype)


def dropout(x: Any, seed: Any, step: Any, y: Any, rate: float, layer: float) -> list[Launch]:
    """``y = keep * x / (1 - rate)``."""
    rows, columns = x.shape
    made = _dropout(x.dtype, columns % _COLUMNS == 0 and aligned(x, y))
    scalars = x.dtype.type(1.0 / (1.0 - rate)), np.uint32(int(rate * 4294967296.0)), np.uint32(int(layer))
    arguments = x.ravel(), seed, step, y.ravel(), *scalars, np.int64(rows), np.int64(columns)
    return [Launch(made, *flat(rows * ceil_div(columns, _COLUMNS)), arguments)]
