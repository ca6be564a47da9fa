"""Gradient descent and its momenta: steps that are linear in the gradients."""

from dataclasses import replace

from ..optimizer_rule import optimizer
from ..rule import register
from .signs import shrink


@optimizer(learning_rate=0.01)
def sgd(w, g, h):
    """``w -= lr g``. Robbins & Monro 1951."""
    return w - h.learning_rate * g


@optimizer(learning_rate=0.01, beta=0.9, dampening=0.0)
def momentum(w, g, v, h):
    """``v = beta v + (1 - dampening) g``, at first ``v = g``; ``w -= lr v``. Sutskever et al. 2013, as in PyTorch."""
    taken = 1.0 if h.t == 1 else 1.0 - h.dampening
    v = h.beta * v + taken * g
    return w - h.learning_rate * v, v


# Momentum with weight decay on the weights. Loshchilov & Hutter 2019.
sgdw = register(replace(momentum, name="sgdw", decoupled=True))


@optimizer(learning_rate=0.01, beta=0.9)
def ewa_momentum(w, g, v, h):
    """``v = beta v + (1 - beta) g; w -= lr v``: the exponentially weighted average. Liu, Gao & Yin 2020 (SGDM)."""
    v = h.beta * v + (1.0 - h.beta) * g
    return w - h.learning_rate * v, v


@optimizer(learning_rate=0.01, beta=0.9)
def ewa_momentum_corrected(w, g, v, h):
    """``v = beta v + (1 - beta) g; w -= lr v / (1 - beta^t)``: the average without its bias towards 0."""
    v = h.beta * v + (1.0 - h.beta) * g
    return w - h.learning_rate / (1.0 - h.beta**h.t) * v, v


@optimizer(learning_rate=0.01, beta=0.9)
def heavy_ball(w, g, v, h):
    """``v = beta v + lr g; w -= v``: a new rate acts on new gradients only. Polyak 1964."""
    v = h.beta * v + h.learning_rate * g
    return w - v, v


@optimizer(learning_rate=0.01, beta=0.9)
def nesterov(w, g, v, h):
    """``v = beta v + g; w -= lr (g + beta v)``. Nesterov 1983, as reformulated by Sutskever et al. 2013."""
    v = h.beta * v + g
    return w - h.learning_rate * (g + h.beta * v), v


@optimizer(learning_rate=0.1, restart=40.0)
def srsgd(w, g, v, h):
    """``v' = w - lr g; w = v' + k / (k + 3) (v' - v)`` with ``k = (t - 1) mod restart``. Wang et al. 2020."""
    k = (h.t - 1.0) % h.restart
    before = w if h.t == 1 else v
    v = w - h.learning_rate * g
    return v + k / (k + 3.0) * (v - before), v


@optimizer(learning_rate=0.01, beta=0.9, steps=10000.0)
def demon(w, g, v, h):
    """Heavy ball whose momentum falls to 0 over ``steps``: ``beta r / (1 - beta + beta r)``, ``r = 1 - (t-1)/steps``.

    Chen, Wolfe, Li & Kyrillidis 2019, "Demon: improved neural network training with momentum decay".
    """
    rest = h.beta * max(0.0, 1.0 - (h.t - 1.0) / h.steps)
    v = rest / (1.0 - h.beta + rest) * v + h.learning_rate * g
    return w - v, v


@optimizer(learning_rate=1.0, beta=0.999, nu=0.7)
def qhm(w, g, v, h):
    """``v = beta v + (1 - beta) g; w -= lr ((1 - nu) g + nu v)``. Ma & Yarats 2019."""
    v = h.beta * v + (1.0 - h.beta) * g
    return w - h.learning_rate * ((1.0 - h.nu) * g + h.nu * v), v


@optimizer(learning_rate=0.1, beta_1=0.9, beta_2=0.99)
def aggmo(w, g, v, u, h):
    """``v = beta_1 v + g; u = beta_2 u + g; w -= lr (g + v + u) / 3``: velocities of 3 dampings. Lucas et al. 2019."""
    v = h.beta_1 * v + g
    u = h.beta_2 * u + g
    return w - h.learning_rate / 3.0 * (g + v + u), v, u


@optimizer(learning_rate=0.001, beta=0.9, negative=1.0)
def pnm(w, g, m, before, h):
    """``m_t = beta^2 m_(t-2) + (1 - beta^2) g; w -= lr ((1+n) m_t - n m_(t-1)) / sqrt((1+n)^2 + n^2)``, n: negative.

    Xie, Yuan, Zhu & Sugiyama 2021, "Positive-negative momentum".
    """
    rate = h.learning_rate / ((1.0 + h.negative) ** 2 + h.negative**2) ** 0.5
    new = h.beta**2 * before + (1.0 - h.beta**2) * g
    return w - rate * ((1.0 + h.negative) * new - h.negative * m), new, m


@optimizer(learning_rate=0.01, decay=1e-4, power=0.75, start=1e6)
def asgd(w, g, average, h):
    """``w -= eta (g + decay w)``, ``eta = lr / (1 + decay lr (t-1))^power``; ``average`` of the weights from ``start``.

    Polyak & Juditsky 1992, in the form of Bottou 2010 and PyTorch.
    """
    eta = h.learning_rate / (1.0 + h.decay * h.learning_rate * (h.t - 1.0)) ** h.power
    mu = 1.0 / max(1.0, h.t - 1.0 - h.start)
    w = (1.0 - h.decay * eta) * w - eta * g
    return w, (w if mu == 1.0 else average + mu * (w - average))


@optimizer(learning_rate=0.01, l1=1e-4)
def fobos(w, g, h):
    """``w = shrink(w - lr g, lr l1)``: zeros under an L1 penalty. Duchi & Singer 2009."""
    return shrink(w - h.learning_rate * g, h.learning_rate * h.l1)
