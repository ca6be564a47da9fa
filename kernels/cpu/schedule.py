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


def _memory(operand: Any) -> Any:
    """What identifies the memory of an operand."""
    region = getattr(operand, "region", None)
    if region in ("parameter", "gradient", "slot") and operand.index < 0:
        return region  # the whole region: see _overlap
    return operand if region is not None else operand.__array_interface__["data"][0]


def _overlap(a: Any, b: Any) -> bool:
    """Whether two memories share bytes; a region overlaps each of its buffers."""
    if a == b:
        return True
    return (isinstance(a, str) and getattr(b, "region", None) == a) or (
        isinstance(b, str) and getattr(a, "region", None) == b
    )


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


def _conflict(a: Access, b: Access) -> bool:
    if not (a[1] or b[1]) or not _overlap(a[0], b[0]):
        return False
    if _ALIKE in (a[2], b[2]):
        return not {a[2], b[2]} <= {_ALIKE, _ALL}
    return not (a[2] == b[2] and a[2] in (_OWN_ROWS, _FIRST))


def _independent(a: Instruction, b: Instruction) -> bool:
    """Whether two steps may change places."""
    return not any((x[1] or y[1]) and _overlap(x[0], y[0]) for x in accesses(a) for y in accesses(b))


def order(steps: Sequence[Instruction]) -> list[Instruction]:
    """``steps`` with the work on weights and the records as late as they may come."""
    late: list[Instruction] = []
    result: list[Instruction] = []
    for s in steps:
        if s.op.division in ("parts", "one") and s.op.name != "optimizer_begin":
            late.append(s)
            continue
        blocking = [w for w in late if not _independent(w, s)]
        if blocking:
            last = late.index(blocking[-1]) + 1
            result += late[:last]
            late = late[last:]
        result.append(s)
    return result + late


def with_barriers(steps: Sequence[Instruction]) -> list[Instruction]:
    """``steps`` with a ``barrier`` wherever a thread could otherwise see what another has not finished."""
    result: list[Instruction] = []
    since: list[Access] = []
    for s in steps:
        mine = accesses(s)
        if any(_conflict(a, b) for a in since for b in mine):
            result.append(step("barrier", []))
            since = []
        result.append(s)
        since += mine
    return [*result, step("barrier", [])] if result else []
