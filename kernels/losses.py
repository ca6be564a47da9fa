"""The elementwise losses, each a scalar rule ``L(p, y)`` with its derivative in ``p``.

Softmax cross-entropy couples the elements of a row and is an instruction of its own (``softmax_cross_entropy``).
"""

from .mathfn import exp, fabs, log, log1p, sigmoid
from .rule import loss

_CLIP = 1e-7  # probabilities are kept this far from 0 and 1, as in Keras


@loss
def mean_squared_error(p, y):
    """``(y - p)^2``"""
    return (p - y) * (p - y)


@mean_squared_error.derivative
def _(p, y):
    return 2.0 * (p - y)


@loss
def mean_absolute_error(p, y):
    """``|y - p|``; the derivative at 0 is 0."""
    return fabs(p - y)


@mean_absolute_error.derivative
def _(p, y):
    return 1.0 if p > y else (-1.0 if p < y else 0.0)


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
    q = min(max(p, _CLIP), 1.0 - _CLIP)
    return -(y * log(q) + (1.0 - y) * log(1.0 - q))


@binary_crossentropy.derivative
def _(p, y):
    q = min(max(p, _CLIP), 1.0 - _CLIP)
    return (q - y) / (q * (1.0 - q))


@loss(domain="probability", reduction="sum")
def categorical_crossentropy(p, y):
    """``-y ln p`` summed over the classes, with ``p`` clipped to [1e-7, 1 - 1e-7]."""
    return -y * log(min(max(p, _CLIP), 1.0 - _CLIP))


@categorical_crossentropy.derivative
def _(p, y):
    return -y / min(max(p, _CLIP), 1.0 - _CLIP)
