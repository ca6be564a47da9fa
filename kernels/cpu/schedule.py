"""The order of steps, and where threads must meet.

Two steps need the threads to meet between them when one writes what the other reads or writes, unless each thread
touches only what it touched before: its own rows. Work on weights is moved behind the work on rows where that is
possible, so that a training step has one long stretch of rows, one of weights, and few meetings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..instructions import Instruction
from .steps import TAKES_PIECES, step

_OWN_ROWS = "own rows"
_FIRST = "first thread"
_ALIKE = "alike"
_ALL = "all"
_PIECES = "pieces"  # the counts of context.py, as memory


_WHOLE = ("parameter", "gradient", "slot")  # regions that a step may take as one


def _memory(operand: Any) -> Any:
    """What identifies the memory of an operand."""
    region = getattr(operand, "region", None)
    if region in _WHOLE and operand.index < 0:
        return region  # the whole of it
    return operand if region is not None else operand.__array_interface__["data"][0]


# A network may have thousands of steps: what they did is looked up by memory, not gone through. A whole region overlaps
# each of its buffers, so an access is filed twice: where it is sought for the buffer, and where for the whole region.


def _filed(memory: Any) -> tuple[Any, ...]:
    region = getattr(memory, "region", None)
    return (memory, ("in", region)) if region in _WHOLE else (memory,)


def _sought(memory: Any) -> tuple[Any, ...]:
    if isinstance(memory, str):
        return memory, ("in", memory)
    region = getattr(memory, "region", None)
    return (memory, region) if region in _WHOLE else (memory,)


Access = tuple[Any, bool, Any]  # memory, written, by whom


def accesses(s: Instruction) -> list[Access]:
    """What a step reads and writes, and which thread does."""
    result: list[Access] = [(_PIECES, True, id(s))] if s.op.name in TAKES_PIECES else []
    for spec, operand in zip(s.op.operands, s.operands, strict=True):
        if operand is None or (spec.name == "slots" and "offset" in s.op.scalars):
            continue  # of the state of all weights, a fused update touches that of its own weights
        written = spec.access != "read"
        by: Any
        if s.op.division == "one":
            by = _FIRST
        elif s.op.division == "parts":
            by = id(s) if written else _ALL
        elif spec.dims[0] in "mc":
            by = _OWN_ROWS
        elif spec.access == "alike":
            by = _ALIKE
        else:
            by = _FIRST if written else _ALL
        result.append((_memory(operand), written, by))
    return result


def _conflict(written: bool, by: Any, also_written: bool, also_by: Any) -> bool:
    """Whether two accesses of memories that overlap need a meeting in between."""
    if not (written or also_written):
        return False
    if _ALIKE in (by, also_by):
        return not {by, also_by} <= {_ALIKE, _ALL}
    return not (by == also_by and by in (_OWN_ROWS, _FIRST))


def order(steps: Sequence[Instruction]) -> list[Instruction]:
    """``steps`` with the work on weights and the records as late as they may come."""
    late: list[Instruction] = []
    done = 0  # of these, those that have come
    touched: dict[Any, int] = {}  # by memory: behind the last of these that touches it,
    changed: dict[Any, int] = {}  # and that writes it
    result: list[Instruction] = []
    for s in steps:
        if s.op.division in ("parts", "one") and s.op.name != "optimizer_begin":
            late.append(s)
            for memory, written, _ in accesses(s):
                for key in _filed(memory):
                    touched[key] = len(late)
                    if written:
                        changed[key] = len(late)
            continue
        sought = [(key, written) for memory, written, _ in accesses(s) for key in _sought(memory)]
        needed = max([done, *((touched if written else changed).get(key, 0) for key, written in sought)])
        result += late[done:needed]
        done = needed
        result.append(s)
    return result + late[done:]


def with_barriers(steps: Sequence[Instruction]) -> list[Instruction]:
    """``steps`` with a ``barrier`` wherever a thread could otherwise see what another has not finished."""
    result: list[Instruction] = []
    since: dict[Any, set[tuple[bool, Any]]] = {}
    for s in steps:
        mine = accesses(s)
        if any(_conflict(w, by, *seen) for m, w, by in mine for key in _sought(m) for seen in since.get(key, ())):
            result.append(step("barrier", []))
            since = {}
        result.append(s)
        for memory, written, by in mine:
            for key in _filed(memory):
                since.setdefault(key, set()).add((written, by))
    return [*result, step("barrier", [])] if result else []
