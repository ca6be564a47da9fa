"""Optimizers that look at a tensor as a whole, in float64 NumPy: ``w`` is one tensor. See oracle.py.

The slots of factored ones are a vector for the rows of a matrix and one for its columns; a vector is one row.
"""

from __future__ import annotations

import numpy as np


def _norm(a):
    return np.sqrt((a * a).sum())


def _trust(a, b):
    return a / b if a > 0 and b > 0 else a.dtype.type(1)


def _lars(w, g, s, t, h):
    a, b = _norm(w), _norm(g)
    ratio = h.trust * a / (b + h.decay * a + h.epsilon) if a > 0 and b > 0 else 1
    v = h.beta * s[0] + h.learning_rate * ratio * (g + h.decay * w)
    return w - v, [v]


def _lamb(w, g, s, t, h):
    m = h.beta_1 * s[0] + (1 - h.beta_1) * g
    v = h.beta_2 * s[1] + (1 - h.beta_2) * g**2
    r = m / (1 - h.beta_1**t) / (np.sqrt(v / (1 - h.beta_2**t)) + h.epsilon) + h.decay * w
    return w - h.learning_rate * _trust(_norm(w), _norm(r)) * r, [m, v]


def _novograd(w, g, s, t, h):
    square = (g * g).sum()
    beta_2, rest = map(w.dtype.type, (h.beta_2, 1 - h.beta_2))  # NumPy 1 would go on in float64
    v = square if t == 1 else beta_2 * s[1].flat[0] + rest * square
    m = h.beta_1 * s[0] + (g / (np.sqrt(v) + h.epsilon) + h.decay * w)
    return w - h.learning_rate * m, [m, np.full_like(w, v)]


def _fromage(w, g, s, t, h):
    lr = w.dtype.type(h.learning_rate)
    return (w - lr * _trust(_norm(w), _norm(g)) * g) / np.sqrt(1 + lr * lr), s


def _normalized_sgd(w, g, s, t, h):
    return w - h.learning_rate * g / (_norm(g) + h.epsilon), s


def _sngm(w, g, s, t, h):
    v = h.beta * s[0] + (g / _norm(g) if _norm(g) > 0 else g)
    return w - h.learning_rate * v, [v]


def _wngrad(w, g, s, t, h):
    before = w.dtype.type(1) if t == 1 else s[0].flat[0]
    b = before + (g * g).sum() / before
    return w - h.learning_rate / b * g, [np.full_like(w, b)]


def _adafactor(w, g, s, t, h):
    """Algorithm 4 of Shazeer & Stern 2018: V = R C / (1^T R) with the sums R and C; means differ from them by n, by m."""
    matrix, kept = np.atleast_2d(g), w.dtype.type(1.0 - float(t) ** -h.decay)
    square = matrix**2 + w.dtype.type(h.epsilon_1)
    n, m = matrix.shape
    rows = kept * (m * s[0]) + (1 - kept) * square.sum(1)
    columns = kept * (n * s[1]) + (1 - kept) * square.sum(0)
    u = (matrix / np.sqrt(np.outer(rows, columns) / rows.sum())).reshape(w.shape)
    rate = w.dtype.type(min(h.learning_rate, 1 / np.sqrt(t)) * max(h.epsilon_2, np.sqrt((w * w).mean())))
    return w - rate * u / max(1, np.sqrt((u * u).mean()) / h.clip_threshold), [rows / m, columns / n]


def _sm3(w, g, s, t, h):
    """SM3-II of Anil et al. 2019, its cover the rows and the columns, entry by entry."""
    matrix = np.atleast_2d(g)
    v, step = np.zeros_like(matrix), np.zeros_like(matrix)
    for i, j in np.ndindex(matrix.shape):
        v[i, j] = min(s[0][i], s[1][j]) + matrix[i, j] ** 2
        step[i, j] = matrix[i, j] / np.sqrt(v[i, j]) if v[i, j] > 0 else 0
    return w - h.learning_rate * step.reshape(w.shape), [v.max(1), v.max(0)]


LAYERWISE = {
    "lars": _lars, "lamb": _lamb, "novograd": _novograd, "fromage": _fromage, "normalized_sgd": _normalized_sgd,
    "sngm": _sngm, "wngrad": _wngrad, "adafactor": _adafactor, "sm3": _sm3,
}  # fmt: skip
