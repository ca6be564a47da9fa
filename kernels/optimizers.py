"""The optimizers, each the update of one element: ``(w, g, *slots, h) -> (w, *slots)``.

What depends on ``h`` alone is computed once a step in float64; weight decay and clipping belong to the skeleton.
"""

from dataclasses import replace

from .mathfn import sqrt
from .rule import optimizer, register


@optimizer(learning_rate=0.01)
def sgd(w, g, h):
    """``w -= lr g``. Robbins & Monro 1951."""
    return w - h.learning_rate * g


@optimizer(learning_rate=0.01, beta=0.9, dampening=0.0)
def momentum(w, g, v, h):
    """``v = beta v + (1 - dampening) g; w -= lr v``. Polyak 1964; ``dampening = beta`` is the averaged form."""
    v = h.beta * v + (1.0 - h.dampening) * g
    return w - h.learning_rate * v, v


@optimizer(learning_rate=0.01, beta=0.9)
def nesterov(w, g, v, h):
    """``v = beta v + g; w -= lr (g + beta v)``. Nesterov 1983, as reformulated by Sutskever et al. 2013."""
    v = h.beta * v + g
    return w - h.learning_rate * (g + h.beta * v), v


@optimizer(learning_rate=0.001, beta=0.9, epsilon=1e-8)
def rmsprop(w, g, s, h):
    """``s = beta s + (1 - beta) g^2; w -= lr g / (sqrt(s) + eps)``. Tieleman & Hinton 2012."""
    s = h.beta * s + (1.0 - h.beta) * g * g
    return w - h.learning_rate * g / (sqrt(s) + h.epsilon), s


@optimizer(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-8)
def adam(w, g, m, v, h):
    """``w -= lr mhat / (sqrt(vhat) + eps)`` with bias-corrected moments. Kingma & Ba 2015."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    m_hat = m / (1.0 - h.beta_1**h.t)
    v_hat = v / (1.0 - h.beta_2**h.t)
    return w - h.learning_rate * m_hat / (sqrt(v_hat) + h.epsilon), m, v


# Adam with weight decay on the weights. Loshchilov & Hutter 2019.
adamw = register(replace(adam, name="adamw", decoupled=True))
