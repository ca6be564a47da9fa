"""Optimizers that look at a tensor as a whole: its norm, that of its gradient, that of its step, its rows and columns.

``w2``, ``g2`` and the like are sums over the tensor, of what ``tensor_sums`` says. Biases are tensors too.
"""

from ..mathfn import sqrt
from ..optimizer_rule import optimizer


def _ratio(a2, b2):
    """``sqrt(a2 / b2)``, 1 where one of them is 0."""
    return sqrt(a2 / b2) if a2 > 0.0 and b2 > 0.0 else 1.0


@optimizer(sums="w2 g2", learning_rate=0.1, beta=0.9, trust=0.001, decay=0.0, epsilon=1e-8)
def lars(w, g, v, w2, g2, h):
    """``v = beta v + lr r (g + decay w)``, ``r = trust ||w|| / (||g|| + decay ||w||)``; You, Gitman & Ginsburg 2017."""
    norm = sqrt(w2)
    ratio = h.trust * norm / (sqrt(g2) + h.decay * norm + h.epsilon) if w2 > 0.0 and g2 > 0.0 else 1.0
    v = h.beta * v + h.learning_rate * ratio * (g + h.decay * w)
    return w - v, v


@lars.tensor_sums
def _(w, g, v, h):
    return w * w, g * g


def _adam_step(m, v, rest_1, rest_2, epsilon):
    return (m / rest_1) / (sqrt(v / rest_2) + epsilon)


@optimizer(sums="w2 r2", learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-6, decay=0.0)
def lamb(w, g, m, v, w2, r2, h):
    """``w -= lr (||w|| / ||r||) r``, ``r`` = Adam's step ``+ decay w``. You et al. 2020."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    r = _adam_step(m, v, 1.0 - h.beta_1**h.t, 1.0 - h.beta_2**h.t, h.epsilon) + h.decay * w
    return w - h.learning_rate * _ratio(w2, r2) * r, m, v


@lamb.tensor_sums
def _(w, g, m, v, h):
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    r = _adam_step(m, v, 1.0 - h.beta_1**h.t, 1.0 - h.beta_2**h.t, h.epsilon) + h.decay * w
    return w * w, r * r


@optimizer(sums="g2", learning_rate=0.01, beta_1=0.95, beta_2=0.98, epsilon=1e-8, decay=0.0)
def novograd(w, g, m, v, g2, h):
    """``v = beta_2 v + (1 - beta_2) ||g||^2``, one for a tensor, ``||g||^2`` at first; Ginsburg et al. 2019.

    ``m = beta_1 m + (g / (sqrt(v) + eps) + decay w); w -= lr m``.
    """
    v = g2 if h.t == 1 else h.beta_2 * v + (1.0 - h.beta_2) * g2
    m = h.beta_1 * m + (g / (sqrt(v) + h.epsilon) + h.decay * w)
    return w - h.learning_rate * m, m, v


@novograd.tensor_sums
def _(w, g, m, v, h):
    return g * g


@optimizer(sums="w2 g2", learning_rate=0.01)
def fromage(w, g, w2, g2, h):
    """``w = (w - lr (||w|| / ||g||) g) / sqrt(1 + lr^2)``. Bernstein et al. 2020."""
    return (w - h.learning_rate * _ratio(w2, g2) * g) / sqrt(1.0 + h.learning_rate * h.learning_rate)


@fromage.tensor_sums
def _(w, g, h):
    return w * w, g * g


@optimizer(sums="g2", learning_rate=0.01, epsilon=1e-8)
def normalized_sgd(w, g, g2, h):
    """``w -= lr g / (||g|| + eps)``, the norm that of the tensor. Hazan, Levy & Shalev-Shwartz 2015."""
    return w - h.learning_rate * g / (sqrt(g2) + h.epsilon)


@normalized_sgd.tensor_sums
def _(w, g, h):
    return g * g


@optimizer(sums="g2", learning_rate=0.01, beta=0.9)
def sngm(w, g, v, g2, h):
    """``v = beta v + g / ||g||; w -= lr v``, the norm that of the tensor. Zhao et al. 2020."""
    v = h.beta * v + (g / sqrt(g2) if g2 > 0.0 else g)
    return w - h.learning_rate * v, v


@sngm.tensor_sums
def _(w, g, v, h):
    return g * g


@optimizer(sums="g2", learning_rate=1.0)
def wngrad(w, g, b, g2, h):
    """``b += ||g||^2 / b``, 1 at first; ``w -= (lr / b) g``. Wu, Ward & Bottou 2018."""
    before = 1.0 if h.t == 1 else b
    b = before + g2 / before
    return w - h.learning_rate * g / b, b


@wngrad.tensor_sums
def _(w, g, b, h):
    return g * g


@optimizer(
    factors="r c", sums="w2 u2 n", decoupled=True,
    learning_rate=0.01, decay=0.8, clip_threshold=1.0, epsilon_1=1e-30, epsilon_2=1e-3,
)  # fmt: skip
def adafactor(w, g, r, c, w2, u2, n, h):
    """``w -= max(eps_2, RMS(w)) min(lr, t^-1/2) u / max(1, RMS(u) / clip_threshold)``, ``u = g / sqrt(r c / mean r)``.

    ``r, c = (1 - t^-decay) (r, c) + t^-decay mean(g^2 + eps_1)`` over each row, each column. Shazeer & Stern 2018.
    """
    rate = min(h.learning_rate, 1.0 / sqrt(h.t))
    size = sqrt(w2 / n)
    u = g / sqrt(r * c)
    return w - rate * max(h.epsilon_2, size) / max(1.0, sqrt(u2 / n) / h.clip_threshold) * u


@adafactor.tensor_factors
def _(g, r, c, h):
    new = h.t**-h.decay
    square = new * (g * g + h.epsilon_1)
    return (1.0 - new) * r + square, (1.0 - new) * c + square


@adafactor.tensor_sums
def _(w, g, r, c, h):
    return w * w, g * g / (r * c), 1.0


@optimizer(factors="r c", learning_rate=0.1)
def sm3(w, g, r, c, h):
    """``v = min(r, c) + g^2; w -= lr g / sqrt(v)``; ``r, c`` = the largest v of the row, the column. Anil et al. 2019.

    SM3-II; where ``v`` is 0, the weight stays.
    """
    v = min(r, c) + g * g
    return w - h.learning_rate * (g / sqrt(v) if v != 0.0 else g)


@sm3.tensor_factors(reduce="max", after=True)
def _(g, r, c, h):
    v = min(r, c) + g * g
    return v, v
