"""A list of steps as a table of numbers, and what it costs to run."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..compile import Callback
from ..instructions import CHUNKS, ROWS, Instruction
from ..program import PAGE
from . import dropout, factors, gemm
from .compiling import compiled
from .entries import WORDS, Functions
from .interpreter import Workspaces, aligned
from .schedule import order, with_barriers
from .steps import CHUNK_ROWS, MOST_CHUNKS, cut_by_columns, divide_by_columns, expand, fuse_updates


def steps_of(instructions: Sequence[Instruction], program: Any = None) -> list[Instruction]:
    """The steps of a list of instructions in the order in which they run, before they are divided among threads."""
    steps = order([step for instruction in instructions for step in expand(instruction)])
    return steps if program is None else fuse_updates(steps, program)


def _address(function: Callback | None) -> int:
    return 0 if function is None else function.address


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


class Table:
    """Steps for mini-batches of about ``batch`` rows and a number of threads, with the addresses of their arrays.

    There is room for ``rows`` rows. ``resolve`` gives the array of an operand, or None where it comes later through
    :meth:`point`.
    """

    def __init__(
        self,
        steps: Sequence[Instruction],
        resolve: Callable[[Any], np.ndarray | None],
        rows: int,
        batch: int,
        threads: int,
    ) -> None:
        self.steps = with_barriers(divide_by_columns(steps, batch, threads))
        self.words = np.zeros((len(self.steps), WORDS), np.int64)
        self.address, self.length = self.words.ctypes.data, len(self.steps)
        self.places: dict[Any, list[tuple[int, int]]] = {}
        self._resolve, self._rows = resolve, rows
        self._chunks = max(1, min(MOST_CHUNKS, -(-rows // CHUNK_ROWS)))
        self._temporaries: dict[Any, np.ndarray] = {}
        self.scratch = max(map(scratch_bytes, self.steps), default=0)
        for number, functions in enumerate(compiled(self.steps, threads)):
            self._fill(number, functions)

    def _fill(self, number: int, functions: Functions) -> None:
        step, row = self.steps[number], self.words[number]
        row[0] = functions.entry.address
        word = 1
        for spec, operand in zip(step.op.operands, step.operands, strict=True):
            if operand is not None:
                array = self._array(operand)
                if array is None:
                    self.places.setdefault(operand, []).append((number, word))
                    row[word] = row.ctypes.data  # until it is bound: not 0, which is a missing operand
                else:
                    row[word] = array.ctypes.data
                shape = operand.shape if array is None else array.shape
                row[word + 1 : word + 1 + len(spec.dims)] = [self._rows if s == ROWS else s for s in shape]
            word += 1 + len(spec.dims)
        row[word] = _address(functions.strip)
        for k, scalar in enumerate(step.scalars):
            row[word + 1 + k] = _bits(scalar)
        word += 1 + len(step.scalars)
        row[word : word + len(functions.product)] = [_address(function) for function in functions.product]

    def _array(self, operand: Any) -> np.ndarray | None:
        if getattr(operand, "region", None) != "temporary":
            return self._resolve(operand)
        if operand not in self._temporaries:
            shape = [self._chunks if s == CHUNKS else s for s in operand.shape]
            nbytes = math.prod(shape) * operand.dtype.itemsize
            self._temporaries[operand] = aligned(nbytes).view(operand.dtype).reshape(shape)
        return self._temporaries[operand]

    def point(self, operand: Any, array: np.ndarray) -> None:
        """Let ``operand`` be ``array``, of as many axes, wherever it occurs."""
        assert array.ndim == len(operand.shape), (operand.name, array.shape)
        address = array.ctypes.data
        for number, word in self.places.get(operand, ()):
            self.words[number, word] = address
            self.words[number, word + 1 : word + 1 + array.ndim] = array.shape

    def word_addresses(self, operands: Sequence[Any]) -> np.ndarray:
        """Rows ``(address of a word, number of the operand)`` for each place that takes the address of an operand."""
        size = self.words.itemsize
        places = [
            (self.address + size * (number * WORDS + word), k)
            for k, operand in enumerate(operands)
            for number, word in self.places.get(operand, ())
        ]
        return np.array(places, np.int64).reshape(-1, 2)


class Tables:
    """The tables of a list of steps, each made when it is first asked for: most serve mini-batches of any size.

    There is room for ``rows`` rows; ``resolve`` and :meth:`point` give the arrays, as for a :class:`Table`. Jobs run
    one at a time, in ``workspaces``, which lists that take turns may share.
    """

    def __init__(
        self,
        steps: Sequence[Instruction],
        resolve: Callable[[Any], np.ndarray | None],
        rows: int,
        workspaces: Workspaces | None = None,
    ) -> None:
        self.steps, self._resolve, self._rows = steps, resolve, rows
        self.made: dict[Any, Table] = {}  # by what they depend on
        self._arrays: dict[Any, np.ndarray] = {}
        self.workspaces = Workspaces() if workspaces is None else workspaces
        self._costs = np.array([_costs(step) for step in steps], np.float64).reshape(-1, 3).T

    def seconds(self, rows: int) -> float:
        """About how long one thread takes for ``rows`` rows, good to a factor of 2."""
        flops, row, other = self._costs
        return float(np.maximum(flops * rows / _FLOPS, (row * rows + other) / _BYTES).sum()) + _CALL * len(flops)

    def table(self, batch: int, threads: int) -> Table:
        """The table for mini-batches of ``batch`` rows on so many threads."""
        cut = cut_by_columns(batch, threads)
        key = None if cut is None else (cut, threads)
        if key not in self.made:
            made = Table(self.steps, self._resolve, self._rows, batch, threads)
            for operand, array in self._arrays.items():
                made.point(operand, array)
            self.made[key] = made
        return self.made[key]

    def point(self, operand: Any, array: np.ndarray) -> None:
        """Let ``operand`` be ``array`` in all of them, and in those to come."""
        self._arrays[operand] = array
        for table in self.made.values():
            table.point(operand, array)


def scratch_bytes(step: Instruction) -> int:
    """The memory of a thread's own that a step needs."""
    if step.op.name.startswith("dense_"):
        return gemm.SCRATCH
    if any(spec.name == "factors" for spec in step.op.operands):
        return factors.SCRATCH
    if "norm" not in step.op.name:
        return dropout.SCRATCH
    columns = max(operand.shape[-1] for operand in step.operands if operand is not None)
    return 5 * 8 * int(columns) + PAGE  # see norm.beside


