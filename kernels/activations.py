"""The activations, each a scalar rule with its derivative; in the order of the specification.

``slope(z, y)`` may use the value ``y = g(z)`` that the forward pass kept; where it reads only ``y``, ``z`` is not
kept at all. At a kink the derivative is that of the left piece (0 for ReLU at 0), as in PyTorch and TensorFlow.
"""

from .mathfn import erf, exp, expm1
from .mathfn import sigmoid as logistic
from .mathfn import softplus as log1p_exp
from .mathfn import tanh as tangent
from .rule import activation

_SQRT_HALF = 0.7071067811865476  # 1 / sqrt(2)
_GAUSSIAN = 0.3989422804014327  # 1 / sqrt(2 pi)


@activation
def linear(z):
    """``y = z``"""
    return z


@linear.derivative
def _(z, y):
    return 1.0


@activation
def sigmoid(z):
    """``y = 1 / (1 + exp(-z))``, without overflow."""
    return logistic(z)


@sigmoid.derivative
def _(z, y):
    return y * (1.0 - y)


@activation
def tanh(z):
    """``y = tanh z``"""
    return tangent(z)


@tanh.derivative
def _(z, y):
    return 1.0 - y * y


@activation
def relu(z):
    """``y = max(0, z)``; NaN stays NaN. Nair & Hinton 2010."""
    return 0.0 if z <= 0.0 else z


@relu.derivative
def _(z, y):
    return 1.0 if y > 0.0 else 0.0 * y  # 0 * NaN: a NaN that came in goes out


@activation(alpha=0.01)
def leaky_relu(z, h):
    """``y = z`` for ``z > 0``, else ``alpha z``. Maas, Hannun & Ng 2013."""
    return z if z > 0.0 else h.alpha * z


@leaky_relu.derivative
def _(z, y, h):
    return 1.0 if z > 0.0 else h.alpha


@activation
def gelu(z):
    """``y = z Phi(z)`` with the normal distribution function. Hendrycks & Gimpel 2016."""
    return z * (0.5 * (1.0 + erf(z * _SQRT_HALF)))


@gelu.derivative
def _(z, y):
    return 0.5 * (1.0 + erf(z * _SQRT_HALF)) + z * (_GAUSSIAN * exp(-0.5 * z * z))


@activation(alpha=1.0)
def elu(z, h):
    """``y = z`` for ``z > 0``, else ``alpha (exp(z) - 1)``. Clevert, Unterthiner & Hochreiter 2016."""
    return z if z > 0.0 else h.alpha * expm1(min(z, 0.0))


@elu.derivative
def _(z, y, h):
    return 1.0 if z > 0.0 else y + h.alpha


@activation
def softplus(z):
    """``y = log(1 + exp(z))``, without overflow."""
    return log1p_exp(z)


@softplus.derivative
def _(z, y):
    return logistic(z)


@activation
def silu(z):
    """``y = z sigmoid(z)``. Elfwing, Uchibe & Doya 2018; Ramachandran, Zoph & Le 2017 (swish)."""
    return z * logistic(z)


@silu.derivative
def _(z, y):
    s = logistic(z)
    return s * (1.0 + z * (1.0 - s))


@activation
def softsign(z):
    """``y = z / (1 + |z|)``. Bergstra et al. 2009."""
    return z / (1.0 + abs(z))


@softsign.derivative
def _(z, y):
    return (1.0 - abs(y)) * (1.0 - abs(y))
