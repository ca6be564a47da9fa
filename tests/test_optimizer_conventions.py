"""The conventions behind the options of the user's classes, and worked numbers."""

import csv
import math
import pathlib

import numpy as np
import pytest

import dlcore
from dlcore import kernels, optimizers
from dlcore.kernels.optimizers.adam import _momentum_product
from dlcore.kernels.rule import RuleError, find

# ----------------------------------------------------------------------------------------- the user's classes

FORMS = {
    "sgd": lambda: optimizers.SGD(),
    "momentum": lambda: optimizers.SGD(momentum=0.9, dampening=0.1),
    "nesterov": lambda: optimizers.SGD(momentum=0.9, nesterov=True),
    "adagrad": lambda: optimizers.Adagrad(initial_accumulator=0.1),
    "adagrad_inside": lambda: optimizers.Adagrad(epsilon_mode="inside"),
    "rmsprop": lambda: optimizers.RMSprop(),
    "rmsprop_centered": lambda: optimizers.RMSprop(centered=True),
    "rmsprop_momentum": lambda: optimizers.RMSprop(momentum=0.9),
    "rmsprop_centered_momentum": lambda: optimizers.RMSprop(centered=True, momentum=0.5),
    "adam": lambda: optimizers.Adam(),
    "adam_inside": lambda: optimizers.Adam(epsilon_mode="inside"),
    "adam_hat": lambda: optimizers.Adam(epsilon_mode="hat"),
    "amsgrad": lambda: optimizers.Adam(amsgrad=True),
    "amsgrad_inside": lambda: optimizers.Adam(amsgrad=True, epsilon_mode="inside"),
    "amsgrad_hat": lambda: optimizers.Adam(amsgrad=True, epsilon_mode="hat"),
    "adamw": lambda: optimizers.AdamW(),
    "adamw_inside": lambda: optimizers.AdamW(epsilon_mode="inside"),
    "adamw_hat": lambda: optimizers.AdamW(epsilon_mode="hat"),
    "amsgradw": lambda: optimizers.AdamW(amsgrad=True),
    "amsgradw_inside": lambda: optimizers.AdamW(amsgrad=True, epsilon_mode="inside"),
    "amsgradw_hat": lambda: optimizers.AdamW(amsgrad=True, epsilon_mode="hat"),
}


@pytest.mark.parametrize("name", FORMS)
def test_options_choose_the_rule(name):
    made = FORMS[name]()
    assert made.rule is find("optimizer", name)
    again = optimizers.from_config(made.config())
    assert again.rule is made.rule
    np.testing.assert_array_equal(again.hyper(), made.hyper())


def test_a_convention_keeps_no_more_state_than_it_needs():
    slots = {name: len(find("optimizer", name).slots) for name in FORMS}
    assert [slots[name] for name in ("sgd", "momentum", "adam", "adam_hat", "amsgrad")] == [0, 1, 2, 2, 3]
    assert [slots["rmsprop" + s] for s in ("", "_centered", "_momentum", "_centered_momentum")] == [1, 2, 2, 3]


