"""Instructions by themselves, on arrays: what is prepared for one call serves the next ones like it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..compile import uniforms_of
from ..instructions import Instruction, ShapeError
from ..program import Buffer
from ..step_text import UNIFORM_HEADER
from . import memory
from .prepared import Prepared, checking
from .steps import step
from .table import Tables, steps_of

_MOST_PREPARED = 1024


class _Prepared(threading.local):
    """What a Python thread has prepared: two threads may run the same instruction at once, each with its own."""

    def __init__(self) -> None:
        self.instructions: dict[Any, Any] = {}  # by two keys: that of execute(), and that of known()
        self.updates: dict[Any, Update] = {}


_local = _Prepared()


def _remember(found: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(found) >= _MOST_PREPARED:
        found.clear()
    found[key] = value
    return value


def _buffer(name: str, shape: Sequence[int], dtype: Any) -> Buffer:
    return Buffer(name, tuple(shape), np.dtype(dtype), "operand", 0)


def _prepare(example: Instruction) -> Prepared:
    """The instruction for arrays of the shapes and dtypes of an example."""
    operands, rows, written = [], 0, []
    for spec, array in zip(example.op.operands, example.operands, strict=True):
        operands.append(None if array is None else _buffer(spec.name, array.shape, array.dtype))
        if spec.access != "read":
            written.append(operands[-1])
        if array is not None and spec.dims[0] == "m":
            rows = int(array.shape[0])
    steps = steps_of([Instruction(example.op, operands, example.rule, example.scalars)])
    tables = Tables(steps, lambda operand: None, rows)
    return Prepared(tables, [o for o in operands if o is not None], rows, written=written)


class _Results:
    """An instruction that has run before, and what it writes."""

    def __init__(self, prepared: Prepared, results: Sequence[np.ndarray]) -> None:
        self.prepared = prepared
        self.results = [(memory.allocator(a.shape, a.dtype), a.shape, a.dtype) for a in results]

    def __call__(self, given: Sequence[Any]) -> list[np.ndarray] | None:
        results = [empty(shape, dtype) for empty, shape, dtype in self.results]
        return results if self.prepared(*[a for a in given if a is not None], *results) else None


def _key(op: str, given: Sequence[Any], rule: Any, scalars: tuple[float, ...], results: int) -> Any:
    first, second = given[:2]
    shapes = first.shape, getattr(second, "shape", None)
    return op, rule, scalars, results, shapes, first.dtype.num, given[-1] is None


def known(
    op: str, given: Sequence[Any], rule: Any = None, scalars: tuple[float, ...] = (), results: int = 1
) -> list[np.ndarray] | None:
    """The ``results`` that an instruction writes, in new arrays, if it has run on arrays like those ``given`` before.

    Those are the operands that it reads or updates, in order, None where one is missing. They are looked at in native
    code, and a call takes half the time that it takes where Python looks (3.6 us for batch norm of small arrays). None,
    and nothing has been done, where they are not arrays of NumPy, of the dtypes and shapes as before, C-contiguous, and
    not read-only if they are updated.
    """
    if type(given[0]) is not np.ndarray:
        return None
    found = _local.instructions.get(_key(op, given, rule, scalars, results))
    return None if found is None else found(given)


def _remember_results(instruction: Instruction, prepared: Prepared) -> None:
    """For :func:`known`, if what is written comes last, and only the last operand before it may be missing."""
    written = [spec.access == "write" for spec in instruction.op.operands]
    count = written.index(True) if True in written else len(written)
    given, results = instruction.operands[:count], [a for a in instruction.operands[count:] if a is not None]
    always = not any(spec.optional for spec in instruction.op.operands[: count - 1])
    if count > 1 and all(written[count:]) and always and not checking():
        key = _key(instruction.op.name, given, instruction.rule, instruction.scalars, len(results))
        _remember(_local.instructions, key, _Results(prepared, results))


def execute(op: str, operands: Sequence[np.ndarray | None], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
    """Run one instruction on its arrays, which must be C-contiguous.

    What depends on shapes, dtypes, rule and scalars alone is checked and prepared once. Raises
    :class:`~dlcore.kernels.instructions.ShapeError` where operands do not fit.
    """
    words: list[Any] = [op, id(rule), scalars]
    arrays = []
    for a in operands:
        if a is None:
            words.append(None)
        else:
            words += (a.shape, a.dtype)
            arrays.append(a)
    key = tuple(words)
    found = _local.instructions.get(key)
    if found is None:
        instruction = Instruction(op, operands, rule, scalars)
        prepared = _prepare(instruction)
        found = _remember(_local.instructions, key, (prepared, rule))  # rules stay alive: the key holds their identity
        _remember_results(instruction, prepared)
    if not found[0](*arrays):
        raise ShapeError(f"operands of {op} must be C-contiguous arrays, and not read-only where they are written")


class Update:
    """One step of an optimizer rule with at most two slots, for weights of one shape, in one call."""

    def __init__(self, rule: Any, shape: tuple[int, ...], dtype: np.dtype, clipped: bool) -> None:
        self.rule, self.names = rule, rule.parameters.keys()
        self.hyper = np.zeros(len(rule.parameters) + 2)
        self.settings: Any = None
        self.count = np.zeros(1, np.int64)
        uniforms = np.empty(UNIFORM_HEADER + len(uniforms_of(rule)), dtype)
        fixed = {_buffer(n, a.shape, a.dtype): a for n, a in (("h", self.hyper), ("t", self.count), ("u", uniforms))}
        h, t, u = fixed
        given = [_buffer(name, (math.prod(shape),), dtype) for name in ("w", "g", *rule.slots)]
        written = [given[0], *given[2:]]
        begin = [Instruction("optimizer_begin", [h, t, u], rule)]
        if clipped:
            begin.append(Instruction("clip_by_global_norm", [given[1], h, u]))
        update = step("optimizer_update_apart", [*[*given, None, None][:4], u], rule)
        tables = Tables(steps_of([*begin, update]), fixed.get, 0)
        self.run = Prepared(tables, given, 0, [shape] * len(given), written)

    def __call__(self, arrays: Sequence[Any], number: int, settings: tuple[Any, ...]) -> bool:
        """Step ``number`` (from 1); ``settings``: weight decay, clipping norm, and values other than the defaults.

        ``arrays`` are the weights, the gradient and the slots; False, and nothing has been updated, where they are not
        all there, arrays of NumPy of the shape and the dtype, C-contiguous, and may be written if they are.
        """
        if settings != self.settings:
            decay, clip_norm, values = settings
            self.hyper[:] = [*(self.rule.parameters | dict(values)).values(), decay, clip_norm]
            self.settings = settings
        self.count[0] = number - 1
        return self.run(*arrays)


def known_update(rule: Any, w: np.ndarray, clipped: bool) -> Update | None:
    """The update of weights like ``w`` by ``rule``, if there was one before."""
    return _local.updates.get((id(rule), w.shape, w.dtype, clipped))


def new_update(rule: Any, w: np.ndarray, clipped: bool) -> Update:
    """The update of weights like ``w`` by ``rule``, to be found again."""
    key = id(rule), w.shape, w.dtype, clipped
    return _remember(_local.updates, key, Update(rule, w.shape, w.dtype, clipped))
