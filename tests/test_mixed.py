"""``optimizer_update`` with weights of 16 bits, on both backends: the step of float32, and what it rounds to."""

import numpy as np
import pytest
from numba import cuda

from dlcore import kernels
from dlcore.kernels import ShapeError, find
from dlcore.kernels.device import simulated, why_no_gpu


def _round(x, name):
    """float32 numbers as words of 16 bits, as NumPy and ml_dtypes round them."""
    if name == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return x.astype(ml_dtypes.bfloat16).view(np.uint16)


def _dtype(half):
    return np.dtype(np.float16) if half == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_steps_of_the_function(name, half, place):
    """Clipping, decay and several steps: the weights of float32 alone, and what they round to."""
    if place == "cuda" and not simulated() and (why_no_gpu() or half == "bfloat16"):
        pytest.skip(why_no_gpu() or "Numba has no arrays of bfloat16 on a GPU")
    rng = np.random.default_rng(1)
    dtype, shape = _dtype(half), (3, 7)
    put = cuda.to_device if place == "cuda" else np.array
    start = rng.standard_normal(shape).astype(np.float32)
    count = len(find("optimizer", name).slots)
    w, master = put(np.zeros(shape, dtype)), put(start)
    alone = put(start)
    slots, slots_alone = ([put(np.zeros(shape, np.float32)) for _ in range(count)] for _ in range(2))
    settings = {"weight_decay": 0.1, "clip_norm": 0.5, "learning_rate": 0.3}
    for step in (1, 2, 3):
        g = rng.standard_normal(shape).astype(dtype)
        kernels.optimizer_update(name, w, put(g), slots, step=step, master=master, **settings)
        kernels.optimizer_update(name, alone, put(g.astype(np.float32)), slots_alone, step=step, **settings)
        for a, b in zip((master, *slots), (alone, *slots_alone), strict=True):
            np.testing.assert_array_equal(np.array(a), np.array(b))
        np.testing.assert_array_equal(np.array(w).view(np.uint16), _round(np.array(master), half))
    assert not np.array_equal(np.array(master), start)


def test_weights_beyond_float16_are_infinite_there_and_nowhere_else():
    w, master = np.zeros(2, np.float16), np.array([65519, 65521], np.float32)
    kernels.optimizer_update("sgd", w, np.zeros(2, np.float16), [], step=1, master=master)
    np.testing.assert_array_equal(w, [65504, np.inf])
    np.testing.assert_array_equal(master, [65519, 65521])


def test_misuse_is_one_error():
    def f(*shape, dtype=np.float32):
        return np.zeros(shape, dtype)

    half = f(3, dtype=np.float16)
    for match, arrays, master in (
        ("w is float16; master is missing, the weights in float32", (half, half, []), None),
        ("w is float32; expected float16 or bfloat16 beside master", (f(3), f(3), []), f(3)),
        ("g is float32; expected float16, the dtype of w", (half, f(3), []), f(3)),
        (r"g has shape \(4,\); expected \(3,\)", (half, f(4, dtype=np.float16), []), f(3)),
        (r"master is float64 \(3,\); expected float32 \(3,\)", (half, half, []), f(3, dtype=np.float64)),
        (r"master is float32 \(4,\); expected float32 \(3,\)", (half, half, []), f(4)),
        ("master is updated in place", (half, half, []), f(6)[::2]),
        ("w is updated in place", (f(6, dtype=np.float16)[::2], half, []), f(3)),
    ):
        with pytest.raises(ShapeError, match=match):
            kernels.optimizer_update("sgd", *arrays, step=1, master=master)
    with pytest.raises(ShapeError, match=r"slots\[0\] is float16 \(3,\); expected float32 \(3,\), those of master"):
        kernels.optimizer_update("momentum", half, half, [half], step=1, master=f(3))
    if simulated():
        with pytest.raises(ShapeError, match="some arrays are on the GPU and some are not"):
            kernels.optimizer_update("sgd", cuda.to_device(half), cuda.to_device(half), [], step=1, master=f(3))
