"""Losses as a user names them, and how each becomes an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .kernels import LossRule, find


@dataclass(frozen=True)
class Loss:
    """A loss of a model: ``kind`` is ``"categorical"``, ``"binary"`` or ``"elementwise"`` (any loss rule).

    ``from_logits`` says that the model's output is not yet a probability. A softmax or sigmoid that ends the model
    is absorbed into the loss in any case, which is exact where probabilities would have to be clipped.
    """

    name: str
    kind: str
    rule: LossRule | None = None
    from_logits: bool = False


def CategoricalCrossentropy(from_logits: bool = False) -> Loss:
    """``-sum_j y_j ln p_j``; targets ``(batch, classes)``, or class numbers ``(batch,)``."""
    return Loss("categorical_crossentropy", "categorical", find("loss", "categorical_crossentropy"), bool(from_logits))


def SparseCategoricalCrossentropy(from_logits: bool = False) -> Loss:
    """``-ln p_y``; targets are class numbers ``(batch,)``."""
    rule = find("loss", "categorical_crossentropy")
    return Loss("sparse_categorical_crossentropy", "categorical", rule, bool(from_logits))


def BinaryCrossentropy(from_logits: bool = False) -> Loss:
    """``-[y ln p + (1 - y) ln(1 - p)]``, mean over the outputs; targets ``(batch,)`` or ``(batch, outputs)``."""
    return Loss("binary_crossentropy", "binary", find("loss", "binary_crossentropy"), bool(from_logits))


def MeanSquaredError() -> Loss:
    """``mean_j (y_j - p_j)^2``"""
    return Loss("mean_squared_error", "elementwise", find("loss", "mean_squared_error"))


def MeanAbsoluteError() -> Loss:
    """``mean_j |y_j - p_j|``"""
    return Loss("mean_absolute_error", "elementwise", find("loss", "mean_absolute_error"))


_MAKERS = {
    "categorical_crossentropy": CategoricalCrossentropy,
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "binary_crossentropy": BinaryCrossentropy,
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
}
ALIASES = {"mse": "mean_squared_error", "mae": "mean_absolute_error"}


def get(loss: Any) -> Loss:
    """A :class:`Loss` from an instance, one of the functions above, a loss rule, or a name."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        loss = ALIASES.get(loss, loss)
        if loss in _MAKERS:
            return _MAKERS[loss]()
    elif callable(loss):
        made = loss()
        if isinstance(made, Loss):
            return made
        raise TypeError(f"loss() returned {type(made).__name__}; expected a Loss")
    rule = find("loss", loss)
    return Loss(rule.name, "elementwise", rule)
