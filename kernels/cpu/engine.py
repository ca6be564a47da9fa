"""The CPU engine: a program as a table of numbers, run by one native call.

A row of the table is an instruction: word 0 the address of its compiled entry, then for every operand its address
and sizes, then the address of its rule, then its scalars. The interpreter knows no instruction; nothing is compiled
for a model. A size of -1 is the number of rows of the mini-batch, which is in the context.
"""

from __future__ import annotations

import inspect
import struct
import types as python_types
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core import config

from .. import compile as compiler
from .. import mathfn
from ..instructions import ROWS, Instruction, Op
from ..native import VIEWS, call_entry, float_of_bits
from ..program import ALIGNMENT, Buffer, Program
from . import dense, dropout, norm, rowwise, update

WORDS = 48  # of a row; the longest instruction (batch norm) takes 30
CONTEXT = 8  # words: rows, start, index
_ROWS, _START, _INDEX = range(3)
_ENTRY_SIGNATURE = types.void(types.int64, types.int64)
_DTYPES = {"i": np.dtype(np.int64), "d": np.dtype(np.float64)}


def body_of(op: str) -> Any:
    """The plain Python function that an instruction runs; it reads like its formula."""
    for module in (dense, rowwise, norm, update, dropout):
        body = getattr(module, op, None)
        if body is not None:
            return body
    raise LookupError(f"the CPU engine has no instruction {op!r}")


# ------------------------------------------------------------------------------------------- compiled entries

_specialised: dict[tuple[Any, np.dtype], Any] = {}
_entries: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def _specialise(function: Any, dtype: np.dtype) -> Any:
    """``function`` with the mathematics of ``dtype`` and with its helpers compiled along with it."""
    key = (function, dtype)
    if key not in _specialised:
        scope = dict(function.__globals__)
        for name in function.__code__.co_names:
            value = scope.get(name)
            math_name = mathfn.name_of(value)
            if math_name is not None:
                scope[name] = mathfn.cpu(math_name, dtype)
            elif isinstance(value, python_types.FunctionType) and value.__module__.startswith("dlcore.kernels"):
                scope[name] = compiler.CPU.inline(_specialise(value, dtype))
        clone = python_types.FunctionType(function.__code__, scope, function.__name__)
        clone.__module__ = function.__module__
        clone.__qualname__ = f"{function.__name__}_{dtype.name}"
        _specialised[key] = clone
    return _specialised[key]


def _entry_text(op: Op, arguments: Sequence[str], name: str) -> str:
    """An entry: the words of a row as arrays and numbers, then the call of the body."""
    lines = [
        f"def {name}(row_, context_):",
        f"    row = words(row_, {WORDS})",
        f"    context = words(context_, {CONTEXT})",
    ]
    word = 1
    for operand in op.operands:
        sizes = []
        for axis, letter in enumerate(operand.dims):
            at = word + 1 + axis
            # a missing operand has address 0, and no rows
            sizes.append(f"(context[0] if row[{at}] == -1 else row[{at}])" if letter == "m" else f"row[{at}]")
        lines.append(f"    {operand.name} = view_{operand.dtype}{len(operand.dims)}(row[{word}], {', '.join(sizes)})")
        word += 1 + len(operand.dims)
    lines.append(f"    rule = row[{word}]")
    word += 1
    for scalar in op.scalars:
        lines.append(f"    {scalar} = real(row[{word}])")
        word += 1
    lines += ["    start = context[1]", "    index = context[2]"]
    lines.append(f"    body({', '.join(arguments)})")
    return "\n".join(lines)


