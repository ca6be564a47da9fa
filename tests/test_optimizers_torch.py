"""Optimizers against PyTorch's, weights and state, and ``maximize``."""

import math
import os
import types

import numpy as np
import oracle_optimizers
import pytest

from dlcore import kernels, optimizers
from dlcore.kernels.rule import find

if os.environ.get("DLCORE_REQUIRE_TORCH"):
    import torch
else:
    torch = pytest.importorskip("torch", reason="PyTorch is the second oracle; continuous integration has it")

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


@pytest.mark.usefixtures("_torch_in_float64")
@pytest.mark.parametrize("shape", [(9,), (1, 5), (7, 5), (130, 1050)], ids=str)
def test_adafactor_is_that_of_pytorch(shape):
    """PyTorch adds no epsilon to the square but bounds it from below, by a number that is nothing here."""
    rng = np.random.default_rng(4)
    w, state = rng.standard_normal(shape), [np.zeros(n) for n in (math.prod(shape[:-1]), shape[-1])]
    p = torch.nn.Parameter(torch.tensor(w))
    made = _optim.Adafactor([p], lr=0.02, beta2_decay=-0.7, eps=(1e-300, 1e-3), d=1.1)
    values = {"learning_rate": 0.02, "decay": 0.7, "clip_threshold": 1.1}
    for t in range(1, 41):
        g = rng.standard_normal(shape) * np.logspace(-2, 0, shape[-1])
        p.grad = torch.tensor(g)
        made.step()
        kernels.optimizer_update("adafactor", w, g, state, step=t, **values)
    np.testing.assert_allclose(w, p.detach().numpy(), rtol=1e-11, atol=1e-14)
    theirs = made.state[p]
    keys = ("row_var", "col_var") if len(shape) > 1 else ("variance",)
    for key, ours in zip(reversed(keys), reversed(state), strict=False):
        np.testing.assert_allclose(ours, theirs[key].numpy().ravel(), rtol=1e-11, err_msg=key)


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
