"""Matrix products on CUDA: every tile, in parts, ragged, misaligned; against a product in wider floats.

On the simulator, or on a GPU with ``DLCORE_TEST_DEVICE=cuda``.
"""

import itertools

import numpy as np
import pytest
from tolerance import assert_close, wider

from dlcore.kernels.device import simulated, why_no_gpu
from dlcore.kernels.rule import find

if not simulated() and why_no_gpu():
    pytest.skip(why_no_gpu(), allow_module_level=True)

from dlcore.kernels.cuda import gemm
from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.gemm import TILES, Plan, choose, multiply
from dlcore.kernels.cuda.launch import device_function
from dlcore.kernels.cuda.vector import aligned

if simulated():
    from simulator import thread_order
else:
    from contextlib import nullcontext as thread_order

ORDERS = ("forward", "reverse", "random") if simulated() else ("forward",)
FORMS = ("ab", "a^Tb", "ab^T")
ALL = [
    pytest.param(np.dtype(d), tile, id=f"{d}-{tile.rows}x{tile.columns}")
    for d, tiles in TILES.items()
    for tile in tiles
]
SMALL = [pytest.param(d, tiles[-1], id=str(d)) for d, tiles in TILES.items()]


def _place(values, offset):
    """``values`` on the device, ``offset`` elements beyond an address that is a multiple of 16 bytes."""
    lanes = 16 // values.dtype.itemsize
    flat = memory.to_device(np.zeros(values.size + offset + lanes, values.dtype))
    first = next(i for i in range(lanes) if aligned(flat[i:])) + offset
    view = flat[first : first + values.size].reshape(values.shape)
    view[...] = memory.to_device(values)
    return view


def _product(dtype, form, size, plan=None, activation=None, offset=0, epilogue=True):
    """Launch ``tanh(a b + bias)`` with ``z`` for random factors, compare both with the oracle, and return them."""
    rows, columns, inner = size
    rng = np.random.default_rng([rows, columns, inner])
    a, b, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, inner), (inner, columns), (columns,)))
    if not epilogue:
        bias = np.zeros_like(bias)
    given = [np.ascontiguousarray(m) for m in (a.T if form == "a^Tb" else a, b.T if form == "ab^T" else b)]
    factors = [_place(m, offset) for m in given]
    out, z = (_place(np.full((rows, columns), np.nan, dtype), offset) for _ in range(2))
    value = device_function(find("activation", "tanh"), "value", dtype) if epilogue else None
    extra = {"bias": _place(bias, offset), "z": z} if epilogue else {}
    memory.run(multiply(*factors, out, form, value, **extra, plan=plan))
    exact = a.astype(wider(dtype)) @ b.astype(wider(dtype)) + bias
    plain = a @ b + bias
    results = [memory.to_host(out)]
    if epilogue:
        results.append(memory.to_host(z))
        assert_close("z", results[1], exact, plain)
        assert_close("out", results[0], np.tanh(exact), np.tanh(plain))
    else:
        assert_close("out", results[0], exact, plain)
    return results


