"""Rates that fall with the sum of all squared gradients, and dual averaging."""

from typing import Any

from ..mathfn import exp, log, sqrt
from ..optimizer_rule import optimizer
from .signs import shrink

_ADAGRAD: dict[str, Any] = {"learning_rate": 0.01, "decay": 0.0, "initial_accumulator": 0.0}


@optimizer(**_ADAGRAD, epsilon=1e-10)
def adagrad(w, g, s, h):
    """``s += g^2; w -= lr / (1 + decay (t-1)) g / (sqrt(s) + eps)``. Duchi, Hazan & Singer 2011."""
    s = (h.initial_accumulator if h.t == 1 else s) + g * g
    return w - h.learning_rate / (1.0 + h.decay * (h.t - 1.0)) * g / (sqrt(s) + h.epsilon), s


@optimizer(**_ADAGRAD, epsilon=1e-8)
def adagrad_inside(w, g, s, h):
    """``s += g^2; w -= lr / (1 + decay (t-1)) g / sqrt(s + eps)``."""
    s = (h.initial_accumulator if h.t == 1 else s) + g * g
    return w - h.learning_rate / (1.0 + h.decay * (h.t - 1.0)) * g / sqrt(s + h.epsilon), s


@optimizer(learning_rate=1.0, rho=0.9, epsilon=1e-6)
def adadelta(w, g, s, d, h):
    """``x = g sqrt(d + eps) / sqrt(s + eps); w -= lr x``; ``s``, ``d``: averages of ``g^2``, ``x^2``. Zeiler 2012."""
    s = h.rho * s + (1.0 - h.rho) * g * g
    x = g * sqrt(d + h.epsilon) / sqrt(s + h.epsilon)
    return w - h.learning_rate * x, s, h.rho * d + (1.0 - h.rho) * x * x


@optimizer(learning_rate=0.01, xi_1=0.1, xi_2=0.1)
def sc_adagrad(w, g, s, h):
    """``s += g^2; w -= lr g / (s + xi_2 exp(-xi_1 s))``: for strongly convex costs. Mukkamala & Hein 2017."""
    s = s + g * g
    return w - h.learning_rate * g / (s + h.xi_2 * exp(-h.xi_1 * s)), s


@optimizer(learning_rate=0.001, beta=0.9, epsilon=1e-8)
def expectigrad(w, g, m, s, n, h):
    """``m``: average of ``g / (eps + sqrt(s / n))``, ``n``: how many gradients were not 0; ``w -= lr mhat``.

    Daley & Amato 2020.
    """
    s = s + g * g
    n = n + (0.0 if g == 0.0 else 1.0)
    m = h.beta * m + (1.0 - h.beta) * g / (h.epsilon + sqrt(s / max(n, 1.0)))
    return w - h.learning_rate / (1.0 - h.beta**h.t) * m, m, s, n


@optimizer(learning_rate=0.001, eta=0.0, epsilon=1e-8)
def kate(w, g, s, a, h):
    """``s += g^2 + eps; a += eta g^2 + g^2 / s; w -= lr sqrt(a) / s g``. Choudhury et al. 2024."""
    s = s + g * g + h.epsilon
    a = a + h.eta * g * g + g * g / s
    return w - h.learning_rate * sqrt(a) * g / s, s, a


@optimizer(learning_rate=0.01, momentum=0.9, epsilon=1e-6)
def madgrad(w, g, s, v, start, h):
    """``s += l g; v += l g^2``, ``l = lr sqrt(t)``; ``w = momentum w + (1 - momentum) (w_0 - s / (cbrt(v) + eps))``.

    Defazio & Jelassi 2021.
    """
    start = w if h.t == 1 else start
    s = s + h.learning_rate * sqrt(h.t) * g
    v = v + h.learning_rate * sqrt(h.t) * g * g
    z = start - s / (exp(log(v) / 3.0) + h.epsilon)
    return h.momentum * w + (1.0 - h.momentum) * z, s, v, start


@optimizer(learning_rate=0.1, offset=1.0, l1=0.0, l2=0.0)
def ftrl(w, g, z, n, h):
    """``w = -shrink(z, l1) / ((offset + sqrt(n)) / lr + l2)``; ``n += g^2; z += g - (sqrt(n) - sqrt(n - g^2)) / lr w``.

    McMahan et al. 2013: follow the proximally regularised leader. It starts from weights of 0.
    """
    root = sqrt(n + g * g)
    z = z + g - (root - sqrt(n)) / h.learning_rate * w
    return -shrink(z, h.l1) / (root / h.learning_rate + (h.offset / h.learning_rate + h.l2)), z, n + g * g


@optimizer(learning_rate=0.01, l1=1e-4, epsilon=1e-10)
def proximal_adagrad(w, g, s, h):
    """``s += g^2; r = lr / (sqrt(s) + eps); w = shrink(w - r g, r l1)``. Duchi, Hazan & Singer 2011."""
    s = s + g * g
    rate = h.learning_rate / (sqrt(s) + h.epsilon)
    return shrink(w - rate * g, rate * h.l1), s
