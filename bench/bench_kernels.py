"""Each kernel at three sizes, beside the plain NumPy formula from the tests' oracle."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
import oracle

from dlcore import kernels

SIZES = {"small": (32, 64, 10), "medium": (128, 256, 128), "large": (512, 784, 512)}
WHO = ["dlcore", "numpy"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _arrays(rng, *shapes):
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("size", SIZES)
def bench_dense_forward(rng, roofline, size, who):
    m, k, n = SIZES[size]
    x, w, b = _arrays(rng, (m, k), (k, n), (n,))
    call = {
        "dlcore": lambda: kernels.dense_forward(x, w, b, "relu"),
        "numpy": lambda: np.maximum(x @ w + b, 0),
    }[who]
    roofline(call, moved=4 * (m * k + k * n + n + m * n), flops=2 * m * k * n)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("size", SIZES)
def bench_dense_backward(rng, roofline, size, who):
    m, k, n = SIZES[size]
    x, w, b, dy = _arrays(rng, (m, k), (k, n), (n,), (m, n))
    y = np.maximum(x @ w + b, 0)
    call = {
        "dlcore": lambda: kernels.dense_backward(dy, x, w, y, "relu"),
        "numpy": lambda: oracle.dense_backward(dy, x, w, y, "relu"),
    }[who]
    roofline(call, moved=4 * (2 * m * k + 2 * k * n + n + 2 * m * n), flops=4 * m * k * n)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("size", SIZES)
def bench_batch_norm(rng, roofline, size, who):
    m, _, n = SIZES[size]
    x, gamma, beta = _arrays(rng, (m, n), (n,), (n,))
    mean, var = np.zeros(n, np.float32), np.ones(n, np.float32)
    call = {
        "dlcore": lambda: kernels.batch_norm_forward(x, gamma, beta, mean, var),
        "numpy": lambda: oracle.batch_norm_forward(x, gamma, beta, mean, var, 0.9, 1e-5),
    }[who]
    roofline(call, moved=8 * m * n)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("size", SIZES)
def bench_layer_norm(rng, roofline, size, who):
    m, _, n = SIZES[size]
    x, gamma, beta = _arrays(rng, (m, n), (n,), (n,))
    call = {
        "dlcore": lambda: kernels.layer_norm_forward(x, gamma, beta),
        "numpy": lambda: oracle.layer_norm_forward(x, gamma, beta, 1e-5),
    }[who]
    roofline(call, moved=8 * m * n)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("size", SIZES)
def bench_softmax_cross_entropy(rng, roofline, size, who):
    m, _, n = SIZES[size]
    (z,) = _arrays(rng, (m, n))
    labels = rng.integers(0, n, m)
    onehot = np.eye(n, dtype=np.float32)[labels]
    one = np.ones(m, np.float32)
    call = {
        "dlcore": lambda: kernels.softmax_cross_entropy(z, labels),
        "numpy": lambda: oracle.softmax_cross_entropy(z, onehot, one),
    }[who]
    roofline(call, moved=8 * m * n)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("elements", [10_000, 1_000_000, 10_000_000])
def bench_adam(rng, roofline, elements, who):
    w, g = _arrays(rng, (elements,), (elements,))
    rule = kernels.find("optimizer", "adam")
    m, v = kernels.optimizer_slots(rule, w)
    call = {
        "dlcore": lambda: kernels.optimizer_update(rule, w, g, [m, v], step=3),
        "numpy": lambda: oracle.optimizer_step("adam", w, g, [m, v], 3, rule.parameters),
    }[who]
    roofline(call, moved=28 * elements)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("size", SIZES)
def bench_dropout(rng, roofline, size, who):
    m, k, _ = SIZES[size]
    (x,) = _arrays(rng, (m, k))
    call = {
        "dlcore": lambda: kernels.dropout(x, 0.5, seed=1, step=2),
        "numpy": lambda: x * (rng.random(x.shape) >= 0.5) * np.float32(2),
    }[who]
    roofline(call, moved=8 * m * k)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("who", WHO)
def bench_activation(rng, roofline, name, who):
    (z,) = _arrays(rng, (1000, 1000))
    call = {
        "dlcore": lambda: kernels.activation_forward(z, name),
        "numpy": lambda: oracle.ACTIVATIONS[name][0](z),
    }[who]
    roofline(call, moved=8 * z.size)
