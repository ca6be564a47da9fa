"""The formulas in float64 NumPy, readable as a textbook: what every kernel is compared with.

Nothing here uses dlcore. Shapes: ``x (m, k)``, ``W (k, n)``, ``b (n,)``, ``y (m, n)``. The same functions run in
float32 to say how large the rounding error of plain NumPy is (see tolerance.py).
"""

from __future__ import annotations

import math
import types

import numpy as np
from oracle_optimizers import DECOUPLED, OPTIMIZERS

# ------------------------------------------------------------------------------------------------- activations


def _erf(z):
    return np.vectorize(math.erf, otypes=[np.float64])(z).astype(z.dtype)


def _logistic(z):
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e)).astype(z.dtype)


def _phi(z):
    return (np.exp(-z * z / 2) / math.sqrt(2 * math.pi)).astype(z.dtype)


def _one(z):
    return np.ones_like(z)


def _inner(z):
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def _inside(z, low, high):
    return ((z > low) & (z < high)).astype(z.dtype)


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # of SELU, from its paper

# name -> (value, derivative), both of z
ACTIVATIONS = {
    "linear": (lambda z: z, _one),
    "sigmoid": (_logistic, lambda z: _logistic(z) * (1 - _logistic(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype)),
    "leaky_relu": (lambda z: np.where(z > 0, z, z * z.dtype.type(0.01)), lambda z: np.where(z > 0, 1, 0.01).astype(z.dtype)),
    "gelu": (lambda z: z * ((1 + _erf(z / math.sqrt(2))) / 2), lambda z: (1 + _erf(z / math.sqrt(2))) / 2 + z * _phi(z)),
    "elu": (lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))), lambda z: np.where(z > 0, 1, np.exp(np.minimum(z, 0)))),
    "softplus": (lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), _logistic),
    "softsign": (lambda z: z / (1 + np.abs(z)), lambda z: 1 / (1 + np.abs(z)) ** 2),
    "silu": (lambda z: z * _logistic(z), lambda z: _logistic(z) * (1 + z * (1 - _logistic(z)))),
    "gelu_tanh": (lambda z: z * ((1 + np.tanh(_inner(z))) / 2),
        lambda z: (1 + np.tanh(_inner(z))) / 2
        + z / 2 * (1 - np.tanh(_inner(z)) ** 2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)),
    "selu": (lambda z: _SCALE * np.where(z > 0, z, _ALPHA * np.expm1(np.minimum(z, 0))),
        lambda z: _SCALE * np.where(z > 0, _one(z), _ALPHA * np.exp(np.minimum(z, 0)))),
    "celu": (lambda z: np.maximum(z, 0) + np.minimum(0, np.expm1(np.minimum(z, 0))), lambda z: np.exp(np.minimum(z, 0))),
    "mish": (lambda z: z * np.tanh(np.log1p(np.exp(z))),
        lambda z: np.tanh(np.log1p(np.exp(z))) + z * (1 - np.tanh(np.log1p(np.exp(z))) ** 2) * _logistic(z)),
    "log_sigmoid": (lambda z: np.minimum(z, 0) - np.log1p(np.exp(-np.abs(z))), lambda z: _logistic(-z)),
    "exponential": (np.exp, np.exp),
    "tanh_shrink": (lambda z: z - np.tanh(z), lambda z: np.tanh(z) ** 2),
    "step": (lambda z: (z > 0).astype(z.dtype), np.zeros_like),
    "relu6": (lambda z: np.clip(z, 0, 6), lambda z: _inside(z, 0, 6)),
    "hard_tanh": (lambda z: np.clip(z, -1, 1), lambda z: _inside(z, -1, 1)),
    "hard_sigmoid": (lambda z: np.clip(z + 3, 0, 6) / 6, lambda z: _inside(z, -3, 3) / 6),
    "hard_silu": (lambda z: z * np.clip(z + 3, 0, 6) / 6,
        lambda z: np.where(z <= -3, 0 * z, np.where(z < 3, (2 * z + 3) / 6, _one(z)))),
    "soft_shrink": (lambda z: np.sign(z) * np.maximum(np.abs(z) - z.dtype.type(0.5), 0), lambda z: 1 - _inside(z, -0.5, 0.5)),
    "hard_shrink": (lambda z: np.where(np.abs(z) > 0.5, z, 0 * z), lambda z: 1 - _inside(z, -0.5, 0.5)),
    "threshold": (lambda z: np.where(z > 1, z, 0 * z), lambda z: (z > 1).astype(z.dtype)),
}  # fmt: skip


def prelu_forward(z, alpha):
    """``max(0, z) + alpha min(0, z)``"""
    return np.maximum(z, 0) + alpha * np.minimum(z, 0)


