"""The threads of the CPU engine: a C function run on several threads at once.

``run(entry, argument, threads)`` is one native call. The workers wait for it inside a native call of their own,
without the GIL (see waiting.py). A launch raises the ticket of every worker that takes part and wakes those that sleep;
the others are left alone. Other native code launches with :func:`start`, inside the block.

    with pool(get_num_threads()) as granted:     # fewer while others want the cores
        run(entry, argument, granted)

Behind a large job the caches hold nothing of Python, and such a block takes 15 us. Whoever has had a block may launch
without one where :func:`at_once` says so, natively, as long as it holds the pool's lock.
"""

from __future__ import annotations

import atexit
import functools
import numbers
import os
import threading
import time
from typing import Any

import numpy as np
from numba import types

from .. import compile as compiler
from ..native import call_entry, call_launch
from .crowd import GLANCE, Crowd, available, clocks
from .machine import (
    AFFINITY_WORDS,
    CYCLES_PER_MICROSECOND,
    VARIANT,
    atomic_add,
    current_cpu,
    cycle_counter,
    get_affinity,
    load_acquire,
    open_lot,
    set_affinity,
    store_release,
)
from .waiting import LINE, wait, wake

MOST_ANYWHERE = 64  # threads that may be asked for on any machine, however few CPUs it has
_GLANCE = int(GLANCE * 1e6) * CYCLES_PER_MICROSECOND

# ------------------------------------------------------------------------------------------------- jobs, natively

# The control block of a pool. Line 0 is the job, whose entry is 0 while there is none, the address of launch(), how
# many threads a job would be granted (0: it has to ask), and the cycle from which on it has to ask, for a look at the
# clocks may be due. Line 1 counts the workers that have done the job; on line 2 the launcher waits for them. Then for
# every worker: the line of its ticket, a line of its own, the CPU mask it has and the mask it leaves to.
_ENTRY, _ARGUMENT, _THREADS, _LAUNCHER_CPU, _LAUNCH, _READY, _DUE = range(0, 56, 8)
_DONE, _LAUNCHER, _WORKERS = LINE, 2 * LINE, 3 * LINE
_OWN, _SERVED, _MASK = LINE, LINE + 32, 2 * LINE
_WORKER_SIZE = 2 * LINE + 2 * 8 * AFFINITY_WORDS


@compiler.CPU.inline
def _worker(control, thread):
    """The address of what the pool knows about worker ``thread``, from 1."""
    return control + _WORKERS + (thread - 1) * _WORKER_SIZE


@compiler.CPU.inline
def _leave_launcher(cpu, threads, mask):
    """Move this worker off the launcher's CPU, once, if there are CPUs for all.

    After another library's threads have run, the kernel may leave two of ours on one core for good (390 us became
    924 us). Pinning them would help as well, and would break the other library's own threads.
    """
    if cpu < 0 or cpu != current_cpu() or get_affinity(mask) < 0:
        return
    others = mask + 8 * AFFINITY_WORDS
    count = 0
    for k in range(AFFINITY_WORDS):
        word = load_acquire(mask + 8 * k)
        here = np.int64(1) << (cpu % 64) if k == cpu // 64 else np.int64(0)
        store_release(others + 8 * k, word & ~here)
        while word != 0:
            word &= word - 1
            count += 1
    if count >= threads and set_affinity(others) >= 0:
        set_affinity(mask)


def launch(control, entry, argument, threads):
    """Hand the job to workers 1 to ``threads - 1``, do the share of thread 0, and wait for the others.

    Entry 0 tells the workers to stop.
    """
    store_release(control + _ENTRY, entry)
    store_release(control + _ARGUMENT, argument)
    store_release(control + _THREADS, threads)
    store_release(control + _LAUNCHER_CPU, current_cpu())
    store_release(control + _DONE, 0)
    for thread in range(1, threads):
        ticket = _worker(control, thread)
        atomic_add(ticket, 1)
        wake(ticket, ticket + _OWN)
    if entry == 0:
        return
    call_entry(entry, argument, 0)
    done = load_acquire(control + _DONE)
    while done != threads - 1:
        wait(control + _DONE, done, control + _LAUNCHER)
        done = load_acquire(control + _DONE)


