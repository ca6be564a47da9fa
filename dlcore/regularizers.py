"""Penalties on weights: added to the reported loss, and their gradients to those of the weights.

Both happen inside the fused step, before gradients are clipped. The loss of training and of evaluation holds the
penalty, as in Keras.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .kernels.names import unknown


@dataclass(frozen=True)
class Regularizer:
    """The penalty ``sum(l1 |w| + l2 w^2)``; its gradient is ``l1 sign(w) + 2 l2 w``."""

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {value!r}")

    def config(self) -> dict[str, float]:
        """What :func:`get` makes the regularizer of, as JSON."""
        return {"l1": self.l1, "l2": self.l2}


def L1(l1: float = 0.01) -> Regularizer:
    """``l1 sum |w|``. Tibshirani 1996."""
    return Regularizer(l1=l1)


def L2(l2: float = 0.01) -> Regularizer:
    """``l2 sum w^2``; the gradient is ``2 l2 w``. Hoerl & Kennard 1970."""
    return Regularizer(l2=l2)


def L1L2(l1: float = 0.0, l2: float = 0.0) -> Regularizer:
    """``l1 sum |w| + l2 sum w^2``. Zou & Hastie 2005."""
    return Regularizer(l1, l2)


_BY_NAME = {"l1": L1, "L1": L1, "l2": L2, "L2": L2, "l1_l2": lambda: Regularizer(0.01, 0.01), "L1L2": L1L2}


def get(regularizer: Any) -> Regularizer | None:
    """A :class:`Regularizer` from an instance, one of the functions above, a name or its config; None for none."""
    if regularizer is None or isinstance(regularizer, Regularizer):
        return regularizer
    if isinstance(regularizer, dict):
        return Regularizer(**regularizer)
    if isinstance(regularizer, str) and regularizer in _BY_NAME:
        return _BY_NAME[regularizer]()
    if regularizer in (L1, L2, L1L2):
        return get(regularizer())
    raise ValueError(unknown("regularizer", regularizer, _BY_NAME))
