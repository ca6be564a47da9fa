"""Matrix products on CUDA: ``x W``, ``x^T dz`` and ``dz W^T``, one kernel text for all three.

Memory contract: the result is overwritten; arrays are C-contiguous. A block computes a tile of 64 x 64 elements; its
256 threads hold 4 x 4 sums each in registers and share slices of both factors, 8 deep. Sums run over the inner index
in ascending order, by one thread, so that a result repeats bit for bit.

The text is generated because the NVVM of sm_75 to sm_90 neither unrolls loops over a local array of sums nor keeps
it in registers; sums with names of their own stay there.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from .launch import Launch, ceil_div, element, generated

TILE = 64  # rows and columns of the result a block computes
SLICE = 8  # of the inner index, in shared memory at a time
EACH = 4  # rows and columns of sums a thread holds
LANES = TILE // EACH  # threads along each side of the tile
THREADS = LANES * LANES

_TEXT = """
def {name}(a, b, bias, z, out):
    left = cuda.shared.array(({SLICE}, {PADDED}), element)  # padded: a column of it is written at a time
    right = cuda.shared.array(({SLICE}, {PADDED}), element)
    t = cuda.threadIdx.x
    column = t % {LANES}
    line = t // {LANES}
    row0 = cuda.blockIdx.x * {TILE}
    column0 = cuda.blockIdx.y * {TILE}
    rows, columns = out.shape
    inner = {inner}
{clear}
    for base in range(0, inner, {SLICE}):
        for load in range({LOADS}):
            e = t + load * {THREADS}
            {left_place}
            {right_place}
            left[ka, i] = {left_element} if row0 + i < rows and base + ka < inner else zero
            right[kb, j] = {right_element} if column0 + j < columns and base + kb < inner else zero
        cuda.syncthreads()
        for k in range({SLICE}):
{multiply}
        cuda.syncthreads()
{store}
"""

# where element e of a slice lies: neighbouring threads read neighbouring addresses of the factor
_PLACES = {
    "a": ("i = e // {SLICE}; ka = e % {SLICE}", "a[row0 + i, base + ka]", "a.shape[1]"),
    "a^T": ("i = e % {TILE}; ka = e // {TILE}", "a[base + ka, row0 + i]", "a.shape[0]"),
    "b": ("j = e % {TILE}; kb = e // {TILE}", "b[base + kb, column0 + j]", ""),
    "b^T": ("j = e // {SLICE}; kb = e % {SLICE}", "b[column0 + j, base + kb]", ""),
}
_SIZES = {
    "TILE": TILE,
    "SLICE": SLICE,
    "PADDED": TILE + 1,
    "LANES": LANES,
    "LOADS": TILE * SLICE // THREADS,
    "THREADS": THREADS,
}


def _lines(indent: int, lines: list[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)


def _store(has_bias: bool, save_z: bool, activated: bool) -> list[str]:
    lines = []
    for i in range(EACH):
        lines += [f"r = row0 + line + {LANES * i}", "if r < rows:"]
        for j in range(EACH):
            lines += [f"    c = column0 + column + {LANES * j}", "    if c < columns:"]
            lines.append(f"        v = c{i}{j}{' + bias[c]' if has_bias else ''}")
            if save_z:
                lines.append("        z[r, c] = v")
            lines.append(f"        out[r, c] = {'value(v)' if activated else 'v'}")
    return lines


@functools.cache
def product(dtype: Any, a: str, b: str, value: Any = None, has_bias: bool = False, save_z: bool = False) -> Any:
    """The kernel of ``out = value(a b + bias)`` for factors ``"a"`` or ``"a^T"`` and ``"b"`` or ``"b^T"``."""
    each = range(EACH)
    multiply = [f"a{i} = left[k, line + {LANES * i}]" for i in each]
    multiply += [f"b{j} = right[k, column + {LANES * j}]" for j in each]
    multiply += [f"c{i}{j} += a{i} * b{j}" for i in each for j in each]
    left_place, left_element, inner = (part.format(**_SIZES) for part in _PLACES[a])
    right_place, right_element, _ = (part.format(**_SIZES) for part in _PLACES[b])
    name = "product_" + (a + b).replace("^T", "t")
    text = _TEXT.format(
        **_SIZES,
        name=name,
        inner=inner,
        clear=_lines(4, [" = ".join([f"c{i}{j}" for i in each for j in each] + ["zero"])]),
        left_place=left_place,
        left_element=left_element,
        right_place=right_place,
        right_element=right_element,
        multiply=_lines(12, multiply),
        store=_lines(4, _store(has_bias, save_z, value is not None)),
    )
    scope = {"cuda": cuda, "element": element(dtype), "zero": np.dtype(dtype).type(0), "value": value}
    return generated(text, name, scope, dtype, value)


def multiply(kernel: Any, a: Any, b: Any, bias: Any, z: Any, out: Any) -> Launch:
    """The launch of ``kernel`` for a result ``out``; operands that it does not read may be any arrays."""
    grid = ceil_div(out.shape[0], TILE), ceil_div(out.shape[1], TILE)
    return Launch(kernel, grid, (THREADS,), (a, b, bias, z, out))