def prelu_backward(dy, z, alpha):
    """``dz``, ``dalpha``."""
    return dy * np.where(z > 0, 1, alpha), (dy * np.minimum(z, 0)).sum(axis=0)


def dense_forward(x, w, b, activation):
    """``y = g(x W + b)`` and ``z``."""
    z = x @ w + b
    return ACTIVATIONS[activation][0](z), z


def dense_backward(dy, x, w, z, activation):
    """``dz = dy g'(z)``; ``dx = dz W^T``, ``dW = x^T dz``, ``db = sum dz``."""
    dz = dy * ACTIVATIONS[activation][1](z)
    return dz @ w.T, x.T @ dz, dz.sum(axis=0)


# -------------------------------------------------------------------------------------------------- batch norm


def _of_channels(x, *values):
    """Figures of channels, or of ``(m, channels)``, with the axes of ``x (m, channels, *spatial)``."""
    return [v.reshape(*v.shape[:-1], v.shape[-1], *[1] * (x.ndim - 2)) for v in values]


def _but_channels(x):
    return (0, *range(2, x.ndim))


def batch_norm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon):
    """``y``, batch mean, ``1/sqrt(var + eps)`` and the new running statistics (unbiased variance)."""
    m = x.size // x.shape[1]
    mean, var = x.mean(axis=_but_channels(x)), x.var(axis=_but_channels(x))
    rstd = 1 / np.sqrt(var + x.dtype.type(epsilon))
    g, b, centre, scale = _of_channels(x, gamma, beta, mean, rstd)
    y = g * (x - centre) * scale + b
    keep, move = x.dtype.type(momentum), x.dtype.type(1 - momentum)
    unbiased = var * x.dtype.type(m / max(m - 1, 1))
    return y, mean, rstd, keep * running_mean + move * mean, keep * running_var + move * unbiased


def batch_norm_inference(x, gamma, beta, running_mean, running_var, epsilon):
    """``gamma (x - running_mean) / sqrt(running_var + eps) + beta``"""
    g, b, mean, var = _of_channels(x, gamma, beta, running_mean, running_var)
    return g * (x - mean) / np.sqrt(var + x.dtype.type(epsilon)) + b


def batch_norm_backward(dy, x, gamma, mean, rstd):
    """``dx``, ``dgamma``, ``dbeta``."""
    m = x.size // x.shape[1]
    g, centre, scale = _of_channels(x, gamma, mean, rstd)
    xhat = (x - centre) * scale
    dbeta, dgamma = dy.sum(axis=_but_channels(x)), (dy * xhat).sum(axis=_but_channels(x))
    level, slope = _of_channels(x, dbeta / m, dgamma / m)
    return g * scale * (dy - level - xhat * slope), dgamma, dbeta


# -------------------------------------------------------------------------------------------------- group norm


