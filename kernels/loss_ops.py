"""The losses as functions on arrays: the loss of each sample, and the gradient of its mean over the batch."""

from __future__ import annotations

from typing import Any

from .ops import _backend, _float, _labels, _matrix, _run
from .rule import find


def softmax_cross_entropy(
    z: Any, target: Any, *, sample_weight: Any = None, label_smoothing: float = 0.0
) -> tuple[Any, Any]:
    """``(loss (batch,), dz (batch, classes))`` from logits in one pass; ``dz`` is of the mean over the batch.

    ``target`` holds class numbers ``(batch,)`` of an integer dtype, or probabilities ``(batch, classes)``. With
    ``label_smoothing`` they become ``(1 - label_smoothing) target + label_smoothing / classes``. Szegedy et al. 2016.
    """
    backend = _backend(z=z, target=target, sample_weight=sample_weight)
    z = _float("z", z, backend)
    _matrix("z", z)
    loss, dz = backend.empty(z.shape[:1], z.dtype), backend.empty(z.shape, z.dtype)
    weight = None if sample_weight is None else _float("sample_weight", sample_weight, backend)
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing!r}")
    target = backend.array("target", target)
    labels = target.ndim == 1
    target = _labels(target, z.shape[1], backend) if labels else _float("target", target, backend)
    if label_smoothing:
        smooth = backend.empty(z.shape, z.dtype)
        scalars = (1.0 - label_smoothing, label_smoothing / z.shape[1])
        _run(backend, "smooth_labels" if labels else "smooth_targets", [target, smooth], None, scalars)
        target, labels = smooth, False
    op = "softmax_cross_entropy" if labels else "softmax_cross_entropy_dense"
    _run(backend, op, [z, target, weight, loss, dz])
    return loss, dz


def elementwise_loss(p: Any, target: Any, loss: Any, *, sample_weight: Any = None) -> tuple[Any, Any]:
    """``(loss (batch,), dp (batch, features))`` of a loss rule; ``dp`` is of the mean over the batch."""
    rule = find("loss", loss)
    return _loss("elementwise_loss", p, target, sample_weight, rule, (float(rule.reduction == "mean"),))


def cosine_similarity(p: Any, target: Any, *, sample_weight: Any = None) -> tuple[Any, Any]:
    """``-p t / (|p| |t|)`` of each row, and ``dp (batch, features)`` of its mean over the batch.

    Squared norms are held at 1e-12 or more, as in Keras: a row of zeros costs 0.
    """
    return _loss("cosine_similarity", p, target, sample_weight)


def categorical_hinge(p: Any, target: Any, *, sample_weight: Any = None) -> tuple[Any, Any]:
    """``max(0, 1 + max_j (1 - t_j) p_j - sum_j t_j p_j)`` of each row, and the gradient of its mean."""
    return _loss("categorical_hinge", p, target, sample_weight)


def hellinger_distance(p: Any, target: Any, *, sample_weight: Any = None) -> tuple[Any, Any]:
    """``|sqrt p - sqrt t| / sqrt 2`` of rows of probabilities, and the gradient of its mean.

    >>> import numpy as np
    >>> float(hellinger_distance(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0].round(3)[0])
    1.0
    """
    return _loss("hellinger_distance", p, target, sample_weight)


def _loss(
    op: str, p: Any, target: Any, sample_weight: Any, rule: Any = None, scalars: tuple[float, ...] = ()
) -> tuple[Any, Any]:
    backend = _backend(p=p, target=target, sample_weight=sample_weight)
    p, target = _float("p", p, backend), _float("target", target, backend)
    _matrix("p", p)
    weight = None if sample_weight is None else _float("sample_weight", sample_weight, backend)
    value, dp = backend.empty(p.shape[:1], p.dtype), backend.empty(p.shape, p.dtype)
    _run(backend, op, [p, target, weight, value, dp], rule, scalars)
    return value, dp
