"""Every optimizer over 100 steps on three problems, weights and state, against its paper and against PyTorch.

The gradients are those along the exact run, rounded to the dtype: every implementation gets the same ones, so that what
is compared is the optimizer and not what a chaotic path makes of a rounding.
"""

import functools
import re
import types

import numpy as np
import oracle
import oracle_optimizers
import pytest
from tolerance import GRADIENT, assert_close, wider

from dlcore import kernels
from dlcore.kernels.compile import uniforms_of
from dlcore.kernels.rule import find

DTYPES = (np.float32, np.float64)
NAMES = sorted(oracle_optimizers.OPTIMIZERS)
STEPS, SIZE = 100, 12

# ---------------------------------------------------------------------------------------------------- the problems

_rng = np.random.default_rng(7)
_CURVATURE = np.logspace(-4, 0, SIZE)
_X = _rng.standard_normal((300, SIZE))
_LABELS = (_X @ _rng.standard_normal(SIZE) + _rng.standard_normal(300) > 0).astype(float)


def quadratic(w, t):
    """``sum_i c_i w_i^2 / 2`` with a condition of 1e4."""
    return _CURVATURE.astype(w.dtype) * w


def rosenbrock(w, t):
    """``sum_i 100 (w_(i+1) - w_i^2)^2 + (1 - w_i)^2``, a thousandth of it."""
    a, b = w[:-1], w[1:]
    g = np.zeros_like(w)
    g[:-1] += -400 * a * (b - a**2) - 2 * (1 - a)
    g[1:] += 200 * (b - a**2)
    return g / 1000


def logistic(w, t):
    """Logistic regression on a mini-batch of 20 rows, whose labels are noisy."""
    rows = np.random.default_rng(t).integers(0, 300, 20)
    x = _X[rows].astype(w.dtype)
    return x.T @ (1 / (1 + np.exp(-(x @ w))) - _LABELS[rows]) / 20


PROBLEMS = (quadratic, rosenbrock, logistic)
START = np.concatenate([np.ones(SIZE), np.resize([-1.2, 1.0], SIZE), np.linspace(-0.5, 0.5, SIZE)]).astype(np.float32)
PARTS = {problem.__name__: slice(k * SIZE, (k + 1) * SIZE) for k, problem in enumerate(PROBLEMS)}


def gradient(w, t):
    return np.concatenate([problem(w[k * SIZE : (k + 1) * SIZE], t) for k, problem in enumerate(PROBLEMS)])


# ---------------------------------------------------------------------------------------------------- the comparison

# Values at which every parameter shows: a default of 0 hides its term, an epsilon of 1e-8 that of any other size.
SHOWN = {
    "epsilon": 1e-3, "dampening": 0.3, "initial_accumulator": 0.1, "l1": 1e-3, "l2": 0.1, "eta": 0.2, "start": 20.0,
    "steps": 150.0, "step_min": 4e-3, "step_max": 0.03, "nu_2": 0.6, "threshold": 10.0, "restart": 30.0,
    "epsilon_1": 1e-3, "epsilon_2": 0.8, "clip_threshold": 0.8,
}  # fmt: skip
DECAY = {"asgd": 0.05, "adagrad": 0.01, "adagrad_inside": 0.01, "lars": 0.01, "lamb": 0.01, "novograd": 0.01}


def values(name):
    known = find("optimizer", name).parameters
    return {key: DECAY.get(name, 0.99) if key == "decay" else SHOWN.get(key, v) for key, v in known.items()}


def start(name, dtype):
    """Weights, and state of zeros: for a rule with factors a row for each problem."""
    rule = find("optimizer", name)
    shape = (len(PROBLEMS), SIZE) if rule.factors else START.shape
    return START.astype(dtype).reshape(shape), oracle.optimizer_state(rule, shape, dtype)


def by_the_paper(name, dtype, gradients, h, step=lambda t: t):
    """Weights and slots, in ``dtype``, after the gradients."""
    w, s = start(name, dtype)
    for t, g in enumerate(gradients, 1):
        w, s = oracle_optimizers.OPTIMIZERS[name](w, g.astype(dtype), s, step(t), types.SimpleNamespace(**h))
        assert w.dtype == dtype
    return w, *s


@functools.cache
def gradients_of(name, dtype):
    """The gradients along the exact run, rounded to ``dtype``."""
    h, wide = types.SimpleNamespace(**values(name)), wider(dtype)
    w, s = start(name, wide)
    gradients = []
    for t in range(1, STEPS + 1):
        gradients.append(gradient(w.ravel(), t).astype(dtype).reshape(w.shape))
        w, s = oracle_optimizers.OPTIMIZERS[name](w, gradients[-1].astype(wide), s, t, h)
    assert np.abs(w).max() < 100, "the run diverges: it compares nothing"
    return gradients


@functools.cache
def by_the_kernel(name, dtype):
    rule = find("optimizer", name)
    w, slots = start(name, dtype)
    for t, g in enumerate(gradients_of(name, dtype), 1):
        kernels.optimizer_update(rule, w, g, slots, step=t, **values(name))
    return w, *slots


def compare(name, dtype, h, step=lambda t: t):
    """The kernel's weights and state against the paper with parameters ``h``, problem by problem."""
    exact, plain = (by_the_paper(name, d, gradients_of(name, dtype), h, step) for d in (wider(dtype), dtype))
    rule = find("optimizer", name)
    names = ("w", *rule.slots, *rule.factors)
    for what, *arrays in zip(names, by_the_kernel(name, dtype), exact, plain, strict=True):
        parts = {"all": slice(None)} if what in rule.factors else PARTS
        for problem, part in parts.items():
            assert_close(f"{what} on {problem}", *(a.ravel()[part] for a in arrays), GRADIENT)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_steps(name, dtype):
    compare(name, dtype, values(name))


def mutations(name):
    """Wrong parameters and wrong steps, each of which the comparison above has to see."""
    h = values(name)
    for key, value in h.items():
        factor = 0.9 if key == "learning_rate" else 0.98 if key.startswith(("beta", "rho", "decay")) else 1.5
        yield key, {**h, key: value * factor}, lambda t: t
    if any(re.search(r"h\.t\b(?! == 1)", source) for source in uniforms_of(find("optimizer", name))):
        yield "bias correction or schedule", h, lambda t: t if t == 1 else t + 10_000


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_parameter_is_seen(name, dtype):
    unseen = []
    for what, h, step in mutations(name):
        try:
            compare(name, dtype, h, step)
        except AssertionError:
            continue
        unseen.append(what)
    assert not unseen
