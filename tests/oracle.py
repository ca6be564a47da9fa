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
}  # fmt: skip


def dense_forward(x, w, b, activation):
    """``y = g(x W + b)`` and ``z``."""
    z = x @ w + b
    return ACTIVATIONS[activation][0](z), z


def dense_backward(dy, x, w, z, activation):
    """``dz = dy g'(z)``; ``dx = dz W^T``, ``dW = x^T dz``, ``db = sum dz``."""
    dz = dy * ACTIVATIONS[activation][1](z)
    return dz @ w.T, x.T @ dz, dz.sum(axis=0)


# -------------------------------------------------------------------------------------------------- batch norm


def batch_norm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon):
    """``y``, batch mean, ``1/sqrt(var + eps)`` and the new running statistics (unbiased variance)."""
    m = x.shape[0]
    mean, var = x.mean(axis=0), x.var(axis=0)
    rstd = 1 / np.sqrt(var + x.dtype.type(epsilon))
    y = gamma * (x - mean) * rstd + beta
    keep, move = x.dtype.type(momentum), x.dtype.type(1 - momentum)
    unbiased = var * x.dtype.type(m / max(m - 1, 1))
    return y, mean, rstd, keep * running_mean + move * mean, keep * running_var + move * unbiased


def batch_norm_backward(dy, x, gamma, mean, rstd):
    """``dx``, ``dgamma``, ``dbeta``."""
    m = x.shape[0]
    xhat = (x - mean) * rstd
    dbeta, dgamma = dy.sum(axis=0), (dy * xhat).sum(axis=0)
    return gamma * rstd * (dy - dbeta / m - xhat * dgamma / m), dgamma, dbeta


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
}  # fmt: skip


def elementwise_loss(p, y, loss, weight):
    """Per-sample loss and the gradient of its mean over the batch."""
    value, derivative, reduction = LOSSES[loss]
    share = p.dtype.type(1 / p.shape[1] if reduction == "mean" else 1)
    per_sample = value(p, y).sum(axis=1) * share * weight
    return per_sample, derivative(p, y) * share * weight[:, None] / p.dtype.type(len(p))


# -------------------------------------------------------------------------------------------------- optimizers


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
