"""What runs along rows on the CPU: gather, softmax, losses, metrics.

Memory contract: outputs are overwritten. Gradients of losses are those of the mean over the batch, 1/m included.
Sums along a row are kept in float64.
"""

from __future__ import annotations

import math

from ..mathfn import exp
from ..native import call_loss


def gather_rows(start, source, order, out):
    """``out[r] = source[order[start + r]]`` for matrices."""
    for r in range(out.shape[0]):
        row = out[r]
        line = source[order[start + r]]
        for j in range(row.size):
            row[j] = line[j]


def gather_labels(start, source, order, out):
    """``out[r] = source[order[start + r]]`` for vectors."""
    for r in range(out.size):
        out[r] = source[order[start + r]]


gather_values = gather_labels


def softmax_forward(z, y):
    """``y = exp(z - max z) / sum exp(z - max z)`` for each row."""
    for i in range(z.shape[0]):
        _exponentials(z[i], y[i])
        _scale(y[i], y.dtype.type(1.0 / _sum(y[i])))


def softmax_backward(dy, y, dz):
    """``dz = y * (dy - sum(dy * y))`` for each row."""
    for i in range(y.shape[0]):
        s = 0.0
        for j in range(y.shape[1]):
            s += float(dy[i, j]) * float(y[i, j])
        shift = y.dtype.type(s)
        for j in range(y.shape[1]):
            dz[i, j] = y[i, j] * (dy[i, j] - shift)


def softmax_cross_entropy(rows, z, labels, weight, loss, dz):
    """``loss = log sum exp z - z[label]``, ``dz = weight (softmax z - onehot) / m``.

    The exponentials are taken of all rows at once: rows of ten classes are too short for full vectors.
    """
    m = z.shape[0]
    number = z.dtype.type
    if dz.size > 0:
        for i in range(m):
            row = z[i]
            out = dz[i]
            peak = _peak(row)
            loss[i] = peak - row[labels[i]]
            for j in range(row.size):
                out[j] = row[j] - peak
        flat = dz.reshape(dz.size)
        for k in range(flat.size):
            flat[k] = exp(flat[k])
    for i in range(m):
        row = z[i]
        w = 1.0
        if weight.size > 0:
            w = float(weight[i])
        if dz.size > 0:
            out = dz[i]
            total = _sum(out)
            _scale(out, number(w / (total * rows)))
            out[labels[i]] -= number(w / rows)
            loss[i] = number(w * (math.log(total) + float(loss[i])))
        else:
            peak = _peak(row)
            total = _sum_of_exponentials(row, peak)
            loss[i] = number(w * (math.log(total) + float(peak) - float(row[labels[i]])))


def softmax_cross_entropy_dense(rows, z, target, weight, loss, dz):
    """``loss = sum_j t_j (log sum exp z - z_j)``, ``dz = weight (softmax(z) sum t - t) / m``."""
    m, n = z.shape
    for i in range(m):
        row = z[i]
        peak = _peak(row)
        mass = 0.0
        dot = 0.0
        for j in range(n):
            t = float(target[i, j])
            mass += t
            if t != 0.0:  # a class without mass costs nothing, whatever its logit
                dot += t * (float(row[j]) - float(peak))
        w = 1.0
        if weight.size > 0:
            w = float(weight[i])
        if dz.size > 0:
            _exponentials(row, dz[i])
            total = _sum(dz[i])
            _scale(dz[i], z.dtype.type(mass * w / (total * rows)))
            share = z.dtype.type(w / rows)
            for j in range(n):
                dz[i, j] -= share * target[i, j]
        else:
            total = _sum_of_exponentials(row, peak)
        loss[i] = z.dtype.type(w * (mass * math.log(total) - dot))


def elementwise_loss(rule, rows, p, target, weight, loss, dp, mean):
    """Per row the sum or mean of ``L(p, t)``; ``dp = weight L'(p, t) / m``, divided by n too for the mean."""
    m, n = p.shape
    share = 1.0
    if mean != 0.0:
        share = 1.0 / n
    for i in range(m):
        w = share
        if weight.size > 0:
            w *= float(weight[i])
        gradient = 0
        if dp.size > 0:
            gradient = dp[i].ctypes.data
        loss[i] = w * call_loss(rule, p[i].ctypes.data, target[i].ctypes.data, gradient, n, w / rows)


def categorical_accuracy(score, labels, hit):
    """``hit = 1`` where the first maximum of the scores is at the label."""
    for i in range(score.shape[0]):
        hit[i] = 1 if _argmax(score[i]) == labels[i] else 0


def categorical_accuracy_dense(score, target, hit):
    """``hit = 1`` where the scores and the targets have their first maximum at the same place."""
    for i in range(score.shape[0]):
        hit[i] = 1 if _argmax(score[i]) == _argmax(target[i]) else 0


def binary_accuracy(score, target, hit, threshold):
    """The share of the columns in which ``score > threshold`` agrees with ``target > 1/2``."""
    n = score.shape[1]
    for i in range(score.shape[0]):
        count = 0
        for j in range(n):
            count += (score[i, j] > threshold) == (target[i, j] > 0.5)
        hit[i] = count / n


def record(index, value, history):
    """``history[index] = mean(value)``, summed in float64."""
    s = 0.0
    for i in range(value.size):
        s += float(value[i])
    history[index] = s / value.size


def _peak(row):
    peak = row[0]
    for j in range(row.size):
        if row[j] > peak:
            peak = row[j]
    return peak


def _argmax(row):
    best = 0
    for j in range(row.size):
        if row[j] > row[best]:
            best = j
    return best


def _exponentials(row, out):
    peak = _peak(row)
    for j in range(row.size):
        out[j] = exp(row[j] - peak)


def _sum(row):
    s0 = 0.0
    s1 = 0.0
    j = 0
    while j + 2 <= row.size:
        s0 += float(row[j])
        s1 += float(row[j + 1])
        j += 2
    if j < row.size:
        s0 += float(row[j])
    return s0 + s1


def _sum_of_exponentials(row, peak):
    s = 0.0
    for j in range(row.size):
        s += float(exp(row[j] - peak))
    return s


def _scale(row, factor):
    for j in range(row.size):
        row[j] *= factor
