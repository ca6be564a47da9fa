"""What the machine is asked for: a number of threads, sleep, and the control of floating point."""

import ctypes
import os

import numpy as np
import pytest
from test_threads import entry, python, zeros

from dlcore.kernels.cpu import machine, threads
from dlcore.kernels.cpu.machine import flush_denormals, restore_float_state
from dlcore.kernels.native import call_entry, view_double, view_words

# -------------------------------------------------------------------------------------------------- number of threads


@pytest.fixture
def _unset(monkeypatch):
    monkeypatch.setattr(threads, "_num_threads", None)
    for variable in threads._VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    threads._default_threads.cache_clear()
    yield
    threads._default_threads.cache_clear()


def cpus():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"DLCORE_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}, 1),
        ({"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}, 1),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"DLCORE_NUM_THREADS": "many", "OMP_NUM_THREADS": "1"}, 1),
        ({"DLCORE_NUM_THREADS": "0", "OMP_NUM_THREADS": "1"}, 1),
        ({"DLCORE_NUM_THREADS": "1000"}, None),
    ],
    ids=str,
)
@pytest.mark.usefixtures("_unset")
def test_default_number_of_threads(monkeypatch, environment, expected):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert threads.get_num_threads() == (expected or cpus())


@pytest.mark.usefixtures("_unset")
def test_set_num_threads():
    for n in (1, 4, np.int64(3), 64):
        threads.set_num_threads(n)
        assert threads.get_num_threads() == n
    for wrong in (0, -1, 2.0, "2", None, True, 10**6):
        with pytest.raises(ValueError, match=r"n is .*; expected a number of threads, an int from 1 to"):
            threads.set_num_threads(wrong)
    assert threads.get_num_threads() == 64


# ------------------------------------------------------------------------------------------------------------- sleep


@pytest.mark.skipif(machine.WINDOWS, reason="this is how others see what Windows is asked")
def test_what_windows_is_asked():
    out = python("""
        import ctypes, numba, numpy as np
        from llvmlite import binding
        from dlcore.kernels.cpu import machine
        def wait(address, expected, size, milliseconds):
            print(address - word, ctypes.c_int64.from_address(expected).value, size, milliseconds)
            return 1
        def wake(address):
            print(address - word)
        kinds = {
            "WaitOnAddress": (wait, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32),
            "WakeByAddressAll": (wake, None, ctypes.c_void_p),
        }
        kept = []
        for name, (function, *kind) in kinds.items():
            kept.append(ctypes.CFUNCTYPE(*kind)(function))
            binding.add_symbol(name, ctypes.cast(kept[-1], ctypes.c_void_p).value)
        machine.WINDOWS = True
        words = np.array([5, 0, 200_000_000])
        word = words.ctypes.data
        @numba.njit
        def both(word):
            machine.sleep_while(word, 5 + 2**40, word + 8)
            machine.wake_sleepers(word)
        both(word)
    """)
    assert out.split() == ["0", str(5 + 2**40), "8", "200", "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_wait_for_a_lot_that_a_thread_of_its_parent_had():
    out = python(
        """
        import ctypes
        from dlcore.kernels.cpu import machine
        process = ctypes.CDLL(None)
        assert t.calls(2) == [1, 1]
        assert process.pthread_mutex_lock(ctypes.byref(machine._lot, machine._MUTEX)) == 0
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(5):
                    assert t.calls(2) == [1, 1]
                    time.sleep(5e-3)  # the worker goes to sleep
                os._exit(7)
            finally:
                os._exit(1)
        for _ in range(2000):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            time.sleep(5e-3)
        else:
            os.kill(pid, 9)
            _, status = os.waitpid(pid, 0)
        process.pthread_mutex_unlock(ctypes.byref(machine._lot, machine._MUTEX))
        print(os.waitstatus_to_exitcode(status))
        """,
        DLCORE_NO_FUTEX="1",
    )
    assert out.split() == ["7"]


# ----------------------------------------------------------------------------------------------------- floating point


def multiply(argument, thread):
    x = view_double(argument, 3)
    x[2] = x[0] * x[1]


def multiply_flushed(argument, thread):
    """Word 3 is the address of `multiply`; words 4 to 6 become the state before, in between and after."""
    words = view_words(argument, 7)
    words[4] = flush_denormals()
    call_entry(words[3], argument, 0)
    words[5] = flush_denormals()
    restore_float_state(words[4])
    words[6] = flush_denormals()
    restore_float_state(words[6])


def float_state(x, y):
    """The product of x and y while denormals are flushed, and the control states before, in between and after."""
    block = zeros(7)
    block[:3].view(np.float64)[:] = x, y, 1.0
    block[3] = entry(multiply)
    threads.run(entry(multiply_flushed), block.ctypes.data, 1)
    flags = 0x3F  # of x86: what has happened, not how to calculate
    return block[2:3].view(np.float64)[0], *(block[4:] & ~flags).tolist()


@pytest.mark.skipif(not (machine.X86 or machine.ARM), reason="nothing is known of this machine")
@pytest.mark.parametrize(("x", "y"), [(1e-200, 1e-110), (5e-324, 1e300)], ids=["result", "operand"])
def test_denormals_are_flushed_and_only_there(x, y):
    product, before, between, after = float_state(x, y)
    assert product == 0
    assert before != between
    assert before == after
    block = zeros(7)
    block[:2].view(np.float64)[:] = x, y
    threads.run(entry(multiply), block.ctypes.data, 1)
    assert block[2:3].view(np.float64)[0] == x * y != 0


@pytest.mark.skipif(not (machine.X86 and machine.LINUX), reason="the constant is that of x86")
def test_the_rounding_mode_is_kept():
    upward, bits = 0x800, 0x6000
    libm = ctypes.CDLL("libm.so.6")
    assert libm.fesetround(upward) == 0
    try:
        states = float_state(1.0, 1.0)[1:]
    finally:
        libm.fesetround(0)
    assert [state & bits for state in states] == [0x4000] * 3
