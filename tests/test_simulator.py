"""The thread core of the simulator: it runs what is right, and finds what is wrong."""

import math

import numba
import numpy as np
import pytest
from numba import config, cuda

if not config.ENABLE_CUDASIM:
    pytest.skip("these are tests of the simulator", allow_module_level=True)

from simulator import ORDERS, SimulationError, thread_order

N = 64
ALL = 0xFFFFFFFF


def _run(function, *arrays, grid=1, block=N):
    cuda.jit(function)[grid, block](*arrays)


def reversed_through_shared(x, y):
    shared = cuda.shared.array(N, numba.float32)
    t = cuda.threadIdx.x
    shared[t] = x[t]
    cuda.syncthreads()
    y[t] = shared[N - 1 - t]


def reversed_without_barrier(x, y):
    shared = cuda.shared.array(N, numba.float32)
    t = cuda.threadIdx.x
    shared[t] = x[t]
    y[t] = shared[N - 1 - t]


def tree(x, y):
    shared = cuda.shared.array(N, numba.float32)
    t = cuda.threadIdx.x
    shared[t] = x[t]
    cuda.syncthreads()
    half = N // 2
    while half > 0:
        if t < half:
            shared[t] += shared[t + half]
        cuda.syncthreads()
        half //= 2
    y[t] = shared[0]


def tree_without_barrier(x, y):
    shared = cuda.shared.array(N, numba.float32)
    t = cuda.threadIdx.x
    shared[t] = x[t]
    cuda.syncthreads()
    half = N // 2
    while half > 0:
        if t < half:
            shared[t] += shared[t + half]
        half //= 2
    cuda.syncthreads()
    y[t] = shared[0]


X = np.arange(N, dtype=np.float32)


@pytest.mark.parametrize("order", ORDERS)
def test_right_kernels_are_right_in_every_order(order):
    y = np.zeros(N, np.float32)
    with thread_order(order, 3):
        _run(reversed_through_shared, X, y)
        np.testing.assert_array_equal(y, X[::-1])
        _run(tree, X, y)
        np.testing.assert_array_equal(y, np.full(N, X.sum()))


def _wrong_orders(function, expected):
    wrong = []
    for order in ORDERS:
        y = np.zeros(N, np.float32)
        with thread_order(order, 3):
            _run(function, X, y)
        if not np.array_equal(y, expected):
            wrong.append(order)
    return wrong


def test_a_missing_barrier_is_a_wrong_number():
    assert _wrong_orders(reversed_without_barrier, X[::-1]) == list(ORDERS)
    assert "forward" in _wrong_orders(tree_without_barrier, np.full(N, X.sum()))


def test_random_order_depends_on_the_seed_alone():
    def trace(y):
        i = cuda.grid(1)
        counter[0] += 1
        y[i] = counter[0]

    results = []
    for seed in (1, 1, 2):
        counter, y = [0], np.zeros(N)
        with thread_order("random", seed):
            _run(trace, y)
        results.append(y)
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_unknown_order():
    with pytest.raises(ValueError, match="must be one of forward, reverse, random"), thread_order("backward"):
        pass


def test_threads_at_different_barriers():
    def divergent(y):
        if cuda.threadIdx.x < 8:
            cuda.syncthreads()
        else:
            cuda.syncthreads()

    first = divergent.__code__.co_firstlineno
    with pytest.raises(SimulationError, match=f"different barriers: .*line {first + 2}, .*line {first + 4}"):
        _run(divergent, np.zeros(1))


def test_a_barrier_that_some_threads_left_behind():
    def partial(y):
        if cuda.threadIdx.x >= 40:
            return
        cuda.syncthreads()

    line = partial.__code__.co_firstlineno + 3
    with pytest.raises(SimulationError, match=f"line {line} is reached by 40 of 64 threads"):
        _run(partial, np.zeros(1))


def test_lanes_that_never_come():
    def stuck(y):
        if cuda.threadIdx.x % 2:
            cuda.syncwarp()
        else:
            cuda.syncthreads()

    with pytest.raises(SimulationError, match="wait for each other for ever"):
        _run(stuck, np.zeros(1))