def start(control, entry, argument, threads):
    """The job on ``threads`` threads, from the calling one; the pool of ``control`` has that many, if not just one."""
    if threads == 1:
        call_entry(entry, argument, 0)
    else:
        call_launch(load_acquire(control + _LAUNCH), control, entry, argument, threads)


def serve(control, thread):
    """Do the share of worker ``thread`` in every job, until told to stop."""
    ticket = _worker(control, thread)
    while True:
        wait(ticket, load_acquire(ticket + _SERVED), ticket + _OWN)
        store_release(ticket + _SERVED, load_acquire(ticket))
        entry = load_acquire(control + _ENTRY)
        if entry == 0:
            return
        threads = load_acquire(control + _THREADS)
        _leave_launcher(load_acquire(control + _LAUNCHER_CPU), threads, ticket + _MASK)
        call_entry(entry, load_acquire(control + _ARGUMENT), thread)
        if atomic_add(control + _DONE, 1) == threads - 2:
            wake(control + _DONE, control + _LAUNCHER)


def at_once(control, worth, threads):
    """Whether a job worth ``worth`` threads would be granted ``threads``, and need not be looked at."""
    granted = min(worth, load_acquire(control + _READY))
    return granted == threads and cycle_counter() < load_acquire(control + _DUE)


def ask_later(control, began):
    """Jobs need not be looked at for a while; the last one, which was, ``began`` at that cycle.

    Of long jobs, a few more go by: each of them shows whether it was kept off its core, and a look takes 20 us then.
    Where there is no cycle counter, each job asks.
    """
    now = cycle_counter()
    store_release(control + _DUE, now + max(_GLANCE, min(4 * _GLANCE, 16 * (now - began))) if now != 0 else 0)


def is_well(control):
    """Whether the pool has nothing to tell to whoever launched at once."""
    return load_acquire(control + _READY) != 0


_I = types.int64
_SIGNATURES = {launch: types.void(_I, _I, _I, _I), start: types.void(_I, _I, _I, _I), serve: types.void(_I, _I)}


@functools.cache
def _native(body: Any) -> Any:
    """A function of :data:`_SIGNATURES`, compiled; :func:`launch` as one of C, which other native code can call."""
    compile_ = compiler.Callback if body is launch else compiler.native
    return compile_(compiler.whole(body, f"pool_{body.__name__}", VARIANT), _SIGNATURES[body])


# ------------------------------------------------------------------------------------------------------ the pool


