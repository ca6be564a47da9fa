"""Rates by an average of recent squared gradients."""

from typing import Any

from ..mathfn import exp, sqrt
from ..optimizer_rule import optimizer

_RMSPROP: dict[str, Any] = {"learning_rate": 0.001, "beta": 0.9}


@optimizer(**_RMSPROP, epsilon=1e-8)
def rmsprop(w, g, s, h):
    """``s = beta s + (1 - beta) g^2; w -= lr g / (sqrt(s) + eps)``. Tieleman & Hinton 2012."""
    s = h.beta * s + (1.0 - h.beta) * g * g
    return w - h.learning_rate * g / (sqrt(s) + h.epsilon), s


@optimizer(**_RMSPROP, epsilon=1e-8)
def rmsprop_centered(w, g, s, a, h):
    """RMSprop with the variance ``s - a^2`` in place of ``s``; ``a = beta a + (1 - beta) g``. Graves 2013."""
    s = h.beta * s + (1.0 - h.beta) * g * g
    a = h.beta * a + (1.0 - h.beta) * g
    return w - h.learning_rate * g / (sqrt(max(s - a * a, 0.0)) + h.epsilon), s, a


@optimizer(**_RMSPROP, epsilon=1e-8, momentum=0.9)
def rmsprop_momentum(w, g, s, v, h):
    """``v = momentum v + g / (sqrt(s) + eps); w -= lr v``, as in PyTorch."""
    s = h.beta * s + (1.0 - h.beta) * g * g
    v = h.momentum * v + g / (sqrt(s) + h.epsilon)
    return w - h.learning_rate * v, s, v


@optimizer(**_RMSPROP, epsilon=1e-8, momentum=0.9)
def rmsprop_centered_momentum(w, g, s, a, v, h):
    """``v = momentum v + g / (sqrt(s - a^2) + eps); w -= lr v``, as in PyTorch."""
    s = h.beta * s + (1.0 - h.beta) * g * g
    a = h.beta * a + (1.0 - h.beta) * g
    v = h.momentum * v + g / (sqrt(max(s - a * a, 0.0)) + h.epsilon)
    return w - h.learning_rate * v, s, a, v


@optimizer(learning_rate=1e-4, beta=0.95, epsilon=1e-4, momentum=0.9)
def rmsprop_graves(w, g, s, a, v, h):
    """``v = momentum v + lr g / sqrt(s - a^2 + eps); w -= v``: the variance, ``eps`` inside. Graves 2013."""
    s = h.beta * s + (1.0 - h.beta) * g * g
    a = h.beta * a + (1.0 - h.beta) * g
    v = h.momentum * v + h.learning_rate * g / sqrt(max(s - a * a, 0.0) + h.epsilon)
    return w - v, s, a, v


@optimizer(learning_rate=0.001, beta=0.9, epsilon=1e-8, momentum=0.9)
def rmsterov(w, g, s, v, h):
    """``x = lr g / sqrt(s + eps); v = momentum v + x; w -= momentum v + x``; ``s`` starts at 1. Choi et al. 2019."""
    s = h.beta * (1.0 if h.t == 1 else s) + (1.0 - h.beta) * g * g
    x = h.learning_rate * g / sqrt(s + h.epsilon)
    v = h.momentum * v + x
    return w - (h.momentum * v + x), s, v


@optimizer(learning_rate=0.01, gamma=0.9, xi_1=0.1, xi_2=0.1)
def sc_rmsprop(w, g, s, h):
    """``s = (1 - gamma/t) s + gamma/t g^2; w -= lr/t g / (s + delta/t)``, ``delta = xi_2 exp(-xi_1 t s)``.

    For strongly convex costs. Mukkamala & Hein 2017.
    """
    s = (1.0 - h.gamma / h.t) * s + h.gamma / h.t * g * g
    return w - h.learning_rate / h.t * g / (s + h.xi_2 / h.t * exp(-(h.xi_1 * h.t) * s)), s


@optimizer(learning_rate=0.001, epsilon=1e-16)
def smorms3(w, g, memory, a, s, h):
    """``w -= min(lr, x) g / (sqrt(s) + eps)``, ``x = a^2 / (s + eps)``: averages as long as ``memory``. Funk 2015.

    ``r = 1 / (memory + 1)`` is the weight of the new gradient in ``a`` and its square in ``s``; the memory, at first 1,
    becomes ``1 + memory (1 - x)``.
    """
    memory = 1.0 if h.t == 1 else memory
    r = 1.0 / (memory + 1.0)
    a = (1.0 - r) * a + r * g
    s = (1.0 - r) * s + r * g * g
    x = a * a / (s + h.epsilon)
    return w - min(h.learning_rate, x) * g / (sqrt(s) + h.epsilon), 1.0 + memory * (1.0 - x), a, s
