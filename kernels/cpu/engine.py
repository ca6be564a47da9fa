"""The CPU engine: a program as tables of steps that one native call runs.

A run of a list takes as many threads as its work is worth and the pool grants; results do not depend on their number,
bit for bit, because sums over a mini-batch are cut into the same chunks for all (see steps.py).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..instructions import Instruction
from ..program import Buffer, Program
from . import table
from .interpreter import Workspaces, aligned, entry_point, work, work_many
from .prepared import Prepared, checking, run_checked
from .table import Tables, steps_of
from .threads import get_num_threads, pool, run


class Engine:
    """Runs a :class:`~dlcore.kernels.program.Program` on the CPU, in one arena of memory.

    ``rows`` is the largest mini-batch there is room for; :meth:`reserve` makes more room. One thread at a time may
    run it; others wait.
    """

    device = "cpu"

    def __init__(self, program: Program, rows: int) -> None:
        self.program = program
        self.rows = 0
        self.memory = np.zeros(0, np.uint8)
        self._views: dict[Buffer, np.ndarray] = {}
        self._steps: dict[str, list[Instruction]] = {}
        self._tables: dict[str, Tables] = {}
        self._workspaces = Workspaces()
        self._externs: dict[str, np.ndarray] = {}
        self._histories: dict[str, np.ndarray] = {}
        self.lock = threading.RLock()
        self.reserve(rows)
        for buffer, value in program.constants.items():
            self.write(buffer, value)

    def reserve(self, rows: int) -> None:
        """Make room for mini-batches of ``rows`` rows; parameters, optimizer state and statistics keep their values."""
        if rows <= self.rows:
            return
        _, work, total = self.program.layout(rows)
        memory = aligned(total)
        if self.rows:
            memory[:work] = self.memory[:work]
        self.memory, self.rows = memory, rows
        self._views = self.program.views(memory, rows)
        self._tables.clear()

    @property
    def nbytes(self) -> int:
        """The size of the arena."""
        return self.memory.nbytes

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
            if array is self._externs.get(name):
                continue
            self.program.check_binding(name, array)
            self._externs[name] = array
            for tables in self._tables.values():
                tables.point(self.program.externs[name], array)

    def hold(self, *arrays: np.ndarray) -> None:
        """Nothing to do: arrays are bound where they are."""

    release = hold

    def holds(self, array: np.ndarray) -> bool:
        """Arrays are where they are."""
        return True

    def bind_histories(self, names: Sequence[str], batches: int) -> None:
        """Give externs empty histories of ``batches`` mini-batches each; those before may be the same arrays."""
        if [*self._histories] != [*names] or any(history.size != batches for history in self._histories.values()):
            self._histories = {name: np.empty(batches) for name in names}
        for history in self._histories.values():
            history.fill(0)
        self.bind(**self._histories)

    def fetch_histories(self) -> dict[str, np.ndarray]:
        """What :meth:`bind_histories` gave, with what was written into it."""
        return self._histories

    def outputs(self, name: str, buffer: Buffer, batch: int, samples: int) -> np.ndarray:
        """Run list ``name`` for all mini-batches; what each leaves in the first rows of ``buffer``."""
        result = np.empty((samples, *buffer.shape[1:]), buffer.dtype)
        for index in range(-(-samples // batch)):
            self.run(name, 1, batch, samples, index)
            part = result[index * batch : (index + 1) * batch]
            part[...] = self._views[buffer][: len(part)]
        return result

    def fetch(self, name: str) -> np.ndarray:
        """The array bound to ``name``, with what was written into it."""
        return self._externs[name]

    def _steps_of(self, name: str) -> list[Instruction]:
        if name not in self._steps:
            self._steps[name] = steps_of(self.program.lists[name], self.program)
        return self._steps[name]

    def _tables_of(self, name: str) -> Tables:
        if name not in self._tables:
            tables = Tables(self._steps_of(name), self._views.get, self.rows, self._workspaces)
            self._tables[name] = tables
            for extern, array in self._externs.items():
                tables.point(self.program.externs[extern], array)
        return self._tables[name]

    def seconds(self, name: str, batch: int) -> float:
        """About how long one thread takes for a mini-batch of the list, good to a factor of 2."""
        return self._tables_of(name).seconds(batch)

    def _threads(self, name: str, batch: int) -> int:
        """How many threads a mini-batch of the list is worth."""
        return min(table.worthwhile_threads(self.seconds(name, batch)), get_num_threads())

    def _job(self, name: str, steps: int, batch: int, samples: int, first: int, threads: int) -> np.ndarray:
        """The words of the job of a run."""
        plan = self._tables_of(name).table(batch, threads)
        return self._workspaces.find(threads, plan.scratch).job(plan, steps, batch, samples, first)

    def prepare(
        self, name: str, batch: int, given: Sequence[str], ranges: Mapping[str, tuple[int, int]], **arrays: np.ndarray
    ) -> Prepared:
        """List ``name`` for one mini-batch of ``batch`` rows, to be called with the arrays of the externs ``given``.

        Those hold the rows of the mini-batch in their order, and stand where the list would gather them. The other
        externs are bound to ``arrays``. What is given for a name in ``ranges`` must lie in that range, with both ends,
        or a call does nothing. It is valid as long as :attr:`memory` stays what it is, and resized for as many rows as
        there is room for if ``arrays`` are that long. It must be called with :attr:`lock` held.
        """
        for extern, array in arrays.items():
            self.program.check_binding(extern, array)
        known: dict[Any, np.ndarray] = self._views | {self.program.externs[e]: array for e, array in arrays.items()}
        steps = self._steps_of(name)
        operands = []
        for extern in given:
            source = self.program.externs[extern]
            rows = _gathered(steps, source)
            if rows is not None:
                steps = [step for step in steps if rows not in step.operands or source not in step.operands]
                known.pop(rows)
            operands.append(source if rows is None else rows)
        shapes = [(batch, *operand.shape[1:]) for operand in operands]
        bounded = {operand: ranges[extern] for extern, operand in zip(given, operands, strict=True) if extern in ranges}
        return Prepared(Tables(steps, known.get, self.rows, self._workspaces), operands, batch, shapes, ranges=bounded)

    def run(self, name: str, steps: int, batch: int, samples: int, first: int = 0) -> None:
        """Run list ``name`` for mini-batches ``first`` to ``first + steps - 1`` of ``samples`` samples.

        Mini-batch ``i`` takes ``order[i * batch : (i + 1) * batch]``; the last may be smaller.
        """
        self.program.check_run(steps, batch, samples, first, self.rows)
        rows = min(batch, samples)
        with self.lock:
            if checking():
                plan = self._tables_of(name).table(batch, 1)
                run_checked(plan, self._workspaces.find(1, plan.scratch), steps, batch, samples, first)
                return
            with pool(self._threads(name, rows)) as granted:
                job = self._job(name, steps, batch, samples, first, granted)
                run(entry_point(work).address, job.ctypes.data, granted)


def run_many(engines: Sequence[Engine], name: str, steps: int, batch: int, samples: int, first: int = 0) -> None:
    """:meth:`Engine.run` for many engines in one native call, each on one thread: whole models are shared out.

    The results are those of running them one after the other, bit for bit. Waits for engines that are running.
    """
    if checking() or len(engines) == 1:
        for engine in engines:
            engine.run(name, steps, batch, samples, first)
        return
    distinct = sorted(set(engines), key=id)  # taken in one order, two calls cannot wait for each other
    if len(distinct) != len(engines):
        raise ValueError("engines holds one engine more than once")
    with contextlib.ExitStack() as stack:
        for engine in distinct:
            stack.enter_context(engine.lock)
        for engine in engines:
            engine.program.check_run(steps, batch, samples, first, engine.rows)
        jobs = [engine._job(name, steps, batch, samples, first, 1) for engine in engines]
        each = np.array([0, len(jobs), *(job.ctypes.data for job in jobs)], np.int64)
        with pool(min(len(engines), get_num_threads()), meet=False) as granted:
            run(entry_point(work_many).address, each.ctypes.data, granted)


def _gathered(steps: Sequence[Instruction], source: Any) -> Any:
    """The buffer that the rows of ``source`` are gathered into, if there is one only and nothing else writes to it."""
    readers = [step for step in steps if source in step.operands]
    if len(readers) != 1 or not readers[0].op.name.startswith("gather_"):
        return None
    rows = readers[0].operands[-1]
    writers = [
        operand
        for step in steps
        for spec, operand in zip(step.op.operands, step.operands, strict=True)
        if spec.access != "read"
    ]
    return rows if writers.count(rows) == 1 else None