def _whole(tile, inner):
    return Plan(tile, 1, -(-inner // tile.slice) * tile.slice)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tile"), ALL)
def test_ragged_by_one(dtype, tile, form):
    """One row more than a tile, one column less, one inner index more than two slices: element by element."""
    inner = 2 * tile.slice + 1
    _product(dtype, form, (tile.rows + 1, tile.columns - 1, inner), _whole(tile, inner))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tile"), ALL)
def test_aligned(dtype, tile, form):
    """Rows of whole groups of 128 bits, ragged by one group: 128-bit access."""
    lanes = 16 // dtype.itemsize
    inner = 2 * tile.slice + lanes
    _product(dtype, form, (tile.rows - lanes, tile.columns + lanes, inner), _whole(tile, inner), epilogue=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tile"), SMALL)
def test_views_that_begin_anywhere(dtype, tile, form):
    """Sizes that allow 128-bit access, addresses that do not."""
    inner = 2 * tile.slice
    _product(dtype, form, (tile.rows, tile.columns, inner), _whole(tile, inner), offset=1)


def test_only_what_is_aligned_is_read_128_bits_at_a_time():
    a, b, out = (_place(np.zeros(shape, np.float32), 0) for shape in ((5, 4), (4, 6), (5, 6)))
    seen = []

    def product(*arguments):
        seen.append(arguments[4])
        return original(*arguments)

    original = gemm.product
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm, "product", product)
        multiply(a, b, out)
        multiply(_place(np.zeros((5, 4), np.float32), 1), _place(np.zeros((4, 8), np.float32), 0), out)
        multiply(a, b, _place(np.zeros((5, 8), np.float32), 0)[:, :8])
        results = [_place(np.zeros((5, 8), np.float32), offset) for offset in (0, 1)]
        multiply(a, b, results[0], z=results[1])
    assert seen == [(True, False, False), (False, True, False), (True, False, True), (True, False, False)]


@pytest.mark.parametrize("lanes", ["scalar", "wide"])
@pytest.mark.parametrize(("dtype", "tile"), ALL)
def test_order_of_threads(dtype, tile, lanes):
    """Three slices, so that a buffer is filled again after it was read; the bits do not depend on the order."""
    extra = 1 if lanes == "scalar" else 16 // dtype.itemsize
    size = (tile.rows, tile.columns - extra, 2 * tile.slice + extra)
    results = [_product(dtype, "ab", size, _whole(tile, size[2]))]
    for order, form in itertools.product(ORDERS[1:], FORMS):
        with thread_order(order, 11):
            results.append(_product(dtype, form, size, _whole(tile, size[2])))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


# ---------------------------------------------------------------------------------------------------- in parts


@pytest.mark.parametrize("columns", [-1, 0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tile"), SMALL)
def test_in_parts(dtype, tile, form, columns):
    """Three parts of two slices, the last of them short by one; by elements and by 128 bits, with the epilogue."""
    plan = Plan(tile, 3, 2 * tile.slice)
    _product(dtype, form, (tile.rows + 1, tile.columns + columns, 6 * tile.slice - 1), plan)


@pytest.mark.parametrize("order", ORDERS)
def test_parts_are_added_in_order(order):
    """The bits are those of sums of the parts, added in ascending order."""
    dtype, tile = np.dtype(np.float32), TILES[np.dtype(np.float32)][-1]
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 160), (160, 8)))
    share = 2 * tile.slice

    def product(a, b, plan):
        out = _place(np.full((5, 8), np.nan, dtype), 0)
        memory.run(multiply(_place(a, 0), _place(b, 0), out, plan=plan))
        return memory.to_host(out)

    with thread_order(order, 5):
        got = product(a, b, Plan(tile, 5, share))
        parts = [product(a[:, k : k + share], b[k : k + share], Plan(tile, 1, share)) for k in range(0, 160, share)]
    expected = parts[0]
    for part in parts[1:]:
        expected = expected + part
    np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(got, product(a, b, Plan(tile, 1, 160)))  # the test can tell


# ------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("parts", [1, 2])
def test_indices_of_64_bits(monkeypatch, parts):
    """What a matrix of 2^31 elements is multiplied with, on a small one."""
    monkeypatch.setattr(gemm, "BIG", 0)
    for dtype, tiles in TILES.items():
        share = 2 * tiles[-1].slice
        for form in FORMS:
            _product(dtype, form, (33, 31, parts * share), Plan(tiles[-1], parts, share))


class _Huge:
    """A matrix of the size and address of one that this machine has no memory for."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, *shape):
        self.shape, self.size = shape, shape[0] * shape[1]
        self.__cuda_array_interface__ = {"data": (0, False)}

    def reshape(self, size):
        return self


def test_what_indices_have_64_bits():
    def bits(rows, inner):
        launch = multiply(_Huge(rows, inner), _Huge(inner, 8), _Huge(rows, 8))[0]
        return {np.dtype(type(size)).itemsize * 8 for size in launch.arguments[5:]}

    assert bits(2**20, 1024) == {32}
    assert bits(2**20, 2048) == {64}  # 2^31 elements
    assert bits(2**20, 2047) == {64}  # fewer, but a slice beyond the end has more


@pytest.mark.parametrize("shape", [(2**23, 8), (8, 2**23), (2**23, 40)])
def test_grids_have_room(shape):
    """x holds up to 2^31 - 1 blocks, y and z 65,535: the tiles of a long result lie along x."""
    for launch in multiply(_Huge(shape[0], 8), _Huge(8, shape[1]), _Huge(*shape)):
        assert launch.grid[0] > 65535
        assert all(size <= 65535 for size in launch.grid[1:])


def test_nothing_to_sum_and_nothing_to_compute():
    """An empty inner index leaves the bias; an empty result launches nothing."""
    for dtype in map(np.dtype, (np.float32, np.float64)):
        got = _product(dtype, "ab", (3, 5, 0))
        np.testing.assert_array_equal(got[1], np.broadcast_to(got[1][:1], (3, 5)))
        assert multiply(np.ones((0, 3), dtype), np.ones((3, 2), dtype), np.ones((0, 2), dtype)) == []


# ------------------------------------------------------------------------------------------------------- plans

_LENGTHS = (1, 10, 31, 33, 128, 1000, 4096)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_cover_the_inner_index(dtype):
    """Shares are whole slices, none is empty, and there is no more than the grid and scratch allow."""
    for rows, columns, inner in itertools.product(_LENGTHS, _LENGTHS, (0, *_LENGTHS, 10**6)):
        plan = choose(np.dtype(dtype), rows, columns, inner, 108)
        assert plan.share % plan.tile.slice == 0
        assert (plan.parts - 1) * plan.share < max(1, inner) <= plan.parts * plan.share
        assert 1 <= plan.parts <= gemm.MOST_PARTS
        assert plan.parts == 1 or gemm.blocks(plan, rows, columns) <= gemm.FEW * 108


def test_the_plan_suits_the_result():
    single, double = map(np.dtype, (np.float32, np.float64))
    for dtype in (single, double):
        large, small = TILES[dtype][0], TILES[dtype][-1]
        assert choose(dtype, 8192, 8192, 1024, 108)[:2] == (large, 1)
        assert choose(dtype, 32, 32, 64, 108)[:2] == (small, 1)
        assert choose(dtype, 128, 128, 2**17, 108).parts > 8  # few tiles and much to sum
        assert choose(dtype, 8192, 8192, 2**17, 108).parts == 1
    assert choose(single, 1024, 1024, 64, 16).tile.rows > choose(single, 1024, 1024, 64, 1000).tile.rows