def _entry(instruction: Instruction) -> tuple[Any, Any]:
    """The compiled entry of an instruction, as a C function, and its Python source."""
    op, dtype = instruction.op, instruction.dtype
    rule = instruction.rule if op.name == "optimizer_begin" else None
    key = (op.name, dtype, (rule.main, tuple(rule.parameters), rule.decoupled) if rule else None)
    if key not in _entries:
        name = f"{op.name}_{dtype.name}" + (f"_{rule.name}" if rule else "")
        scope: dict[str, Any] = {"words": VIEWS[np.dtype(np.int64)][1], "real": float_of_bits}
        for letter, kind in (("f", dtype), *_DTYPES.items()):
            for dimensions, view in VIEWS[kind].items():
                scope[f"view_{letter}{dimensions}"] = view
        meaning = ""
        if rule is not None:
            text, uniforms = compiler.begin(rule, dtype)
            body = compiler.make(text, op.name, {"uniforms": compiler.CPU.inline(uniforms.function), "np": np})
            arguments = ["hyper", "step", "uniforms"]
            meaning = text + uniforms.text
        else:
            body = _specialise(body_of(op.name), dtype)
            arguments = list(inspect.signature(body_of(op.name)).parameters)
        scope["body"] = compiler.CPU.inline(body)
        function = compiler.make(_entry_text(op, arguments, name), name, scope, meaning)
        _entries[key] = (compiler.callback(function, _ENTRY_SIGNATURE), function)
    return _entries[key]


_INTERPRETER = """
def interpreter(table, rows_, context, steps, batch, samples, first):
    address = context.ctypes.data
    for step in range(steps):
        start = (first + step) * batch
        context[0] = min(batch, samples - start)
        context[1] = start
        context[2] = first + step
        for i in range(table.shape[0]):
            call(table[i, 0], rows_ + 8 * table.shape[1] * i, address)
"""
_interpreter: Any = None


def _run(table: np.ndarray, context: np.ndarray, steps: int, batch: int, samples: int, first: int) -> None:
    global _interpreter
    if _interpreter is None:
        function = compiler.make(_INTERPRETER, "interpreter", {"call": call_entry})
        i64 = types.int64
        array = types.Array(i64, 2, "C"), i64, types.Array(i64, 1, "C"), i64, i64, i64, i64
        _interpreter = compiler.native(function, types.void(*array))
    _interpreter(table, table.ctypes.data, context, steps, batch, samples, first)


# --------------------------------------------------------------------------------------------------- assembly

_PART = {"activation": {"dense_forward": "value", "activation_forward": "value"}, "loss": {}, "optimizer": {}}
_DEFAULT_PART = {"activation": "slope", "loss": "loss", "optimizer": "update"}


def _rule_address(instruction: Instruction) -> int:
    rule = instruction.rule
    if rule is None or instruction.op.name == "optimizer_begin":
        return 0
    part = _PART[rule.kind].get(instruction.op.name, _DEFAULT_PART[rule.kind])
    return int(compiler.strip(rule, part, instruction.dtype).address or 0)


def _checking() -> bool:
    """Whether NUMBA_BOUNDSCHECK asks for every index to be checked; entries then run one by one from Python."""
    return bool(config.BOUNDSCHECK)  # type: ignore[attr-defined]


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def assemble(instruction: Instruction, arrays: Sequence[np.ndarray | None], row: np.ndarray) -> None:
    """Write ``instruction`` on ``arrays`` into ``row``."""
    row[0] = _entry(instruction)[0].address
    word = 1
    for spec, value, array in zip(instruction.op.operands, instruction.operands, arrays, strict=True):
        if array is not None:
            row[word] = array.ctypes.data
            for axis, letter in enumerate(spec.dims):
                symbolic = letter == "m" and value.shape[axis] == ROWS
                row[word + 1 + axis] = ROWS if symbolic else array.shape[axis]
        word += 1 + len(spec.dims)
    row[word] = _rule_address(instruction)
    for k, scalar in enumerate(instruction.scalars):
        row[word + 1 + k] = _bits(scalar)


def execute(instruction: Instruction, start: int = 0, index: int = 0) -> None:
    """Run one instruction on its arrays, which must be C-contiguous."""
    table = np.zeros((1, WORDS), np.int64)
    assemble(instruction, instruction.operands, table[0])
    context = np.zeros(CONTEXT, np.int64)
    context[_START], context[_INDEX] = start, index
    if _checking():
        _entry_checked(instruction)(table[0].ctypes.data, context.ctypes.data)
    else:
        # one step whose rows are those of the arrays: no size in the row is symbolic
        _one(table, context)


