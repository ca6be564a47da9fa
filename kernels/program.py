"""A model as a program: buffers of one arena, and lists of instructions on them.

Layers write the program through a :class:`Builder`; an engine of :mod:`dlcore.kernels.cpu` or
:mod:`dlcore.kernels.cuda` runs it. ``print(program)`` shows it, one instruction a line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .in_place import overwriting
from .instructions import ROWS, Instruction

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
# Bytes. A CPU takes a load for one of what was just stored if their places in a page agree (the last 12 bits of the
# addresses), and waits for the store: vectors that are read and written together lie well apart in their pages, or
# alike.
PAGE = 1 << 12

# Regions, in the order they lie in the arena. Those before "work" outlive a change of the batch size.
REGIONS = ("state", "parameter", "gradient", "slot", "work")


@dataclass(frozen=True, eq=False)
class Buffer:
    """A named array in the arena. Its first axis is :data:`ROWS` where it holds a mini-batch."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    region: str
    index: int  # position among the buffers of its region

    def elements(self, rows: int) -> int:
        """How many elements it has room for when a mini-batch has at most ``rows`` rows."""
        return math.prod(rows if s == ROWS else s for s in self.shape)


class Extern(Buffer):
    """An array that lives outside the arena and is bound when the program runs: data, labels, order, histories."""


TENSOR_BLOCK = 4096  # elements of a tensor that one thread, or one block of a GPU, takes


def tensor_blocks(sizes: Sequence[int], starts: Sequence[int]) -> np.ndarray:
    """Rows ``(first, last, tensor)``: tensors that begin at ``starts`` of a vector, cut into blocks."""
    return np.array(
        [
            (first, min(first + TENSOR_BLOCK, start + size), tensor)
            for tensor, (size, start) in enumerate(zip(sizes, starts, strict=True))
            for first in range(start, start + size, TENSOR_BLOCK)
        ],
        np.int64,
    ).reshape(-1, 3)


PANEL_ROWS, PANEL_COLUMNS = 32, 4096  # of the part of a tensor that one thread, or one block of a GPU, sums


class Factors(NamedTuple):
    """Where the state of rows and columns of tensors lies, and how tensors are cut to sum what it is made of."""

    tensors: np.ndarray  # rows (start, rows, columns, factors, panels): first element, factor and panel of a tensor
    panels: np.ndarray  # rows (first row, last row, tensor, first column, last column, its first sum, elements before)
    size: int  # of all factors: of each tensor what rows are divided by, then one for each row, for each column
    sums: int  # of each panel one for each row, for each column


def factors_of(shapes: Sequence[tuple[int, ...]], starts: Sequence[int]) -> Factors:
    """Tensors of ``shapes`` that begin at ``starts`` of a vector, as matrices: the last axis is that of the columns."""
    tensors: list[tuple[int, ...]] = []
    panels: list[tuple[int, ...]] = []
    size = sums = elements = 0
    for tensor, (shape, start) in enumerate(zip(shapes, starts, strict=True)):
        rows, columns = math.prod(shape[:-1]), math.prod(shape[-1:])
        tensors.append((start, rows, columns, size, len(panels)))
        size += 1 + rows + columns
        for row in range(0, rows, PANEL_ROWS):
            below = min(rows, row + PANEL_ROWS)
            for column in range(0, columns, PANEL_COLUMNS):
                end = min(columns, column + PANEL_COLUMNS)
                panels.append((row, below, tensor, column, end, sums, elements))
                sums += below - row + end - column
                elements += (below - row) * (end - column)
    return Factors(np.array(tensors, np.int64).reshape(-1, 5), np.array(panels, np.int64).reshape(-1, 7), size, sums)


def update_by_tensor(
    rule: Any, w: Any, g: Any, slots: Any, uniforms: Any, blocks: Any, rows: Any, factors: Sequence[Any] | None
) -> Iterator[tuple[str, list[Any], Any, dict[str, float]]]:
    """The instructions of a step of a rule with sums or factors: names, operands, rule, scalars.

    ``factors`` are state, tensors, panels and sums, as :meth:`Builder.factors` gives them. ``blocks`` and ``rows`` are
    not asked for where the factors change after the update.
    """
    state, tensors, panels, sums = factors or (None,) * 4
    if rule.after:
        yield "factored_update", [w, g, slots, state, uniforms, tensors, panels, sums], rule, {}
    elif factors is not None:
        yield "factor_sums", [w, g, state, uniforms, tensors, panels, sums], rule, {}
    if factors is not None:
        yield "factor_update", [sums, uniforms, tensors, panels, state], None, {"largest": float(rule.largest)}
    if not rule.after:
        yield "tensor_sums", [w, g, slots, uniforms, blocks, state, tensors, panels, rows], rule, {}
        yield "optimizer_update_by_tensor", [w, g, slots, rows, blocks, state, tensors, panels], rule, {}


