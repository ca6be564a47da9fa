"""The elementwise losses, each a scalar rule ``L(p, y)`` with its derivative in ``p``.

Losses that couple the elements of a row (softmax cross-entropy, cosine similarity, ...) are instructions of their own.
"""

from .mathfn import exp, fabs, log, log1p, sigmoid, softplus, sqrt, tanh
from .rule import loss

_CLIP = 1e-7  # probabilities are kept this far from 0 and 1, as in Keras
_TINY = 1e-30  # within float32; the logarithm of what may be 0
_LN_2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


def _probability(p):
    return min(max(p, _CLIP), 1.0 - _CLIP)


# ------------------------------------------------------------------------------------------------- regression


@loss
def mean_squared_error(p, y):
    """``(y - p)^2``"""
    return (p - y) * (p - y)


@mean_squared_error.derivative
def _(p, y):
    return 2.0 * (p - y)


@loss(reduction="sum")
def half_squared_error(p, y):
    """``(y - p)^2 / 2``, summed over the outputs: the quadratic cost ``||y - p||^2 / 2``."""
    return 0.5 * (p - y) * (p - y)


@half_squared_error.derivative
def _(p, y):
    return p - y


@loss
def mean_absolute_error(p, y):
    """``|y - p|``; the derivative at 0 is 0."""
    return fabs(p - y)


@mean_absolute_error.derivative
def _(p, y):
    return 1.0 if p > y else (-1.0 if p < y else 0.0)


@loss
def mean_absolute_percentage_error(p, y):
    """``100 |y - p| / max(|y|, 1e-7)``, as in Keras; the derivative at 0 is 0."""
    return 100.0 * fabs(p - y) / max(fabs(y), _CLIP)


@mean_absolute_percentage_error.derivative
def _(p, y):
    return (1.0 if p > y else (-1.0 if p < y else 0.0)) * 100.0 / max(fabs(y), _CLIP)


@loss
def mean_squared_logarithmic_error(p, y):
    """``(ln(1 + max(p, 1e-7)) - ln(1 + max(y, 1e-7)))^2``, as in Keras."""
    d = log1p(max(p, _CLIP)) - log1p(max(y, _CLIP))
    return d * d


@mean_squared_logarithmic_error.derivative
def _(p, y):
    q = max(p, _CLIP)
    return 0.0 if p < _CLIP else 2.0 * (log1p(q) - log1p(max(y, _CLIP))) / (1.0 + q)


@loss(delta=1.0)
def huber(p, y, h):
    """``d^2 / 2`` where ``|d| = |p - y| <= delta``, else ``delta (|d| - delta / 2)``. Huber 1964."""
    d = p - y
    return 0.5 * d * d if fabs(d) <= h.delta else h.delta * (fabs(d) - 0.5 * h.delta)


@huber.derivative
def _(p, y, h):
    d = p - y
    return min(max(d, -h.delta), h.delta)


@loss
def log_cosh(p, y):
    """``ln cosh(p - y)``, without overflow."""
    d = fabs(p - y)
    return d + log1p(exp(-2.0 * d)) - _LN_2


@log_cosh.derivative
def _(p, y):
    return tanh(p - y)


@loss(domain="positive")
def poisson(p, y):
    """``p - y ln(p + 1e-7)``, as in Keras; ``p`` is the rate."""
    return p - y * log(p + _CLIP)


@poisson.derivative
def _(p, y):
    return 1.0 - y / (p + _CLIP)


# ---------------------------------------------------------------------------------------------- probabilities


@loss
def binary_crossentropy_from_logits(p, y):
    """``-[y ln s(p) + (1 - y) ln(1 - s(p))]`` with the sigmoid ``s``, exact for every logit ``p``."""
    return max(p, 0.0) - p * y + log1p(exp(-fabs(p)))


@binary_crossentropy_from_logits.derivative
def _(p, y):
    return sigmoid(p) - y


@loss(domain="probability")
def binary_crossentropy(p, y):
    """``-[y ln p + (1 - y) ln(1 - p)]``, with ``p`` clipped to [1e-7, 1 - 1e-7]."""
    q = _probability(p)
    return -(y * log(q) + (1.0 - y) * log(1.0 - q))


@binary_crossentropy.derivative
def _(p, y):
    q = _probability(p)
    return (q - y) / (q * (1.0 - q))


def _balance(y, positive):
    """``positive`` and its complement as weights of the classes 1 and 0; a negative one weighs nothing."""
    return 1.0 if positive < 0.0 else y * positive + (1.0 - y) * (1.0 - positive)