def group_norm_forward(x, gamma, beta, groups, epsilon):
    """``y`` and, of each group of channels of each sample, the mean and ``1/sqrt(var + eps)``, ``(m, groups)``."""
    lines = x.reshape(len(x), groups, -1)
    mean, var = lines.mean(axis=2), lines.var(axis=2)
    rstd = 1 / np.sqrt(var + x.dtype.type(epsilon))
    xhat = ((lines - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    g, b = _of_channels(x, gamma, beta)
    return g * xhat + b, mean, rstd


def group_norm_backward(dy, x, gamma, mean, rstd):
    """``dx``, ``dgamma``, ``dbeta``."""
    lines = x.reshape(*mean.shape, -1)
    xhat, (g,) = (lines - mean[..., None]) * rstd[..., None], _of_channels(x, gamma)
    h = (dy * g).reshape(lines.shape)
    level, slope = (a.mean(axis=2, keepdims=True) for a in (h, h * xhat))
    dx = (rstd[..., None] * (h - level - xhat * slope)).reshape(x.shape)
    return dx, (dy * xhat.reshape(x.shape)).sum(axis=_but_channels(x)), dy.sum(axis=_but_channels(x))


# -------------------------------------------------------------------------------------------------- layer norm


def layer_norm_forward(x, gamma, beta, epsilon):
    """``y`` and, of each row, the mean and ``1/sqrt(var + eps)``."""
    mean, var = x.mean(axis=1), x.var(axis=1)
    rstd = 1 / np.sqrt(var + x.dtype.type(epsilon))
    return gamma * (x - mean[:, None]) * rstd[:, None] + beta, mean, rstd


def layer_norm_backward(dy, x, gamma, mean, rstd):
    """``dx``, ``dgamma``, ``dbeta``."""
    xhat, g = (x - mean[:, None]) * rstd[:, None], dy * gamma
    level, slope = (a.mean(axis=1, keepdims=True) for a in (g, g * xhat))
    return rstd[:, None] * (g - level - xhat * slope), (dy * xhat).sum(axis=0), dy.sum(axis=0)


# ------------------------------------------------------------------------------------------------------ losses


def softmax(z):
    """Row by row."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_backward(dy, y):
    """``y (dy - sum(dy y))``"""
    return y * (dy - (dy * y).sum(axis=1, keepdims=True))


def log_softmax(z):
    """Row by row."""
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def log_softmax_backward(dy, y):
    """``dy - exp(y) sum(dy)``"""
    return dy - np.exp(y) * dy.sum(axis=1, keepdims=True)


def softmax_cross_entropy(z, target, weight):
    """Per-sample loss and the gradient of its mean; ``target (m, n)``."""
    peak = z.max(axis=1, keepdims=True)
    log_p = z - peak - np.log(np.exp(z - peak).sum(axis=1, keepdims=True))
    loss = -(target * log_p).sum(axis=1) * weight
    mass = target.sum(axis=1, keepdims=True)
    return loss, (softmax(z) * mass - target) * weight[:, None] / len(z)


def _clipped(p):
    return np.clip(p, p.dtype.type(1e-7), p.dtype.type(1 - 1e-7))


# name -> (value of each element, derivative in p, reduction over the elements of a sample)
LOSSES = {
    "mean_squared_error": (lambda p, y: (p - y) ** 2, lambda p, y: 2 * (p - y), "mean"),
    "mean_absolute_error": (lambda p, y: np.abs(p - y), lambda p, y: np.sign(p - y), "mean"),
    "binary_crossentropy_from_logits": (
        lambda p, y: np.maximum(p, 0) - p * y + np.log1p(np.exp(-np.abs(p))), lambda p, y: _logistic(p) - y, "mean"),
    "binary_crossentropy": (
        lambda p, y: -(y * np.log(_clipped(p)) + (1 - y) * np.log(1 - _clipped(p))),
        lambda p, y: (_clipped(p) - y) / (_clipped(p) * (1 - _clipped(p))), "mean"),
    "categorical_crossentropy": (lambda p, y: -y * np.log(_clipped(p)), lambda p, y: -y / _clipped(p), "sum"),
    "half_squared_error": (lambda p, y: (p - y) ** 2 / 2, lambda p, y: p - y, "sum"),
    "mean_absolute_percentage_error": (
        lambda p, y: 100 * np.abs((y - p) / np.maximum(np.abs(y), y.dtype.type(1e-7))),
        lambda p, y: 100 * np.sign(p - y) / np.maximum(np.abs(y), y.dtype.type(1e-7)), "mean"),
    "mean_squared_logarithmic_error": (
        lambda p, y: (np.log1p(_positive(p)) - np.log1p(_positive(y))) ** 2,
        lambda p, y: np.where(p < 1e-7, 0, 2 * (np.log1p(_positive(p)) - np.log1p(_positive(y))) / (1 + _positive(p))), "mean"),
    "huber": (lambda p, y: np.where(np.abs(p - y) <= 1, (p - y) ** 2 / 2, np.abs(p - y) - p.dtype.type(0.5)),
        lambda p, y: np.clip(p - y, -1, 1), "mean"),
    "log_cosh": (lambda p, y: np.logaddexp(p - y, y - p) - np.log(p.dtype.type(2)), lambda p, y: np.tanh(p - y), "mean"),
    "poisson": (lambda p, y: p - y * np.log(p + p.dtype.type(1e-7)), lambda p, y: 1 - y / (p + p.dtype.type(1e-7)), "mean"),
    "binary_focal_crossentropy": (
        lambda p, y: (1 - _truth(_clipped(p), y)) ** 2 * _entropy(_clipped(p), y),
        lambda p, y: _focal_slope(_clipped(p), y), "mean"),
    "binary_focal_crossentropy_from_logits": (
        lambda p, y: (1 - _truth(_logistic(p), y)) ** 2 * _entropy(_logistic(p), y),
        lambda p, y: _focal_slope(_logistic(p), y) * _logistic(p) * _logistic(-p), "mean"),
    "negative_log_likelihood": (lambda p, y: -y * p, lambda p, y: -y, "sum"),
    "kl_divergence": (
        lambda p, y: np.where(y > 0, y * np.log(np.where(y > 0, y, 1) / _positive(p)), 0), lambda p, y: -y / _positive(p), "sum"),
    "hellinger": (lambda p, y: (np.sqrt(p) - np.sqrt(y)) ** 2 / np.sqrt(p.dtype.type(2)),
        lambda p, y: (1 - np.sqrt(y / p)) / np.sqrt(p.dtype.type(2)), "sum"),
    "perceptron": (lambda p, y: np.maximum(0, -y * p), lambda p, y: np.where(y * p > 0, 0, -y), "mean"),
    "hinge": (lambda p, y: np.maximum(0, 1 - y * p), lambda p, y: np.where(y * p > 1, 0, -y), "mean"),
    "squared_hinge": (lambda p, y: np.maximum(0, 1 - y * p) ** 2, lambda p, y: -2 * y * np.maximum(0, 1 - y * p), "mean"),
}  # fmt: skip


def cosine_similarity(p, y, weight):
    """``-p y / (|p| |y|)`` of each row, and the gradient of its mean over the batch."""
    lengths, others = (np.sqrt((a * a).sum(axis=1, keepdims=True)) for a in (p, y))
    cosine = (p * y).sum(axis=1, keepdims=True) / (lengths * others)
    slope = cosine * p / lengths**2 - y / (lengths * others)
    return -cosine[:, 0] * weight, slope * weight[:, None] / p.dtype.type(len(p))


def categorical_hinge(p, y, weight):
    """``max(0, 1 + max_j (1 - y_j) p_j - sum_j y_j p_j)``"""
    others = (1 - y) * p
    margin = 1 + others.max(axis=1) - (y * p).sum(axis=1)
    worst = np.eye(p.shape[1], dtype=p.dtype)[others.argmax(axis=1)]
    slope = np.where(margin[:, None] < 0, 0, worst * (1 - y) - y)
    return np.maximum(margin, 0) * weight, slope * weight[:, None] / p.dtype.type(len(p))


def hellinger_distance(p, y, weight):
    """``|sqrt p - sqrt y| / sqrt 2``"""
    d = np.sqrt(p) - np.sqrt(y)
    distance = np.sqrt((d * d).sum(axis=1) / 2)
    return distance * weight, d / (4 * distance[:, None] * np.sqrt(p)) * weight[:, None] / p.dtype.type(len(p))


def _positive(p):
    return np.maximum(p, p.dtype.type(1e-7))


def _truth(p, y):
    return y * p + (1 - y) * (1 - p)


def _entropy(p, y):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def _focal_slope(p, y):
    rest = 1 - _truth(p, y)
    return rest**2 * (p - y) / (p * (1 - p)) + 2 * rest * (1 - 2 * y) * _entropy(p, y)


def elementwise_loss(p, y, loss, weight):
    """Per-sample loss and the gradient of its mean over the batch."""
    value, derivative, reduction = LOSSES[loss]
    share = p.dtype.type(1 / p.shape[1] if reduction == "mean" else 1)
    per_sample = value(p, y).sum(axis=1) * share * weight
    return per_sample, derivative(p, y) * share * weight[:, None] / p.dtype.type(len(p))


# -------------------------------------------------------------------------------------------------- optimizers


def optimizer_state(rule, shape, dtype):
    """Zeros for the slots of ``rule``, and for its factors: those of the rows and of the columns of a tensor."""
    shapes = [shape] * len(rule.slots)
    if rule.factors:
        shapes += [(math.prod(shape[:-1]),), shape[-1:]]
    return [np.zeros(s, dtype) for s in shapes]


def optimizer_step(name, w, g, slots, t, h, *, weight_decay=0.0, clip_norm=0.0):
    """One step with clipping by the global norm and weight decay, L2 or decoupled."""
    norm = np.sqrt((g.astype(np.float64) ** 2).sum())
    if clip_norm and norm > clip_norm:
        g = g * g.dtype.type(clip_norm / norm)
    if name in DECOUPLED:
        w = w * w.dtype.type(1 - h["learning_rate"] * weight_decay)
    else:
        g = g + w.dtype.type(weight_decay) * w
    return OPTIMIZERS[name](w, g, slots, t, types.SimpleNamespace(**h))


# ----------------------------------------------------------------------------------------------------- dropout


def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on arrays of uint32, in uint64 arithmetic."""
    c = [np.asarray(v, np.uint64) for v in (c0, c1, c2, c3)]
    k0, k1 = np.uint64(k0), np.uint64(k1)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k0, p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ k1, p0 & low]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c


def dropout_mask(rows, columns, rate, seed, step, layer):
    """True where an element is kept: word ``column % 4`` of counter ``(column // 4, row, step, layer)``."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    words = philox(column // 4, row, np.full_like(row, step), np.full_like(row, layer), seed & 0xFFFFFFFF, seed >> 32)
    word = np.select([column % 4 == k for k in range(4)], words)
    return word >= np.uint64(int(rate * 2**32))