# What one thread does in a second, for choosing the number of threads: measured on one machine.
_FLOPS = 6e10
_BYTES = 2e10
_CALL = 2e-8
_SECONDS_PER_THREAD = 2e-5  # of work before another thread pays: a launch and some barriers take 5 us


def _costs(step: Instruction) -> tuple[int, int, int]:
    """Of a step: the operations for each row, the bytes for each row, and those that it touches in any case."""
    sizes: dict[str, int] = {"m": 1, "C": 1, "c": 1}
    nbytes = {True: 0, False: 0}  # for each row or not
    for spec, operand in zip(step.op.operands, step.operands, strict=True):
        if operand is None:
            continue
        for letter, size in zip(spec.dims, operand.shape, strict=True):
            sizes.setdefault(letter, 1 if size in (ROWS, CHUNKS) else int(size))
        touched = [sizes[letter] for letter in spec.dims if letter not in "NOHC"]
        nbytes["m" in spec.dims] += math.prod(touched) * operand.dtype.itemsize
    return 2 * sizes["k"] * sizes["n"] if step.op.name in _PRODUCTS else 0, nbytes[True], nbytes[False]


_PRODUCTS = ("dense_forward", "dense_backward_w", "dense_update", "dense_backward_x")


def worthwhile_threads(estimate: float) -> int:
    """How many threads pay for ``estimate`` seconds of work."""
    return max(1, int(estimate / _SECONDS_PER_THREAD))
