"""Large results lie in memory that was used before, and never in memory that somebody still sees."""

import gc
import threading

import numpy as np
import pytest

from dlcore import kernels
from dlcore.kernels.cpu import memory

LARGE = (memory.SMALL // 4, 1)


@pytest.fixture(autouse=True)
def nothing_kept():
    memory._free.clear()
    yield
    memory._free.clear()


@pytest.mark.parametrize("shape", [(), (0, 5), (3, 4), LARGE, (3, LARGE[0])], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_array_is_like_one_of_numpy(shape, dtype):
    a, b = memory.empty(shape, dtype), np.empty(shape, dtype)
    assert (a.shape, a.dtype, a.strides) == (b.shape, b.dtype, b.strides)
    assert a.flags.carray
    if a.nbytes >= memory.SMALL:
        assert a.ctypes.data % 64 == 0


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


def test_free_memory_has_a_limit(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 2 * memory.SMALL)
    arrays = [memory.empty(LARGE, np.float32) for _ in range(5)]
    assert not memory._free
    addresses = [a.ctypes.data for a in arrays]
    while arrays:
        del arrays[0]
    assert [block[1] for block in memory._free] == addresses[-2:]


def test_a_block_that_comes_back_while_another_is_looked_for_is_let_go():
    a = memory.empty(LARGE, np.float32)
    with memory._lock:  # as when the garbage collection runs in the middle
        del a
        gc.collect()
        b = memory.empty(LARGE, np.float32)
    assert not memory._free
    assert b.shape == LARGE


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
    assert len(memory._free) <= memory.MOST
