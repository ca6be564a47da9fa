"""What happens to weights: their initial values, penalties on them, and constraints after an update."""

import json
import math

import numpy as np
import pytest

import dlcore
from dlcore import constraints, initializers, kernels, layers, losses, optimizers, regularizers
from dlcore.kernels.cpu.eager import execute
from dlcore.kernels.device import simulated, why_no_gpu

DEVICES = ["cpu", *(["cuda"] if simulated() or not why_no_gpu() else [])]

# ------------------------------------------------------------------------------------------------ initialisers

SHAPE = (300, 200)
FAN_IN, FAN_AVERAGE = 300, 250

# name -> standard deviation, and the largest absolute value there may be
MOMENTS = {
    "random_normal": (0.01, math.inf),
    "random_uniform": (0.05 / math.sqrt(3), 0.05),
    "truncated_normal": (0.05 * 0.8796, 0.1),
    "glorot_normal": (math.sqrt(1 / FAN_AVERAGE), math.inf),
    "glorot_uniform": (math.sqrt(1 / FAN_AVERAGE), math.sqrt(3 / FAN_AVERAGE)),
    "he_normal": (math.sqrt(2 / FAN_IN), math.inf),
    "he_uniform": (math.sqrt(2 / FAN_IN), math.sqrt(6 / FAN_IN)),
    "lecun_normal": (math.sqrt(1 / FAN_IN), math.inf),
    "lecun_uniform": (math.sqrt(1 / FAN_IN), math.sqrt(3 / FAN_IN)),
    "orthogonal": (math.sqrt(1 / 300), 1.0),
    "variance_scaling": (math.sqrt(1 / FAN_IN), 2 / 0.8796 * math.sqrt(1 / FAN_IN)),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments(name):
    """60,000 numbers: a mean within 4 and a deviation within 1.5% of what they should be."""
    values = initializers.get(name)(SHAPE, np.random.default_rng(0))
    deviation, largest = MOMENTS[name]
    assert values.shape == SHAPE
    assert abs(values.mean()) < 4 * deviation / math.sqrt(values.size)
    assert values.std() == pytest.approx(deviation, rel=0.015)
    assert np.abs(values).max() <= largest
    again = initializers.get(name)(SHAPE, np.random.default_rng(0))
    np.testing.assert_array_equal(values, again)


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 300), ("fan_out", 200), ("fan_avg", 250)])
def test_variance_scaling(distribution, mode, fan):
    values = initializers.VarianceScaling(2.0, mode, distribution)(SHAPE, np.random.default_rng(1))
    assert values.var() == pytest.approx(2.0 / fan, rel=0.03)


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (5, 5)], ids=str)
def test_orthogonal(shape):
    q = initializers.Orthogonal(2.0)(shape, np.random.default_rng(2))
    product = q.T @ q if shape[0] >= shape[1] else q @ q.T
    np.testing.assert_allclose(product, 4 * np.eye(min(shape)), atol=1e-13)


def test_orthogonal_matrices_are_uniform():
    """The first element of a uniform 2x2 rotation or reflection has mean 0; without the signs of R it is negative."""
    rng = np.random.default_rng(3)
    first = [initializers.orthogonal((2, 2), rng)[0, 0] for _ in range(2000)]
    assert abs(np.mean(first)) < 4 * math.sqrt(0.5 / 2000)


def test_constants():
    rng = np.random.default_rng(0)
    assert initializers.get("zeros")((2,), rng).tolist() == [0, 0]
    assert initializers.get("ones")((2,), rng).tolist() == [1, 1]
    assert initializers.Constant(0.25)((2,), rng).tolist() == [0.25, 0.25]


