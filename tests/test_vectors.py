"""Matrix products with vectors of every width: right for odd sizes, and within their arrays."""

import ctypes
import mmap
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import pytest
from tolerance import assert_close

import dlcore
from dlcore import layers
from dlcore.kernels import find
from dlcore.kernels.cpu import eager, microkernel

ROOT = pathlib.Path(__file__).parent.parent
X86 = platform.machine() in ("x86_64", "AMD64")
SHAPES = [(1, 1, 1), (5, 7, 3), (33, 65, 17), (9, 13, 29), (70, 300, 50), (31, 520, 101), (4, 3, 96), (66, 10, 1)]
_kept = []


def guarded(array):
    """A copy whose last byte is followed by a page that may be neither read nor written."""
    pages = -(-max(array.nbytes, 1) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    last = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
    assert libc.mprotect(last, mmap.PAGESIZE, 0) == 0, ctypes.get_errno()
    end = pages * mmap.PAGESIZE
    copy = np.frombuffer(memory, np.uint8)[end - array.nbytes : end].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def check_products(dtype, protect):
    """The products of a dense layer against those in a wider type; ``protect`` makes the arrays."""
    rng = np.random.default_rng(0)
    linear = find("activation", "linear")
    wide = np.float64 if dtype == np.float32 else np.longdouble
    for m, k, n in SHAPES:
        x, w, b, dz = (protect(rng.standard_normal(s).astype(dtype)) for s in ((m, k), (k, n), (n,), (m, n)))
        y, dx, dw = (protect(np.full(s, np.nan, dtype)) for s in ((m, n), (m, k), (k, n)))
        eager.execute("dense_forward", [x, w, b, None, y], linear)
        eager.execute("dense_backward_x", [dz, w, dx])
        eager.execute("dense_backward_w", [x, dz, dw])
        for name, got, (left, right), bias in (
            ("y", y, (x, w), b),
            ("dx", dx, (dz, w.T), 0),
            ("dw", dw, (x.T, dz), 0),
        ):
            exact = left.astype(wide) @ right.astype(wide) + np.asarray(bias, wide)
            assert_close(f"{name} of {m, k, n}", got, exact, left @ right + bias, factor=3.0, terms=4.0)


def check_norms(dtype, protect):
    """The global norm, and that of a sharpness-aware step, of vectors of any length; squares are beyond float32."""
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 15, 16, 17, 63, 64, 65, 130, 1000, 16384, 16385, 40001):
        g, w = (protect((scale * rng.standard_normal(n)).astype(dtype)) for scale in (1e25, 1.0))
        wide = g.astype(np.float64)
        uniforms = np.ones(8, dtype)
        eager.execute("clip_by_global_norm", [g, np.array([0.5]), uniforms])
        np.testing.assert_allclose(uniforms[0], 0.5 / np.linalg.norm(wide), rtol=4 * np.finfo(dtype).eps)
        before, kept = w.astype(np.float64), protect(np.full(n, np.nan, dtype))
        eager.execute("ascend", [w, g, np.ones(8, dtype), kept], None, (0.5, 0.25, 1.0))
        factor = np.abs(before) + 0.25
        step = 0.5 * factor**2 * wide / np.linalg.norm(factor * wide)
        np.testing.assert_allclose(w, before + step, rtol=8 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(kept, before)


def check_training(dtype):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 150)
    x = (rng.standard_normal((3, 11))[y] + 0.3 * rng.standard_normal((150, 11))).astype(dtype)
    dlcore.set_seed(2)
    stack = [layers.Dense(37, "tanh", dtype=dtype), layers.BatchNormalization(), layers.Dropout(0.1)]
    model = dlcore.Sequential([*stack, layers.Dense(3, "softmax")], device="cpu")
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(x, y, 32, epochs=60, verbose=0).history
    assert history["accuracy"][-1] > 0.95
    return model.predict(x)


def main(width, path):
    """What runs in a process whose CPU is said to have vectors of ``width`` bytes."""
    assert microkernel.vector_bytes() == width
    assert microkernel.tile_rows() == 4
    outputs = {}
    for dtype in (np.float32, np.float64):
        check_products(dtype, guarded)
        check_norms(dtype, guarded)
        outputs[np.dtype(dtype).name] = check_training(dtype)
    np.savez(path, **outputs)


@pytest.mark.skipif(os.name == "nt", reason="pages are protected with mprotect")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_stay_within_their_arrays(dtype):
    check_products(dtype, guarded)


@pytest.mark.skipif(os.name == "nt", reason="pages are protected with mprotect")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_of_any_length_stay_within_their_arrays(dtype):
    check_norms(dtype, guarded)


# AVX2 without AVX-512, and the first x86-64: SSE2, whose loads cannot be masked
RESTRICTED = {32: ("haswell", "+sse2,+avx,+avx2,+fma"), 16: ("x86-64", "+sse2")}


@pytest.mark.slow
@pytest.mark.skipif(not X86 or os.name == "nt", reason="the restrictions are those of x86, the pages those of POSIX")
@pytest.mark.parametrize("width", RESTRICTED)
def test_a_cpu_with_narrower_vectors(width, tmp_path):
    if microkernel.vector_bytes() < width:
        pytest.skip("this CPU lacks them")
    name, features = RESTRICTED[width]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment |= {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    path = tmp_path / "outputs.npz"
    command = [sys.executable, "-c", f"import test_vectors; test_vectors.main({width}, {str(path)!r})"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    with np.load(path) as outputs:
        np.testing.assert_allclose(outputs["float64"], check_training(np.float64), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(outputs["float32"], check_training(np.float32), atol=0.05)
