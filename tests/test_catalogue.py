"""The activations and losses that PyTorch has, against PyTorch in float64; edges; worked numbers."""

import math

import numpy as np
import oracle
import pytest
from numba import cuda
from tolerance import GRADIENT, assert_close, both

from dlcore import kernels, losses
from dlcore.kernels.device import simulated
from dlcore.kernels.rule import ALIASES, REGISTRY, find

try:
    import torch
    from torch.nn import functional as F
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is the second oracle; continuous integration has it")

EDGES = [0.0, -0.0, -3.0, 3.0, -1.0, 1.0, 6.0, 0.5, -0.5, 40.0, -40.0, 1e4, -1e4, 1e30, -1e30, np.inf, -np.inf, np.nan]

# name -> PyTorch's; step has none there
TORCH = {
    "linear": lambda z: z * 1.0, "sigmoid": lambda z: torch.sigmoid(z), "tanh": lambda z: torch.tanh(z),
    "relu": lambda z: F.relu(z), "leaky_relu": lambda z: F.leaky_relu(z), "gelu": lambda z: F.gelu(z),
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"), "elu": lambda z: F.elu(z), "selu": lambda z: F.selu(z),
    "celu": lambda z: F.celu(z), "softplus": lambda z: F.softplus(z, threshold=50.0),
    "softsign": lambda z: F.softsign(z), "silu": lambda z: F.silu(z), "mish": lambda z: F.mish(z),
    "log_sigmoid": lambda z: F.logsigmoid(z), "exponential": lambda z: torch.exp(z),
    "tanh_shrink": lambda z: F.tanhshrink(z), "relu6": lambda z: F.relu6(z), "hard_tanh": lambda z: F.hardtanh(z),
    "hard_sigmoid": lambda z: F.hardsigmoid(z), "hard_silu": lambda z: F.hardswish(z),
    "soft_shrink": lambda z: F.softshrink(z), "hard_shrink": lambda z: F.hardshrink(z),
    "threshold": lambda z: F.threshold(z, 1.0, 0.0),
}  # fmt: skip


def test_pytorch_has_all_but_the_step():
    assert set(REGISTRY["activation"]) - set(TORCH) == {"step"}


@needs_torch
@pytest.mark.parametrize("name", TORCH)
def test_activations_like_torch(name):
    """Value and slope, at random points and at the kinks; at infinity only where PyTorch has no NaN."""
    z = np.concatenate([EDGES, np.random.default_rng(0).standard_normal(500) * 4])
    y = kernels.activation_forward(z, name)
    slope = kernels.activation_backward(np.ones_like(z), z, name)
    given = torch.tensor(z, requires_grad=True)
    expected = TORCH[name](given)
    expected.sum().backward()
    expected, expected_slope = expected.detach().numpy(), given.grad.numpy()
    assert np.isnan(y[np.isnan(z)]).all()
    known = ~np.isnan(expected)
    np.testing.assert_allclose(y[known], expected[known], rtol=1e-12, atol=1e-14)
    # PyTorch keeps the slope of hard sigmoid, 1/6, in float32
    known = ~np.isnan(expected_slope) & ~np.isnan(z)
    tolerance = 1e-7 if name == "hard_sigmoid" else 1e-12
    np.testing.assert_allclose(slope[known], expected_slope[known], rtol=tolerance, atol=1e-14)


