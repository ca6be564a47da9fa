"""Optimizers against PyTorch's, the conventions behind the options of the user's classes, and worked numbers."""

import csv
import math
import pathlib
import types

import numpy as np
import oracle_optimizers
import pytest
import torch

import dlcore
from dlcore import kernels, optimizers
from dlcore.kernels.optimizers.adam import _momentum_product
from dlcore.kernels.rule import RuleError, find

_optim = torch.optim
W = np.random.default_rng(1).standard_normal(9)
GRADIENTS = np.random.default_rng(2).standard_normal((60, 9)) * np.logspace(-2, 1, 9)

# rule -> PyTorch's class, its arguments, the rule's, and of each slot the key of PyTorch's state
_ADAM = {"m": "exp_avg", "v": "exp_avg_sq"}
_RMSPROP = {"s": "square_avg", "a": "grad_avg", "v": "momentum_buffer"}
_RPROP = {"before": "prev", "step": "step_size"}
TORCH = {
    "sgd": (_optim.SGD, {"lr": 0.01}, {}, {}),
    "momentum": (_optim.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.3}, {"dampening": 0.3}, {"v": "momentum_buffer"}),
    "nesterov": (_optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}, {}, {"v": "momentum_buffer"}),
    "asgd": (
        _optim.ASGD, {"lr": 0.01, "lambd": 0.1, "t0": 20},
        {"decay": 0.1, "start": 20.0}, {"average": "ax"}),
    "adagrad": (
        _optim.Adagrad, {"lr": 0.01, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3},
        {"decay": 0.1, "initial_accumulator": 0.2, "epsilon": 1e-3}, {"s": "sum"}),
    "adadelta": (_optim.Adadelta, {"lr": 1.0}, {}, {"s": "square_avg", "d": "acc_delta"}),
    "rprop": (_optim.Rprop, {"lr": 0.01}, {}, _RPROP),
    "rmsprop": (_optim.RMSprop, {"lr": 0.001, "alpha": 0.9, "eps": 1e-3}, {"epsilon": 1e-3}, _RMSPROP),
    "rmsprop_centered": (
        _optim.RMSprop, {"lr": 0.001, "alpha": 0.9, "eps": 1e-3, "centered": True}, {"epsilon": 1e-3}, _RMSPROP),
    "rmsprop_momentum": (
        _optim.RMSprop, {"lr": 0.001, "alpha": 0.9, "eps": 1e-3, "momentum": 0.9}, {"epsilon": 1e-3}, _RMSPROP),
    "rmsprop_centered_momentum": (
        _optim.RMSprop, {"lr": 0.001, "alpha": 0.9, "eps": 1e-3, "momentum": 0.9, "centered": True},
        {"epsilon": 1e-3}, _RMSPROP),
    "adam": (_optim.Adam, {"eps": 1e-3}, {"epsilon": 1e-3}, _ADAM),
    "amsgrad": (
        _optim.Adam, {"eps": 1e-3, "amsgrad": True}, {"epsilon": 1e-3}, {**_ADAM, "largest": "max_exp_avg_sq"}),
    "adamax": (_optim.Adamax, {"eps": 1e-3}, {"epsilon": 1e-3}, {"m": "exp_avg", "u": "exp_inf"}),
    "nadam": (_optim.NAdam, {"eps": 1e-3}, {"epsilon": 1e-3}, _ADAM),
    "radam": (_optim.RAdam, {"eps": 1e-3}, {"epsilon": 1e-3}, _ADAM),
}  # fmt: skip


def by_torch(cls, arguments, gradients=GRADIENTS):
    p = torch.nn.Parameter(torch.tensor(W))
    optimizer = cls([p], **arguments)
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
    return p.detach().numpy(), optimizer.state[p]


def by_the_kernel(name, gradients=GRADIENTS, **values):
    rule = find("optimizer", name)
    w, slots = W.copy(), [np.zeros_like(W) for _ in rule.slots]
    for t, g in enumerate(gradients, 1):
        kernels.optimizer_update(rule, w, g, slots, step=t, **values)
    return w, slots


@pytest.fixture
def _torch_in_float64():
    torch.set_default_dtype(torch.float64)  # else PyTorch keeps the scalars of ASGD and NAdam in float32
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_torch_in_float64")
@pytest.mark.parametrize("name", TORCH)
def test_weights_and_state_are_those_of_pytorch(name):
    cls, arguments, values, keys = TORCH[name]
    w, slots = by_the_kernel(name, **values)
    expected, state = by_torch(cls, arguments)
    np.testing.assert_allclose(w, expected, rtol=1e-11, atol=1e-14)
    for slot, value in zip(find("optimizer", name).slots, slots, strict=True):
        np.testing.assert_allclose(value, state[keys[slot]].numpy(), rtol=1e-11, atol=1e-14, err_msg=slot)


@pytest.mark.usefixtures("_torch_in_float64")
@pytest.mark.parametrize("name", TORCH)
def test_the_formulas_of_the_tests_are_those_of_pytorch(name):
    """What the other optimizers are compared with is written in the same file and the same way."""
    cls, arguments, values, _ = TORCH[name]
    rule = find("optimizer", name)
    h = types.SimpleNamespace(**{**rule.parameters, **values})
    w, s = W, [np.zeros_like(W) for _ in rule.slots]
    for t, g in enumerate(GRADIENTS, 1):
        w, s = oracle_optimizers.OPTIMIZERS[name](w, g, s, t, h)
    np.testing.assert_allclose(w, by_torch(cls, arguments)[0], rtol=1e-11, atol=1e-14)


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


MAXIMIZE = {
    "sgd": (lambda: optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1, maximize=True),
            lambda p: _optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1, maximize=True)),
    "adam": (lambda: optimizers.Adam(0.01, weight_decay=0.1, maximize=True),
             lambda p: _optim.Adam(p, 0.01, weight_decay=0.1, maximize=True)),
    "adamw": (lambda: optimizers.AdamW(0.01, weight_decay=0.1, maximize=True),
              lambda p: _optim.AdamW(p, 0.01, weight_decay=0.1, maximize=True)),
    "rprop": (lambda: optimizers.Optimizer("rprop", maximize=True), lambda p: _optim.Rprop(p, 0.01, maximize=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", MAXIMIZE)
def test_maximize_is_that_of_pytorch(name):
    ours, theirs = MAXIMIZE[name]
    made, p = ours(), torch.nn.Parameter(torch.tensor(W))
    other = theirs([p])
    w, slots = W.copy(), [np.zeros_like(W) for _ in made.rule.slots]
    *values, decay, _ = made.hyper()
    for t, g in enumerate(GRADIENTS, 1):
        named = dict(zip(made.rule.parameters, values, strict=True))
        kernels.optimizer_update(made.rule, w, g, slots, step=t, weight_decay=decay, **named)
        p.grad = torch.tensor(g)
        other.step()
    np.testing.assert_allclose(w, p.detach().numpy(), rtol=1e-11)
    assert not np.allclose(w, by_the_kernel(made.rule.name)[0], rtol=1e-3)


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
