"""The worked numbers of textbooks that no other test has: averages, split errors, perceptrons, deep networks."""

import math

import numpy as np
import pytest

import dlcore
from dlcore import kernels, layers

INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
GATES = {"AND": [0, 0, 0, 1], "OR": [0, 1, 1, 1], "NAND": [1, 1, 1, 0]}
XOR = np.array([0.0, 1.0, 1.0, 0.0])


# ---------------------------------------------------------------------------------- exponentially weighted averages


def test_the_average_of_40_49_45_with_beta_09_and_its_correction():
    """4, 8.5, 12.15; without the bias towards 0 they are 40, 8.5/0.19 and 12.15/0.271."""
    np.testing.assert_allclose(dlcore.ewa([40, 49, 45], 0.9, bias_correction=False), [4.0, 8.5, 12.15], rtol=1e-15)
    np.testing.assert_allclose(dlcore.ewa([40, 49, 45], 0.9), [40.0, 8.5 / 0.19, 12.15 / 0.271], rtol=1e-14)


def test_the_average_weighs_a_value_less_by_beta_for_every_step_since():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 2, 3))
    weights = 0.2 * 0.8 ** np.arange(30)[::-1]
    last = dlcore.ewa(values, 0.8, bias_correction=False)[-1]
    np.testing.assert_allclose(last, np.tensordot(weights, values, 1), rtol=1e-12)
    np.testing.assert_allclose(
        dlcore.ewa(values, 0.8)[-1], np.tensordot(weights / weights.sum(), values, 1), rtol=1e-12
    )


@pytest.mark.parametrize(("beta", "window"), [(0.9, 10), (0.98, 50), (0.5, 2)])
def test_the_window_of_beta_is_1_over_1_minus_beta(beta, window):
    """What is older than the window weighs ``beta^window``, which is ``1/e`` or less."""
    assert dlcore.effective_window(beta) == pytest.approx(window)
    old = np.r_[np.ones(1000), np.zeros(window)]
    assert dlcore.ewa(old, beta, bias_correction=False)[-1] == pytest.approx(beta**window)
    assert beta**window <= math.exp(-1)


@pytest.mark.parametrize("beta", [1.0, -0.1, True, "0.9", math.nan])
def test_a_beta_that_is_no_share(beta):
    for call in (lambda: dlcore.ewa([1.0], beta), lambda: dlcore.effective_window(beta)):
        with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\), got"):
            call()


@pytest.mark.parametrize("values", [3.0, ["a"], [1j]])
def test_averages_of_what_is_not_a_series(values):
    with pytest.raises(ValueError, match="values must be numbers"):
        dlcore.ewa(values)


# ------------------------------------------------------------------------------------------------ forward, backward


def test_row_1_of_the_first_product_is_3_w11_plus_5_w21_and_so_on():
    """``X = [[3, 5], [5, 1], [10, 2]]``, ``W1 (2, 3)``: row 1 of ``Z2`` is ``[3 w11 + 5 w21, 3 w12 + 5 w22, ...]``."""
    x = np.array([[3.0, 5.0], [5.0, 1.0], [10.0, 2.0]])
    w = np.random.default_rng(0).standard_normal((2, 3))
    _, z = kernels.dense_forward(x, w, None, "sigmoid", return_z=True)
    np.testing.assert_allclose(z[0], [3 * w[0, j] + 5 * w[1, j] for j in range(3)], rtol=1e-15)


def test_an_error_is_split_over_its_inputs_by_their_weights():
    """``e_h = W^T e_out``: weights 0.3 and 0.6 take 1/3 and 2/3 of the error, as shares of their sum."""
    w = np.array([[0.3], [0.6]])
    hidden, _, _ = kernels.dense_backward(np.ones((1, 1)), np.ones((1, 2)), w, np.ones((1, 1)))
    np.testing.assert_allclose(hidden / hidden.sum(), [[1 / 3, 2 / 3]], rtol=1e-15)
    several = np.random.default_rng(1).standard_normal((2, 4))
    w = np.random.default_rng(2).standard_normal((3, 4))
    hidden, _, _ = kernels.dense_backward(several, np.ones((2, 3)), w, several)
    np.testing.assert_allclose(hidden, several @ w.T, rtol=1e-13)


