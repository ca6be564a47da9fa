"""Optimizer steps in mixed precision on CUDA: the bits of the float32 kernels, and weights rounded as NumPy rounds."""

import itertools

import numpy as np
import pytest

from dlcore.kernels.device import simulated
from dlcore.kernels.rule import REGISTRY, find

if not simulated():
    pytest.skip("these count what the simulator sees", allow_module_level=True)

from simulator import thread_order
from test_cuda_update import _at, _operands, _updated
from test_mixed import _round

from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.launch import plan
from dlcore.kernels.cuda.vector import half_access
from dlcore.kernels.instructions import MIXED, Instruction

RULES = [rule.name for rule in REGISTRY["optimizer"].values() if not rule.factors]  # theirs take float32 gradients
WORDS = np.arange(2**16, dtype=np.uint16)
WIDE = {
    "float16": WORDS.view(np.float16).astype(np.float32),
    "bfloat16": (WORDS.astype(np.uint32) << 16).view(np.float32),
}


def _half(name):
    return np.float16 if name == "float16" else np.uint16


@pytest.mark.parametrize("name", WIDE)
def test_conversions(name):
    """Every word there is; ties, overflow, numbers below the smallest, NaN."""
    load, store = half_access(name, 4)[1:]
    _, words = _at(WORDS, 0, np.uint16)
    got = np.array([load(words, i) for i in range(0, words.size, 4)], np.float32).ravel()
    np.testing.assert_array_equal(got, WIDE[name])
    finite = np.sort(WIDE[name][np.isfinite(WIDE[name])])
    with np.errstate(all="ignore"):
        ties = finite[:-1] + (finite[1:] - finite[:-1]) / np.float32(2)
        near = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    ends = np.array([65519.99, 65520, 3.4028235e38, 3.3895314e38, np.inf, -np.inf, 1e-45, -1e-45, 0, -0.0], np.float32)
    numbers = np.concatenate([finite, ties, *near, ends])[:-1:37]
    numbers = np.concatenate([numbers, ends])
    numbers = numbers[: numbers.size // 4 * 4]
    out = np.zeros(numbers.size, np.uint16)
    _, out = _at(out, 0, np.uint16)
    with np.errstate(all="ignore"):
        for i in range(0, out.size, 4):
            store(out, i, tuple(numbers[i : i + 4]))
    np.testing.assert_array_equal(out, _round(numbers, name))
    strange = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)  # all NaN
    with np.errstate(all="ignore"):
        store(out, 0, tuple(strange))
    assert np.isnan(load(out, 0)).all()


def _mixed(rule, operands, offsets, half):
    """``w``, ``master`` and ``slots`` after the step, and the name of the kernel; around them nothing changes."""
    master, g, slots, uniforms = operands
    given = [master, g.view(_half(half)), slots, np.zeros(g.size, _half(half)), uniforms]
    placed = [_at(a, offset, a.dtype) for a, offset in zip(given, (*offsets, 0), strict=True)]
    views = [view for _, view in placed]
    before = [whole.copy() for whole, _ in placed]
    (launch,) = plan(Instruction(MIXED["optimizer_update_mixed"], views, rule), views)
    memory.run([launch])
    for (whole, view), old in zip(placed, before, strict=True):
        assert whole.size - view.size == 64
        inside = slice((view.ctypes.data - whole.ctypes.data) // view.itemsize, None)
        changed = np.flatnonzero(whole.view(np.uint8) != old.view(np.uint8)) // view.itemsize - inside.start
        assert ((changed >= 0) & (changed < view.size)).all()
    return views[3].view(np.uint16), views[0], views[2], launch.kernel.py_func.__name__


@pytest.mark.parametrize("half", WIDE)
@pytest.mark.parametrize("name", RULES)
def test_every_length_and_alignment(name, half):
    """Bit for bit the step of float32 from the same gradient; the copy is what NumPy rounds the weights to."""
    rule = find("optimizer", name)
    for size in (0, 1, 2, 3, 4, 5, 7, 8, 1031):
        w, g, slots, uniforms = _operands(rule, size, np.float32)
        words = _round(g, half)
        *expected, _ = _updated(rule, [w, WIDE[half][words], slots, uniforms], (0, 0, 0))
        for offsets in itertools.product((0, 1), repeat=4) if size in (5, 8) else ((0, 0, 0, 0), (1, 3, 2, 5)):
            copy, *got, kernel = _mixed(rule, [w, words, slots, uniforms], offsets, half)
            for a, e in zip(got, expected, strict=True):
                np.testing.assert_array_equal(a, e, err_msg=f"{size} {offsets}")
            np.testing.assert_array_equal(copy, _round(got[0], half), err_msg=f"{size} {offsets}")
            if offsets == (0, 0, 0, 0):
                assert kernel == "optimizer_update_mixed"


def test_a_thread_takes_a_group_where_access_is_wide():
    """For 16 bits that is a multiple of 8 bytes."""
    rule = find("optimizer", "sgd")
    kernels = {}
    for offset, offset_half, threads in ((0, 0, 1024), (0, 4, 1024), (0, 2, 1024), (1, 1, 4096)):
        w, g, slots, uniforms = _operands(rule, 4096, np.float32)
        w, slots, uniforms = (_at(a, offset, np.float32)[1] for a in (w, slots, uniforms))
        short = _at(g, offset_half, np.float16)[1]
        views = [w, short, slots, short, uniforms]
        (launch,) = plan(Instruction(MIXED["optimizer_update_mixed"], views, rule), views)
        assert launch.grid[0] * launch.block[0] == threads
        kernels[offset, offset_half] = launch.kernel
    assert kernels[0, 0] is kernels[0, 4]
    assert len(set(kernels.values())) == 3


@pytest.mark.parametrize("half", WIDE)
def test_the_norm_has_the_bits_of_float32(half):
    def scale(g, offset, op):
        operands = [_at(g, offset, g.dtype)[1], np.array([1e-3]), np.ones(4, np.float32)]
        memory.run(plan(Instruction(op, operands), operands))
        return operands[2][0]

    for size in (0, 1, 3, 4, 5, 1023, 4099):
        words = _round(np.random.default_rng(size).standard_normal(size).astype(np.float32), half)
        expected = scale(WIDE[half][words], 0, "clip_by_global_norm")
        exact = np.sqrt((WIDE[half][words].astype(np.float64) ** 2).sum())
        np.testing.assert_allclose(expected, 1e-3 / exact if size else 1.0, rtol=1e-6)
        for offset, order in itertools.product((0, 1, 4), ("forward", "random")):
            with thread_order(order, 3):
                got = scale(words.view(_half(half)), offset, MIXED["clip_by_global_norm_mixed"])
            assert got == expected, (size, offset, order)
