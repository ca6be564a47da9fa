"""The activations of straight pieces: the step, ReLU and its kin, hard versions of smooth ones, shrinkages.

At a kink the derivative is PyTorch's: that of the flat piece where there is one.
"""

from .rule import ALIASES, activation

_SIXTH = 0.16666666666666666
_THIRD = 0.3333333333333333


@activation
def step(z):
    """``y = 1`` for ``z > 0``, else 0; the derivative is 0. Rosenblatt 1958."""
    return 1.0 if z > 0.0 else (0.0 if z <= 0.0 else z)


@step.derivative
def _(z, y):
    return 0.0


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
def relu6(z):
    """``y = min(max(0, z), 6)``. Krizhevsky 2010."""
    return 0.0 if z <= 0.0 else (6.0 if z >= 6.0 else z)


@relu6.derivative
def _(z, y):
    return (1.0 if y > 0.0 and y < 6.0 else 0.0) + 0.0 * y


@activation
def hard_tanh(z):
    """``y = min(max(-1, z), 1)``. Collobert 2004."""
    return -1.0 if z <= -1.0 else (1.0 if z >= 1.0 else z)


@hard_tanh.derivative
def _(z, y):
    return (1.0 if y > -1.0 and y < 1.0 else 0.0) + 0.0 * y


@activation
def hard_sigmoid(z):
    """``y = min(max(0, z + 3), 6) / 6``, of slope 1/6, as in PyTorch and Keras 3; Keras 2 had the slope 1/5."""
    return 0.0 if z <= -3.0 else (1.0 if z >= 3.0 else (z + 3.0) * _SIXTH)


@hard_sigmoid.derivative
def _(z, y):
    return _SIXTH if z > -3.0 and z < 3.0 else 0.0 * y


@activation
def hard_silu(z):
    """``y = z min(max(0, z + 3), 6) / 6``. Howard et al. 2019 (hard swish)."""
    return 0.0 if z <= -3.0 else (z if z >= 3.0 else z * ((z + 3.0) * _SIXTH))


@hard_silu.derivative
def _(z, y):
    return 0.0 if z <= -3.0 else (1.0 if z >= 3.0 else z * _THIRD + 0.5)


@activation(threshold=0.5)
def soft_shrink(z, h):
    """``y = z - threshold`` above it, ``z + threshold`` below its negative, else 0. Donoho 1995."""
    return z - h.threshold if z > h.threshold else (z + h.threshold if z < -h.threshold else 0.0 * z)


@soft_shrink.derivative
def _(z, y, h):
    return 0.0 if z <= h.threshold and z >= -h.threshold else 1.0


@activation(threshold=0.5)
def hard_shrink(z, h):
    """``y = z`` where ``|z| > threshold``, else 0."""
    return 0.0 if z <= h.threshold and z >= -h.threshold else z


@hard_shrink.derivative
def _(z, y, h):
    return 0.0 if z <= h.threshold and z >= -h.threshold else 1.0


@activation(threshold=1.0, value=0.0)
def threshold(z, h):
    """``y = z`` above ``threshold``, else ``value``."""
    return h.value if z <= h.threshold else z


@threshold.derivative
def _(z, y, h):
    return 0.0 if z <= h.threshold else 1.0


ALIASES["activation"] |= {
    "hard_swish": "hard_silu", "hardswish": "hard_silu", "hardsigmoid": "hard_sigmoid", "hardtanh": "hard_tanh",
    "softshrink": "soft_shrink", "hardshrink": "hard_shrink",
}  # fmt: skip
