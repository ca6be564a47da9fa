"""Checks of data that would cost more in Python than the work they guard."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from .. import compile as compiler

_WITHIN = """
def within(a, low, high):
    wrong = 0
    for value in a.flat:
        if not (value >= low and value <= high):
            wrong += 1
    return wrong == 0
"""


@functools.cache
def within(dtype: np.dtype, axes: int) -> Any:
    """A native function ``(array, low, high)``: whether all elements lie in ``[low, high]``; NaN does not."""
    array = types.Array(numba.from_dtype(dtype), axes, "C", readonly=True)
    function = compiler.make(_WITHIN, "within", {}, f"{dtype} {axes}")
    return compiler.native(function, types.boolean(array, types.int64, types.int64))
