"""A warp for each row: what its lanes find out together, and the text of passes over the elements of a row.

A kernel that reads a row several times, first for a sum and then for the result, moves it several times through the
memory system. Up to 128 bytes a lane, a row fits the registers of a warp instead and is read once. NVVM keeps scalar
variables in registers, and arrays only where every index is known: the text is generated, with a variable for each
element. Longer rows are read again in each pass, by a loop. A lane takes 128 bits at once where the columns allow it,
and other rows element by element; where only the addresses do not allow it, lanes take the same elements one by one,
and the bits are the same.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from .launch import CUDA, WIDTH, Launch, ceil_div, generated
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
def warp_first(v):
    """The value of the first lane."""
    return cuda.shfl_sync(ALL, v, 0)


PEAK = "peak = z{e} if z{e} > peak else peak"  # a line of a pass over z; NaN is no maximum

_FIRST_LARGEST = """\
    for offset in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync({ALL}, {largest}, offset)
        other_place = cuda.shfl_xor_sync({ALL}, {place}, offset)
        if other > {largest} or (other == {largest} and other_place < {place}):
            {largest} = other
            {place} = other_place"""


def first_largest(largest: str, place: str) -> str:
    """The lines in which the lanes agree on the ``largest`` of what each has found, and on its first ``place``."""
    return _FIRST_LARGEST.format(ALL=ALL, largest=largest, place=place)


Step = Callable[[range], str]  # the lines for some neighbouring elements of a lane


class Row(NamedTuple):
    """How a warp takes a row: ``vectors`` times ``lanes`` neighbours a lane, with 128-bit access where ``wide``.

    A row of no ``vectors`` is not kept in registers: a loop goes along it, ``lanes`` neighbours a lane at a time.
    """

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

    def by_vector(self, *steps: Step, beyond: str = "") -> str:
        """For each vector the lines that ``steps`` give for its elements; for the last, where it lies in the row.

        ``beyond`` are lines for each element of the last vector before that.
        """
        elements = [range(v * self.lanes, (v + 1) * self.lanes) for v in range(self.vectors)]
        *inner, last = ("\n".join(step(few) for step in steps) for few in elements)
        before = [beyond.format(e=e) for e in elements[-1]] if beyond else []
        lines = [*inner, *before, "if inside:", textwrap.indent(last, "    ")]
        return textwrap.indent("\n".join(lines), "    ")

    def take(self, name: str, array: str, at: str = "first") -> Step:
        """A step of :meth:`by_vector`: ``name0, name1, ... = array[at], ...``."""

        def lines(elements: range) -> str:
            names = "".join(f"{name}{e}, " for e in elements)
            if self.wide:
                return f"{names}= load({array}, {at} + {self.offset(elements[0])})"
            return f"{names}= " + "".join(f"{array}[{at} + {self.offset(e)}], " for e in elements)

        return lines

    def put(self, array: str, value: str) -> Step:
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
        kept = f"\n{self.place}\n    first = row * columns + column" if self.vectors else ""
        return f"""\
    row = cuda.blockIdx.x * {WARPS} + cuda.threadIdx.y
    if row >= rows:
        return{kept}"""

    def loop(self, *steps: Step) -> str:
        """The lines that ``steps`` give, for each vector of a row that is not kept."""
        lines = ["first = row * columns + column", *(step(range(self.lanes)) for step in steps)]
        body = textwrap.indent("\n".join(lines), 8 * " ")
        return f"    for column in range({self.lanes} * cuda.threadIdx.x, columns, {self.lanes * WIDTH}):\n{body}"


class Passes:
    """The text of passes over a row: what one needs is read and computed once for all, or in each pass of a long row.

    ``reads`` are names of elements with the array they come from; beyond the end of a row that is kept they are zero,
    or what ``fill`` says for a name. ``defines`` are expressions of such names, with ``{e}`` behind each, or steps.
    ``start`` are lines that a lane begins with to walk along a row, which may use the first ``column`` it takes.
    """

    def __init__(
        self, row: Row, reads: dict[str, str], defines: dict[str, Any] | None = None, start: str = "", **fill: str
    ) -> None:
        self.row, self.reads, self.defines, self.fill = row, reads, defines or {}, fill
        self.start, self.known = start, set[str]()

    def __call__(self, names: str, *lines: str, before: Sequence[Step] = (), **puts: str) -> str:
        """A pass that needs ``names``: ``lines`` for each element as in :meth:`Row.each`, then ``array = puts[array]``.

        ``before`` are steps that what is put needs.
        """
        row, wanted = self.row, names.split()
        stores = [*before, *(row.put(array, value) for array, value in puts.items())] if puts else []
        if not row.vectors:
            steps = [row.take(name, array) for name, array in self.reads.items() if name in wanted]
            for name, definition in self.defines.items():
                if name in wanted:
                    steps += [_each(f"{name}{{e}} = {definition}")] if isinstance(definition, str) else definition
            first = f"    column = {row.lanes} * cuda.threadIdx.x\n{self.start}\n" if self.start else ""
            return first + row.loop(*steps, *map(_each, lines), *stores)
        parts = [self.start] if self.start and not self.known else []
        new = [name for name in wanted if name not in self.known]
        self.known.update(new)
        for name, array in self.reads.items():
            if name in new:
                parts.append(row.load(name, array, self.fill.get(name, "zero")))
        for name, definition in self.defines.items():
            if name in new:
                text = isinstance(definition, str)
                parts.append(row.each(f"{name}{{e}} = {definition}") if text else row.by_vector(*definition))
        parts += [row.each(line) for line in lines]
        return "\n".join([*parts, row.by_vector(*stores)] if stores else parts)


def _each(text: str) -> Step:
    return lambda elements: "\n".join(text.format(e=e, j=f"column + {e}", inside=True) for e in elements)


def row_of(columns: int, *arrays: Any, keep: bool = True) -> Row:
    """How a warp takes rows of ``columns`` of the arrays: in registers where they fit and shall be kept."""
    dtype = arrays[0].dtype
    lanes = access(dtype).lanes
    if columns % lanes:
        lanes = 1
    vectors = ceil_div(columns, WIDTH * lanes)
    fits = keep and lanes * vectors * dtype.itemsize <= KEPT
    return Row(lanes, vectors if fits else 0, lanes > 1 and aligned(*arrays))


def row_launch(made: Any, matrices: Sequence[Any], *others: Any) -> Launch:
    """The launch of a kernel whose warps take a row each of ``matrices``; ``others`` and the sizes come behind them."""
    rows, columns = matrices[0].shape
    return Launch(made, *rows_of(rows), (*(a.ravel() for a in matrices), *others, np.int64(rows), np.int64(columns)))


def row_kernel(text: str, name: str, dtype: Any, **scope: Any) -> Any:
    """The kernel ``name`` of a generated text, with what such texts take: sums and figures of the dtype."""
    dtype = np.dtype(dtype)
    wide = access(dtype)
    known = {"cuda": cuda, "load": wide.load, "store": wide.store}
    known |= {"zero": dtype.type(0), "one": dtype.type(1), "lowest": dtype.type(-np.inf)}
    known |= {"warp_sum": warp_sum, "warp_max": warp_max, "warp_first": warp_first}
    known |= {f: CUDA.math(f, dtype) for f in ("exp", "log", "sqrt")}
    return generated(text, name, known | scope, dtype, *scope.values())


def row_name(name: str, row: Row) -> str:
    """The name of a kernel, which says where it goes along rows by a loop, and where it takes no 128-bit access."""
    return f"{name}{'_row' if row.vectors else '_loop'}{'' if row.wide else '_scalar'}"
