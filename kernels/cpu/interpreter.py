"""The interpreter of tables of steps: one C function, run by every thread on its share of the mini-batch.

It knows no step: a row of a table begins with the address of its entry (see entries.py). What all threads are told is
in a job; what a thread knows is in its context. Nothing is compiled for a model.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .. import compile as compiler
from ..compile import Callback
from ..native import call_entry, view_words
from ..program import ALIGNMENT
from .context import (
    CHUNK,
    CHUNK_FIRST,
    CHUNK_LAST,
    CHUNKS,
    CONTEXT,
    CONTROL,
    FIRST,
    INDEX,
    LAST,
    ROWS,
    SCRATCH,
    START,
    THREAD,
    THREADS,
)
from .entries import SIGNATURE, WORDS, specialise
from .machine import VARIANT, atomic_add, flush_denormals, restore_float_state
from .steps import chunk_rows
from .waiting import BARRIER_WORDS

# Words of a job: the table and the number of its rows, the mini-batches to run, and where the contexts lie.
JOB = 8
TABLE, LENGTH, STEPS, BATCH, SAMPLES, INDEX_FIRST, JOB_THREADS, CONTEXTS = range(JOB)


def work(job_, thread):
    """Run a job's table, mini-batch after mini-batch, on the share of ``thread``."""
    job = view_words(job_, JOB)
    context_ = job[CONTEXTS] + 8 * CONTEXT * thread
    context = view_words(context_, CONTEXT)
    threads = job[JOB_THREADS]
    batch = job[BATCH]
    context[THREAD] = thread
    context[THREADS] = threads
    state = flush_denormals()
    for index in range(job[INDEX_FIRST], job[INDEX_FIRST] + job[STEPS]):
        start = index * batch
        rows = min(batch, job[SAMPLES] - start)
        size = chunk_rows(rows)
        chunks = (rows + size - 1) // size
        context[ROWS] = rows
        context[START] = start
        context[INDEX] = index
        context[CHUNK] = size
        context[CHUNKS] = chunks
        # rounded up: the first thread has a chunk however few there are, for it alone moves the running statistics
        context[CHUNK_FIRST] = (chunks * thread + threads - 1) // threads
        context[CHUNK_LAST] = (chunks * (thread + 1) + threads - 1) // threads
        context[FIRST] = context[CHUNK_FIRST] * size
        context[LAST] = min(rows, context[CHUNK_LAST] * size)
        row = job[TABLE]
        for _ in range(job[LENGTH]):
            call_entry(view_words(row, 1)[0], row, context_)
            row += 8 * WORDS
    restore_float_state(state)


def work_many(list_, thread):
    """Run whole jobs of one thread each: ``list_`` holds a counter, their number and their addresses."""
    head = view_words(list_, 2)
    while True:
        k = atomic_add(list_, 1)
        if k >= head[1]:
            break
        work(view_words(list_ + 16 + 8 * k, 1)[0], 0)


@functools.cache
def entry_point(body: Any) -> Callback:
    """:func:`work` or :func:`work_many` as a C function."""
    function = specialise(body, np.dtype(np.float64))
    return Callback(compiler.whole(function, body.__name__, VARIANT), SIGNATURE)


def aligned(nbytes: int) -> np.ndarray:
    """Zeroed bytes that begin at a cache line."""
    memory = np.zeros(nbytes + ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % ALIGNMENT :][:nbytes]


class Workspace:
    """The memory in which jobs of ``threads`` threads run, one at a time: contexts, scratch, and a barrier."""

    def __init__(self, threads: int, scratch: int) -> None:
        self.scratch = scratch
        scratch = -(-scratch // ALIGNMENT) * ALIGNMENT
        control = 8 * BARRIER_WORDS
        head = -(-control // ALIGNMENT) * ALIGNMENT
        self._memory = aligned(head + threads * (8 * CONTEXT + scratch))
        base = self._memory.ctypes.data
        contexts = self._memory[head : head + threads * 8 * CONTEXT].view(np.int64).reshape(threads, CONTEXT)
        contexts[:, CONTROL] = base
        contexts[:, SCRATCH] = base + head + threads * 8 * CONTEXT + scratch * np.arange(threads)
        self.threads, self.contexts = threads, contexts

    def job(self, table: Any, steps: int, batch: int, samples: int, first: int) -> np.ndarray:
        """The words of a job that runs ``table`` in this memory."""
        job = np.empty(JOB, np.int64)
        job[:] = table.address, table.length, steps, batch, samples, first, self.threads, self.contexts.ctypes.data
        return job


class Workspaces:
    """Workspaces for jobs that do not run at once, by threads."""

    def __init__(self) -> None:
        self._found: dict[int, Workspace] = {}

    def find(self, threads: int, scratch: int) -> Workspace:
        """One with at least ``scratch`` bytes for each thread."""
        found = self._found.get(threads)
        if found is None or found.scratch < scratch:
            found = self._found[threads] = Workspace(threads, scratch)
        return found