def test_names_and_configs_of_initializers():
    assert initializers.get("HeNormal") is initializers.he_normal
    assert initializers.get("xavier_uniform") is initializers.glorot_uniform
    assert initializers.get(initializers.Constant) == initializers.Constant(0.0)
    for made in (*map(initializers.get, MOMENTS), initializers.Constant(0.5), initializers.RandomUniform(-1, 2)):
        config = json.loads(json.dumps(initializers.name_of(made)))
        assert initializers.get(config) == made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: initializers.get("he"),
            "unknown initializer 'he'; did you mean 'he_normal', 'he_uniform' or 'HeNormal'?",
        ),
        (lambda: initializers.get({"name": "he"}), "unknown initializer"),
        (lambda: initializers.RandomNormal(stddev=-1.0), "stddev must be a finite number from 0, got -1.0"),
        (lambda: initializers.RandomUniform(1.0, 0.0), "minval is 1.0; expected at most maxval, 0.0"),
        (lambda: initializers.VarianceScaling(mode="fan"), "mode must be one of fan_in, fan_out, fan_avg, got 'fan'"),
        (lambda: initializers.orthogonal((3,), np.random.default_rng(0)), "takes a shape of two axes"),
        (lambda: regularizers.L2(-1.0), "l2 must be finite and at least 0, got -1.0"),
        (lambda: regularizers.get("l3"), "unknown regularizer 'l3'; known: L1, L1L2, L2, l1, l1_l2, l2"),
        (lambda: constraints.MaxNorm(math.inf), "max_value must be finite and at least 0, got inf"),
        (lambda: constraints.MinMaxNorm(2.0, 1.0), "expected 0 <= minimum <= maximum, got minimum 2.0, maximum 1.0"),
        (lambda: constraints.get("norm"), "unknown constraint 'norm'; did you mean 'MaxNorm'?"),
    ],
)
def test_options_that_are_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -------------------------------------------------------------------------------- penalties and constraints


def _model(device, dtype="float64", optimizer=None, loss="mse", **options):
    dlcore.set_seed(1)
    stack = [
        layers.Input((4,), dtype=dtype),
        layers.Dense(5, "tanh", kernel_initializer="he_normal", **options),
        layers.Dense(2, kernel_regularizer=regularizers.L2(0.05)),
    ]
    model = dlcore.Sequential(stack, device=device)
    model.compile(optimizer or optimizers.SGD(0.1), loss)
    model.build((4,))
    return model


def _data(rows=23):
    rng = np.random.default_rng(2)
    return rng.standard_normal((rows, 4)), rng.standard_normal((rows, 2))


def _penalty(w1, w2, l1, l2):
    return l1 * np.abs(w1).sum() + l2 * (w1**2).sum() + 0.05 * (w2**2).sum()


def _reference(weights, x, y, l1, l2, constrain):
    """One step of gradient descent in NumPy: the loss before it, and the weights after it."""
    w1, b1, w2, b2 = weights
    h = np.tanh(x @ w1 + b1)
    error = h @ w2 + b2 - y
    loss = (error**2).mean() + _penalty(w1, w2, l1, l2)
    dz2 = 2 * error / error.size
    dz1 = (dz2 @ w2.T) * (1 - h * h)
    g1 = x.T @ dz1 + l1 * np.sign(w1) + 2 * l2 * w1
    g2 = h.T @ dz2 + 2 * 0.05 * w2
    new = [w1 - 0.1 * g1, b1 - 0.1 * dz1.sum(axis=0), w2 - 0.1 * g2, b2 - 0.1 * dz2.sum(axis=0)]
    return loss, [constrain(new[0]), *new[1:]]


def _columns(low, high):
    def constrain(w):
        norm = np.sqrt((w * w).sum(axis=0))
        return w * (np.clip(norm, low, high) / norm)

    return constrain


