"""Gradient checking, the check of a rule, and training without gradients."""

from dataclasses import replace

import numpy as np
import pytest

import dlcore
from dlcore import kernels, layers, losses
from dlcore.kernels.device import simulated, why_no_gpu
from dlcore.kernels.rule import REGISTRY, RuleError

HERE = ["cpu", *(["cuda"] if simulated() or not why_no_gpu() else [])]


def data(classes=3):
    rng = np.random.default_rng(2)
    return rng.standard_normal((7, 5)), rng.integers(0, classes, 7)


def network(*stack, loss="sparse_categorical_crossentropy", device="cpu"):
    dlcore.set_seed(4)
    model = dlcore.Sequential(stack, device=device)
    model.compile("adam", loss)
    return model


@pytest.mark.parametrize("device", HERE)
def test_every_gradient_of_a_model_with_norm_dropout_and_penalties(device):
    hidden = layers.Dense(6, "relu", kernel_regularizer="l2", kernel_constraint="unit_norm")
    stack = [hidden, layers.BatchNormalization(), layers.PReLU(), layers.Dropout(0.4), layers.Dense(3, "softmax")]
    model = network(*stack, device=device)
    x, y = data()
    report = dlcore.check_gradients(model, x, y, elements=4 if device == "cuda" else None)
    assert report.ok, str(report)
    names = ["dense/kernel", "dense/bias", "batchnormalization/gamma", "batchnormalization/beta", "prelu/alpha"]
    assert [tensor.name for tensor in report.tensors] == [*names, "dense_2/kernel", "dense_2/bias"]
    if device == "cpu":
        assert all(t.checked + t.kinks == np.prod(t.shape) for t in report.tensors)
    assert str(report).endswith("ok: errors of at most 1e-05 are expected")


def wrong_slope(p, y):
    return 2.1 * (p - y)


def test_a_wrong_gradient_is_found_and_named():
    x, _ = data()
    wrong = replace(kernels.find("loss", "mean_squared_error"), name="wrong", slope=wrong_slope)
    model = network(layers.Dense(2), loss=losses.Loss("wrong", "elementwise", wrong))
    report = dlcore.check_gradients(model, x, np.ones((7, 2)))
    assert not report.ok
    assert "WRONG, most of all dense/" in str(report)
    assert report.worst.error == pytest.approx(0.05, rel=0.1)  # 2.1 for 2


def test_the_model_and_the_random_state_stay_as_they_are():
    x, y = data()
    model = network(layers.Dense(4, "tanh"), layers.BatchNormalization(), layers.Dense(3, "softmax"))
    model.train_on_batch(x, y)
    before, state = model._state(), dlcore.random.generator().bit_generator.state
    assert dlcore.check_gradients(model, x, y, elements=2).ok
    for name, value in model._state().items():
        np.testing.assert_array_equal(value, before[name])
    assert dlcore.random.generator().bit_generator.state == state


def test_a_kink_is_not_held_against_the_gradient():
    """The weight 0 of ReLU on inputs of both signs: the loss has two slopes there."""
    model = network(layers.Input((1,)), layers.Dense(1, "relu", use_bias=False), loss="mse")
    model.set_weights([np.zeros((1, 1))])
    report = dlcore.check_gradients(model, np.array([[1.0], [2.0]]), np.array([1.0, 1.0]))
    assert (report.tensors[0].checked, report.tensors[0].kinks) == (0, 1)
    assert not report.ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": 0}, "elements must be at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance must be a positive number"),
    ],
)
def test_options_of_the_check_that_are_wrong(options, message):
    model = network(layers.Dense(3, "softmax"))
    with pytest.raises(ValueError, match=message):
        dlcore.check_gradients(model, *data(), **options)
    with pytest.raises(RuntimeError, match="the model has no loss yet"):
        dlcore.check_gradients(dlcore.Sequential([layers.Dense(3)]), *data())


# ------------------------------------------------------------------------------------------------------- rules


def cubed(z):
    return z * z * z


def twice_squared(z, y):
    return 2.0 * z * z


def test_a_rule_is_checked_as_at_its_registration():
    for kind, name in (("activation", "gelu"), ("loss", "huber"), ("optimizer", "adam"), ("schedule", "cosine")):
        assert kernels.check_rule(kernels.find(kind, name)) is REGISTRY[kind][name]
    wrong = kernels.ActivationRule("cubed", {}, value=cubed, slope=twice_squared)
    with pytest.raises(RuleError, match=r"the derivative at -5\.6863 is"):
        kernels.check_rule(wrong)
    with pytest.raises(RuleError, match="has no derivative"):
        kernels.check_rule(kernels.activation(cubed))
    with pytest.raises(RuleError, match="check_rule takes a rule"):
        kernels.check_rule("gelu")


# -------------------------------------------------------------------------------------------- without gradients


@pytest.mark.parametrize("search", [dlcore.random_search, dlcore.random_local_search])
def test_searches_keep_the_best_and_repeat(search):
    x, y = data()
    results = []
    for _ in range(2):
        model = network(layers.Dense(4, "tanh"), layers.BatchNormalization(), layers.Dense(3, "softmax"))
        model.build((5,))
        first = model.evaluate(x, y)
        history = search(model, x, y, budget=30, seed=1, verbose=0).history
        assert model.evaluate(x, y) == history["best_loss"][-1] == min(first, *history["loss"])
        np.testing.assert_array_equal(history["best_loss"], np.minimum.accumulate([first, *history["loss"]])[1:])
        assert history["best_loss"][-1] < first
        results.append(model.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("search", [dlcore.random_search, dlcore.random_local_search])
def test_ctrl_c_leaves_the_best_so_far(search, monkeypatch):
    from dlcore import training

    x, y = data()
    model = network(layers.Dense(3, "softmax"))
    seen, evaluate = [], training.evaluate

    def interrupted(*arguments):
        if len(seen) == 6:
            raise KeyboardInterrupt
        seen.append(evaluate(*arguments)["loss"])
        return {"loss": seen[-1]}

    monkeypatch.setattr(training, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(model, x, y, budget=50, seed=3, verbose=0)
    monkeypatch.undo()
    assert model.evaluate(x, y) == min(seen)


def test_a_search_leaves_weights_that_are_not_numbers():
    x, y = data()
    model = network(layers.Dense(3, "softmax"))
    model.build((5,))
    model.set_weights([np.full((5, 3), np.nan), np.zeros(3)])
    dlcore.random_search(model, x, y, budget=1, seed=3, verbose=0)
    assert np.isfinite(model.evaluate(x, y))


def test_options_of_a_search_that_are_wrong():
    model = network(layers.Dense(3, "softmax"))
    with pytest.raises(ValueError, match="budget must be at least 1, got 0"):
        dlcore.random_search(model, *data(), budget=0)
    with pytest.raises(ValueError, match="step_size must be a positive number, got 0"):
        dlcore.random_local_search(model, *data(), step_size=0)
