"""Launches that do not ask the pool: what they do at once, when they ask after all, and what they leave behind."""

import os

import numpy as np
import pytest
from test_threads import LINE, Holding, calls, entry, mark, python, zeros

from dlcore import kernels
from dlcore.kernels.cpu import eager, launching, table, threads
from dlcore.kernels.cpu.machine import store_release
from dlcore.kernels.instructions import Instruction

NEVER, AT_ONCE = 1 << 62, 0  # cycles at which a look is due


@pytest.fixture
def pool(monkeypatch):
    """A pool of two threads, which tells how often it was asked; whatever there is to do takes them."""
    made = threads._Pool()
    made.asked = []
    original = threads.pool.__enter__

    def enter(block):
        granted = original(block)
        made.asked.append(granted)
        return granted

    monkeypatch.setattr(threads, "_pool", made)
    monkeypatch.setattr(threads, "_num_threads", 2)
    monkeypatch.setattr(threads.pool, "__enter__", enter)
    monkeypatch.setattr(table, "_SECONDS_PER_THREAD", 1e-30)
    yield made
    made.close()


def look(made, cycle):
    """Let a look be due from ``cycle`` on."""
    made.words[threads._DUE // 8] = cycle


def square(rows=128):
    """The square of new numbers, prepared; and a function that runs it and says whether it was run."""
    z, y = np.random.default_rng(0).standard_normal((rows, 8)), np.zeros((rows, 8))
    prepared = eager._prepare(Instruction("hadamard", [z, z, y]))

    def run(first=z):
        y[:] = 0
        done = prepared(first, z, y)
        np.testing.assert_array_equal(y, z * z if done else 0 * z)
        return done

    return prepared, run


def ready(made):
    """The same after a call that asked, with no look due."""
    prepared, run = square()
    assert run()
    assert made.asked == [2]
    made.asked.clear()
    look(made, NEVER)
    return prepared, run


def test_what_has_asked_once_goes_on_without(pool):
    _, run = ready(pool)
    assert all(run() for _ in range(5))
    assert pool.asked == []


def test_it_asks_when_a_look_is_due_and_not_for_a_while_after_that(pool):
    _, run = ready(pool)
    look(pool, AT_ONCE)
    assert run()
    assert pool.asked == [2]
    assert pool.words[threads._DUE // 8] > threads._GLANCE


@pytest.mark.parametrize(
    ("now", "took", "due"),
    [
        (0, 0, 0),  # there is no cycle counter
        (10**12, threads._GLANCE // 100, 10**12 + threads._GLANCE),
        (10**12, threads._GLANCE // 8, 10**12 + threads._GLANCE // 8 * 16),
        (10**12, threads._GLANCE, 10**12 + 4 * threads._GLANCE),
    ],
)
def test_when_the_next_look_is_due(monkeypatch, now, took, due):
    stored = {}
    monkeypatch.setattr(threads, "cycle_counter", lambda: now)
    monkeypatch.setattr(threads, "store_release", stored.__setitem__)
    threads.ask_later(4096, now - took)
    assert stored == {4096 + threads._DUE: due}


def test_it_takes_another_number_of_threads(pool, monkeypatch):
    monkeypatch.setattr(threads, "_num_threads", 2)  # and again after the test
    prepared, run = ready(pool)
    for n in (3, 2):
        kernels.set_num_threads(n)
        assert run()
        look(pool, NEVER)
        assert run()
    assert pool.asked == [3, 2]
    assert [*prepared._jobs] == [2, 3]


def test_what_is_worth_fewer_threads_takes_fewer(pool, monkeypatch):
    monkeypatch.setattr(threads, "_num_threads", 8)
    prepared, run = square(32)
    assert run()
    look(pool, NEVER)
    assert run()
    assert len(pool.asked) == 1
    assert [*prepared._jobs] == pool.asked
    assert pool.asked[0] < 8


def test_one_thread_needs_no_pool(pool, monkeypatch):
    monkeypatch.setattr(threads, "_num_threads", 1)
    prepared, run = square()
    assert all(run() for _ in range(3))
    assert [*prepared._jobs] == [1]
    assert prepared._ready is None


def test_it_asks_as_long_as_jobs_are_looked_at(pool):
    _, run = ready(pool)
    pool.crowd._wall = 1e-3  # a window has begun
    look(pool, AT_ONCE)
    for asked in (1, 2, 3):
        assert run()
        look(pool, NEVER)
        assert len(pool.asked) == asked
    pool.crowd._wall = 0.0
    assert all(run() for _ in range(3))
    assert len(pool.asked) == 4


def test_it_asks_from_the_job_on_that_met_a_crowd(pool, monkeypatch):
    def meets_one(*figures):
        pool.crowd._most, pool.crowd._since = 1, float("inf")

    _, run = ready(pool)
    monkeypatch.setattr(pool.crowd, "due", lambda: True)
    monkeypatch.setattr(pool.crowd, "count", meets_one)
    look(pool, AT_ONCE)
    assert run()
    look(pool, NEVER)
    assert run()
    assert pool.asked == [2, 1]


def test_it_runs_alone_while_another_thread_has_the_pool(pool):
    _, run = ready(pool)
    with Holding():
        pool.asked.clear()
        assert run()
        assert pool.asked == [1]
    assert run()
    assert pool.asked == [1]


def test_it_runs_alone_once_the_pool_is_closed(pool):
    _, run = ready(pool)
    pool.close()
    assert run()
    assert pool.asked == [1]


def test_it_asks_a_pool_that_was_closed_during_a_job(pool):
    _, run = ready(pool)
    with Holding():
        pool.close()  # waits for the job in vain
    pool.asked.clear()
    assert run()
    assert pool.asked == [1]


@pytest.mark.parametrize(
    "array",
    [np.ones((64, 8)), np.ones((128, 8), np.float32), np.ones((128, 16))[:, ::2], np.ones(1024)],
    ids=["shape", "dtype", "strides", "axes"],
)
def test_arrays_that_do_not_fit(pool, array):
    _, run = ready(pool)
    assert not run(array)
    with Holding():  # the lock was given back
        pass
    pool.asked.clear()
    assert run()
    assert pool.asked == []


def test_an_exception_of_a_worker_reaches_who_did_not_ask(pool):
    prepared, run = ready(pool)
    launch = prepared._launch

    def fails(*arguments):
        assert launch(*arguments) == launching.DONE
        pool.error = MemoryError("in the worker")
        pool.question()
        return launching.HEAR

    prepared._launch = fails
    with pytest.raises(MemoryError, match="in the worker"):
        run()
    prepared._launch = launch
    assert run()
    assert pool.asked == [2]  # to see that all is well


def hush(argument, thread):
    """What a worker that fails does to the word at ``argument``."""
    store_release(argument, 0)


@pytest.mark.parametrize(
    ("worth", "of", "cycle", "asked", "said"),
    [
        (2, 2, NEVER, 0, launching.DONE),
        (9, 2, NEVER, 0, launching.DONE),
        (2, 2, AT_ONCE, 0, launching.ASK),
        (2, 2, AT_ONCE, 1, launching.DONE),
        (3, 3, NEVER, 0, launching.ASK),
        (1, 2, NEVER, 0, launching.ASK),
        (2, 0, NEVER, 0, launching.ASK),
    ],
)
def test_what_a_launcher_says(pool, worth, of, cycle, asked, said):
    assert calls(2) == [1, 1]
    block, counts = np.zeros(launching.BLOCK, np.int64), zeros()
    block[: launching.ADDRESSES] = pool.control, worth, entry(mark), counts.ctypes.data, 2
    block[launching.ADDRESSES] = block[launching.SIZES] = block[launching.PLACES] = counts.ctypes.data
    pool.words[threads._READY // 8] = of
    look(pool, cycle)
    assert launching.launcher((), True)(block.ctypes.data, asked) == said
    done = 1 if said == launching.DONE else 0
    assert counts[: 2 * LINE : LINE].tolist() == [done] * 2
    assert (pool.words[threads._DUE // 8] != cycle) == bool(asked)
    if said == launching.DONE and not asked:
        word = pool.words[threads._READY // 8 :]
        block[launching.ENTRY : launching.THREADS] = entry(hush), word.ctypes.data
        assert launching.launcher((), True)(block.ctypes.data, 0) == launching.HEAR


READY = """
import itertools, sys
from dlcore.kernels.cpu import prepared, table
from test_launching import NEVER, look, square

table._SECONDS_PER_THREAD = 1e-30
threads.set_num_threads(2)
ready, run = square()
assert run() and [*ready._jobs] == [2]
"""


def test_an_interrupt_at_any_instruction_leaves_it_usable():
    out = python(
        READY
        + """
for instruction in itertools.count(1):
    look(threads._pool, NEVER)
    sys.settrace(t.interrupt_at(instruction, prepared))
    try:
        run()
        break
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    assert run() and t.calls(2) == [1, 1]
print(instruction, [*ready._jobs])
"""
    )
    instructions, tables = out.split(maxsplit=1)
    assert int(instructions) > 20
    assert tables.strip() == "[2]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_asks_its_own_pool():
    out = python(
        READY
        + """
look(threads._pool, NEVER)
pid = os.fork()
if pid == 0:
    try:
        os._exit(7 if run() and len(threads._pool.workers) == 1 and run() else 1)
    finally:
        os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    assert out.split() == ["7"]
