"""128-bit access reads and writes whole groups of elements, and knows where it may begin."""

import numpy as np
import pytest
from numba import cuda

from dlcore.kernels.device import simulated, why_no_gpu

if not simulated() and why_no_gpu():
    pytest.skip(why_no_gpu(), allow_module_level=True)

from dlcore.kernels.cuda.vector import access, aligned, outer_sum


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_groups_are_copied_in_order(dtype):
    lanes, load, store = access(dtype)
    assert lanes * np.dtype(dtype).itemsize == 16

    def reverse_groups(a, out):
        group = cuda.grid(1)
        if group < a.size // lanes:
            store(out, out.size - (group + 1) * lanes, load(a, group * lanes))

    a = np.arange(5 * lanes, dtype=dtype)
    out = np.zeros_like(a)
    cuda.jit(reverse_groups)[2, 3](a, out)
    assert np.array_equal(out, a.reshape(5, lanes)[::-1].ravel())


@pytest.mark.skipif(not simulated(), reason="a GPU would end the process")
def test_access_between_groups_is_an_error():
    lanes, load, store = access(np.float32)

    def shifted_load(a, out):
        out[0] = load(a, 1)[0]

    def shifted_store(a, out):
        store(out, lanes + 2, (a[0], a[1], a[2], a[3]))

    for kernel in (shifted_load, shifted_store):
        with pytest.raises(IndexError, match="not at a multiple of 16 bytes"):
            cuda.jit(kernel)[1, 1](np.zeros(16, np.float32), np.zeros(16, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_single_elements_have_the_same_form(dtype):
    lanes, load, store = access(dtype, 1)
    assert lanes == 1

    def shift(a, out):
        i = cuda.grid(1)
        if i + 1 < a.size:
            store(out, i, load(a, i + 1))

    a, out = np.arange(7, dtype=dtype), np.zeros(6, dtype)
    cuda.jit(shift)[2, 4](a, out)
    assert np.array_equal(out, a[1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outer_sum(dtype):
    add, load = outer_sum(dtype, 2, 2), access(dtype, 2).load

    def product(sums, a, b, out):
        s = add(load(sums, 0) + load(sums, 2), load(a, 0), load(b, 0))
        out[0], out[1], out[2], out[3] = s[0], s[1], s[2], s[3]

    out = np.zeros(4, dtype)
    arrays = [np.array(values, dtype) for values in ([1, 2, 3, 4], [10, 20], [3, 5])]
    cuda.jit(product)[1, 1](*arrays, out)
    assert np.array_equal(out, [31, 52, 63, 104])


def test_alignment_is_that_of_every_row():
    memory = np.zeros(68, np.float32)
    start = -memory.ctypes.data % 16 // 4
    whole = memory[start : start + 64]
    assert aligned(whole, whole.reshape(16, 4), whole.reshape(8, 8))
    assert not aligned(whole[1:])
    assert not aligned(whole, whole[2:])
    assert not aligned(whole[:60].reshape(10, 6))
