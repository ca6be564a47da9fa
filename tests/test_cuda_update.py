"""The optimizer and the global norm on CUDA: every length and every alignment, element for element and bit for bit."""

import itertools

import numpy as np
import pytest
from numba import cuda

from dlcore import kernels
from dlcore.kernels.device import simulated
from dlcore.kernels.rule import REGISTRY, find
from dlcore.kernels.step_text import UNIFORM_HEADER

if not simulated():
    pytest.skip("these count what the simulator sees; test_cuda.py has the numbers", allow_module_level=True)

from simulator import ORDERS, thread_order

from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.launch import BLOCK, lowered, plan
from dlcore.kernels.cuda.update import _norm_blocks
from dlcore.kernels.instructions import Instruction
from dlcore.kernels.program import PANEL_COLUMNS, PANEL_ROWS, factors_of, tensor_blocks

DTYPES = (np.float32, np.float64)
RULES = list(REGISTRY["optimizer"])
OF_EACH_SIZE = list({(len(r.slots), bool(r.factors)): name for name, r in REGISTRY["optimizer"].items()}.values())


def _at(values, offset, dtype):
    """A copy of ``values``, C-contiguous, that begins ``offset`` elements after a multiple of 16 bytes."""
    values = np.asarray(values, dtype)
    memory = np.full(values.size + 64, 77, dtype)
    first = -memory.ctypes.data % 16 // memory.itemsize + offset
    view = memory[first : first + values.size].reshape(values.shape)
    view[...] = values
    return memory, view


def _operands(rule, size, dtype, scale=0.7):
    rng = np.random.default_rng(size)
    count = len(lowered(rule, "update", dtype)[1].uniforms) + len(rule.sums)
    uniforms = np.concatenate([[scale, 0.1, 0.9, 0.5, 0.0], rng.uniform(0.1, 0.9, count)])
    slots = rng.uniform(0.5, 1.5, (len(rule.slots), size))
    return [a.astype(dtype) for a in (rng.standard_normal(size), rng.standard_normal(size), slots, uniforms)]


