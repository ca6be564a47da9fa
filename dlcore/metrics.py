"""Metrics that are measured inside the step, mini-batch by mini-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import losses
from .kernels import LossRule, find
from .kernels.names import unknown


@dataclass(frozen=True)
class Metric:
    """A metric of a model: ``kind`` is ``"categorical_accuracy"``, ``"binary_accuracy"`` or ``"elementwise"``."""

    name: str
    kind: str
    rule: LossRule | None = None
    threshold: float = 0.5


def CategoricalAccuracy() -> Metric:
    """The share of samples whose largest output is at the label."""
    return Metric("categorical_accuracy", "categorical_accuracy")


def SparseCategoricalAccuracy() -> Metric:
    """The same; the targets are class numbers."""
    return Metric("sparse_categorical_accuracy", "categorical_accuracy")


def BinaryAccuracy(threshold: float = 0.5) -> Metric:
    """The share of outputs where ``p > threshold`` agrees with the target."""
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold!r}")
    return Metric("binary_accuracy", "binary_accuracy", threshold=float(threshold))


def MeanSquaredError() -> Metric:
    """``mean (y - p)^2``"""
    return Metric("mean_squared_error", "elementwise", find("loss", "mean_squared_error"))


def MeanAbsoluteError() -> Metric:
    """``mean |y - p|``"""
    return Metric("mean_absolute_error", "elementwise", find("loss", "mean_absolute_error"))


_MAKERS = {
    "categorical_accuracy": CategoricalAccuracy,
    "sparse_categorical_accuracy": SparseCategoricalAccuracy,
    "binary_accuracy": BinaryAccuracy,
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
}


def get(metric: Any, loss: losses.Loss) -> Metric:
    """A :class:`Metric` from an instance, one of the functions above, or a name; "accuracy" follows the loss."""
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return get(metric(), loss)
    if metric in ("accuracy", "acc"):
        if loss.kind == "signed":  # the sign of the output is the class
            return Metric("accuracy", "binary_accuracy", threshold=0.0)
        if loss.kind == "elementwise":
            raise ValueError(f"metric 'accuracy' does not fit the loss {loss.name}; use 'mae' or 'mse'")
        return Metric("accuracy", f"{loss.kind}_accuracy")
    name = losses.ALIASES.get(metric, metric)
    if name in _MAKERS:
        return _MAKERS[name]()
    raise ValueError(unknown("metric", metric, {"accuracy", "mse", "mae", *_MAKERS}))
