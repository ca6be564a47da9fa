"""Instructions by themselves, on arrays: what is prepared for one call serves the next ones like it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..compile import uniforms_of
from ..instructions import Instruction
from ..program import Buffer
from ..step_text import UNIFORM_HEADER
from .prepared import Prepared
from .steps import step
from .table import steps_of

_MOST_PREPARED = 1024


class _Prepared(threading.local):
    """What a Python thread has prepared: two threads may run the same instruction at once, each with its own."""

    def __init__(self) -> None:
        self.instructions: dict[Any, tuple[Prepared, Any]] = {}
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
    operands, rows = [], 0
    for spec, array in zip(example.op.operands, example.operands, strict=True):
        operands.append(None if array is None else _buffer(spec.name, array.shape, array.dtype))
        if array is not None and spec.dims[0] == "m":
            rows = int(array.shape[0])
    steps = steps_of([Instruction(example.op, operands, example.rule, example.scalars)])
    return Prepared(steps, [o for o in operands if o is not None], rows, lambda operand: None)


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
        prepared = _prepare(Instruction(op, operands, rule, scalars))
        found = _remember(_local.instructions, key, (prepared, rule))  # rules stay alive: the key holds their identity
    found[0](*arrays)


class Update:
    """One step of an optimizer rule with at most two slots, for weights of one shape, in one call."""

    def __init__(self, rule: Any, shape: tuple[int, ...], dtype: np.dtype, clipped: bool) -> None:
        self.rule, self.shape, self.dtype = rule, shape, dtype
        self.names = rule.parameters.keys()
        self.hyper = np.zeros(len(rule.parameters) + 2)
        self.settings: Any = None
        self.count = np.zeros(1, np.int64)
        uniforms = np.empty(UNIFORM_HEADER + len(uniforms_of(rule)), dtype)
        fixed = {_buffer(n, a.shape, a.dtype): a for n, a in (("h", self.hyper), ("t", self.count), ("u", uniforms))}
        h, t, u = fixed
        given = [_buffer(name, (math.prod(shape),), dtype) for name in ("w", "g", *rule.slots)]
        begin = [Instruction("optimizer_begin", [h, t, u], rule)]
        if clipped:
            begin.append(Instruction("clip_by_global_norm", [given[1], h, u]))
        update = step("optimizer_update_apart", [*[*given, None, None][:4], u], rule)
        self.run = Prepared(steps_of([*begin, update]), given, 0, fixed.get, len(shape))

    def fits(self, arrays: Sequence[Any]) -> bool:
        """Whether all arrays are there, have the shape and the dtype, and may be written in place."""
        kind, shape, dtype = np.ndarray, self.shape, self.dtype
        if len(arrays) != 2 + len(self.rule.slots):
            return False
        for a in arrays:
            if type(a) is not kind or a.shape != shape or a.dtype != dtype or not a.flags.carray:
                return False
        return True

    def __call__(self, arrays: Sequence[np.ndarray], number: int, settings: tuple[Any, ...]) -> None:
        """Step ``number`` (from 1); ``settings``: weight decay, clipping norm, and values other than the defaults."""
        if settings != self.settings:
            decay, clip_norm, values = settings
            self.hyper[:] = [*(self.rule.parameters | dict(values)).values(), decay, clip_norm]
            self.settings = settings
        self.count[0] = number - 1
        self.run(*arrays)


def known_update(rule: Any, w: np.ndarray, clipped: bool) -> Update | None:
    """The update of weights like ``w`` by ``rule``, if there was one before."""
    return _local.updates.get((id(rule), w.shape, w.dtype, clipped))


def new_update(rule: Any, w: np.ndarray, clipped: bool) -> Update:
    """The update of weights like ``w`` by ``rule``, to be found again."""
    key = id(rule), w.shape, w.dtype, clipped
    return _remember(_local.updates, key, Update(rule, w.shape, w.dtype, clipped))