def _factors(size, dtype):
    """State of the rows and columns of a matrix of ``size`` elements, and its tables."""
    columns = max(d for d in (1, 2, 3, 5, 1031) if size % d == 0)
    found = factors_of([(size // columns, columns)], [0])
    return np.random.default_rng(size).uniform(0.5, 1.5, found.size).astype(dtype), found.tensors, found.panels


def _updated(rule, operands, offsets):
    """``w`` and ``slots`` after the update of arrays that begin at ``offsets``; what lies around them is untouched."""
    placed = [_at(a, offset, a.dtype) for a, offset in zip(operands, (*offsets, 0), strict=True)]
    views = [view for _, view in placed]
    if rule.by_tensor:
        size = views[0].size
        state = _factors(size, views[0].dtype) if rule.factors else (None,) * 3
        views = [*views[:3], views[3].reshape(1, -1), tensor_blocks([size], [0]), *state]
    launches = plan(Instruction(f"optimizer_update{'_by_tensor' if rule.by_tensor else ''}", views, rule), views)
    assert len(launches) == 1
    memory.run(launches)
    for (whole, view), operand in zip(placed, operands, strict=True):
        assert (whole == 77).sum() == whole.size - operand.size - (view == 77).sum()
    return placed[0][1], placed[2][1], launches[0].kernel.py_func.__name__


def test_a_thread_takes_a_group_where_access_is_wide():
    rule = find("optimizer", "sgd")
    for offset, threads in ((0, 1024), (1, 4096)):
        views = [_at(a, offset, a.dtype)[1] for a in _operands(rule, 4096, np.float32)]
        (launch,) = plan(Instruction("optimizer_update", views, rule), views)
        assert launch.grid[0] * launch.block[0] == threads


def _one_by_one(rule, operands):
    w, g, slots, u = operands
    update, low = lowered(rule, "update", w.dtype)
    first = UNIFORM_HEADER + len(low.uniforms)
    rest = [*u[first:], *u[UNIFORM_HEADER:first]]
    new_w, new_slots = w.copy(), slots.copy()
    factors, ((_, rows, columns, _, _),), _ = _factors(w.size, w.dtype)
    for i in range(w.size):
        of = [factors[1 + i // columns] / factors[0], factors[1 + rows + i % columns]] if rule.factors else []
        results = update(w[i] * u[2], g[i] * u[0] + u[1] * w[i], *slots[:, i], *of, *rest)
        new_w[i], *new_slots[:, i] = results if isinstance(results, tuple) else (results,)
    return new_w, new_slots


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OF_EACH_SIZE)
def test_every_length_and_alignment(name, dtype):
    """Bit for bit what the scalar rule gives, wherever the arrays begin."""
    rule = find("optimizer", name)
    by_tensor = "_by_tensor" if rule.by_tensor else ""
    for size in (0, 1, 2, 3, 4, 5, 6, 7, 8, 1031):
        operands = _operands(rule, size, dtype)
        expected = _one_by_one(rule, operands)
        for offsets in itertools.product((0, 1), repeat=3) if size < 9 else ((0, 0, 0), (1, 3, 2)):
            *got, kernel = _updated(rule, operands, offsets)
            for a, e in zip(got, expected, strict=True):
                np.testing.assert_array_equal(a, e, err_msg=f"{size} {offsets}")
            if offsets == (0, 0, 0):
                assert kernel == "optimizer_update" + by_tensor
            if offsets == (1, 1, 1) and size and not rule.slots:
                assert kernel == f"optimizer_update{by_tensor}_scalar"


@pytest.mark.parametrize("scale", [np.nan, np.inf])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", RULES)
def test_a_scale_that_is_not_finite_reaches_every_parameter(name, offset, scale):
    operands = _operands(find("optimizer", name), 11, np.float32, scale)
    with np.errstate(all="ignore"):
        w, *_ = _updated(find("optimizer", name), operands, (offset, offset, offset))
    assert not np.isfinite(w).any()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["adafactor", "sm3"])
def test_rows_and_columns_of_several_panels(name, order):
    """Two steps, against the CPU engine: panels side by side and one below the other, and a vector."""
    rng = np.random.default_rng(3)
    for shape in ((PANEL_ROWS + 6, 37), (2, PANEL_COLUMNS + 40), (300,)):
        w = rng.standard_normal(shape).astype(np.float32)
        cpu = [w.copy(), *(np.zeros(n, np.float32) for n in np.atleast_2d(w).shape)]
        device = [cuda.to_device(a) for a in cpu]
        for step in (1, 2):
            g = rng.standard_normal(shape).astype(np.float32)
            kernels.optimizer_update(name, cpu[0], g, cpu[1:], step=step)
            with thread_order(order, 5):
                kernels.optimizer_update(name, device[0], cuda.to_device(g), device[1:], step=step)
        for a, e in zip(device, cpu, strict=True):
            np.testing.assert_allclose(a.copy_to_host(), e, rtol=2e-6, atol=1e-7)


def _norm(g, offset, limit=1.0):
    _, view = _at(g, offset, g.dtype)
    operands = [view, np.array([limit]), np.ones(4, g.dtype)]
    launches = plan(Instruction("clip_by_global_norm", operands), operands)
    memory.run(launches)
    return operands[2][0], launches[0].kernel.py_func.__name__, launches[0].arguments[1].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_has_the_same_bits_at_every_alignment(dtype):
    for size in (0, 1, 3, 4, 5, 1023, 4099):
        g = np.random.default_rng(size).standard_normal(size).astype(dtype)
        norm = np.sqrt((g.astype(np.longdouble) ** 2).sum())
        scale, kernel, sums = _norm(g, 0, 1e-3)
        assert kernel == "norm_blocks"
        np.testing.assert_allclose(float(scale), float(1e-3 / norm) if size else 1.0, rtol=4 * np.finfo(dtype).eps)
        others = [_norm(g, 1, 1e-3)]
        for order in ORDERS[1:]:
            with thread_order(order, 3):
                others += [_norm(g, 0, 1e-3), _norm(g, 1, 1e-3)]
        assert {other[2] for other in others} == {sums}
        assert others[0][1] == ("norm_blocks_scalar" if size else "norm_blocks")


def test_every_element_enters_the_norm():
    for size in (1, 2, 3, 4, 5, 6, 7, 9):
        for place in range(size):
            g = np.zeros(size, np.float32)
            g[place] = np.nan
            assert np.isnan(_norm(g, 0)[0]), (size, place)
            g[place] = np.inf
            assert _norm(g, 0)[0] == 0, (size, place)


def test_the_norm_keeps_what_rounding_takes():
    """Squares of 2e-4 after one of 1: without compensation each is lost, 1.6e-6 of the sum."""
    g = np.full(40 * 1024, 2e-4, np.float32)
    g[:1024] = 1.0
    partial = np.zeros(1, np.float32)
    for wide in (True, False):
        _norm_blocks(g.dtype, wide)[1, BLOCK](_at(g, 0, g.dtype)[1], partial)
        np.testing.assert_allclose(partial[0], (g.astype(np.float64) ** 2).sum(), rtol=2e-7)
