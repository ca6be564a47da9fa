"""How threads wait for each other, natively: they pause, then yield the core now and then, and at last sleep.

Addresses are those of int64 words; ``waiters`` is that of the line about those who wait: how many sleep, the waits left
until one yields again after a yield that took long, and the time-out of a sleep. All of it must be compiled under
:data:`~.machine.VARIANT`.
"""

from __future__ import annotations

from .. import compile as compiler
from .machine import (
    CYCLES_PER_MICROSECOND,
    atomic_add,
    cycle_counter,
    load_acquire,
    pause,
    sched_yield,
    sleep_while,
    store_release,
    wake_sleepers,
)

LINE = 64  # bytes of a cache line

# Bytes from the start of a line about those who wait.
_SLEEPERS, _CROWDED, _TIMEOUT = 0, 8, 16

_PAUSING = 17 * CYCLES_PER_MICROSECOND
_YIELDING = 300 * CYCLES_PER_MICROSECOND
_SLOW_YIELD = 50 * CYCLES_PER_MICROSECOND
_PAUSES = 256  # from one yield to the next, 5 to 15 us: a yield takes 30 us now and then, and a job must wait for it
_MOST_PAUSES, _MOST_TURNS = 4096, 16384  # bounds where there is no cycle counter
_CROWDED_WAITS = 64  # waits without yielding after a slow yield
_TIMEOUT_NANOSECONDS = 200_000_000


@compiler.CPU.inline
def _watch(word, value, waiters):
    """Pause, then yield now and then, until the word is no longer ``value``; False if patience ends before."""
    start = cycle_counter()
    turns = 0
    while load_acquire(word) == value:
        turns += 1
        now = cycle_counter()
        if turns % _PAUSES != 0 or (now - start < _PAUSING and turns < _MOST_PAUSES):
            pause()
            continue
        crowded = load_acquire(waiters + _CROWDED)
        if crowded > 0:
            store_release(waiters + _CROWDED, crowded - 1)
            return False
        if now - start > _YIELDING or turns > _MOST_TURNS:
            return False
        sched_yield()
        if cycle_counter() - now > _SLOW_YIELD:  # somebody else had the core: better to sleep than to compete
            store_release(waiters + _CROWDED, _CROWDED_WAITS)
    return True


@compiler.CPU.inline
def wait(word, value, waiters):
    """Return when the word is no longer ``value``."""
    if _watch(word, value, waiters):
        return
    store_release(waiters + _TIMEOUT, 0)
    store_release(waiters + _TIMEOUT + 8, _TIMEOUT_NANOSECONDS)
    atomic_add(waiters + _SLEEPERS, 1)
    while load_acquire(word) == value:
        sleep_while(word, value, waiters + _TIMEOUT)
    atomic_add(waiters + _SLEEPERS, -1)


@compiler.CPU.inline
def wake(word, waiters):
    """Wake who sleeps on the word, which has just been changed by an atomic_add."""
    if load_acquire(waiters + _SLEEPERS) > 0:
        wake_sleepers(word)


BARRIER_WORDS = 24  # int64 words of a barrier's control block


def barrier(control, threads):
    """Return when ``threads`` threads have called this.

    ``control`` is the address of BARRIER_WORDS zeroed int64 words, aligned to 64 bytes: word 0 counts who has arrived,
    word 8 is the generation, word 16 counts the sleepers, word 17 the waits left until it yields again after a yield
    that took long, words 18 and 19 are the time-out of a sleep. It may be used any number of times, and between two
    jobs with another number of threads. It must be compiled under :data:`~.machine.VARIANT`.
    """
    if threads > 1:
        generation = control + LINE
        waiters = control + 2 * LINE
        now = load_acquire(generation)
        if atomic_add(control, 1) == threads - 1:
            store_release(control, 0)
            atomic_add(generation, 1)
            wake(generation, waiters)
        else:
            wait(generation, now, waiters)
