"""The smooth activations, each a scalar rule with its derivative; those of straight pieces are in piecewise.py.

``slope(z, y)`` may use the value ``y = g(z)`` that the forward pass kept; where it reads only ``y``, ``z`` is not
kept at all. At a kink the derivative is that of the left piece, as in PyTorch and TensorFlow. Where ``z`` is
multiplied by what goes to 0, it is held within +-1e4 first: beyond, the product is 0 in every dtype, and at infinity
it would be NaN.
"""

from .mathfn import erf, exp, expm1
from .mathfn import sigmoid as logistic
from .mathfn import softplus as log1p_exp
from .mathfn import tanh as tangent
from .rule import ALIASES, activation

_SQRT_HALF = 0.7071067811865476  # 1 / sqrt(2)
_GAUSSIAN = 0.3989422804014327  # 1 / sqrt(2 pi)
_ROOT = 0.7978845608028654  # sqrt(2 / pi)
_CUBIC = 0.044715
_SELU_ALPHA = 1.6732632423543772  # with the scale, the fixed point that gives mean 0 and variance 1
_SELU_SCALE = 1.0507009873554805
_FAR = 1e4
_HUGE = 1e30  # 1 is nothing beside it, and it is within float32


def _bounded(z):
    return min(max(z, -_FAR), _FAR)


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
def gelu(z):
    """``y = z Phi(z)`` with the normal distribution function. Hendrycks & Gimpel 2016."""
    return max(z, -_FAR) * (0.5 * (1.0 + erf(z * _SQRT_HALF)))


@gelu.derivative
def _(z, y):
    x = _bounded(z)
    return 0.5 * (1.0 + erf(x * _SQRT_HALF)) + x * (_GAUSSIAN * exp(-0.5 * x * x))


@activation
def gelu_tanh(z):
    """``y = z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))``: the approximation of Hendrycks & Gimpel 2016."""
    x = _bounded(z)
    return max(z, -_FAR) * (0.5 * (1.0 + tangent(_ROOT * (x + _CUBIC * x * x * x))))


@gelu_tanh.derivative
def _(z, y):
    x = _bounded(z)
    t = tangent(_ROOT * (x + _CUBIC * x * x * x))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (_ROOT * (1.0 + 3.0 * _CUBIC * x * x))


@activation(alpha=1.0)
def elu(z, h):
    """``y = z`` for ``z > 0``, else ``alpha (exp(z) - 1)``. Clevert, Unterthiner & Hochreiter 2016."""
    return z if z > 0.0 else h.alpha * expm1(min(z, 0.0))


@elu.derivative
def _(z, y, h):
    return 1.0 if z > 0.0 else y + h.alpha


@activation(alpha=_SELU_ALPHA, scale=_SELU_SCALE)
def selu(z, h):
    """``y = scale z`` for ``z > 0``, else ``scale alpha (exp(z) - 1)``. Klambauer et al. 2017.

    The defaults keep a mean of 0 and a variance of 1.
    """
    return h.scale * (z if z > 0.0 else h.alpha * expm1(min(z, 0.0)))


@selu.derivative
def _(z, y, h):
    return h.scale if y > 0.0 else y + h.scale * h.alpha


@activation(alpha=1.0)
def celu(z, h):
    """``y = z`` for ``z > 0``, else ``alpha (exp(z / alpha) - 1)``. Barron 2017."""
    return z if z > 0.0 else h.alpha * expm1(min(z, 0.0) / h.alpha)


@celu.derivative
def _(z, y, h):
    return 1.0 if z > 0.0 else exp(min(z, 0.0) / h.alpha)


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
    return max(z, -_FAR) * logistic(z)


@silu.derivative
def _(z, y):
    x = _bounded(z)
    s = logistic(x)
    return s * (1.0 + x * (1.0 - s))


def _tanh_of_softplus(z):
    """``tanh(log(1 + exp(z)))`` with one exponential, of a negative number."""
    u = exp(-abs(z))
    numerator = 1.0 + 2.0 * u if z > 0.0 else u * (u + 2.0)
    return numerator / (numerator + (2.0 * u * u if z > 0.0 else 2.0))


@activation
def mish(z):
    """``y = z tanh(softplus(z))``. Misra 2020."""
    return max(z, -_FAR) * _tanh_of_softplus(z)


@mish.derivative
def _(z, y):
    x = _bounded(z)
    t = _tanh_of_softplus(x)
    return t + x * (1.0 - t * t) * logistic(x)


@activation
def log_sigmoid(z):
    """``y = log sigmoid(z) = -softplus(-z)``."""
    return -log1p_exp(-z)


@log_sigmoid.derivative
def _(z, y):
    return logistic(-z)


@activation
def exponential(z):
    """``y = exp(z)``"""
    return exp(z)


@exponential.derivative
def _(z, y):
    return y


@activation
def tanh_shrink(z):
    """``y = z - tanh z``"""
    return z - tangent(z)


@tanh_shrink.derivative
def _(z, y):
    t = tangent(z)
    return t * t


@activation
def softsign(z):
    """``y = z / (1 + |z|)``. Bergstra et al. 2009."""
    x = min(max(z, -_HUGE), _HUGE)
    return x / (1.0 + abs(x))


@softsign.derivative
def _(z, y):
    return (1.0 - abs(y)) * (1.0 - abs(y))


ALIASES["activation"] |= {
    "identity": "linear", "swish": "silu", "exp": "exponential", "logsigmoid": "log_sigmoid",
    "tanhshrink": "tanh_shrink", "gelu_approximate": "gelu_tanh",
}  # fmt: skip
