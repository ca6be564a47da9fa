"""The optimizers as their papers write them, on whole arrays: ``update(w, g, slots, t, h) -> (w, slots)``.

``slots`` are in the order of the rule; ``h`` holds its parameters; ``t`` counts from 1. Nothing here uses dlcore.
"""

import math

import numpy as np
import oracle_adam
from oracle_layerwise import LAYERWISE


def _soft(x, by):
    return np.sign(x) * np.maximum(np.abs(x) - by, 0)


# ------------------------------------------------------------------------------------------------ momentum.py, signs.py


def sgd(w, g, s, t, h):
    return w - h.learning_rate * g, []


def momentum(w, g, s, t, h):
    v = g if t == 1 else h.beta * s[0] + (1 - h.dampening) * g
    return w - h.learning_rate * v, [v]


def ewa_momentum(w, g, s, t, h):
    v = h.beta * s[0] + (1 - h.beta) * g
    return w - h.learning_rate * v, [v]


def ewa_momentum_corrected(w, g, s, t, h):
    v = h.beta * s[0] + (1 - h.beta) * g
    return w - h.learning_rate * (v / (1 - h.beta**t)), [v]


def heavy_ball(w, g, s, t, h):
    v = h.beta * s[0] + h.learning_rate * g
    return w - v, [v]


def nesterov(w, g, s, t, h):
    v = h.beta * s[0] + g
    return w - h.learning_rate * (g + h.beta * v), [v]


def srsgd(w, g, s, t, h):
    old = s[0] if t > 1 else w
    new = w - h.learning_rate * g
    k = (t - 1) % int(h.restart)
    return new + k / (k + 3) * (new - old), [new]


def demon(w, g, s, t, h):
    r = max(0.0, 1 - (t - 1) / h.steps)
    beta = h.beta * r / ((1 - h.beta) + h.beta * r)
    v = beta * -s[0] - h.learning_rate * g
    return w + v, [-v]


def qhm(w, g, s, t, h):
    v = h.beta * s[0] + (1 - h.beta) * g
    return w - h.learning_rate * ((1 - h.nu) * g + h.nu * v), [v]


def aggmo(w, g, s, t, h):
    velocities = [beta * v + g for beta, v in zip((0.0, h.beta_1, h.beta_2), (0 * g, *s), strict=True)]
    return w - h.learning_rate * sum(velocities) / 3, velocities[1:]


def pnm(w, g, s, t, h):
    m = h.beta**2 * s[1] + (1 - h.beta**2) * g
    step = (1 + h.negative) * m - h.negative * s[0]
    return w - h.learning_rate / oracle_adam.norm_pnm(h.negative) * step, [m, s[0]]


def asgd(w, g, s, t, h):
    eta = h.learning_rate / (1 + h.decay * h.learning_rate * (t - 1)) ** h.power
    w = w - eta * (g + h.decay * w)
    mu = 1 / max(1.0, t - 1 - h.start)
    return w, [s[0] + mu * (w - s[0])]


def fobos(w, g, s, t, h):
    return _soft(w - h.learning_rate * g, h.learning_rate * h.l1), []


def sign_sgd(w, g, s, t, h):
    return w - h.learning_rate * np.sign(g), []


def signum(w, g, s, t, h):
    m = h.beta * s[0] + (1 - h.beta) * g
    return w - h.learning_rate * np.sign(m), [m]


def lion(w, g, s, t, h):
    c = h.beta_1 * s[0] + (1 - h.beta_1) * g
    return w - h.learning_rate * np.sign(c), [h.beta_2 * s[0] + (1 - h.beta_2) * g]


def _rprop_step(g, s, t, h):
    step = s[1] if t > 1 else np.full_like(g, h.learning_rate)
    agreement = np.sign(g) * np.sign(s[0])
    longer, shorter = np.minimum(step * h.eta_plus, h.step_max), np.maximum(step * h.eta_minus, h.step_min)
    return agreement, np.select([agreement > 0, agreement < 0], [longer, shorter], step)


