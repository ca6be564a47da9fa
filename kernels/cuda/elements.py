"""Passes over all elements of arrays of one size, and sums over them: 128 bits at a time where addresses allow it.

The text is generated, with variables for each of the elements that a thread takes at once. The arithmetic of an element
is the same however many those are, and a sum has the same bits wherever its arrays begin.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numba import cuda

from .block import block_sum
from .columns import each, load, store
from .launch import BLOCK, Launch, ceil_div, element, flat, generated
from .vector import access, aligned

SUM_BLOCKS = 256  # at most: few enough for one thread, or one block, to add what they found

_TEXT = """
def {name}({arguments}, size):
{begin}
    whole = size - size % {lanes}
    for at in range({lanes} * cuda.grid(1), whole, {lanes} * cuda.gridsize(1)):
{several}
    for at in range(whole + cuda.grid(1), size, cuda.gridsize(1)):
{one}
{end}
"""

_BEGIN_SUM = f"""
    sums = cuda.shared.array({BLOCK}, element)
    total = zero"""

_END_SUM = """\
    block_sum(total, sums)
    if cuda.threadIdx.x == 0:
        partial[cuda.blockIdx.x] = sums[0]"""


@functools.cache
def _kernel(
    dtype: np.dtype,
    name: str,
    lanes: int,
    wide: bool,
    arguments: tuple[str, ...],
    reads: tuple[str, ...],
    writes: tuple[tuple[str, str], ...],
    term: str,
    begin: tuple[str, ...],
    functions: tuple[tuple[str, Callable[..., Any]], ...],
) -> Any:
    def body(lanes: int) -> str:
        lines = [load(array, array, "at", lanes, wide) for array in reads]
        lines += [store(array, "at", value, lanes, wide) for array, value in writes]
        lines += [each(f"total += {term}", lanes, 0)] if term else []
        return textwrap.indent("\n".join(lines), 8 * " ")

    name = name if wide else f"{name}_scalar"
    first = textwrap.indent("\n".join(begin), 4 * " ")
    text = _TEXT.format(
        name=name,
        arguments=", ".join(arguments),
        begin=first + (_BEGIN_SUM if term else ""),
        lanes=lanes,
        several=body(lanes),
        one=body(1),
        end=_END_SUM if term else "",
    )
    vector = access(dtype)
    scope = {"cuda": cuda, "load": vector.load, "store": vector.store, "number": dtype.type, "zero": dtype.type(0)}
    scope |= {"element": element(dtype), "block_sum": block_sum, **dict(functions)}
    return generated(text, name, scope, dtype, *(function for _, function in functions))


def element_pass(
    name: str,
    reads: Mapping[str, Any],
    writes: Mapping[str, tuple[Any, str]],
    begin: Sequence[str] = (),
    functions: Mapping[str, Callable[..., Any]] | None = None,
    **given: Any,
) -> Launch:
    """``array = expression`` for each element of the arrays in ``writes``, in their order.

    An expression has ``{k}`` after each name of ``reads``. ``begin`` are lines before the loop, which may use what is
    ``given``; ``functions`` are what the expressions call.
    """
    arrays = {key: array.ravel() for key, array in reads.items()}
    arrays |= {key: array.ravel() for key, (array, _) in writes.items()}
    first = next(iter(arrays.values()))
    wide = aligned(*arrays.values())
    lanes = access(first.dtype).lanes if wide else 1
    lines = tuple((key, expression) for key, (_, expression) in writes.items())
    calls = tuple((functions or {}).items())
    made = _kernel(first.dtype, name, lanes, wide, (*arrays, *given), tuple(reads), lines, "", tuple(begin), calls)
    arguments = *arrays.values(), *given.values(), np.int64(first.size)
    return Launch(made, *flat(ceil_div(first.size, lanes)), arguments)


def sum_blocks(size: int) -> int:
    """How many blocks :func:`element_sum` takes for ``size`` elements, each of which finds a part of the sum."""
    return max(1, min(ceil_div(size, 4 * BLOCK), SUM_BLOCKS))


def element_sum(name: str, reads: Mapping[str, Any], term: str, partial: Any, **given: Any) -> Launch:
    """The sum of ``term`` over all elements, an expression as in :func:`element_pass`, in as many parts as blocks."""
    arrays = {key: array.ravel() for key, array in reads.items()}
    first = next(iter(arrays.values()))
    names = *arrays, "partial", *given
    lanes, wide = access(first.dtype).lanes, aligned(*arrays.values())
    made = _kernel(first.dtype, name, lanes, wide, names, tuple(reads), (), term, (), ())
    return Launch(made, (partial.size,), (BLOCK,), (*arrays.values(), partial, *given.values(), np.int64(first.size)))
