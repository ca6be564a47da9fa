"""Steps that take the sign of a gradient, or what the signs of two gradients say of the step."""

from dataclasses import replace

from ..optimizer_rule import optimizer
from ..rule import register


def sign(x):
    """-1, 0 or 1. Infinity gives NaN: a gradient that is not finite must not pass unseen."""
    return (1.0 if x > 0.0 else -1.0 if x < 0.0 else 0.0) + 0.0 * x


def shrink(x, by):
    """``sign(x) max(|x| - by, 0)``"""
    return max(x - by, 0.0) - max(-x - by, 0.0)


@optimizer(learning_rate=1e-4)
def sign_sgd(w, g, h):
    """``w -= lr sign(g)``. Bernstein et al. 2018."""
    return w - h.learning_rate * sign(g)


@optimizer(learning_rate=1e-4, beta=0.9)
def signum(w, g, m, h):
    """``m = beta m + (1 - beta) g; w -= lr sign(m)``. Bernstein et al. 2018."""
    m = h.beta * m + (1.0 - h.beta) * g
    return w - h.learning_rate * sign(m), m


# Signum with weight decay on the weights. Su 2023.
tiger = register(replace(signum, name="tiger", decoupled=True, parameters={"learning_rate": 1e-3, "beta": 0.965}))


@optimizer(learning_rate=1e-4, beta_1=0.9, beta_2=0.99, decoupled=True)
def lion(w, g, m, h):
    """``w -= lr sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g``. Chen et al. 2023."""
    step = sign(h.beta_1 * m + (1.0 - h.beta_1) * g)
    return w - h.learning_rate * step, h.beta_2 * m + (1.0 - h.beta_2) * g


def _adjusted(step, agreement, shorter, longer, least, most):
    factor = longer if agreement > 0.0 else shorter if agreement < 0.0 else 1.0
    return min(max(step * factor, least), most)


@optimizer(learning_rate=0.01, eta_minus=0.5, eta_plus=1.2, step_min=1e-6, step_max=50.0)
def rprop(w, g, before, step, h):
    """The step grows by 1.2 where the gradient keeps its sign; where it turns, it halves and ``w`` waits.

    The first step is the learning rate. Riedmiller & Braun 1993, as iRprop- of Igel & Husken 2000 and in PyTorch.
    """
    start = h.learning_rate if h.t == 1 else step
    step = _adjusted(start, g * before, h.eta_minus, h.eta_plus, h.step_min, h.step_max)
    g = 0.0 * g if g * before < 0.0 else g
    return w - sign(g) * step, g, step


@optimizer(learning_rate=0.01, eta_minus=0.5, eta_plus=1.2, step_min=1e-6, step_max=50.0)
def rprop_minus(w, g, before, step, h):
    """Rprop whose weights move at a change of sign too: Rprop-, Riedmiller 1994."""
    start = h.learning_rate if h.t == 1 else step
    step = _adjusted(start, g * before, h.eta_minus, h.eta_plus, h.step_min, h.step_max)
    return w - sign(g) * step, g, step


@optimizer(learning_rate=0.01, kappa=1e-3, phi=0.1, theta=0.7)
def delta_bar_delta(w, g, mean, rate, h):
    """Each weight has a rate: ``+ kappa`` where ``g`` agrees with its mean, ``(1 - phi)`` of it where not. Jacobs 1988.

    ``mean = (1 - theta) g + theta mean``; ``w -= rate g``. The rates start at the learning rate.
    """
    rate = h.learning_rate if h.t == 1 else rate
    agreement = g * mean
    rate = rate + h.kappa if agreement > 0.0 else rate * (1.0 - h.phi) if agreement < 0.0 else rate
    return w - rate * g, (1.0 - h.theta) * g + h.theta * mean, rate
