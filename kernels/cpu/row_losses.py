"""Log-softmax, the losses that couple the elements of a row, and label smoothing on the CPU.

Memory contract: outputs are overwritten. Gradients of losses are those of the mean over the batch, 1/m included.
Sums along a row are kept in float64.
"""

from __future__ import annotations

import math

from ..mathfn import exp
from .rowwise import _peak, _sum_of_exponentials

_LEAST = 1e-12  # of a squared norm that is divided by, as in Keras
_CLIP = 1e-7  # of a probability whose root is divided by


def log_softmax_forward(z, y):
    """``y = z - max z - log sum exp(z - max z)`` for each row."""
    for i in range(z.shape[0]):
        row = z[i]
        peak = _peak(row)
        shift = y.dtype.type(math.log(_sum_of_exponentials(row, peak)))
        out = y[i]
        for j in range(row.size):
            out[j] = (row[j] - peak) - shift


def log_softmax_backward(dy, y, dz):
    """``dz = dy - exp(y) * sum(dy)`` for each row."""
    for i in range(y.shape[0]):
        s = 0.0
        for j in range(y.shape[1]):
            s += float(dy[i, j])
        total = y.dtype.type(s)
        for j in range(y.shape[1]):
            dz[i, j] = dy[i, j] - exp(y[i, j]) * total


def smooth_targets(target, out, keep, share):
    """``out = keep * target + share``."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = keep * target[i, j] + share


def smooth_labels(labels, out, keep, share):
    """``out = keep * onehot + share``."""
    for i in range(out.shape[0]):
        row = out[i]
        for j in range(row.size):
            row[j] = share
        row[labels[i]] = keep + share


def cosine_similarity(rows, p, target, weight, loss, dp):
    """``loss = -p t / (|p| |t|)``, squared norms at least 1e-12; ``dp = weight (c p / |p|^2 - t / (|p| |t|)) / m``."""
    for i in range(p.shape[0]):
        dot = 0.0
        squares = 0.0
        others = 0.0
        for j in range(p.shape[1]):
            a = float(p[i, j])
            b = float(target[i, j])
            dot += a * b
            squares += a * a
            others += b * b
        along = 0.0
        if not squares < _LEAST:  # below, the norm is held, and only the product depends on p
            along = dot / (squares * math.sqrt(squares * max(others, _LEAST)))
        across = 1.0 / math.sqrt(max(squares, _LEAST) * max(others, _LEAST))
        w = 1.0
        if weight.size > 0:
            w = float(weight[i])
        loss[i] = -w * dot * across
        if dp.size > 0:
            for j in range(p.shape[1]):
                dp[i, j] = w / rows * (along * float(p[i, j]) - across * float(target[i, j]))


def categorical_hinge(rows, p, target, weight, loss, dp):
    """``loss = max(0, 1 + max_j (1 - t_j) p_j - sum_j t_j p_j)``; the first maximum takes the gradient."""
    for i in range(p.shape[0]):
        margin = 1.0
        worst = 0
        largest = (1.0 - float(target[i, 0])) * float(p[i, 0])
        for j in range(p.shape[1]):
            t = float(target[i, j])
            q = float(p[i, j])
            margin -= t * q
            if (1.0 - t) * q > largest:
                largest = (1.0 - t) * q
                worst = j
        margin += largest
        w = 1.0
        if weight.size > 0:
            w = float(weight[i])
        share = w / rows
        if margin < 0.0:
            margin = 0.0
            share = 0.0
        loss[i] = w * margin
        if dp.size > 0:
            for j in range(p.shape[1]):
                dp[i, j] = -share * float(target[i, j])
            dp[i, worst] += share * (1.0 - float(target[i, worst]))


def hellinger_distance(rows, p, target, weight, loss, dp):
    """``loss = |sqrt p - sqrt t| / sqrt 2``, ``p`` at least 1e-7; the gradient at distance 0 is 0."""
    for i in range(p.shape[0]):
        s = 0.0
        for j in range(p.shape[1]):
            d = math.sqrt(max(float(p[i, j]), _CLIP)) - math.sqrt(max(float(target[i, j]), 0.0))
            s += d * d
        w = 1.0
        if weight.size > 0:
            w = float(weight[i])
        loss[i] = w * math.sqrt(0.5 * s)
        if dp.size > 0:
            share = 0.0
            if s != 0.0:
                share = w / (rows * math.sqrt(8.0 * s))
            for j in range(p.shape[1]):
                root = math.sqrt(max(float(p[i, j]), _CLIP))
                dp[i, j] = share * (root - math.sqrt(max(float(target[i, j]), 0.0))) / root