# name -> the limits of value and slope at -inf and at inf
LIMITS = {
    "gelu": ((0, np.inf), (0, 1)), "gelu_tanh": ((0, np.inf), (0, 1)), "silu": ((0, np.inf), (0, 1)),
    "mish": ((0, np.inf), (0, 1)), "softsign": ((-1, 1), (0, 0)), "step": ((0, 1), (0, 0)),
    "hard_silu": ((0, np.inf), (0, 1)), "relu": ((0, np.inf), (0, 1)), "relu6": ((0, 6), (0, 0)),
    "sigmoid": ((0, 1), (0, 0)), "tanh": ((-1, 1), (0, 0)), "softplus": ((0, np.inf), (0, 1)),
    "elu": ((-1, np.inf), (0, 1)), "log_sigmoid": ((-np.inf, 0), (1, 0)), "exponential": ((0, np.inf), (0, np.inf)),
    "hard_sigmoid": ((0, 1), (0, 0)), "hard_tanh": ((-1, 1), (0, 0)), "leaky_relu": ((-np.inf, np.inf), (0.01, 1)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_limits_at_infinity(name, dtype):
    z = np.array([-np.inf, np.inf], dtype)
    for got, expected in zip(
        (kernels.activation_forward(z, name), kernels.activation_backward(np.ones_like(z), z, name)),
        LIMITS[name],
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted(REGISTRY["activation"]))
def test_no_finite_number_makes_nan(name, dtype):
    largest = np.finfo(dtype).max
    z = np.array([largest, -largest, 1e4, -1e4, 1e-30, -1e-30], dtype)
    assert not np.isnan(kernels.activation_forward(z, name)).any()
    assert not np.isnan(kernels.activation_backward(np.ones_like(z), z, name)).any()
    assert np.isnan(kernels.activation_forward(np.array([np.nan], dtype), name)).all()


def test_numbers_of_the_specification():
    """sigmoid(-1e4) = 0, softplus(1e4) = 1e4."""
    assert kernels.activation_forward(np.array([-1e4]), "sigmoid").tolist() == [0.0]
    assert kernels.activation_forward(np.array([1e4]), "softplus").tolist() == [1e4]


def test_the_exponentials_of_the_textbook_softmax():
    """exp of 5, 2, -1, 3 is 148.4, 7.4, 0.4, 20.1, and their sum 176.3."""
    e = kernels.activation_forward(np.array([5.0, 2.0, -1.0, 3.0]), "exponential")
    assert e.round(1).tolist() == [148.4, 7.4, 0.4, 20.1]
    assert round(float(e.sum()), 1) == 176.3


def test_softmax_of_two_classes_is_logistic_regression():
    z = np.random.default_rng(0).standard_normal((20, 2)) * 5
    difference = z[:, 1] - z[:, 0]
    np.testing.assert_allclose(
        kernels.softmax(z)[:, 1], kernels.activation_forward(difference, "sigmoid"), rtol=1e-12
    )  # fmt: skip
    y = np.arange(20) % 2
    one, _ = kernels.softmax_cross_entropy(z, y)
    other, _ = kernels.elementwise_loss(difference[:, None], y[:, None] * 1.0, "binary_crossentropy_from_logits")
    np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14)


def test_step_units_with_set_weights_compute_xor():
    """OR and NAND of the inputs, and AND of those."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
    hidden = kernels.dense_forward(x, np.array([[1.0, -1.0], [1.0, -1.0]]), np.array([-0.5, 1.5]), "step")
    out = kernels.dense_forward(hidden, np.array([[1.0], [1.0]]), np.array([-1.5]), "step")
    assert out.ravel().tolist() == [0, 1, 1, 0]


def test_other_names():
    for kind, table in ALIASES.items():
        for other, name in table.items():
            assert find(kind, other) is REGISTRY[kind][name]
            assert other not in REGISTRY[kind]


# ------------------------------------------------------------------------------------------------------ losses


def _sum(loss):
    return lambda p, y: loss(p, y).sum(dim=1)


def _mean(loss):
    return lambda p, y: loss(p, y).mean(dim=1)


# name -> PyTorch's loss of each sample; p and y are matrices
TORCH_LOSSES = {
    "mean_squared_error": _mean(lambda p, y: F.mse_loss(p, y, reduction="none")),
    "half_squared_error": _sum(lambda p, y: 0.5 * F.mse_loss(p, y, reduction="none")),
    "mean_absolute_error": _mean(lambda p, y: F.l1_loss(p, y, reduction="none")),
    "huber": _mean(lambda p, y: F.huber_loss(p, y, reduction="none")),
    "log_cosh": _mean(lambda p, y: torch.log(torch.cosh(p - y))),
    "poisson": _mean(lambda p, y: F.poisson_nll_loss(p, y, log_input=False, eps=1e-7, reduction="none")),
    "binary_crossentropy": _mean(lambda p, y: F.binary_cross_entropy(p, y, reduction="none")),
    "binary_crossentropy_from_logits": _mean(
        lambda p, y: F.binary_cross_entropy_with_logits(p, y, reduction="none")),
    "categorical_crossentropy": _sum(lambda p, y: -y * torch.log(p)),
    "negative_log_likelihood": _sum(lambda p, y: -y * p),
    "kl_divergence": _sum(lambda p, y: F.kl_div(torch.log(p), y, reduction="none")),
    "hellinger": _sum(lambda p, y: (torch.sqrt(p) - torch.sqrt(y)) ** 2 / math.sqrt(2)),
    "hinge": _mean(lambda p, y: torch.clamp_min(1 - y * p, 0)),
    "squared_hinge": _mean(lambda p, y: torch.clamp_min(1 - y * p, 0) ** 2),
    "perceptron": _mean(lambda p, y: torch.clamp_min(-y * p, 0)),
    "mean_absolute_percentage_error": _mean(lambda p, y: 100 * torch.abs(p - y) / torch.clamp_min(torch.abs(y), 1e-7)),
    "mean_squared_logarithmic_error": _mean(
        lambda p, y: (torch.log1p(torch.clamp_min(p, 1e-7)) - torch.log1p(torch.clamp_min(y, 1e-7))) ** 2),
    "binary_focal_crossentropy": _mean(
        lambda p, y: (y * (1 - p) + (1 - y) * p) ** 2 * F.binary_cross_entropy(p, y, reduction="none")),
    "binary_focal_crossentropy_from_logits": _mean(
        lambda p, y: (y * torch.sigmoid(-p) + (1 - y) * torch.sigmoid(p)) ** 2
        * F.binary_cross_entropy_with_logits(p, y, reduction="none")),
    "cosine_similarity": lambda p, y: -F.cosine_similarity(p, y, dim=1),
    "categorical_hinge": lambda p, y: torch.clamp_min(1 + ((1 - y) * p).amax(dim=1) - (y * p).sum(dim=1), 0),
    "hellinger_distance": lambda p, y: torch.linalg.norm(torch.sqrt(p) - torch.sqrt(y), dim=1) / math.sqrt(2),
}  # fmt: skip
ROWS = ("cosine_similarity", "categorical_hinge", "hellinger_distance")


def _example(name):
    """Outputs and targets in the loss's domain."""
    rng = np.random.default_rng(4)
    p, y = rng.standard_normal((17, 5)) * 2, rng.standard_normal((17, 5))
    domain = "probability" if name == "hellinger_distance" else "real" if name in ROWS else find("loss", name).domain
    if domain == "probability":
        return rng.dirichlet(np.ones(5), 17) * 0.98 + 0.004, rng.dirichlet(np.ones(5), 17)
    if domain == "positive":
        return rng.uniform(0.1, 5, (17, 5)), rng.integers(0, 4, (17, 5)) * 1.0
    if "hinge" in name or "perceptron" in name:
        rows = 0.7 * np.eye(5)[rng.integers(0, 5, 17)] + 0.06
        return p, (rows if name == "categorical_hinge" else np.sign(y))
    return p, (rng.random((17, 5)) if "from_logits" in name else y)


def test_there_is_a_loss_of_torch_for_every_rule():
    assert set(TORCH_LOSSES) == set(REGISTRY["loss"]) | set(ROWS)


@needs_torch
@pytest.mark.parametrize("name", TORCH_LOSSES)
def test_losses_like_torch(name):
    p, y = _example(name)
    given = torch.tensor(p, requires_grad=True)
    expected = TORCH_LOSSES[name](given, torch.tensor(y))
    expected.mean().backward()
    loss, dp = getattr(kernels, name)(p, y) if name in ROWS else kernels.elementwise_loss(p, y, name)
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(dp, given.grad.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ROWS)
def test_losses_that_couple_a_row(name, dtype):
    weight = np.random.default_rng(1).random(17).astype(dtype)
    p, y = (a.astype(dtype) for a in _example(name))
    exact, plain = both(getattr(oracle, name), (p, y, weight), dtype)
    got = getattr(kernels, name)(p, y, sample_weight=weight)
    for part, g, e, q in zip(("loss", "dp"), got, exact, plain, strict=True):
        assert_close(part, g, e, q, GRADIENT)


@needs_torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "rows"])
def test_label_smoothing_like_torch(smoothing, labels):
    rng = np.random.default_rng(0)
    z, classes = rng.standard_normal((9, 5)), rng.integers(0, 5, 9)
    target = classes if labels else rng.dirichlet(np.ones(5), 9)
    given = torch.tensor(z, requires_grad=True)
    options = {"label_smoothing": smoothing, "reduction": "none"}
    expected = F.cross_entropy(given, torch.tensor(target), **options)
    expected.mean().backward()
    loss, dz = kernels.softmax_cross_entropy(z, target, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(dz, given.grad.numpy(), rtol=1e-11, atol=1e-15)


def test_zero_times_the_logarithm_of_zero_is_zero():
    one = np.array([[1.0, 0.0]])
    assert kernels.elementwise_loss(one, one, "kl_divergence")[0].tolist() == [0.0]
    logs = np.array([[0.0, -np.inf]])
    assert kernels.elementwise_loss(logs, one, "negative_log_likelihood")[0].tolist() == [0.0]
    loss, dp = kernels.cosine_similarity(np.zeros((1, 2)), one)
    assert loss.tolist() == [0.0]
    assert np.isfinite(dp).all()
    loss, dp = kernels.hellinger_distance(one[:, ::-1].copy() * 0.5 + 0.25, one[:, ::-1].copy() * 0.5 + 0.25)
    assert loss.tolist() == [0.0]
    assert not dp.any()


def test_hellinger_is_at_most_1_and_its_cost_the_sum_of_squares():
    apart = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert kernels.hellinger_distance(*apart)[0][0] == pytest.approx(1.0, abs=1e-3)  # p is clipped to 1e-7
    assert kernels.elementwise_loss(*apart, "hellinger")[0][0] == pytest.approx(math.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("name", ["perceptron", "hinge", "squared_hinge", "huber", "log_cosh", "kl_divergence"])
def test_a_loss_of_nan_is_nan(name):
    assert np.isnan(kernels.elementwise_loss(np.array([[np.nan]]), np.ones((1, 1)), name)[0]).all()


def test_a_perceptron_with_weights_of_zero_learns():
    assert kernels.elementwise_loss(np.zeros((1, 1)), np.ones((1, 1)), "perceptron")[1].tolist() == [[-1.0]]


def test_every_loss_has_a_name_a_class_and_a_config():
    for name, maker in losses._MAKERS.items():
        made = maker()
        assert losses.get(name) == losses.get(maker) == losses.get(maker.__name__) == made
        assert losses.from_config(made.config()) == made
    assert losses.get("MSE").name == "mean_squared_error"
    assert losses.Huber(2.0).rule_on(False).parameters == {"delta": 2.0}
    assert losses.from_config(losses.Huber(2.0).config()) == losses.Huber(2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.Huber(-1.0), "delta must be finite and at least 0, got -1.0"),
        (lambda: losses.CategoricalCrossentropy(label_smoothing=1.0), r"label_smoothing must be a number in \[0, 1\)"),
        (lambda: losses.BinaryFocalCrossentropy(gamma="2"), "gamma must be finite and at least 0, got '2'"),
        (
            lambda: kernels.softmax_cross_entropy(np.ones((2, 2)), np.zeros(2, int), label_smoothing=2),
            "label_smoothing",
        ),
    ],
)
def test_options_of_losses_that_are_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------- log-softmax and PReLU


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (6, 10), (33, 257)], ids=str)
def test_log_softmax(shape, dtype):
    z, dy = (np.random.default_rng(5).standard_normal((2, *shape)) * 4).astype(dtype)
    exact, plain = both(lambda z: (oracle.log_softmax(z),), (z,), dtype)
    y = kernels.log_softmax(z)
    assert_close("y", y, exact[0], plain[0])
    exact, plain = both(lambda dy, y: (oracle.log_softmax_backward(dy, y),), (dy, y), dtype)
    terms = float(np.abs(dy.sum(axis=1)).max())
    assert_close("dz", kernels.log_softmax_backward(dy, y), exact[0], plain[0], GRADIENT, terms)