def rprop(w, g, s, t, h):
    agreement, step = _rprop_step(g, s, t, h)
    g = np.where(agreement < 0, 0, g).astype(g.dtype)
    return w - np.sign(g) * step, [g, step]


def rprop_minus(w, g, s, t, h):
    _, step = _rprop_step(g, s, t, h)
    return w - np.sign(g) * step, [g, step]


def delta_bar_delta(w, g, s, t, h):
    mean, rate = s if t > 1 else (s[0], np.full_like(g, h.learning_rate))
    agreement = np.sign(mean) * np.sign(g)
    rate = rate + np.where(agreement > 0, h.kappa, 0).astype(g.dtype) - np.where(agreement < 0, h.phi * rate, 0)
    return w - rate * g, [(1 - h.theta) * g + h.theta * mean, rate.astype(g.dtype)]


# ------------------------------------------------------------------------------------------------------- adagrad.py


def adagrad(w, g, s, t, h):
    total = (s[0] if t > 1 else h.initial_accumulator) + g**2
    return w - h.learning_rate / (1 + (t - 1) * h.decay) * g / (np.sqrt(total) + h.epsilon), [total]


def adagrad_inside(w, g, s, t, h):
    total = (s[0] if t > 1 else h.initial_accumulator) + g**2
    return w - h.learning_rate / (1 + (t - 1) * h.decay) * g / np.sqrt(total + h.epsilon), [total]


def adadelta(w, g, s, t, h):
    squares = h.rho * s[0] + (1 - h.rho) * g**2
    x = -np.sqrt(s[1] + h.epsilon) / np.sqrt(squares + h.epsilon) * g
    return w + h.learning_rate * x, [squares, h.rho * s[1] + (1 - h.rho) * x**2]


def sc_adagrad(w, g, s, t, h):
    v = s[0] + g**2
    delta = h.xi_2 * np.exp(-h.xi_1 * v)
    return w - h.learning_rate * g / (v + delta), [v]


def expectigrad(w, g, s, t, h):
    total, n = s[1] + g**2, s[2] + np.sign(g) ** 2
    mean = np.divide(total, n, out=np.zeros_like(g), where=n > 0)
    m = h.beta * s[0] + (1 - h.beta) * g / (h.epsilon + np.sqrt(mean))
    return w - h.learning_rate / (1 - h.beta**t) * m, [m, total, n]


def kate(w, g, s, t, h):
    b2 = s[0] + g**2 + h.epsilon
    m2 = s[1] + h.eta * g**2 + g**2 / b2
    return w - h.learning_rate * np.sqrt(m2) / b2 * g, [b2, m2]


def madgrad(w, g, s, t, h):
    start = s[2] if t > 1 else w
    rate = h.learning_rate * math.sqrt(t)
    total, squares = s[0] + rate * g, s[1] + rate * g**2
    z = start - total / (np.cbrt(squares) + h.epsilon)
    return (1 - (1 - h.momentum)) * w + (1 - h.momentum) * z, [total, squares, start]


def ftrl(w, g, s, t, h):
    n = s[1] + g**2
    sigma = (np.sqrt(n) - np.sqrt(s[1])) / h.learning_rate
    z = s[0] + g - sigma * w
    w = np.where(np.abs(z) <= h.l1, 0, -(z - np.sign(z) * h.l1) / ((h.offset + np.sqrt(n)) / h.learning_rate + h.l2))
    return w.astype(g.dtype), [z, n]


def proximal_adagrad(w, g, s, t, h):
    total = s[0] + g**2
    rate = h.learning_rate / (np.sqrt(total) + h.epsilon)
    return _soft(w - rate * g, rate * h.l1), [total]


# ------------------------------------------------------------------------------------------------------- rmsprop.py


def rmsprop(w, g, s, t, h):
    v = h.beta * s[0] + (1 - h.beta) * g**2
    return w - h.learning_rate * g / (np.sqrt(v) + h.epsilon), [v]


