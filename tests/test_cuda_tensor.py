"""Products on tensor cores: operands are rounded, and nothing else is; every edge, both factors either way round."""

import numpy as np
import pytest
from tolerance import FORWARD, assert_close

from dlcore.kernels import find
from dlcore.kernels.device import simulated, why_no_gpu

if not simulated():
    pytest.skip(why_no_gpu() or "the simulator's arrays are used here", allow_module_level=True)

from simulator import thread_order

from dlcore.kernels.cuda import gemm_tensor, tensor
from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.launch import device_function

TILE = gemm_tensor.Tile(64, 32, 32, 16)  # the smallest there can be: every warp has two tiles each way
FORMS = [("a", "b"), ("a^T", "b"), ("a", "b^T")]


def _aligned(array, shift=0):
    """A copy whose first element lies ``shift`` numbers behind a multiple of 64 bytes."""
    memory = np.zeros(array.size + 32, np.float32)
    start = -memory.ctypes.data % 64 // 4 + shift
    out = memory[start : start + array.size].reshape(array.shape)
    out[...] = array
    return out


def _check(precision, forms, shape, shift=0, bias=True, save_z=True):
    rows, inner, columns = shape
    rng = np.random.default_rng(sum(shape))
    left, right = rng.standard_normal((rows, inner)), rng.standard_normal((inner, columns))
    a = _aligned(left.T if forms[0] == "a^T" else left, shift)
    b = _aligned(right.T if forms[1] == "b^T" else right, shift)
    offsets = _aligned(rng.standard_normal(columns)) if bias else None
    z, y = (np.full((rows, columns), np.nan, np.float32) for _ in range(2))
    rule = find("activation", "tanh")
    value = device_function(rule, "value", np.float32)
    launch = gemm_tensor.multiply(precision, a, b, forms, offsets, z if save_z else None, y, value, TILE)
    memory.run([launch])
    left, right = (tensor.rounded(x, precision) for x in (left, right))
    exact = left.astype(np.float64) @ right.astype(np.float64)
    plain = left @ right
    if bias:
        exact, plain = exact + offsets, plain + offsets
    if save_z:
        assert_close("z", z, exact, plain, FORWARD, np.abs(left).max() * np.abs(right).max())
    assert_close("y", y, np.tanh(exact), np.tanh(plain), FORWARD, 1.0)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("forms", FORMS, ids="".join)
def test_a_product(precision, forms):
    """Two or three slices, the last one not whole; the second block of rows stands over the edge."""
    _check(precision, forms, (66, 40, 20))


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_other_orders_of_the_threads(order):
    with thread_order(order):
        _check("tf32", ("a", "b"), (20, 40, 36))
        _check("bf16", ("a^T", "b"), (20, 72, 36))


@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 33, 5), (3, 17, 35)], ids=str)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_rows_of_any_length(precision, shape):
    for forms in FORMS:
        _check(precision, forms, shape)


@pytest.mark.parametrize("forms", FORMS, ids="".join)
def test_memory_that_begins_anywhere(forms):
    _check("tf32", forms, (8, 20, 12), shift=1)
    _check("bf16", forms, (8, 20, 12), shift=3, bias=False, save_z=False)


def test_rounding_is_that_of_the_hardware():
    """Half a unit in the last place: TF32 (10 bits) goes away from zero, bfloat16 (7 bits) to even."""
    one = np.float32(1)
    half = {"tf32": np.float32(2.0**-11), "bf16": np.float32(2.0**-8)}
    assert tensor.rounded(one + half["tf32"], "tf32") == 1 + 2.0**-10
    assert tensor.rounded(-one - half["tf32"], "tf32") == -1 - 2.0**-10
    assert tensor.rounded(one + half["bf16"], "bf16") == 1
    assert tensor.rounded(one + 3 * half["bf16"], "bf16") == 1 + 2.0**-6
    assert tensor.rounded(one + half["bf16"] * np.float32(1.01), "bf16") == 1 + 2.0**-7