CONSTRAINTS = {
    "none": (None, lambda w: w),
    "max_norm": (constraints.MaxNorm(1.2), _columns(0, 1.2)),
    "min_max_norm": (constraints.MinMaxNorm(1.0, 1.3), _columns(1.0, 1.3)),
    "unit_norm": ("unit_norm", _columns(1, 1)),
    "non_neg": ("non_neg", lambda w: np.maximum(w, 0)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("penalty", [(0.0, 0.0), (0.02, 0.03)], ids=["no penalty", "penalty"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_steps_with_penalties_and_constraints(name, penalty, device):
    given, constrain = CONSTRAINTS[name]
    l1, l2 = penalty
    model = _model(device, kernel_regularizer=regularizers.L1L2(l1, l2), kernel_constraint=given)
    weights = model.get_weights()
    weights[0][0, 0] = 0.0  # the derivative of |w| there is 0
    model.set_weights(weights)
    x, y = _data()
    for _ in range(4):
        expected, weights = _reference(weights, x, y, l1, l2, constrain)
        assert model.train_on_batch(x, y) == pytest.approx(expected, rel=1e-12)
        for got, w in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_allclose(got, w, rtol=1e-11, atol=1e-13)
    w1, b1, w2, b2 = weights
    loss = (((np.tanh(x @ w1 + b1) @ w2 + b2) - y) ** 2).mean() + _penalty(w1, w2, l1, l2)
    assert model.evaluate(x, y) == pytest.approx(loss, rel=1e-12)  # evaluation reports the penalty too


def test_penalties_come_before_clipping():
    optimizer = optimizers.SGD(1.0, global_clipnorm=0.01)
    model = _model("cpu", optimizer=optimizer, kernel_regularizer=regularizers.L2(10.0))
    before = model.get_weights()
    model.train_on_batch(*_data())
    moved = math.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(model.get_weights(), before, strict=True)))
    assert moved == pytest.approx(0.01, rel=1e-9)


def test_columns_within_the_limits_keep_their_bits():
    w = np.random.default_rng(0).standard_normal((7, 3))
    w[:, 1] = 0.0
    norm = np.sqrt((w * w).sum(axis=0))
    got = w.copy()
    execute("constrain_norm", [got], None, (0.5, float(norm.max())))
    np.testing.assert_array_equal(got, w)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_penalties_and_constraints_have_the_same_bits_for_any_number_of_threads(dtype):
    rng = np.random.default_rng(3)
    w, dw = rng.standard_normal((2, 1111, 300)).astype(dtype)
    before, results = kernels.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            value, gradient, columns, positive = np.zeros(70, dtype), dw.copy(), w.copy(), w.copy()
            execute("weight_penalty", [w, value], None, (0.1, 0.2))
            execute("weight_penalty_gradient", [w, gradient], None, (0.1, 0.2))
            execute("constrain_norm", [columns], None, (0.0, 20.0))
            execute("constrain_non_negative", [positive])
            results.append((value, gradient, columns, positive))
    finally:
        kernels.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    wide = w.astype(np.float64)
    expected = 0.1 * np.abs(wide).sum() + 0.2 * (wide**2).sum()
    np.testing.assert_allclose(results[0][0], expected, rtol=1e-6 if dtype == np.float32 else 1e-12)


def test_a_model_keeps_its_options_in_a_file(tmp_path):
    stack = [
        layers.Dense(
            6,
            kernel_initializer=initializers.Orthogonal(0.5),
            activation=kernels.find("activation", "leaky_relu").variant(alpha=0.3),
            kernel_regularizer="l2",
            kernel_constraint=constraints.MaxNorm(3.0),
        ),
        layers.PReLU(alpha_initializer=initializers.Constant(0.25)),
        layers.Dense(3, "log_softmax"),
    ]
    model = dlcore.Sequential(stack, device="cpu")
    model.compile("sgd", losses.NegativeLogLikelihood())
    x, y = np.random.default_rng(4).standard_normal((12, 5)).astype(np.float32), np.arange(12) % 3
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.safetensors")
    other = dlcore.load(tmp_path / "model.safetensors", device="cpu")
    assert [layer.config() for layer in other.layers] == [layer.config() for layer in model.layers]
    np.testing.assert_array_equal(other.predict(x), model.predict(x))
    assert other.train_on_batch(x, y) == model.train_on_batch(x, y)


# ----------------------------------------------------------------------------------------- losses in a model


def _single(loss, activation=None, outputs=3, device="cpu", metrics=()):
    dlcore.set_seed(5)
    model = dlcore.Sequential([layers.Input((4,), dtype="float64"), layers.Dense(outputs, activation)], device=device)
    model.compile("sgd", loss, metrics)
    model.build((4,))
    return model


@pytest.mark.parametrize("device", DEVICES)
def test_log_softmax_with_the_likelihood_is_the_cross_entropy(device):
    x, y = np.random.default_rng(6).standard_normal((15, 4)), np.arange(15) % 3
    one = _single("nll", "log_softmax", device=device, metrics=["accuracy"])
    other = _single("sparse_categorical_crossentropy", "softmax", device=device, metrics=["accuracy"])
    for _ in range(3):
        assert one.train_on_batch(x, y) == other.train_on_batch(x, y)
    np.testing.assert_allclose(np.exp(one.predict(x)), other.predict(x), rtol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_label_smoothing_is_that_of_the_targets(device):
    x, y = np.random.default_rng(7).standard_normal((15, 4)), np.arange(15) % 3
    rows = np.eye(3)[y] * 0.8 + 0.2 / 3
    for target in (y, np.eye(3)[y]):
        one = _single(losses.CategoricalCrossentropy(label_smoothing=0.2), "softmax", device=device, metrics=["acc"])
        other = _single("categorical_crossentropy", "softmax", device=device, metrics=["acc"])
        for _ in range(3):
            np.testing.assert_allclose(one.train_on_batch(x, target), other.train_on_batch(x, rows), rtol=1e-13)
    binary = (np.arange(15) % 2)[:, None]
    one = _single(losses.BinaryCrossentropy(label_smoothing=0.2), "sigmoid", 1, device)
    other = _single("binary_crossentropy", "sigmoid", 1, device)
    assert one.train_on_batch(x, binary) == pytest.approx(other.train_on_batch(x, binary * 0.8 + 0.1), rel=1e-13)


def test_metrics_see_the_targets_as_they_are():
    x, y = np.random.default_rng(8).standard_normal((15, 4)), np.eye(3)[np.arange(15) % 3]
    model = _single(losses.CategoricalCrossentropy(label_smoothing=0.5), "softmax", metrics=["mse"])
    expected = ((model.predict(x) - y) ** 2).mean()
    assert model.test_on_batch(x, y)[1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge", "perceptron"])
def test_margins_take_0_and_1_as_minus_1_and_1(loss):
    x, signs = np.random.default_rng(9).standard_normal((90, 4)), np.where(np.arange(90) % 2, 1, -1)
    runs = []
    for target in (signs, (signs > 0).astype(int), (signs > 0).astype(float)[:, None]):
        model = _single(loss, None, 1, metrics=["accuracy"])
        runs.append([model.train_on_batch(x, target) for _ in range(4)])
    assert runs[0] == runs[1] == runs[2]
    scores = model.predict(x)[:, 0]
    assert ((scores > 0) & (scores < 0.5) & (signs > 0)).sum() != ((scores > 0) & (scores < 0.5) & (signs < 0)).sum()
    share = np.mean((scores > 0) == (signs > 0))
    assert model.evaluate(x, signs)[1] == pytest.approx(share)


def test_focal_loss_absorbs_the_sigmoid():
    x, y = np.random.default_rng(10).standard_normal((15, 4)), (np.arange(15) % 2).astype(float)
    loss = losses.BinaryFocalCrossentropy(True, alpha=0.3, gamma=1.5)
    model = _single(loss, "sigmoid", 1)
    p = model.predict(x)[:, 0]
    truth = np.where(y == 1, p, 1 - p)
    expected = np.mean(np.where(y == 1, 0.3, 0.7) * (1 - truth) ** 1.5 * -np.log(truth))
    assert model.test_on_batch(x, y) == pytest.approx(expected, rel=1e-12)
    assert "binary_focal_crossentropy_from_logits" in str(model.program)


@pytest.mark.parametrize("name", ["cosine_similarity", "categorical_hinge", "hellinger_distance", "huber", "poisson"])
def test_a_model_learns_with_every_kind_of_loss(name):
    x, y = np.random.default_rng(11).standard_normal((30, 4)), np.eye(3)[np.arange(30) % 3]
    activation = {"hellinger_distance": "softmax", "poisson": "softplus"}.get(name)
    model = _single(name, activation)
    first = model.evaluate(x, y)
    model.fit(x, y, 10, epochs=20, verbose=0)
    assert model.evaluate(x, y) < first


WRONG = {
    "hinge of a half": ("hinge", [0.5, 1, 0], "y holds 0.5; hinge expects -1 and 1, or 0 and 1"),
    "hinge of both": ("hinge", [-1, 1, 0], "y holds both -1 and 0; hinge expects -1 and 1, or 0 and 1"),
    "a negative count": ("poisson", [-1, 1, 0], "y ranges from -1 to 1; poisson expects at least 0"),
    "no probability": ("kl_divergence", [2, 1, 0], "y ranges from 0 to 2; kl_divergence expects 0 to 1"),
    "no label": ("binary_focal_crossentropy", [2, 1, 0], "y ranges from 0 to 2; .* expects 0 to 1"),
}


@pytest.mark.parametrize(("loss", "y", "message"), WRONG.values(), ids=WRONG)
def test_targets_that_are_wrong(loss, y, message):
    model = _single(loss, None, 1)
    x, y = np.ones((3, 4)), np.array(y, float)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(x, y)
    model.train_on_batch(x, np.array([1.0, 0.0, 1.0]))  # the prepared step refuses them as well
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(x, y)