BAD = {
    "a mode": (lambda: optimizers.Adam(epsilon_mode="under"), "one of outside, inside, hat; got 'under'"),
    "a mode of another": (lambda: optimizers.Adagrad(epsilon_mode="hat"), "one of outside, inside; got 'hat'"),
    "amsgrad": (lambda: optimizers.Adam(amsgrad="yes"), "amsgrad must be True or False, got 'yes'"),
    "centered": (lambda: optimizers.RMSprop(centered=1), "centered must be True or False, got 1"),
    "dampening alone": (lambda: optimizers.SGD(dampening=0.5), "dampening=0.5 needs a momentum above 0"),
    "nesterov, dampened": (
        lambda: optimizers.SGD(momentum=0.9, nesterov=True, dampening=0.5), "needs a momentum above 0 and no dampening"),
    "maximize": (lambda: optimizers.SGD(maximize=1), "maximize must be True or False, got 1"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_name_of_a_rule_is_an_identifier():
    with pytest.raises(RuleError, match="must be an identifier, got 'a b'"):
        kernels.optimizer(name="a b", lr=0.1)


def test_maximize_raises_the_loss_of_a_model():
    x, y = np.ones((8, 3), np.float32), np.zeros((8, 1), np.float32)
    losses = []
    for climb in (False, True):
        model = dlcore.Sequential([dlcore.layers.Input((3,)), dlcore.layers.Dense(1, kernel_initializer="ones")])
        model.compile(optimizers.Adam(0.01, maximize=climb), "mse")
        model.fit(x, y, epochs=3, batch_size=8, verbose=0)
        losses.append(model.evaluate(x, y, verbose=0))
    assert losses[0] < 9 < losses[1]


# ------------------------------------------------------------------------------------------------ worked numbers


@pytest.mark.parametrize(("total", "rate"), [(3.46, 0.0054), (0.16, 0.025)])
def test_adagrad_divides_the_rate_by_the_root_of_the_sum(total, rate):
    """``0.01 / sqrt(3.46 + 1e-8) = 0.0054`` and ``0.01 / sqrt(0.16 + 1e-8) = 0.025``."""
    w, s = np.zeros(1), np.array([total - 0.04])
    kernels.optimizer_update("adagrad_inside", w, np.array([0.2]), [s], step=2, learning_rate=0.01, epsilon=1e-8)
    assert s[0] == pytest.approx(total)
    assert round(-w[0] / 0.2, 4) == rate


def test_rprop_grows_by_a_fifth_and_halves_where_the_sign_changes():
    rule = find("optimizer", "rprop_minus")
    w, slots, taken = np.zeros(1), [np.zeros(1), np.zeros(1)], []
    for t, g in enumerate((-1.0, -2.0, 3.0), 1):
        before = w.copy()
        kernels.optimizer_update(rule, w, np.array([g]), slots, step=t, learning_rate=0.1)
        taken.append((w - before).item())
    np.testing.assert_allclose(taken, [0.1, 0.12, -0.06])


def test_an_exponentially_weighted_average_and_its_correction():
    """40, 49, 45 with beta 0.9: 4, 8.5, 12.15; without the bias towards 0 they are 40, 44.7, 44.8."""
    rule, beta = find("optimizer", "ewa_momentum_corrected"), 0.9
    v, averages, corrected = np.zeros(1), [], []
    for t, theta in enumerate((40.0, 49.0, 45.0), 1):
        w = np.zeros(1)
        kernels.optimizer_update(rule, w, np.array([theta]), [v], step=t, learning_rate=1.0, beta=beta)
        averages.append(v.item())
        corrected.append(-w.item())
    np.testing.assert_allclose(averages, [4.0, 8.5, 12.15])
    np.testing.assert_allclose(np.round(corrected, 1), [40.0, 44.7, 44.8])


@pytest.mark.parametrize(("beta", "window"), [(0.9, 10), (0.98, 50), (0.5, 2)])
def test_the_window_of_an_average(beta, window):
    """A constant is reached up to a part ``beta^t``: ``1/e`` or less after the window ``1 / (1 - beta)``."""
    v = np.zeros(1)
    for t in range(1, window + 1):
        kernels.optimizer_update("ewa_momentum", np.zeros(1), np.ones(1), [v], step=t, beta=beta)
    assert 1 - v[0] == pytest.approx(beta**window)
    assert 0.2 < 1 - v[0] <= math.exp(-1)


def test_the_catalogue_says_of_each_method_what_it_is_or_why_it_is_not():
    path = pathlib.Path(__file__).parent.parent / "docs" / "optimizers.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["name"] for row in rows}) == len(rows) == 154
    for row in rows:
        assert row["reference"]
        assert bool(row["rules"]) != bool(row["reason"]), row
        for name in row["rules"].split():
            if not hasattr(optimizers, name):
                find("optimizer", name)


@pytest.mark.parametrize("decay", [0.0, 0.004, 0.5])
@pytest.mark.parametrize("t", [1, 2, 100])
def test_the_product_of_nadams_momenta(t, decay):
    exact = math.prod(0.9 * (1 - 0.5 * 0.96 ** (decay * i)) for i in range(1, t + 1))
    assert _momentum_product(0.9, decay, float(t)) == pytest.approx(exact, rel=1e-13)
