"""Steps prepared for arrays that are given at each call: an instruction by itself, one mini-batch of a list."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba.core import config

from . import context as layout
from . import entries, launching, table
from .interpreter import Workspace, entry_point, work
from .launching import launcher
from .steps import chunk_rows, most_threads
from .table import Table, Tables
from .threads import get_num_threads, pool


def checking() -> bool:
    """Whether NUMBA_BOUNDSCHECK asks for every index to be checked; entries then run one by one from Python."""
    return bool(config.BOUNDSCHECK)  # type: ignore[attr-defined]


def run_checked(plan: Table, workspace: Workspace, steps: int, batch: int, samples: int, first: int) -> None:
    """What :func:`~dlcore.kernels.cpu.interpreter.work` does, on one thread, with entries that raise."""
    context = workspace.contexts[0]
    for index in range(first, first + steps):
        rows = min(batch, samples - index * batch)
        size = chunk_rows(rows)
        chunks = -(-rows // size)
        context[: layout.SCRATCH] = rows, index * batch, index, 0, 1, 0, rows, size, 0, chunks, chunks
        for step, row in zip(plan.steps, plan.words, strict=True):
            entries.checked_entry(step)(row.ctypes.data, context.ctypes.data)


class _Job(NamedTuple):
    """The steps for a number of threads, and what a launcher is told of them."""

    block: np.ndarray
    address: int  # of the block
    plan: Table
    workspace: Workspace
    words: np.ndarray
    places: np.ndarray


class Prepared:
    """``tables`` for one mini-batch of ``rows`` rows; ``operands`` are those whose arrays each call brings.

    The arrays have the shapes of their operands unless ``shapes`` gives others, those of ``written`` are not read-only,
    and no element of one in ``ranges`` lies outside of the range (both ends belong to it). A call is one native call,
    and costs a microsecond of Python. Two that share their tables must not run at once.
    """

    def __init__(
        self,
        tables: Tables,
        operands: Sequence[Any],
        rows: int,
        shapes: Sequence[tuple[int, ...]] | None = None,
        written: Collection[Any] = (),
        ranges: Mapping[Any, tuple[int, int]] | None = None,
    ) -> None:
        self._tables, self._operands = tables, operands
        self._rows = max(1, rows)
        worth = table.worthwhile_threads(tables.seconds(self._rows))
        self._worth = min(worth, most_threads(tables.steps, self._rows))
        self._shapes = [o.shape for o in operands] if shapes is None else shapes
        self._written, self._ranges = written, ranges or {}
        sizes = [*self._shapes, *(self._ranges[o] for o in operands if o in self._ranges)]
        self._sizes = np.array([n for found in sizes for n in found], np.int64)
        given = zip(operands, self._shapes, strict=True)
        kinds = tuple((o.dtype, len(shape), o in self._written, o in self._ranges) for o, shape in given)
        self._addresses = np.zeros(len(operands) + 1, np.int64)
        self._jobs: dict[int, _Job] = {}  # by threads
        self._checked = checking()
        self._launch = launcher(kinds, self._worth > 1)
        # What a launch needs that does not ask the pool: the address of a block, the pool and its lock. None: it asks.
        self._ready: tuple[int, Any, Any] | None = None

    def resized(self, rows: int) -> Prepared:
        """The same for ``rows`` rows, which all of the arrays have."""
        shapes = [(rows, *shape[1:]) for shape in self._shapes]
        return Prepared(self._tables, self._operands, rows, shapes, self._written, self._ranges)

    def _prepare(self, threads: int) -> _Job:
        plan = self._tables.table(self._rows, threads)
        workspace = self._tables.workspaces.find(threads, plan.scratch)
        words = workspace.job(plan, 1, self._rows, self._rows, 0)
        places = plan.word_addresses(self._operands)
        job = entry_point(work).address, words.ctypes.data, threads
        pointers = self._addresses.ctypes.data, places.ctypes.data, len(places), self._sizes.ctypes.data
        block = np.array([0, self._worth, *job, *pointers], np.int64)
        self._jobs[threads] = _Job(block, block.ctypes.data, plan, workspace, words, places)
        return self._jobs[threads]

    def __call__(self, *arrays: np.ndarray) -> bool:
        """Run on ``arrays``; False, and nothing has been done, where one is not C-contiguous or not as was said."""
        if self._ready is None:
            return self._ask(arrays)
        block, team, lock = self._ready
        if not lock.acquire(False):
            return self._ask(arrays)
        try:  # with as little Python as can be: behind a large job each line takes a microsecond
            said = self._launch(block, 0, *arrays)
        except TypeError:  # there is no such function of arrays of other kinds
            return False
        finally:
            lock.release()
        if said == launching.ASK:
            return self._ask(arrays)
        if said == launching.HEAR:
            team.raise_error()
        return bool(said != launching.MISFIT)

    def _ask(self, arrays: Sequence[np.ndarray]) -> bool:
        """The same, on as many threads as the pool grants."""
        if self._checked:
            return self._call_checked(arrays)
        if self._worth == 1:
            return self._run(self._jobs.get(1) or self._prepare(1), arrays)
        with (team := pool(min(self._worth, get_num_threads()))) as granted:
            job = self._jobs.get(granted) or self._prepare(granted)
            job.block[launching.CONTROL] = team.pool.control
            if granted == team.threads > 1:
                self._ready = job.address, team.pool, team.pool.lock
            return self._run(job, arrays)

    def _run(self, job: _Job, arrays: Sequence[np.ndarray]) -> bool:
        try:
            return bool(self._launch(job.address, 1, *arrays) == launching.DONE)
        except TypeError:
            return False

    def _call_checked(self, arrays: Sequence[np.ndarray]) -> bool:
        job = self._jobs.get(1) or self._prepare(1)
        given = [*zip(self._operands, self._shapes, arrays, strict=False)]
        suited = [_suits(o, shape, o in self._written, self._ranges.get(o), array) for o, shape, array in given]
        if len(arrays) != len(self._operands) or not all(suited):
            return False
        for operand, _, array in given:
            job.plan.point(operand, array if array.ndim == len(operand.shape) else array.reshape(-1))
        run_checked(job.plan, job.workspace, 1, self._rows, self._rows, 0)
        return True


def _suits(operand: Any, shape: tuple[int, ...], written: bool, ends: tuple[int, int] | None, array: Any) -> bool:
    """What a launcher looks at."""
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != operand.dtype:
        return False
    if ends is not None and not np.all((array >= ends[0]) & (array <= ends[1])):
        return False
    return array.flags.carray if written else array.flags.c_contiguous
