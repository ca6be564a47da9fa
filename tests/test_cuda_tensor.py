"""Products on tensor cores: operands are rounded, and nothing else is; every edge, both factors either way round."""

import numpy as np
import pytest
from tolerance import FORWARD, assert_close

import dlcore
from dlcore import layers
from dlcore.kernels import find, precision
from dlcore.kernels.device import simulated, why_no_gpu

if not simulated():
    pytest.skip(why_no_gpu() or "the simulator's arrays are used here", allow_module_level=True)

from simulator import thread_order

from dlcore.kernels.cuda import gemm_tensor, tensor
from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.launch import device_function

TILE = gemm_tensor.Tile(64, 32, 32, 16)  # the smallest there can be: every warp has two tiles each way
FORMS = ["ab", "a^Tb", "ab^T"]


def _aligned(array, shift=0):
    """A copy whose first element lies ``shift`` numbers behind a multiple of 64 bytes."""
    memory = np.zeros(array.size + 32, np.float32)
    start = -memory.ctypes.data % 64 // 4 + shift
    out = memory[start : start + array.size].reshape(array.shape)
    out[...] = array
    return out


def _check(precision, form, shape, shift=0, bias=True, save_z=True):
    rows, inner, columns = shape
    rng = np.random.default_rng(sum(shape))
    left, right = rng.standard_normal((rows, inner)), rng.standard_normal((inner, columns))
    a = _aligned(left.T if form == "a^Tb" else left, shift)
    b = _aligned(right.T if form == "ab^T" else right, shift)
    offsets = _aligned(rng.standard_normal(columns)) if bias else None
    z, y = (np.full((rows, columns), np.nan, np.float32) for _ in range(2))
    rule = find("activation", "tanh")
    value = device_function(rule, "value", np.float32)
    memory.run(gemm_tensor.multiply(precision, a, b, y, form, value, offsets, z if save_z else None, TILE))
    left, right = (tensor.rounded(x, precision) for x in (left, right))
    exact = left.astype(np.float64) @ right.astype(np.float64)
    plain = left @ right
    if bias:
        exact, plain = exact + offsets, plain + offsets
    if save_z:
        assert_close("z", z, exact, plain, FORWARD, np.abs(left).max() * np.abs(right).max())
    assert_close("y", y, np.tanh(exact), np.tanh(plain), FORWARD, 1.0)


@pytest.mark.parametrize("precision", precision.PRECISIONS[1:])
@pytest.mark.parametrize("form", FORMS)
def test_a_product(precision, form):
    """Two or three slices, the last one not whole; the second block of rows stands over the edge."""
    _check(precision, form, (66, 40, 20))


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_other_orders_of_the_threads(order):
    with thread_order(order):
        _check("tf32", "ab", (20, 40, 36))
        _check("float16", "a^Tb", (20, 72, 36))


@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 33, 5), (3, 17, 35)], ids=str)
@pytest.mark.parametrize("precision", precision.PRECISIONS[1:])
def test_rows_of_any_length(precision, shape):
    for form in FORMS:
        _check(precision, form, shape)


@pytest.mark.parametrize("form", FORMS)
def test_memory_that_begins_anywhere(form):
    _check("tf32", form, (8, 20, 12), shift=1)
    _check("bfloat16", form, (8, 20, 12), shift=3, bias=False, save_z=False)


def test_rounding_is_that_of_the_hardware():
    """Half a unit in the last place: TF32 (10 bits) goes away from zero, bfloat16 (7 bits) to even."""
    one = np.float32(1)
    half = {"tf32": np.float32(2.0**-11), "bfloat16": np.float32(2.0**-8)}
    assert tensor.rounded(one + half["tf32"], "tf32") == 1 + 2.0**-10
    assert tensor.rounded(-one - half["tf32"], "tf32") == -1 - 2.0**-10
    assert tensor.rounded(one + half["bfloat16"], "bfloat16") == 1
    assert tensor.rounded(one + 3 * half["bfloat16"], "bfloat16") == 1 + 2.0**-6
    assert tensor.rounded(one + half["bfloat16"] * np.float32(1.01), "bfloat16") == 1 + 2.0**-7


def _halves():
    """float32 numbers at and around every place where rounding to float16 decides something."""
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # 0, subnormals, ..., 65504
    middle = (finite[1:] + finite[:-1]) / 2
    near = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    ends = np.array([65519.996, 65520, 65521, 65536, 3e38, np.inf, 2**-25, 1e-30, 1e-45], np.float32)
    positive = np.concatenate([finite, middle, *near, ends])
    return np.concatenate([positive, -positive, np.full(1, np.nan, np.float32)])


def test_float16_is_that_of_numpy():
    """To nearest, ties to even; infinity from 65520 on; subnormals stay; the lower half of a word is the first."""
    numbers = _halves()
    with np.errstate(over="ignore"):
        halves = numbers.astype(np.float16)
    np.testing.assert_array_equal(tensor.rounded(numbers, "float16"), halves.astype(np.float32))
    pack = tensor.rounding("float16").pack
    for k in range(0, len(numbers) - 1, 997):
        word = int(pack(numbers[k], numbers[-2 - k]))
        assert [word & 0xFFFF, word >> 16] == [int(halves[i].view(np.uint16)) for i in (k, -2 - k)]


@pytest.mark.parametrize("form", FORMS)
def test_what_float16_cannot_hold_is_seen_in_the_result(form):
    """Row 1 has a factor beyond the range, row 2 numbers that need subnormals, row 3 numbers below them."""
    rng = np.random.default_rng(4)
    left, right = rng.standard_normal((5, 37)), rng.uniform(0.5, 1, (37, 6))
    left[1, 30], left[2], left[3] = 65520, 2**-24, 1e-8
    a, b = (_aligned(x.T if f == form else x) for x, f in ((left, "a^Tb"), (right, "ab^T")))
    out = np.full((5, 6), np.nan, np.float32)
    memory.run(gemm_tensor.multiply("float16", a, b, out, form, tile=TILE))
    with np.errstate(all="ignore"):
        exact = left.astype(np.float16).astype(np.float64) @ right.astype(np.float16).astype(np.float64)
    assert (exact[1] == np.inf).all()
    assert_close("out", out, exact, exact.astype(np.float32), FORWARD, 70)
    np.testing.assert_allclose(out[2], exact[2], rtol=1e-5)
    assert not out[3].any()


def test_a_model_plans_anew_when_the_precision_changes(monkeypatch):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (5, 2)))
    model = dlcore.Sequential([layers.Input((5,)), layers.Dense(2, use_bias=False)], device="cuda")
    model.set_weights([w])
    exact = {"float32": x @ w}
    for name in precision.PRECISIONS[1:]:
        exact[name] = tensor.rounded(x, name) @ tensor.rounded(w, name)
    monkeypatch.setattr(precision, "_chosen", "float32")
    for name in (*precision.PRECISIONS, "float32"):
        dlcore.set_matmul_precision(name)
        assert dlcore.get_matmul_precision() == name
        np.testing.assert_allclose(model.predict(x), exact[name], rtol=1e-5, atol=1e-6)
    assert np.abs(exact["tf32"] - exact["float32"]).max() > 1e-4  # or the test would see nothing
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bfloat16, float16, got 'fast'"):
        dlcore.set_matmul_precision("fast")
    monkeypatch.setattr(precision, "capability", lambda: 75)
    with pytest.raises(dlcore.kernels.DeviceError, match=r"tf32 needs compute capability 8\.0; the GPU has 7\.5"):
        dlcore.set_matmul_precision("tf32")
