"""Passes over the elements of a matrix, with figures that belong to columns.

A warp lies along columns, so that every access is coalesced; a thread takes 128 bits of neighbouring columns where the
columns and the addresses allow it, and else a single one. It goes over several rows and reads the figures once. The
text is generated, with variables for each of its columns; the arithmetic of an element is the same in either case.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import cuda

from .launch import CUDA, DEPTH, WIDTH, Launch, ceil_div, generated, tiled
from .vector import access, aligned

SPAN = 32  # rows of a block: a thread reads what belongs to its columns once for four of them

_PASS = """
def {name}({arguments}, rows, columns):
    column = (cuda.blockIdx.y * {WIDTH} + cuda.threadIdx.x) * {lanes}
    if column < columns:
{figures}
        last = min(rows, (cuda.blockIdx.x + 1) * {SPAN})
        for row in range(cuda.blockIdx.x * {SPAN} + cuda.threadIdx.y, last, {DEPTH}):
            at = row * columns + column
{loads}
            {store}
"""


def lanes_of(columns: int, *arrays: Any) -> int:
    """How many neighbouring columns a thread takes at once of these arrays."""
    lanes = access(arrays[0].dtype).lanes
    return lanes if columns % lanes == 0 and aligned(*arrays) else 1


def marked(function: Callable[..., Any], lanes: int) -> Callable[..., Any]:
    """``function`` with a name that says where it takes one element at a time."""
    function.__name__ += "" if lanes > 1 else "_scalar"
    return function


def single(array: str, at: str, half: str = "") -> str:
    """The expression that reads one element; ``half`` is the format of arrays of 16 bits."""
    return f"load_half1({array}, {at})[0]" if half else f"{array}[{at}]"


def load(name: str, array: str, at: str, lanes: int, wide: bool = True, half: str = "") -> str:
    """The line that reads ``name0, name1, ...`` from ``array`` at ``at``; one by one where not ``wide``."""
    if lanes == 1:
        return f"{name}0 = {single(array, at, half)}"
    one_by_one = ", ".join(single(array, f"{at} + {k}", half) for k in range(lanes))
    values = f"load{'_half' if half else ''}({array}, {at})" if wide else one_by_one
    return f"{', '.join(f'{name}{k}' for k in range(lanes))} = {values}"


def store(array: str, at: str, value: str, lanes: int, wide: bool = True, half: str = "") -> str:
    """The lines that write ``value``, an expression with ``{k}``."""
    values = [value.format(k=k) for k in range(lanes)]
    if wide and lanes > 1:
        return f"store{'_half' if half else ''}({array}, {at}, ({', '.join(values)}))"
    places = [at] if lanes == 1 else [f"{at} + {k}" for k in range(lanes)]
    line = "store_half1({0}, {1}, ({2},))" if half else "{0}[{1}] = {2}"
    return "\n".join(line.format(array, place, v) for place, v in zip(places, values, strict=True))


def each(text: str, lanes: int, indent: int) -> str:
    """The lines of ``text`` for each column of a thread, ``{k}``."""
    return textwrap.indent("\n".join(text.format(k=k) for k in range(lanes)), indent * " ")


@functools.cache
def _pass(
    dtype: Any,
    name: str,
    lanes: int,
    spatial: bool,
    vectors: tuple[str, ...],
    figures: tuple[str, ...],
    out: str,
    scalars: tuple[str, ...],
    derived: tuple[str, ...],
    result: str,
) -> Any:
    lines = []
    if spatial:
        lines.append(f"spatial = columns // {figures[0]}.size")
    for figure in figures:
        if spatial:
            lines += [f"{figure}{k} = {figure}[(column + {k}) // spatial]" for k in range(lanes)]
        else:
            lines.append(load(figure, figure, "column", lanes))
    lines += [line.format(k=k) for line in derived for k in range(lanes)]
    name = name if lanes > 1 else f"{name}_scalar"
    text = _PASS.format(
        name=name,
        arguments=", ".join((*vectors, *figures, out, *scalars)),
        WIDTH=WIDTH,
        DEPTH=DEPTH,
        SPAN=SPAN,
        lanes=lanes,
        figures=textwrap.indent("\n".join(lines), 8 * " "),
        loads=textwrap.indent("\n".join(load(v, v, "at", lanes) for v in vectors), 12 * " "),
        store=store(out, "at", result, lanes),
    )
    wide = access(dtype)
    scope = {"cuda": cuda, "load": wide.load, "store": wide.store, "zero": np.dtype(dtype).type(0)}
    scope |= {"one": np.dtype(dtype).type(1), "sqrt": CUDA.math("sqrt", dtype)}
    return generated(text, name, scope, np.dtype(dtype))


def column_pass(
    name: str,
    vectors: dict[str, Any],
    figures: dict[str, Any],
    out: tuple[str, Any],
    result: str,
    derived: Sequence[str] = (),
    **scalars: Any,
) -> Launch:
    """``out = result`` for every element: an expression with ``{k}`` after each name of vectors and figures.

    Figures belong to as many neighbouring columns as come to each; ``derived`` are lines that change them first.
    """
    rows, columns = out[1].shape
    spatial = columns > next(iter(figures.values())).size
    arrays = [*vectors.values(), out[1]]
    lanes = lanes_of(columns, *arrays, *([] if spatial else figures.values()))
    names = tuple(vectors), tuple(figures), out[0], tuple(scalars)
    made = _pass(out[1].dtype, name, lanes, spatial, *names, tuple(derived), result)
    flat = [a.ravel() for a in arrays]
    arguments = *flat[:-1], *figures.values(), flat[-1], *scalars.values(), np.int64(rows), np.int64(columns)
    return Launch(made, *tiled(rows, ceil_div(columns, lanes), depth=SPAN), arguments)