class _Pool:
    """Worker threads, started when a job first wants them, and the memory through which they are told."""

    def __init__(self) -> None:
        self.capacity = max(MOST_ANYWHERE, os.cpu_count() or 1)
        size = _WORKERS + self.capacity * _WORKER_SIZE
        self.memory = np.zeros(size // 8 + LINE // 8, np.int64)
        self.control = self.memory.ctypes.data + -self.memory.ctypes.data % LINE
        self.words = self.memory[(self.control - self.memory.ctypes.data) // 8 :]
        # one job at a time; reentrant, so that an interrupt between taking and releasing costs its thread nothing
        self.lock = threading.RLock()
        self.workers: list[threading.Thread] = []
        self.error: BaseException | None = None
        self.closed = False
        self.crowd = Crowd()

    def answer(self) -> None:
        """Say what jobs would be granted from now on, or that they have to ask."""
        ask = self.closed or self.error is not None or self.crowd.watched
        self.words[_READY // 8] = 0 if ask else get_num_threads()

    def question(self) -> None:
        """Let jobs ask."""
        self.words[_READY // 8] = 0

    def raise_error(self) -> None:
        """Raise what has gone wrong in a worker, once."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def grow(self, threads: int) -> None:
        """Start the workers that ``threads`` threads need, and that there are not yet."""
        if 1 < threads <= len(self.workers) + 1:
            return
        if not 1 < threads <= self.capacity:
            raise ValueError(f"threads is {threads}; expected 1 to {self.capacity}")
        if self.closed:
            raise RuntimeError("the interpreter is shutting down; jobs run with threads=1 now")
        _native(serve)  # what fails to compile does so here, in the thread of the caller
        self.words[_LAUNCH // 8] = _native(launch).address
        for thread in range(len(self.workers) + 1, threads):
            worker = threading.Thread(target=self.work, args=(thread,), name=f"dlcore-{thread}", daemon=True)
            worker.start()
            self.workers.append(worker)

    def work(self, thread: int) -> None:
        """The life of a worker thread."""
        while True:
            try:
                _native(serve)(self.control, thread)
                return
            except BaseException as error:  # the caller of run raises it; without this worker the job would not end
                self.error = error
                self.question()

    def close(self) -> None:
        """Stop the workers; a job that takes long is left to end with the process."""
        self.closed = True
        if not self.workers:
            return
        patience = time.monotonic() + 1.0
        if self.lock.acquire(timeout=1.0):
            self.question()
            _native(start)(self.control, 0, 0, len(self.workers) + 1)
            for worker in self.workers:
                worker.join(max(0.0, patience - time.monotonic()))


_pool = _Pool()


def _after_fork() -> None:
    """The workers stayed in the parent, and the lock may have been theirs."""
    global _pool
    open_lot()
    _pool.question()
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _pool.close())


def run(entry: int, argument: int, threads: int) -> None:
    """Call the C function ``entry(argument, thread)`` for every ``thread`` below ``threads``, at once.

    ``entry`` is its address, ``void(int64, int64)``. Thread 0 is the calling thread. With more than one thread it waits
    while another Python thread is inside ``with pool(...)``. Raises ValueError for a number of threads that cannot be.
    """
    if threads == 1:
        _native(start)(0, entry, argument, 1)
        return
    pool = _pool
    with pool.lock:
        pool.grow(threads)
        _native(start)(pool.control, entry, argument, threads)  # one call: an interrupt comes before it or after it
        pool.raise_error()


class pool:
    """``with pool(threads) as granted``: how many threads jobs in the block may use.

    That is ``threads``, or 1 while another Python thread has the pool: two models that train at once share the cores
    better with a thread each. Of threads that ``meet`` at barriers there are fewer while other processes want the cores
    (see crowd.py). Results never depend on their number.
    """

    __slots__ = ("granted", "meet", "pool", "start", "threads")

    def __init__(self, threads: int, meet: bool = True) -> None:
        self.threads, self.meet = threads, meet

    def __enter__(self) -> int:
        pool = self.pool = _pool
        threads = pool.crowd.limit(self.threads) if self.meet and self.threads > 1 else self.threads
        if threads == 1 or pool.closed or not pool.lock.acquire(blocking=False):
            self.granted = 1
            return 1
        self.granted = threads
        try:
            pool.grow(threads)
        except BaseException:
            pool.lock.release()
            raise
        self.start = clocks() if self.meet and pool.crowd.due() else None
        return threads

    def __exit__(self, *raised: object) -> None:
        if self.granted > 1:
            try:
                if self.start is not None:
                    self.pool.crowd.count(self.granted, *map(float.__sub__, clocks(), self.start))
                self.pool.raise_error()
                self.pool.answer()
            finally:
                self.pool.lock.release()


# --------------------------------------------------------------------------------------------- how many threads

_VARIABLES = ("DLCORE_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
_num_threads: int | None = None


@functools.cache
def _default_threads() -> int:
    cpus = len(available() or ()) or os.cpu_count() or 1
    for variable in _VARIABLES:
        value = os.environ.get(variable, "").strip()
        if value.isdecimal() and int(value) > 0:
            return min(cpus, int(value))
    return cpus


def get_num_threads() -> int:
    """How many threads a job gets by default.

    What :func:`set_num_threads` said; else the CPUs this process may use, or fewer if ``DLCORE_NUM_THREADS``,
    ``NUMBA_NUM_THREADS`` or ``OMP_NUM_THREADS`` says so (the first that holds a positive number).
    """
    return _num_threads or _default_threads()


def set_num_threads(n: int) -> None:
    """Let jobs use ``n`` threads from now on.

    Raises ValueError unless ``n`` is an int from 1 to 64, or to the number of CPUs where there are more.
    """
    global _num_threads
    most = _pool.capacity
    if not isinstance(n, numbers.Integral) or isinstance(n, bool) or not 1 <= n <= most:
        raise ValueError(f"n is {n!r}; expected a number of threads, an int from 1 to {most}")
    _num_threads = int(n)
    _pool.question()