def padded(elements: int, dtype: np.dtype) -> int:
    """``elements`` rounded up so that what lies behind them is aligned."""
    unit = ALIGNMENT // dtype.itemsize
    return -(-elements // unit) * unit


_NEAR = 384  # bytes


def apart(elements: int, dtype: np.dtype, count: int) -> int:
    """``elements``, or some cache lines more, for each of ``count`` vectors that lie one behind the other.

    With the four vectors of Adam 64 bytes apart in their pages a step took 1.8 times as long, for loads are taken for
    stores (see PAGE); from 384 bytes on, or where they begin alike, it loses nothing (Zen 4).
    """
    size = padded(elements, dtype)
    distances = [k * dtype.itemsize for k in range(1 - count, count)]
    while any(0 < size * distance % PAGE < _NEAR for distance in distances):
        size += ALIGNMENT // dtype.itemsize
    return size


class Program:
    """Buffers and instruction lists; made by :class:`Builder`, read by the engines."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.buffers: dict[str, list[Buffer]] = {region: [] for region in REGIONS}
        self.externs: dict[str, Extern] = {}
        self.lists: dict[str, list[Instruction]] = {}
        self.parameters: Buffer | None = None  # all trainable parameters as one vector, with their padding
        self.gradients: Buffer | None = None
        self.slots: Buffer | None = None
        self.constants: dict[Buffer, np.ndarray] = {}  # what an engine writes before anything runs

    def trained(self) -> int:
        """Elements of all parameters, with the padding of each."""
        return sum(padded(b.elements(1), b.dtype) for b in self.buffers["parameter"])

    def layout(self, rows: int) -> tuple[dict[Buffer, int], int, int]:
        """Byte offset of each buffer for mini-batches of up to ``rows`` rows, where "work" starts, and the total."""
        offsets: dict[Buffer, int] = {}
        cursor = work = 0
        for region in REGIONS:
            if region == "work":
                work = cursor
            whole = {"parameter": self.parameters, "gradient": self.gradients, "slot": self.slots}.get(region)
            if whole is not None:
                offsets[whole] = cursor
            for buffer in self.buffers[region]:
                offsets[buffer] = cursor
                cursor += padded(buffer.elements(rows), buffer.dtype) * buffer.dtype.itemsize
            if whole is not None:
                cursor = offsets[whole] + padded(whole.elements(rows), whole.dtype) * whole.dtype.itemsize
        return offsets, work, cursor

    def views(self, arena: Any, rows: int) -> dict[Buffer, Any]:
        """Every buffer as an array in ``arena``, a vector of bytes of NumPy or CuPy."""
        offsets, _, _ = self.layout(rows)
        return {
            buffer: arena[at : at + buffer.elements(rows) * buffer.dtype.itemsize]
            .view(buffer.dtype)
            .reshape([rows if s == ROWS else s for s in buffer.shape])
            for buffer, at in offsets.items()
        }

    def check_binding(self, name: str, array: Any) -> None:
        """Raise where ``array`` cannot be bound to extern ``name``."""
        spec = self.externs[name]
        if array.dtype != spec.dtype or array.ndim != len(spec.shape) or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} is {array.dtype} with shape {array.shape}; expected a C-contiguous {spec.dtype} "
                f"array with {len(spec.shape)} axes"
            )
        for size, expected in zip(array.shape, spec.shape, strict=True):
            if expected and size != expected:
                raise ValueError(f"{name} has shape {array.shape}; expected {spec.shape}, 0 for any size")

    @staticmethod
    def check_run(steps: int, batch: int, samples: int, first: int, rows: int) -> None:
        """Raise where ``steps`` mini-batches from number ``first`` are not all there, or have no room."""
        if batch > rows or (first + steps - 1) * batch >= samples or first < 0 or steps < 1:
            raise ValueError(f"{steps} mini-batches of {batch} from number {first} do not fit {samples} samples")

    def all_buffers(self) -> list[Buffer]:
        """Every buffer of the arena, the three whole vectors included."""
        whole = [b for b in (self.parameters, self.gradients, self.slots) if b is not None]
        return [b for region in REGIONS for b in self.buffers[region]] + whole

    def __str__(self) -> str:
        lines = []
        for name, instructions in self.lists.items():
            lines.append(f"{name}:")
            lines += [f"  {k:3d}  {instruction}" for k, instruction in enumerate(instructions)]
        return "\n".join(lines)


class Builder:
    """Collects buffers and instructions while layers describe themselves."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.program = Program(np.dtype(dtype))
        self._list: list[Instruction] = []
        self._names: dict[str, int] = {}

    @property
    def dtype(self) -> np.dtype:
        """The model's floating dtype."""
        return self.program.dtype

    def _new(self, region: str, name: str, shape: Sequence[int], dtype: Any) -> Buffer:
        buffers = self.program.buffers[region]
        buffer = Buffer(name, tuple(shape), np.dtype(dtype or self.dtype), region, len(buffers))
        buffers.append(buffer)
        return buffer

    def parameter(self, name: str, shape: Sequence[int]) -> tuple[Buffer, Buffer]:
        """A trainable parameter and its gradient; they lie at the same place in their regions."""
        return self._new("parameter", name, shape, None), self._new("gradient", f"d_{name}", shape, None)

    def state(self, name: str, shape: Sequence[int], dtype: Any = None) -> Buffer:
        """What is kept from step to step and not trained: running statistics, the step, the hyper-parameters."""
        return self._new("state", name, shape, dtype)

    def rows(self, name: str, *columns: int, dtype: Any = None) -> Buffer:
        """A buffer for one mini-batch: ``(rows, *columns)``."""
        return self._new("work", name, (ROWS, *columns), dtype)

    def work(self, name: str, shape: Sequence[int], dtype: Any = None) -> Buffer:
        """A buffer for one step whose size does not depend on the mini-batch."""
        return self._new("work", name, shape, dtype)

    def extern(self, name: str, shape: Sequence[int], dtype: Any = None) -> Extern:
        """An array that is bound when the program runs; a size of 0 stands for "as long as it comes"."""
        if name not in self.program.externs:
            extern = Extern(name, tuple(shape), np.dtype(dtype or self.dtype), "extern", len(self.program.externs))
            self.program.externs[name] = extern
        return self.program.externs[name]

    def whole(self, slots: int) -> tuple[Buffer, Buffer, Buffer]:
        """All parameters, all gradients and all optimizer state, each as one array; after the last parameter.

        Behind the last parameter they may be longer (see :func:`apart`); only the optimizer sees what is there, with
        gradients of 0.
        """
        program = self.program
        size = apart(program.trained(), self.dtype, 2 + slots)
        program.parameters = Buffer("parameters", (size,), self.dtype, "parameter", -1)
        program.gradients = Buffer("gradients", (size,), self.dtype, "gradient", -1)
        program.slots = Buffer("slots", (slots, size), self.dtype, "slot", -1)
        return program.parameters, program.gradients, program.slots

    def blocks(self) -> tuple[Buffer, int]:
        """The blocks of all parameters (see :func:`tensor_blocks`) as a buffer, and the number of tensors."""
        sizes = [b.elements(1) for b in self.program.buffers["parameter"]]
        return self._constant("tensor_blocks", tensor_blocks(sizes, self._starts())), len(sizes)

    def factors(self) -> tuple[Buffer, Buffer, Buffer, Buffer]:
        """State of the rows and columns of all parameters, and tensors, panels and sums (see :class:`Factors`)."""
        found = factors_of([b.shape for b in self.program.buffers["parameter"]], self._starts())
        state = self.state("factors", (found.size,))
        tensors, panels = self._constant("tensors", found.tensors), self._constant("panels", found.panels)
        return state, tensors, panels, self.work("factor_sums", (found.sums,))

    def _starts(self) -> list[int]:
        """Where each parameter begins in the vector of all."""
        sizes = [padded(b.elements(1), b.dtype) for b in self.program.buffers["parameter"]]
        return [0, *itertools.accumulate(sizes[:-1])]

    def _constant(self, name: str, table: np.ndarray) -> Buffer:
        buffer = self.state(name, table.shape, np.int64)
        self.program.constants[buffer] = table
        return buffer

    def emit(self, op: str, *operands: Any, rule: Any = None, **scalars: float) -> None:
        """Append an instruction to the current list."""
        self._list.append(Instruction(op, operands, rule, list(scalars.values())))

    @contextmanager
    def without_state(self) -> Iterator[None]:
        """What is emitted meanwhile moves no state: statistics go to memory that nothing reads."""
        first = len(self._list)
        yield
        for k, instruction in enumerate(self._list[first:], first):
            operands = [
                self.work(f"{o.name} unread", o.shape, o.dtype) if s.access == "update" and o.region == "state" else o
                for s, o in zip(instruction.op.operands, instruction.operands, strict=True)
            ]
            self._list[k] = Instruction(instruction.op, operands, instruction.rule, instruction.scalars)

    def finish(self, name: str) -> dict[Buffer, Buffer]:
        """Name the current list and begin another; the buffers that it does without, and which stands for each.

        Buffers for mini-batches belong to one list: no other may read those.
        """
        self.program.lists[name], instead = overwriting(self._list)
        work = self.program.buffers["work"]
        work[:] = [buffer for buffer in work if buffer not in instead]
        self._list = []
        return instead
