"""How long a written line of memory takes from one core to another, which tells where the cores of this process lie.

Two threads raise one number in turns. Cores with one third cache take 30 to 50 ns for it, those of two dies 160 to 200,
the two threads of one core 15 (AMD EPYC, Zen 4). A virtual machine whose host moves its cores changes between them, and
with them change bandwidth, caches and the price of work that is divided.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

import numba
import numpy as np
from numba import types

from dlcore.kernels.cpu.machine import atomic_add, load_acquire

_ROUNDS = 500  # of two crossings each
_GOES = 3
_PATIENCE = 1 << 24  # turns of waiting, some 10 ms: a thread without a core lets the other one wait for longer
_LINE = 64  # bytes


@numba.njit(types.boolean(types.int64, types.int64, types.int64), nogil=True)
def _raise_in_turns(word, first, last):
    """Raise the word at that address from ``first``, ``first + 2`` and so on below ``last``; False: nobody answers."""
    for value in range(first, last, 2):
        turns = 0
        while load_acquire(word) != value:
            turns += 1
            if turns == _PATIENCE:
                return False
        atomic_add(word, 1)
    return True


def _cores() -> tuple[set[int] | None, ...]:
    """Those of this thread, of the other one, and of this thread afterwards; None: where the system puts them.

    Of two cores, each has one: a thread often starts on its maker's, and stays there for ten milliseconds.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return ({allowed[0]}, {allowed[1]}, {*allowed}) if len(allowed) == 2 else (None, None, None)


def _settle(cores: set[int] | None) -> None:
    """Keep this thread on those cores."""
    if cores is not None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and then threads lie where they lie
            os.sched_setaffinity(0, cores)


def _go() -> float | None:
    words = np.zeros(2 * _LINE // 8, np.int64)
    word = -(-words.ctypes.data // _LINE) * _LINE
    last = 2 * _ROUNDS + 4
    mine, its, both = _cores()

    def answer() -> None:
        _settle(its)
        _raise_in_turns(word, 1, last)

    other = threading.Thread(target=answer)
    other.start()
    try:
        _settle(mine)
        answered = _raise_in_turns(word, 0, 4)  # from here on the other thread waits for nothing but this one
        start = time.perf_counter()
        answered = answered and _raise_in_turns(word, 4, last)
        seconds = time.perf_counter() - start
    finally:
        _settle(both)
        other.join()  # it knows the address
    return seconds / (last - 4) if answered else None


def seconds() -> float | None:
    """Seconds that a line takes from one core to another, of the quickest of three goes; None with one free core."""
    return min(filter(None, (_go() for _ in range(_GOES))), default=None)
