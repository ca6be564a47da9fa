"""The pool of the CPU engine: launches, barriers, forks, exits. Everything runs again without futexes."""

import _thread
import inspect
import itertools
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from numba import types

from dlcore.kernels import compile
from dlcore.kernels.cpu import machine, threads, waiting
from dlcore.kernels.cpu.machine import atomic_add, load_acquire, sched_yield, store_release

ROOT = pathlib.Path(__file__).parent.parent
barrier = compile.CPU.inline(waiting.barrier)
LINE = 8  # words

# ------------------------------------------------------------------------- C functions (argument, thread) to launch


def mark(argument, thread):
    """Count the calls of each thread, on lines of their own."""
    atomic_add(argument + 64 * thread, 1)


def hold(argument, thread):
    """Say that one thread more is here, and stay until word 8 is set."""
    atomic_add(argument, 1)
    while load_acquire(argument + 64) == 0:
        sched_yield()


# The block of `meet`: the barrier (3 lines), rounds, threads, errors (a line), then two slots for every thread.
_ROUNDS, _SLOTS = 3 * LINE, 4 * LINE


def meet(argument, thread):
    """Write a slot, meet, read the neighbour's; the slots alternate, so that nobody overwrites what is still read."""
    rounds = load_acquire(argument + 192)
    threads = load_acquire(argument + 200)
    slots = argument + 256
    for k in range(1, rounds + 1):
        store_release(slots + 128 * thread + 64 * (k % 2), k)
        barrier(argument, threads)
        if load_acquire(slots + 128 * ((thread + 1) % threads) + 64 * (k % 2)) != k:
            atomic_add(argument + 208, 1)


_callbacks = {}


def entry(body):
    """The address of ``body`` as a C function."""
    if body not in _callbacks:
        function = compile.make(inspect.getsource(body), body.__name__, body.__globals__, machine.VARIANT)
        _callbacks[body] = compile.Callback(function, types.void(types.int64, types.int64))
    return _callbacks[body].address