def test_log_softmax_of_huge_logits():
    assert kernels.log_softmax(np.array([[1e4, -1e4]])).tolist() == [[0.0, -2e4]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (70, 33), (519, 5)], ids=str)
def test_prelu(shape, dtype):
    rng = np.random.default_rng(6)
    z, dy = rng.standard_normal((2, *shape)).astype(dtype)
    alpha = rng.standard_normal(shape[1]).astype(dtype)
    exact, plain = both(lambda *a: (oracle.prelu_forward(*a),), (z, alpha), dtype)
    assert_close("y", kernels.prelu_forward(z, alpha), exact[0], plain[0])
    exact, plain = both(oracle.prelu_backward, (dy, z, alpha), dtype)
    for name, got, e, p in zip(("dz", "dalpha"), kernels.prelu_backward(dy, z, alpha), exact, plain, strict=True):
        assert_close(name, got, e, p, GRADIENT)


@needs_torch
def test_prelu_like_torch():
    z, dy = np.random.default_rng(7).standard_normal((2, 8, 3))
    z[0] = 0.0
    alpha = np.array([0.25, 0.0, -1.0])
    given, slopes = torch.tensor(z, requires_grad=True), torch.tensor(alpha, requires_grad=True)
    F.prelu(given, slopes).backward(torch.tensor(dy))
    dz, dalpha = kernels.prelu_backward(dy, z, alpha)
    np.testing.assert_allclose(dz, given.grad.numpy(), rtol=1e-13)
    np.testing.assert_allclose(dalpha, slopes.grad.numpy(), rtol=1e-12)


