"""Constraints of weights, which act after each update, inside the fused step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .kernels.names import unknown


@dataclass(frozen=True)
class Constraint:
    """Each column of a kernel, the weights of one output, scaled to a norm in ``[minimum, maximum]``.

    A column whose norm lies there is left as it is, bit for bit, and so is one of zeros. With ``non_negative`` negative
    weights become 0 instead.
    """

    minimum: float = 0.0
    maximum: float = math.inf
    non_negative: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.minimum <= self.maximum:
            raise ValueError(
                f"expected 0 <= minimum <= maximum, got minimum {self.minimum!r}, maximum {self.maximum!r}"
            )

    def emit(self, builder: Any, weight: Any) -> None:
        """Append the instruction on ``weight``."""
        if self.non_negative:
            builder.emit("constrain_non_negative", weight)
        else:
            builder.emit("constrain_norm", weight, minimum=self.minimum, maximum=self.maximum)

    def config(self) -> dict[str, Any]:
        """What :func:`get` makes the constraint of, as JSON; a bound that is infinite is left out."""
        values = {"minimum": self.minimum, "maximum": self.maximum, "non_negative": self.non_negative}
        return {name: value for name, value in values.items() if value != math.inf}


def _norm(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
    return float(value)


def MaxNorm(max_value: float = 2.0) -> Constraint:
    """Columns of a norm of at most ``max_value``. Srivastava et al. 2014."""
    return Constraint(maximum=_norm("max_value", max_value))


def MinMaxNorm(min_value: float = 0.0, max_value: float = 1.0) -> Constraint:
    """Columns of a norm from ``min_value`` to ``max_value``."""
    return Constraint(_norm("min_value", min_value), _norm("max_value", max_value))


def UnitNorm() -> Constraint:
    """Columns of norm 1."""
    return Constraint(1.0, 1.0)


def NonNeg() -> Constraint:
    """No negative weights."""
    return Constraint(non_negative=True)


_BY_NAME: dict[str, Callable[[], Constraint]] = {
    "max_norm": MaxNorm, "MaxNorm": MaxNorm, "min_max_norm": MinMaxNorm, "MinMaxNorm": MinMaxNorm,
    "unit_norm": UnitNorm, "UnitNorm": UnitNorm, "non_neg": NonNeg, "NonNeg": NonNeg,
}  # fmt: skip


def get(constraint: Any) -> Constraint | None:
    """A :class:`Constraint` from an instance, one of the functions above, a name or its config; None for none."""
    if constraint is None or isinstance(constraint, Constraint):
        return constraint
    if isinstance(constraint, dict):
        return Constraint(**constraint)
    if isinstance(constraint, str) and constraint in _BY_NAME:
        return _BY_NAME[constraint]()
    if constraint in (MaxNorm, MinMaxNorm, UnitNorm, NonNeg):
        return get(constraint())
    raise ValueError(unknown("constraint", constraint, _BY_NAME))