def _one(table: np.ndarray, context: np.ndarray) -> None:
    global _single
    if _single is None:
        text = "def single(row_, context_):\n    call(first(row_, 1)[0], row_, context_)\n"
        function = compiler.make(text, "single", {"call": call_entry, "first": VIEWS[np.dtype(np.int64)][1]})
        _single = compiler.native(function, types.void(types.int64, types.int64))
    _single(table.ctypes.data, context.ctypes.data)


_single: Any = None
_checked: dict[Any, Any] = {}


def _entry_checked(instruction: Instruction) -> Any:
    """The entry as a dispatcher, which raises: an exception inside a C function would be swallowed."""
    function = _entry(instruction)[1]
    if function not in _checked:
        _checked[function] = compiler.native(function, _ENTRY_SIGNATURE)
    return _checked[function]


class Engine:
    """Runs a :class:`~dlcore.kernels.program.Program` on the CPU, in one arena of memory.

    ``rows`` is the largest mini-batch there is room for; :meth:`reserve` makes more room.
    """

    device = "cpu"

    def __init__(self, program: Program, rows: int) -> None:
        self.program = program
        self.rows = 0
        self._memory = np.zeros(0, np.uint8)
        self._views: dict[Buffer, np.ndarray] = {}
        self._tables: dict[str, np.ndarray] = {}
        self._externs: dict[str, np.ndarray] = {}
        self._context = np.zeros(CONTEXT, np.int64)
        self.reserve(rows)

    def reserve(self, rows: int) -> None:
        """Make room for mini-batches of ``rows`` rows; parameters, optimizer state and statistics keep their values."""
        if rows <= self.rows:
            return
        _, work, total = self.program.layout(rows)
        memory = np.zeros(total + ALIGNMENT, np.uint8)
        memory = memory[-memory.ctypes.data % ALIGNMENT :][:total]
        if self.rows:
            memory[:work] = self._memory[:work]
        self._memory, self.rows = memory, rows
        self._views = self.program.views(memory, rows)
        self._tables.clear()

    @property
    def nbytes(self) -> int:
        """The size of the arena."""
        return self._memory.nbytes

    def array(self, buffer: Buffer) -> np.ndarray:
        """The memory of ``buffer`` as an array; it is the engine's, not a copy."""
        return self._views[buffer]

    def read(self, buffer: Buffer) -> np.ndarray:
        """A copy of ``buffer`` as a NumPy array."""
        return self._views[buffer].copy()

    def write(self, buffer: Buffer, value: Any) -> None:
        """Set ``buffer`` to ``value``."""
        self._views[buffer][...] = value

    def bind(self, **arrays: np.ndarray) -> None:
        """Give externs their arrays, which must be C-contiguous and stay alive until the next binding."""
        for name, array in arrays.items():
            self.program.check_binding(name, array)
            self._externs[name] = array
        self._tables.clear()

    def fetch(self, name: str) -> np.ndarray:
        """The array bound to ``name``, with what was written into it."""
        return self._externs[name]

    def _array(self, operand: Any) -> np.ndarray | None:
        if operand is None:
            return None
        return self._externs[operand.name] if operand.region == "extern" else self._views[operand]

    def _table(self, name: str) -> np.ndarray:
        if name not in self._tables:
            instructions = self.program.lists[name]
            table = np.zeros((len(instructions), WORDS), np.int64)
            for instruction, row in zip(instructions, table, strict=True):
                assemble(instruction, [self._array(o) for o in instruction.operands], row)
            self._tables[name] = table
        return self._tables[name]

    def run(self, name: str, steps: int, batch: int, samples: int, first: int = 0) -> None:
        """Run list ``name`` for mini-batches ``first`` to ``first + steps - 1`` of ``samples`` samples.

        Mini-batch ``i`` takes ``order[i * batch : (i + 1) * batch]``; the last may be smaller.
        """
        self.program.check_run(steps, batch, samples, first, self.rows)
        table = self._table(name)
        if not _checking():
            _run(table, self._context, steps, batch, samples, first)
            return
        context = self._context
        for index in range(first, first + steps):
            context[:3] = min(batch, samples - index * batch), index * batch, index
            for instruction, row in zip(self.program.lists[name], table, strict=True):
                _entry_checked(instruction)(row.ctypes.data, context.ctypes.data)