def test_errors_name_the_thread():
    def beyond(y):
        y[cuda.grid(1)] = 1

    def before(y):
        y[cuda.threadIdx.x - 1] = 1

    with pytest.raises(IndexError, match=r"thread \(2, 0, 0\) of block \(1, 0, 0\)"):
        _run(beyond, np.zeros(5), grid=2, block=3)
    with pytest.raises(IndexError, match="-1 is negative"):
        _run(before, np.zeros(N))


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(order):
    def shuffles(y):
        t = cuda.threadIdx.x
        y[0, t] = cuda.shfl_sync(ALL, t, 5)
        y[1, t] = cuda.shfl_up_sync(ALL, t, 3)
        y[2, t] = cuda.shfl_down_sync(ALL, t, 3)
        y[3, t] = cuda.shfl_xor_sync(ALL, t, 6)

    y, t = np.zeros((4, N)), np.arange(N)
    lane, warp = t % 32, t // 32 * 32
    with thread_order(order):
        _run(shuffles, y)
    np.testing.assert_array_equal(y[0], warp + 5)
    np.testing.assert_array_equal(y[1], np.where(lane < 3, t, t - 3))
    np.testing.assert_array_equal(y[2], np.where(lane > 28, t, t + 3))
    np.testing.assert_array_equal(y[3], warp + (lane ^ 6))


@pytest.mark.parametrize("order", ORDERS)
def test_votes_and_counts(order):
    def votes(y):
        t = cuda.threadIdx.x
        y[0, t] = cuda.ballot_sync(ALL, t % 32 < 3)
        y[1, t] = cuda.any_sync(ALL, t == 40)
        y[2, t] = cuda.all_sync(ALL, t >= 32)
        y[3, t] = cuda.syncthreads_count(t < 10)
        y[4, t] = cuda.syncthreads_and(t < 63)
        y[5, t] = cuda.syncthreads_or(t == 63)

    y, second = np.zeros((6, N)), np.arange(N) >= 32
    with thread_order(order):
        _run(votes, y)
    for row, expected in zip(y, (7, second, second, 10, 0, 1), strict=True):
        np.testing.assert_array_equal(row, np.broadcast_to(expected, N))


def test_a_mask_of_some_lanes():
    def half(y):
        t = cuda.threadIdx.x
        if t < 16:
            y[t] = cuda.shfl_xor_sync(0xFFFF, t, 1)

    def outside(y):
        cuda.syncwarp(0xFFFF)

    y = np.zeros(32)
    _run(half, y, block=32)
    np.testing.assert_array_equal(y[:16], np.arange(16) ^ 1)
    with pytest.raises(SimulationError, match="lane 16 is not in its own mask 0xffff"):
        _run(outside, y, block=32)


def test_memory_begins_as_nan_and_arrays_on_a_line_differ():
    def memory(y):
        a, b = cuda.shared.array(2, numba.float64), cuda.shared.array(2, numba.float64)
        c = cuda.local.array(2, numba.float32)
        y[0] = a[0]
        y[1] = c[1]
        a[0] = 1.0
        b[0] = 2.0
        y[2] = a[0]

    y = np.zeros(3)
    _run(memory, y, block=1)
    assert math.isnan(y[0])
    assert math.isnan(y[1])
    assert y[2] == 1.0


def test_blocks_do_not_share():
    def blocks(y):
        a = cuda.shared.array(1, numba.float64)
        y[cuda.blockIdx.x] = a[0]
        a[0] = 1.0

    y = np.zeros(2)
    _run(blocks, y, grid=2, block=1)
    assert np.isnan(y).all()


def test_keywords_of_the_compiler_are_dropped():
    y = np.zeros(1)
    cuda.jit(launch_bounds=32, lineinfo=True)(lambda y: y.__setitem__(0, 1.0))[1, 1](y)
    assert y[0] == 1.0


@pytest.mark.parametrize(("order", "expected"), [("forward", [0, 1] * 3), ("reverse", [1] * 3 + [0] * 3)])
def test_one_warp_runs_ahead_of_the_others_but_for_the_forward_order(order, expected):
    trace = []

    def meeting():
        for _ in range(3):
            cuda.syncwarp()
            if cuda.laneid == 0:
                trace.append(cuda.threadIdx.x // 32)

    with thread_order(order):
        cuda.jit(meeting)[1, 64]()
    assert trace == expected