def zeros(words=1024):
    """Words aligned to a cache line."""
    memory = np.zeros(words + LINE, np.int64)
    return memory[-memory.ctypes.data % 64 // 8 :][:words]


def meeting(rounds, n):
    block = zeros()
    block[_ROUNDS], block[_ROUNDS + 1] = rounds, n
    return block


def calls(n, launches=1):
    """How often each of ``n`` threads was called in ``launches`` launches."""
    block = zeros()
    for _ in range(launches):
        threads.run(entry(mark), block.ctypes.data, n)
    assert not block[n * LINE :].any()
    return block[: n * LINE : LINE].tolist()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited for 20 s"
        time.sleep(1e-3)


class Holding:
    """Another Python thread that has the pool, in the middle of a job."""

    def __init__(self, n=2):
        self.block, self.n = zeros(), n

    def _run(self):
        with threads.pool(self.n) as granted:
            assert granted == self.n
            threads.run(entry(hold), self.block.ctypes.data, granted)

    def __enter__(self):
        entry(hold)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        wait_until(lambda: self.block[0] == self.n)

    def __exit__(self, *_):
        self.block[LINE] = 1
        self.thread.join()


# --------------------------------------------------------------------------------------------- launches and barriers


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_thread_is_called_once(n):
    assert calls(n) == [1] * n


def test_thousands_of_launches():
    assert calls(2, 5000) == [5000] * 2
    assert calls(4, 300) == [300] * 4
    assert calls(3, 300) == [300] * 3  # one worker less than there are


def test_a_worker_that_slept_is_woken():
    block = zeros()
    for k in range(30):
        threads.run(entry(mark), block.ctypes.data, 3)
        time.sleep(2e-3 if k % 2 else 5e-4)
    assert block[: 3 * LINE : LINE].tolist() == [30] * 3


@pytest.mark.parametrize(("n", "rounds"), [(2, 50_000), (3, 1000), (4, 1000)])
def test_nobody_passes_a_barrier_early(n, rounds):
    block = meeting(rounds, n)
    for _ in range(3):
        threads.run(entry(meet), block.ctypes.data, n)
    assert block[_ROUNDS + 2] == 0
    assert block[LINE] == 3 * rounds  # the generation: nobody passed without a meeting
    slots = block[_SLOTS : _SLOTS + 2 * n * LINE : LINE].reshape(n, 2)
    assert slots.tolist() == [[rounds, rounds - 1]] * n


def test_a_barrier_serves_another_number_of_threads():
    block = meeting(100, 4)
    for n in (4, 2, 3, 1):
        block[_ROUNDS + 1] = n
        threads.run(entry(meet), block.ctypes.data, n)
    assert block[_ROUNDS + 2] == 0
    assert block[LINE] == 300  # one thread has nobody to meet


@pytest.mark.parametrize("n", [0, -1, 100_000])
def test_run_refuses_a_number_of_threads_that_cannot_be(n):
    with pytest.raises(ValueError, match=f"threads is {n}; expected 1 to"):
        threads.run(entry(mark), 0, n)


# -------------------------------------------------------------------------------------------- more than one at a time


def test_who_finds_the_pool_busy_runs_alone():
    with Holding(), threads.pool(4) as granted:
        assert granted == 1
    with threads.pool(4) as granted:
        assert granted == 4
        with threads.pool(2) as inner:  # the same thread: its jobs follow each other
            assert inner == 2
        assert calls(granted) == [1] * 4


def test_run_waits_for_its_turn():
    result = []
    with Holding():
        waiting = threading.Thread(target=lambda: result.append(calls(2)))
        waiting.start()
        waiting.join(0.05)
        assert result == []
    waiting.join()
    assert result == [[1, 1]]


def test_two_python_threads_at_once():
    blocks, granted_to = [meeting(50, 2), meeting(50, 2)], [set(), set()]

    def train(k):
        for _ in range(200):
            with threads.pool(2) as granted:
                blocks[k][_ROUNDS + 1] = granted
                threads.run(entry(meet), blocks[k].ctypes.data, granted)
                granted_to[k].add(granted)

    entry(meet)
    both = [threading.Thread(target=train, args=(k,)) for k in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [block[_ROUNDS + 2] for block in blocks] == [0, 0]
    assert set.union(*granted_to) <= {1, 2}


# --------------------------------------------------------------------------------------------------- what goes wrong


def calls_natively(n):
    """The same as :func:`calls`, launched as native code does it: inside of the block, which raises what goes wrong."""
    block = zeros()
    with threads.pool(n, meet=False) as granted:
        threads._native(threads.start)(threads._pool.control, entry(mark), block.ctypes.data, granted)
    return block[: n * LINE : LINE].tolist()


@pytest.mark.parametrize("calls", [calls, calls_natively])
def test_an_exception_of_a_worker_reaches_the_caller(monkeypatch, calls):
    calls(3)  # compiles before anything breaks
    native, broken = threads._native, []

    def native_that_breaks(body):
        if body is threads.serve and threading.current_thread().name == "dlcore-1" and not broken:
            broken.append(body)
            raise MemoryError("in the worker")
        return native(body)

    pool = threads._Pool()
    monkeypatch.setattr(threads, "_pool", pool)
    monkeypatch.setattr(threads, "_native", native_that_breaks)
    with pytest.raises(MemoryError, match="in the worker"):
        calls(3)
    assert calls(3) == [1] * 3
    pool.close()
    assert not any(worker.is_alive() for worker in pool.workers)


def test_who_gets_no_threads_gives_the_pool_back(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    calls(2)  # compiled
    pool = threads._Pool()
    monkeypatch.setattr(threads, "_pool", pool)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"), threads.pool(2):
            pass
    with Holding():  # another thread can have it now
        pass
    assert calls(2) == [1, 1]
    pool.close()


def test_an_interrupt_leaves_the_pool_usable():
    block = meeting(20, 2)
    for _ in range(10):
        timer = threading.Timer(0.01, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  the interrupt comes anywhere in the loop
            while True:
                with threads.pool(2) as granted:
                    threads.run(entry(meet), block.ctypes.data, granted)
        timer.join()
        with threads.pool(2) as granted:
            assert granted == 2
        assert calls(2) == [1, 1]
    assert block[_ROUNDS + 2] == 0


def interrupt_at(instruction, module):
    """A trace function with an interrupt at that instruction, counted from 1, of the code of a module."""
    seen = itertools.count(1)

    def trace(frame, event, argument):
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(seen) == instruction:
            raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("block", ["contextlib.nullcontext(2)", "threads.pool(2, meet=False)"], ids=["run", "block"])
def test_an_interrupt_at_any_instruction_leaves_the_pool_usable(block):
    out = python(f"""
        import contextlib, itertools, sys
        block = t.meeting(20, 2)
        assert t.calls(2) == [1, 1]
        t.entry(t.meet)
        for instruction in itertools.count(1):
            time.sleep(1e-3)  # the worker sleeps
            sys.settrace(t.interrupt_at(instruction, threads))
            try:
                with {block} as granted:
                    threads.run(t.entry(t.meet), block.ctypes.data, granted)
                break
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            assert t.calls(2) == [1, 1]
        print(instruction, block[t._ROUNDS + 2])
    """)
    instructions, errors = out.split()
    assert int(instructions) > 20
    assert errors == "0"


def test_a_closed_pool_says_so(monkeypatch):
    pool = threads._Pool()
    monkeypatch.setattr(threads, "_pool", pool)
    assert calls(3) == [1] * 3
    pool.close()
    assert not any(worker.is_alive() for worker in pool.workers)
    with threads.pool(2) as granted:
        assert granted == 1
    with pytest.raises(RuntimeError, match="shutting down"):
        calls(4)


# --------------------------------------------------------------------------------------------------------- processes


def python(code, **environment):
    """Run ``code`` in a process of its own, which must end by itself and well."""
    code = "import os, threading, time\nimport test_threads as t\nfrom dlcore.kernels.cpu import threads\n" + (
        textwrap.dedent(code)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_starts_nothing():
    out = python("print(threading.active_count(), sum(t.compile.STATISTICS.values()))")
    assert out.split() == ["1", "0.0"]


def test_a_second_process_compiles_nothing(tmp_path):
    code = "assert t.calls(2) == [1, 1]; print(t.compile.STATISTICS['compiled'], t.compile.STATISTICS['loaded'])"
    (compiled, loaded), again = (python(code, DLCORE_CACHE_DIR=str(tmp_path)).split() for _ in range(2))
    assert loaded == "0"
    assert again == ["0", compiled]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_forked_child_has_a_pool_of_its_own(busy):
    out = python(f"""
        import contextlib, multiprocessing
        def child():
            with threads.pool(2) as granted:
                assert granted == 2
                assert t.calls(granted, 10) == [10, 10]
        assert t.calls(2) == [1, 1]
        with t.Holding() if {busy} else contextlib.nullcontext():
            pid = os.fork()
            if pid == 0:
                try:
                    child()
                    os._exit(7)
                finally:
                    os._exit(1)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            print(process.exitcode)
        assert t.calls(2) == [1, 1]
    """)
    assert out.split() == ["7", "0"]


@pytest.mark.parametrize("rounds", [5, 10**12], ids=["jobs", "endless job"])
def test_exit_while_a_daemon_thread_runs_jobs(rounds):
    out = python(f"""
        block = t.meeting({rounds}, 2)
        def train():
            while True:
                with threads.pool(2, meet=False) as granted:  # two, whatever other processes do
                    block[t._ROUNDS + 1] = granted
                    threads.run(t.entry(t.meet), block.ctypes.data, granted)
        threading.Thread(target=train, daemon=True).start()
        t.wait_until(lambda: block[t.LINE] > 1000)
        print("leaving")
    """)
    assert out == "leaving\n"


@pytest.mark.skipif(not machine.HAS_FUTEX, reason="these are the runs without futexes")
def test_all_of_this_without_futexes():
    environment = {**os.environ, "DLCORE_NO_FUTEX": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout  # this one