@loss(domain="probability", gamma=2.0, alpha=-1.0)
def binary_focal_crossentropy(p, y, h):
    """``a (1 - p_t)^gamma`` times the binary cross-entropy, ``p_t = y p + (1 - y)(1 - p)``. Lin et al. 2017.

    ``a = y alpha + (1 - y)(1 - alpha)`` where ``alpha`` is not negative, else 1; ``p`` clipped to [1e-7, 1 - 1e-7].
    """
    q = _probability(p)
    rest = y * (1.0 - q) + (1.0 - y) * q
    entropy = -(y * log(q) + (1.0 - y) * log(1.0 - q))
    return _balance(y, h.alpha) * exp(h.gamma * log(rest)) * entropy


@binary_focal_crossentropy.derivative
def _(p, y, h):
    q = _probability(p)
    rest = y * (1.0 - q) + (1.0 - y) * q
    entropy = -(y * log(q) + (1.0 - y) * log(1.0 - q))
    slope = h.gamma * (1.0 - 2.0 * y) / rest * entropy + (q - y) / (q * (1.0 - q))
    return _balance(y, h.alpha) * exp(h.gamma * log(rest)) * slope


@loss(gamma=2.0, alpha=-1.0)
def binary_focal_crossentropy_from_logits(p, y, h):
    """:func:`binary_focal_crossentropy` of ``sigmoid(p)``, exact for every logit ``p``."""
    rest = y * sigmoid(-p) + (1.0 - y) * sigmoid(p)
    return _balance(y, h.alpha) * exp(h.gamma * log(max(rest, _TINY))) * (softplus(p) - p * y)


@binary_focal_crossentropy_from_logits.derivative
def _(p, y, h):
    s = sigmoid(p)
    rest = max(y * sigmoid(-p) + (1.0 - y) * s, _TINY)
    slope = h.gamma * (1.0 - 2.0 * y) * s * sigmoid(-p) / rest * (softplus(p) - p * y) + (s - y)
    return _balance(y, h.alpha) * exp(h.gamma * log(rest)) * slope


@loss(domain="probability", reduction="sum")
def categorical_crossentropy(p, y):
    """``-y ln p`` summed over the classes, with ``p`` clipped to [1e-7, 1 - 1e-7]."""
    return -y * log(_probability(p))


@categorical_crossentropy.derivative
def _(p, y):
    return -y / _probability(p)


@loss(reduction="sum")
def negative_log_likelihood(p, y):
    """``-y p`` summed over the classes; ``p`` are logarithms of probabilities."""
    return 0.0 if y == 0.0 and p < 0.0 else -y * p  # a class without mass costs nothing, at -inf too


@negative_log_likelihood.derivative
def _(p, y):
    return -y


@loss(domain="probability", reduction="sum")
def kl_divergence(p, y):
    """``y ln(y / p)`` summed over the classes, ``0 ln 0 = 0``; ``p`` clipped to at least 1e-7."""
    return y * (log(max(y, _TINY)) - log(max(p, _CLIP)))


@kl_divergence.derivative
def _(p, y):
    return -y / max(p, _CLIP)


@loss(domain="probability", reduction="sum")
def hellinger(p, y):
    """``(sqrt p - sqrt y)^2 / sqrt 2`` summed over the classes: the cost; ``p`` clipped to at least 1e-7."""
    d = sqrt(max(p, _CLIP)) - sqrt(max(y, 0.0))
    return _SQRT_HALF * d * d


@hellinger.derivative
def _(p, y):
    root = sqrt(max(p, _CLIP))
    return _SQRT_HALF * (root - sqrt(max(y, 0.0))) / root


# ---------------------------------------------------------------------------------------------------- margins


@loss
def perceptron(p, y):
    """``max(0, -y p)`` for ``y`` in {-1, 1}; at 0 the derivative is ``-y``, or weights of 0 would never move."""
    return max(-y * p, 0.0)


@perceptron.derivative
def _(p, y):
    return 0.0 if y * p > 0.0 else -y


@loss
def hinge(p, y):
    """``max(0, 1 - y p)`` for ``y`` in {-1, 1}; at the kink the derivative is ``-y``, as in scikit-learn."""
    return max(1.0 - y * p, 0.0)


@hinge.derivative
def _(p, y):
    return 0.0 if y * p > 1.0 else -y


@loss
def squared_hinge(p, y):
    """``max(0, 1 - y p)^2`` for ``y`` in {-1, 1}."""
    m = max(1.0 - y * p, 0.0)
    return m * m


@squared_hinge.derivative
def _(p, y):
    return -2.0 * y * max(1.0 - y * p, 0.0)