@pytest.mark.skipif(not simulated(), reason="the functions on CUDA arrays, once on the simulator")
def test_the_first_of_equal_margins_takes_the_gradient():
    p, target = np.ones((2, 70)), np.eye(70)[[0, 40]]
    expected = np.zeros((2, 70))
    expected[[0, 1], [0, 40]], expected[[0, 1], [1, 0]] = -0.5, 0.5
    np.testing.assert_array_equal(kernels.categorical_hinge(p, target)[1], expected)
    got = kernels.categorical_hinge(cuda.to_device(p), cuda.to_device(target))[1]
    np.testing.assert_array_equal(got.copy_to_host(), expected)


@pytest.mark.skipif(not simulated(), reason="the functions on CUDA arrays, once on the simulator")
def test_functions_on_cuda_arrays():
    rng = np.random.default_rng(8)
    z, dy = rng.standard_normal((2, 5, 7))
    alpha, target = rng.standard_normal(7), np.eye(7)[rng.integers(0, 7, 5)]
    calls = {
        "log_softmax": (kernels.log_softmax, z),
        "prelu_backward": (kernels.prelu_backward, dy, z, alpha),
        "cosine_similarity": (kernels.cosine_similarity, z, target),
        "smoothing": (lambda z, t: kernels.softmax_cross_entropy(z, t, label_smoothing=0.1), z, target),
    }
    for name, (function, *given) in calls.items():
        expected = function(*given)
        got = function(*map(cuda.to_device, given))
        for g, e in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, expected)), strict=True):
            np.testing.assert_allclose(g.copy_to_host(), e, rtol=1e-10, atol=1e-13, err_msg=name)
