"""Optimizers that look at a tensor as a whole, in float64 NumPy: ``w`` is one tensor. See oracle.py."""

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
    v = square if t == 1 else h.beta_2 * s[1].flat[0] + (1 - h.beta_2) * square
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


LAYERWISE = {
    "lars": _lars, "lamb": _lamb, "novograd": _novograd, "fromage": _fromage, "normalized_sgd": _normalized_sgd,
    "sngm": _sngm, "wngrad": _wngrad,
}  # fmt: skip