def _centered(g, s, h):
    v, a = h.beta * s[0] + (1 - h.beta) * g**2, h.beta * s[1] + (1 - h.beta) * g
    return v, a, np.maximum(v - a**2, 0)


def rmsprop_centered(w, g, s, t, h):
    v, a, variance = _centered(g, s, h)
    return w - h.learning_rate * g / (np.sqrt(variance) + h.epsilon), [v, a]


def rmsprop_momentum(w, g, s, t, h):
    v = h.beta * s[0] + (1 - h.beta) * g**2
    buffer = h.momentum * s[1] + g / (np.sqrt(v) + h.epsilon)
    return w - h.learning_rate * buffer, [v, buffer]


def rmsprop_centered_momentum(w, g, s, t, h):
    v, a, variance = _centered(g, s, h)
    buffer = h.momentum * s[2] + g / (np.sqrt(variance) + h.epsilon)
    return w - h.learning_rate * buffer, [v, a, buffer]


def rmsprop_graves(w, g, s, t, h):
    v, a, variance = _centered(g, s, h)
    buffer = h.momentum * s[2] + h.learning_rate * g / np.sqrt(variance + h.epsilon)
    return w - buffer, [v, a, buffer]


def rmsterov(w, g, s, t, h):
    v = h.beta * (s[0] if t > 1 else np.ones_like(g)) + (1 - h.beta) * g**2
    scaled = h.learning_rate / np.sqrt(v + h.epsilon) * g
    m = h.momentum * s[1] + scaled
    return w - (h.momentum * m + scaled), [v, m]


def sc_rmsprop(w, g, s, t, h):
    beta = 1 - h.gamma / t
    v = beta * s[0] + (1 - beta) * g**2
    epsilon = h.xi_2 * np.exp(-h.xi_1 * t * v) / t
    return w - h.learning_rate / t * g / (v + epsilon), [v]


def smorms3(w, g, s, t, h):
    memory = s[0] if t > 1 else np.ones_like(g)
    r = 1 / (memory + 1)
    a, v = (1 - r) * s[1] + r * g, (1 - r) * s[2] + r * g**2
    x = a**2 / (v + h.epsilon)
    return w - g * np.minimum(h.learning_rate, x) / (np.sqrt(v) + h.epsilon), [1 + memory * (1 - x), a, v]


# --------------------------------------------------------------------------------------------------------------- tables

_UPDATES = (
    sgd, momentum, ewa_momentum, ewa_momentum_corrected, heavy_ball, nesterov, srsgd, demon, qhm, aggmo, pnm, asgd, fobos,
    sign_sgd, signum, lion, rprop, rprop_minus, delta_bar_delta,
    adagrad, adagrad_inside, adadelta, sc_adagrad, expectigrad, kate, madgrad, ftrl, proximal_adagrad,
    rmsprop, rmsprop_centered, rmsprop_momentum, rmsprop_centered_momentum, rmsprop_graves, rmsterov, sc_rmsprop, smorms3,
    *oracle_adam.UPDATES,
)  # fmt: skip

# methods whose weight decay acts on the weights, and what they are otherwise
_DECOUPLED_FORMS = {"sgdw": momentum, "tiger": signum, "nadamw": oracle_adam.nadam, "adaxw": oracle_adam.adax}
_SUFFIXES = {"outside": "", "inside": "_inside", "hat": "_hat"}
for _where, _suffix in _SUFFIXES.items():
    _DECOUPLED_FORMS |= {"adamw" + _suffix: oracle_adam.adam(_where), "amsgradw" + _suffix: oracle_adam.amsgrad(_where)}

DECOUPLED = {*_DECOUPLED_FORMS, "lion", "adan", "ademamix", "grams", "adafactor"}
OPTIMIZERS = {
    **{update.__name__: update for update in _UPDATES},
    **{"adam" + suffix: oracle_adam.adam(where) for where, suffix in _SUFFIXES.items()},
    **{"amsgrad" + suffix: oracle_adam.amsgrad(where) for where, suffix in _SUFFIXES.items()},
    **_DECOUPLED_FORMS,
    **LAYERWISE,
}
