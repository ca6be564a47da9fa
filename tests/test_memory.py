"""Large results lie in memory that was used before, and never in memory that somebody still sees."""

import gc
import threading
import warnings

import numpy as np
import pytest

from dlcore import kernels
from dlcore.kernels.cpu import memory

LARGE = (memory.SMALL // 4, 1)


@pytest.fixture(autouse=True)
def nothing_kept():
    memory._blocks.clear()
    yield
    memory._blocks.clear()


def kept():
    """The addresses of all blocks, those given out last at the end."""
    return [block.array.ctypes.data for block in memory._blocks]


@pytest.mark.parametrize("shape", [(), (0, 5), (3, 4), LARGE, (3, LARGE[0])], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_array_is_like_one_of_numpy(shape, dtype):
    a, b = memory.empty(shape, dtype), np.empty(shape, dtype)
    assert (a.shape, a.dtype, a.strides) == (b.shape, b.dtype, b.strides)
    assert a.flags.carray
    if a.nbytes >= memory.SMALL:
        assert a.ctypes.data % memory.PAGE == 0


def test_memory_is_used_again_when_its_last_view_is_gone():
    a = memory.empty(LARGE, np.float32)
    address = a.ctypes.data
    part = a[10:20]
    del a
    part[:] = 7
    other = memory.empty(LARGE, np.float32)
    other[:] = 1
    assert other.ctypes.data != address
    assert (part == 7).all()
    del part
    again, another = (memory.empty(LARGE, np.float32) for _ in range(2))
    assert again.ctypes.data == address
    assert another.ctypes.data not in (address, other.ctypes.data)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((LARGE[0] // 4, 2), np.float64), ((LARGE[0] // 4, 4), np.float32), (LARGE, np.int32)]
)
def test_an_array_of_another_kind_lies_on_the_same_memory(shape, dtype):
    a = memory.empty(LARGE, np.float32)
    address = a.ctypes.data
    del a
    b = memory.empty(shape, dtype)
    assert (b.ctypes.data, b.shape, b.dtype) == (address, shape, dtype)
    whole = b.reshape(-1).view(np.float32)
    del b
    assert memory.empty(LARGE, np.float32).ctypes.data != address
    assert whole.size == LARGE[0]


def test_what_a_result_was_made_into_is_not_seen_in_the_next():
    a = memory.empty(LARGE, np.float32)
    address = a.ctypes.data
    a.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy 2.5 would rather have a view
        a.shape = (-1,)
    del a
    b = memory.empty(LARGE, np.float32)
    assert (b.ctypes.data, b.shape, b.flags.writeable) == (address, LARGE, True)


@pytest.mark.parametrize("hold", [memoryview, lambda a: a.ctypes, lambda a: a.__dlpack__(), lambda a: iter(a.T)])
def test_memory_that_is_held_without_an_array_is_not_used_again(hold):
    a = memory.empty(LARGE, np.float32)
    address = a.ctypes.data
    held = hold(a)
    del a
    assert memory.empty(LARGE, np.float32).ctypes.data != address
    del held
    gc.collect()
    assert address in kept()


def test_the_block_that_was_given_out_last_is_taken_first():
    a, b, c = (memory.empty(LARGE, np.float32) for _ in range(3))
    first, second, third = (array.ctypes.data for array in (a, b, c))
    del c, a, b
    a = memory.empty(LARGE, np.float32)
    b = memory.empty(LARGE, np.float32)
    assert (a.ctypes.data, b.ctypes.data) == (third, second)
    del a
    c = memory.empty(LARGE, np.float32)
    assert c.ctypes.data == third
    assert first in kept()


def test_what_is_kept_has_a_limit(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 2 * memory.SMALL)
    arrays = [memory.empty(LARGE, np.float32) for _ in range(5)]
    addresses = [a.ctypes.data for a in arrays]
    while arrays:
        del arrays[0]
    assert kept() == addresses[-2:]
    memory.empty((3 * LARGE[0], 1), np.float32)  # too large to be kept, and nothing is forgotten for it
    assert kept() == addresses[-2:]
    larger = memory.empty((2 * LARGE[0], 1), np.float32)
    assert kept() == [larger.ctypes.data]


def test_who_comes_while_a_block_is_looked_for_gets_a_new_one():
    a = memory.empty(LARGE, np.float32)
    address = a.ctypes.data
    del a
    with memory._lock:  # as when the garbage collection runs in the middle, and calls something that computes
        b = memory.empty(LARGE, np.float32)
    assert b.ctypes.data != address
    assert (b.shape, b.ctypes.data % memory.PAGE) == (LARGE, 0)
    assert kept() == [address]


def test_nothing_is_used_again_where_references_cannot_be_counted(monkeypatch):
    monkeypatch.setattr(memory, "_COUNTS", False)
    a = memory.empty(LARGE, np.float32)
    assert not kept()
    assert (a.shape, a.ctypes.data % memory.PAGE) == (LARGE, 0)


def test_threads_never_share_a_result():
    x = np.random.default_rng(0).standard_normal((LARGE[0] // 64, 64)).astype(np.float32)
    expected = kernels.activation_forward(x, "relu")
    wrong = []

    def calls():
        for _ in range(30):
            y = kernels.activation_forward(x, "relu")
            if not np.array_equal(y, expected):
                wrong.append(1)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_few_blocks_are_kept():
    for k in range(memory.MOST + 5):
        memory.empty((memory.SMALL + 4096 * k,), np.uint8)
    assert len(kept()) == memory.MOST
