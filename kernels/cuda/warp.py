"""A warp for each row: what its lanes find out together, and rows whose elements they keep in registers.

A kernel that reads a row several times, first for a sum and then for the result, moves it several times through the
memory system. Up to 128 bytes a lane, a row fits the registers of a warp instead and is read once. NVVM keeps scalar
variables in registers, and arrays only where every index is known: the text is generated, with a variable for each
element. A lane takes 128 bits at once where the columns allow it, and other rows element by element; where only the
addresses do not allow it, lanes take the same elements one by one, and the bits are the same.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from .launch import CUDA, WIDTH, ceil_div, generated
from .vector import access, aligned

WARPS = 4  # rows a block takes
ALL = 0xFFFFFFFF
KEPT = 128  # bytes of a row in the registers of a lane


def rows_of(rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block of a kernel with a warp for each row."""
    return (ceil_div(rows, WARPS),), (WIDTH, WARPS)


@CUDA.inline
def warp_sum(v):
    """The sum over the lanes, the same in each."""
    for offset in (16, 8, 4, 2, 1):
        v += cuda.shfl_xor_sync(ALL, v, offset)
    return v


@CUDA.inline
def warp_max(v):
    """The largest over the lanes, the same in each; NaN is no maximum."""
    for offset in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync(ALL, v, offset)
        if other > v:
            v = other
    return v


@CUDA.inline
def row_max(z, row, lowest):
    """The largest element of a row of the matrix ``z`` that is above ``lowest``, the same in each lane."""
    peak = lowest
    for j in range(cuda.threadIdx.x, z.shape[1], WIDTH):  # type: ignore[call-overload]
        v = z[row, j]
        if v > peak:
            peak = v
    return warp_max(peak)


@CUDA.inline
def warp_first(v):
    """The value of the first lane."""
    return cuda.shfl_sync(ALL, v, 0)


class Row(NamedTuple):
    """How a warp takes a row: ``vectors`` times ``lanes`` neighbours a lane, with 128-bit access where ``wide``."""

    lanes: int
    vectors: int
    wide: bool

    @property
    def kept(self) -> int:
        """The elements a lane keeps."""
        return self.lanes * self.vectors

    def offset(self, element: int) -> int:
        """How many columns after a lane's first one element ``element`` lies."""
        vector, neighbour = divmod(element, self.lanes)
        return vector * self.lanes * WIDTH + neighbour

    def each(self, text: str) -> str:
        """The lines of ``text`` for each element: ``{e}`` is its number, ``{j}`` its column.

        ``{inside}`` says whether it lies in the row.
        """
        last = self.kept - self.lanes
        return "\n".join(
            "    " + text.format(e=e, j=f"column + {self.offset(e)}", inside=e < last or "inside")
            for e in range(self.kept)
        )

    def by_vector(self, *steps: Callable[[range], str], beyond: str = "") -> str:
        """For each vector the lines that ``steps`` give for its elements; for the last, where it lies in the row.

        ``beyond`` are lines for each element of the last vector before that.
        """
        elements = [range(v * self.lanes, (v + 1) * self.lanes) for v in range(self.vectors)]
        *inner, last = ("\n".join(step(few) for step in steps) for few in elements)
        before = [beyond.format(e=e) for e in elements[-1]] if beyond else []
        lines = [*inner, *before, "if inside:", textwrap.indent(last, "    ")]
        return textwrap.indent("\n".join(lines), "    ")

    def take(self, name: str, array: str, at: str = "first") -> Callable[[range], str]:
        """A step of :meth:`by_vector`: ``name0, name1, ... = array[at], ...``."""

        def lines(elements: range) -> str:
            names = "".join(f"{name}{e}, " for e in elements)
            if self.wide:
                return f"{names}= load({array}, {at} + {self.offset(elements[0])})"
            return f"{names}= " + "".join(f"{array}[{at} + {self.offset(e)}], " for e in elements)

        return lines

    def put(self, array: str, value: str) -> Callable[[range], str]:
        """A step of :meth:`by_vector`: ``array[first], ... = value``, an expression with ``{e}`` and ``{j}``."""

        def lines(elements: range) -> str:
            values = [value.format(e=e, j=f"column + {self.offset(e)}") for e in elements]
            places = [f"first + {self.offset(e)}" for e in elements]
            if self.wide:
                return f"store({array}, {places[0]}, ({''.join(f'{v}, ' for v in values)}))"
            return "\n".join(f"{array}[{place}] = {v}" for place, v in zip(places, values, strict=True))

        return lines

    def load(self, name: str, array: str, fill: str = "zero") -> str:
        """The elements of the lane; what lies beyond the row is ``fill``."""
        return self.by_vector(self.take(name, array), beyond=f"{name}{{e}} = {fill}")

    def store(self, array: str, value: str) -> str:
        """The elements of the lane, each an expression with ``{e}`` and ``{j}``."""
        return self.by_vector(self.put(array, value))

    @property
    def place(self) -> str:
        """The lines for the lane's first ``column``, and whether its last vector lies in the row."""
        last = self.offset(self.kept - self.lanes)
        return f"    column = cuda.threadIdx.x * {self.lanes}\n    inside = column + {last} < columns"

    @property
    def begin(self) -> str:
        """The lines a kernel begins with whose warps take a row each: ``row``, and where the lane's part begins."""
        return f"""\
    row = cuda.blockIdx.x * {WARPS} + cuda.threadIdx.y
    if row >= rows:
        return
{self.place}
    first = row * columns + column"""


def row_of(columns: int, *arrays: Any) -> Row | None:
    """How a warp keeps rows of ``columns`` of the arrays in registers; None where they are too long."""
    dtype = arrays[0].dtype
    lanes = access(dtype).lanes
    if columns % lanes:
        lanes = 1
    vectors = ceil_div(columns, WIDTH * lanes)
    if lanes * vectors * dtype.itemsize > KEPT:
        return None
    return Row(lanes, vectors, lanes > 1 and aligned(*arrays))


def row_kernel(text: str, name: str, dtype: Any, **scope: Any) -> Any:
    """The kernel ``name`` of a generated text, with what such texts take: sums and figures of the dtype."""
    dtype = np.dtype(dtype)
    wide = access(dtype)
    known = {"cuda": cuda, "load": wide.load, "store": wide.store}
    known |= {"zero": dtype.type(0), "one": dtype.type(1), "lowest": dtype.type(-np.inf)}
    known |= {"warp_sum": warp_sum, "warp_max": warp_max, "warp_first": warp_first}
    known |= {f: CUDA.math(f, dtype) for f in ("exp", "log", "sqrt")}
    return generated(text, name, known | scope, dtype)


def scalar_name(name: str, row: Row) -> str:
    """The name of a kernel, which says where it takes no 128-bit access."""
    return name if row.wide else f"{name}_scalar"