# --------------------------------------------------------------------------------------------------- perceptrons


def perceptron(targets, epochs=50):
    """Rosenblatt's rule: one sample at a time, a step where the sign is wrong."""
    model = dlcore.Sequential([layers.Input((2,)), layers.Dense(1, kernel_initializer="zeros", dtype="float64")])
    model.compile(dlcore.optimizers.SGD(1.0), "perceptron")
    model.fit(INPUTS, np.asarray(targets, float), batch_size=1, epochs=epochs, shuffle=False, verbose=0)
    return (model.predict(INPUTS)[:, 0] > 0).astype(int).tolist()


@pytest.mark.parametrize("gate", GATES)
def test_one_perceptron_learns(gate):
    assert perceptron(GATES[gate]) == GATES[gate]


def test_one_perceptron_cannot_learn_xor():
    """No line divides it: after any number of epochs a sample is on the wrong side."""
    for epochs in (1, 10, 100):
        assert perceptron(XOR, epochs) != XOR.tolist()


def test_a_trained_network_of_two_layers_learns_xor():
    dlcore.set_seed(0)
    model = dlcore.Sequential([layers.Dense(4, "tanh", dtype="float64"), layers.Dense(1, "sigmoid")])
    model.compile(dlcore.optimizers.Adam(0.05), "binary_crossentropy")
    model.fit(INPUTS, XOR, batch_size=4, epochs=500, verbose=0)
    assert (model.predict(INPUTS)[:, 0] > 0.5).tolist() == [False, True, True, False]
    assert model.evaluate(INPUTS, XOR) < 0.05


# ------------------------------------------------------------------------------------------------- deep networks


def first_and_last(activation, initializer):
    """The norms of the gradients of the first and of the last kernel of 40 layers, from one step of descent."""
    dlcore.set_seed(3)
    hidden = [layers.Dense(32, activation, kernel_initializer=initializer, dtype="float64") for _ in range(40)]
    model = dlcore.Sequential([layers.Input((32,)), *hidden, layers.Dense(1)])
    rate = 1e30  # so that the weights themselves are nothing beside the smallest of the steps
    model.compile(dlcore.optimizers.SGD(rate), "mse")
    before = model.get_weights()
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.standard_normal((64, 32)), rng.standard_normal((64, 1)))
    change = [float(np.linalg.norm(a - b)) / rate for a, b in zip(before, model.get_weights(), strict=True)]
    return change[0], change[-4]


def test_through_40_sigmoid_layers_the_gradient_vanishes():
    """The slope of a sigmoid is at most 1/4."""
    first, last = first_and_last("sigmoid", "glorot_uniform")
    assert 0.0 < first < 1e-12 * last


def test_through_40_relu_layers_with_hes_initialisation_it_does_not():
    first, last = first_and_last("relu", "he_normal")
    assert 1e-3 < first / last < 1e3
    assert 1e-2 < last < 1e2  # with half the variance, both would be smaller by a factor of 2^20


def test_clipping_tames_gradients_that_explode():
    """20 linear layers of weights with a standard deviation of 1: the step is as long as the limit says."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 8)), rng.standard_normal((16, 1))
    lengths = {}
    for limit in (None, 1.0):
        dlcore.set_seed(1)
        normal = dlcore.initializers.RandomNormal(0.0, 1.0)
        stack = [layers.Dense(8, kernel_initializer=normal, dtype="float64") for _ in range(20)]
        model = dlcore.Sequential([layers.Input((8,)), *stack, layers.Dense(1)])
        model.compile(dlcore.optimizers.SGD(1.0, global_clipnorm=limit), "mse")
        before = model.get_weights()
        model.train_on_batch(x, y)
        change = [np.square(a - b).sum() for a, b in zip(before, model.get_weights(), strict=True)]
        lengths[limit] = math.sqrt(sum(change))
    assert lengths[None] > 1e6
    assert lengths[1.0] == pytest.approx(1.0, rel=1e-9)
