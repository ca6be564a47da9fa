"""Sums over the rows of matrices, a sum for each column, along with a pass over their elements.

A warp lies along columns and a thread takes 128 bits of them where columns and addresses allow it, as in columns.py. A
block takes 256 rows of its columns, thread (c, d) rows d, d + 8, ...; the eight sums of a column are added in order,
and so are those of the blocks, by one thread a column: no atomics, and a result repeats bit for bit.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numba import cuda

from .columns import each, lanes_of, load, store
from .launch import BLOCK, CHUNK, DEPTH, WIDTH, Launch, ceil_div, element, generated, kernel, scratch, tiled
from .vector import access

_TEXT = """
def {name}({arguments}, rows, columns):
    lane = {lanes} * cuda.threadIdx.x
    depth = cuda.threadIdx.y
    column = {lanes} * {WIDTH} * cuda.blockIdx.y + lane
{zeros}
    if column < columns:
{begin}
        last = min(rows, (cuda.blockIdx.x + 1) * {CHUNK})
        for row in range(cuda.blockIdx.x * {CHUNK} + depth, last, {DEPTH}):
            at = row * columns + column
{row}
{sums}
"""

_SUMS = """\
{keep}
    cuda.syncthreads()
    if depth == 0 and column < columns:
        for k in range(1, {DEPTH}):
{add}
{put}"""


@functools.cache
def _kernel(
    dtype: np.dtype,
    name: str,
    lanes: int,
    arguments: tuple[str, ...],
    vectors: tuple[str, ...],
    sums: tuple[str, ...],
    figures: tuple[str, ...],
    begin: tuple[str, ...],
    of_row: tuple[str, ...],
    lines: tuple[str, ...],
    out: tuple[str, str] | None,
    functions: tuple[tuple[str, Callable[..., Any]], ...],
) -> Any:
    def joined(indent: int, *parts: str) -> str:
        return textwrap.indent("\n".join(parts), indent * " ")

    shared = (f"shared_{s} = cuda.shared.array(({DEPTH}, {WIDTH} * {lanes}), element)" for s in sums)
    row = [*of_row, *(load(v, v, "at", lanes) for v in vectors), *(each(line, lanes, 0) for line in lines)]
    row += [store(out[0], "at", out[1], lanes)] if out else []
    name = name if lanes > 1 else f"{name}_scalar"
    text = _TEXT.format(
        name=name, arguments=", ".join(arguments), lanes=lanes, WIDTH=WIDTH, DEPTH=DEPTH, CHUNK=CHUNK,
        zeros=joined(4, *shared, *(each(f"{s}{{k}} = zero", lanes, 0) for s in sums)),
        begin=joined(8, *begin, *(load(f, f, "column", lanes) for f in figures)),
        row=joined(12, *row),
        sums=_SUMS.format(
            DEPTH=DEPTH,
            keep=joined(4, *(each(f"shared_{s}[depth, lane + {{k}}] = {s}{{k}}", lanes, 0) for s in sums)),
            add=joined(12, *(each(f"{s}{{k}} += shared_{s}[k, lane + {{k}}]", lanes, 0) for s in sums)),
            put=joined(8, *(each(f"{s}[cuda.blockIdx.x, column + {{k}}] = {s}{{k}}", lanes, 0) for s in sums)),
        ) if sums else "",
    )  # fmt: skip
    wide = access(dtype)
    scope = {"cuda": cuda, "load": wide.load, "store": wide.store, "element": element(dtype), "zero": dtype.type(0)}
    return generated(text, name, scope | dict(functions), dtype, *(function for _, function in functions))


def column_sums(
    name: str,
    vectors: Mapping[str, Any],
    sums: Mapping[str, Any],
    lines: Sequence[str],
    out: tuple[str, Any, str] | None = None,
    figures: Mapping[str, Any] | None = None,
    begin: Sequence[str] = (),
    of_row: Sequence[str] = (),
    functions: Mapping[str, Callable[..., Any]] | None = None,
    neighbours: int = 0,
    **given: Any,
) -> Launch:
    """Run ``lines`` for each element, with ``{k}`` after each name of vectors, figures and sums.

    ``vectors`` are matrices, ``figures`` have an element for each column, ``sums`` a row for each block of rows;
    ``out`` is the name of a matrix, it, and the expression to write. ``begin`` are lines before the rows and ``of_row``
    before the elements of one: both may use what is ``given``, and may hold for groups of ``neighbours`` columns.
    """
    matrices = dict(vectors) | ({out[0]: out[1]} if out else {})
    figures = figures or {}
    first = next(iter(matrices.values()))
    rows, columns = first.shape
    lanes = lanes_of(columns, *matrices.values(), *figures.values())
    lanes = 1 if neighbours % lanes else lanes
    names = *matrices, *figures, *given, *sums
    calls = tuple((functions or {}).items())
    texts = tuple(figures), tuple(begin), tuple(of_row), tuple(lines), (out[0], out[2]) if out else None
    made = _kernel(first.dtype, name, lanes, names, tuple(vectors), tuple(sums), *texts, calls)
    arrays = *(a.ravel() for a in matrices.values()), *figures.values(), *given.values(), *sums.values()
    grid = tiled(rows, ceil_div(columns, lanes), depth=CHUNK)
    return Launch(made, *grid, (*arrays, np.int64(rows), np.int64(columns)))


@kernel
def _add_partials(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)

    def add_partials(partial, out):  # type: ignore[no-untyped-def]
        column = cuda.grid(1)
        if column < out.size:
            total = zero
            for k in range(partial.shape[0]):
                total += partial[k, column]
            out[column] = total

    return add_partials


def sum_partials(partial: Any, out: Any) -> list[Launch]:
    """The launch that adds the rows of ``partial`` in order; none where ``partial`` is ``out`` itself."""
    if partial.shape[0] == 1:
        return []
    return [Launch(_add_partials(out.dtype), (ceil_div(out.size, BLOCK),), (BLOCK,), (partial, out))]


def partials(out: Any, parts: int) -> Any:
    """Room for ``parts`` rows of sums: ``out`` itself where that is one."""
    return out.reshape(1, out.size) if parts == 1 else scratch(out, (parts, out.size))
