"""Sharpness-aware minimisation in the fused step: the gradient of a point nearby, against NumPy on a small network."""

import numpy as np
import pytest
from numba import cuda
from test_update import data, model
from tolerance import assert_close

import dlcore
from dlcore import optimizers

DEVICES = ["cpu", *(["cuda"] if cuda.is_available() else [])]
KINDS = {"sam": {"rho": 0.3}, "asam": {"rho": 0.5, "adaptive": True, "eta": 0.2}}
X = np.random.default_rng(1).standard_normal((20, 6))
Y = np.random.default_rng(2).standard_normal((20, 3))


def network(optimizer, device="cpu", dtype=np.float64):
    dlcore.set_seed(9)
    made = dlcore.Sequential(
        [dlcore.layers.Dense(5, "tanh", dtype=dtype, bias_initializer="ones"), dlcore.layers.Dense(3, dtype=dtype)],
        device=device,
    )
    made.compile(optimizer, "mse")
    made.build((6,))
    return made


def gradient(weights, x, y):
    """Of the mean squared error."""
    w1, b1, w2, b2 = weights
    hidden = np.tanh(x @ w1 + b1)
    d = 2 * (hidden @ w2 + b2 - y) / y.size
    dz = d @ w2.T * (1 - hidden**2)
    return [x.T @ dz, dz.sum(0), hidden.T @ d, d.sum(0)]


def nearby(weights, g, sign=1.0, *, rho, adaptive=False, eta=0.01):
    """Where the papers take the gradient."""
    t = [np.abs(w) + eta if adaptive else np.ones_like(w) for w in weights]
    norm = np.sqrt(sum(((a * b) ** 2).sum() for a, b in zip(t, g, strict=True)))
    return [w + sign * rho * a**2 * b / norm for w, a, b in zip(weights, t, g, strict=True)]


@pytest.mark.parametrize("climb", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_formulas(kind, device, climb):
    sign = -1.0 if climb else 1.0
    made = network(optimizers.SAM(optimizers.SGD(0.1, momentum=0.9, loss_scale=8.0, maximize=climb), **kind), device)
    weights, v = made.get_weights(), [0.0] * 4
    losses = []
    for k in range(3):
        x, y = X[5 * k : 5 * k + 5], Y[5 * k : 5 * k + 5]
        losses.append(np.mean((np.tanh(x @ weights[0] + weights[1]) @ weights[2] + weights[3] - y) ** 2))
        assert made.train_on_batch(x, y) == pytest.approx(losses[-1], rel=1e-12)
        g = gradient(nearby(weights, gradient(weights, x, y), sign, **kind), x, y)
        v = [0.9 * a + sign * b for a, b in zip(v, g, strict=True)]
        weights = [w - 0.1 * a for w, a in zip(weights, v, strict=True)]
    for got, expected in zip(made.get_weights(), weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.skipif(not cuda.is_available(), reason="needs the simulator or a GPU")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_both_engines_agree(kind):
    """With batch norm, whose statistics move in the first pass only, and dropout."""
    states = []
    for device in ("cuda", "cpu"):
        made = model(optimizers.SAM(optimizers.Adam(0.02, gradient_accumulation_steps=2), **kind), device, np.float64)
        made.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
        states.append(made._state())
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(name, ours[name].astype(float), value.astype(float), value.astype(float), terms=20.0)


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_are_those_of_the_weights(device):
    """Of one step: those of a step without."""
    x, y = data()
    states = []
    for make in (lambda: optimizers.SAM("sgd", rho=5.0), lambda: "sgd"):
        made = model(make(), device)
        dlcore.set_seed(4)
        made.build(x.shape[1:])
        made.train_on_batch(x, y)
        states.append(made._state())
    moving = [name for name in states[0] if "moving" in name]
    assert len(moving) == 2
    for name in moving:
        assert states[0][name].tobytes() == states[1][name].tobytes(), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_radius_of_0_changes_no_bit_and_a_gradient_of_0_nothing(device):
    results = []
    for make in (lambda: optimizers.SAM("adam", rho=0.0), lambda: "adam"):
        made = network(make(), device, np.float32)
        made.fit(X, Y, batch_size=10, epochs=2, shuffle=False, verbose=0)
        results.append(made.get_weights())
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()
    made = network(optimizers.SAM("sgd"), device)
    before = made.get_weights()
    made.train_on_batch(X, made.predict(X))
    for a, b in zip(before, made.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_threads_give_the_same_bits(kind):
    before, states = dlcore.get_num_threads(), []
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((96, 300)).astype(np.float32), rng.standard_normal((96, 5))
    try:
        for threads in (1, 3):
            dlcore.set_num_threads(threads)
            dlcore.set_seed(0)
            made = dlcore.Sequential([dlcore.layers.Dense(600, "relu"), dlcore.layers.Dense(5)], device="cpu")
            made.compile(optimizers.SAM("adam", **kind), "mse")
            made.fit(x, y, verbose=0, epochs=2)
            states.append(made._state())
    finally:
        dlcore.set_num_threads(before)
    for name, value in states[0].items():
        assert value.tobytes() == states[1][name].tobytes(), name


def test_a_saved_model_goes_on(tmp_path):
    whole, half = (network(optimizers.SAM(optimizers.Lookahead("adam"), rho=0.3, adaptive=True)) for _ in range(2))
    whole.fit(X, Y, batch_size=5, epochs=4, shuffle=False, verbose=0)
    half.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0)
    half.save(tmp_path / "model.safetensors")
    again = dlcore.load(tmp_path / "model.safetensors", device="cpu")
    assert again.optimizer.sharpness == (0.3, 0.01, 1.0)
    again.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_compiling_without_it_ends_it():
    made, other = network(optimizers.SAM("sgd", rho=2.0)), network("sgd")
    made.compile("sgd", "mse")
    for each in (made, other):
        each.train_on_batch(X, Y)
    for a, b in zip(made.get_weights(), other.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_bad_options_and_models_that_differ():
    with pytest.raises(ValueError, match="rho must be finite and at least 0, got -1"):
        optimizers.SAM("sgd", rho=-1)
    with pytest.raises(ValueError, match="SAM is around this optimizer already"):
        optimizers.SAM(optimizers.SAM("sgd"))
    with pytest.raises(ValueError, match="differ: SAM"):
        dlcore.fit_many([network("sgd"), network(optimizers.SAM("sgd"))], X, Y)
