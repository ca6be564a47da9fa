"""Learning rates that change inside the fused step: ``Adam(learning_rate=schedules.CosineDecay(0.001, 10_000))``.

Each takes the rate it begins with, and counts steps, or epochs with ``per="epoch"``. ``start`` is the count of the
first step or epoch: 0 as in Keras and PyTorch, 1 as in textbooks (``lr0 / (1 + decay * epoch)``). Calling a schedule
gives its rate, ``schedule(step)`` with steps (epochs) from 0.

A rate may also be changed by hand, ``optimizer.learning_rate = 1e-4``, and by the callbacks
:class:`~dlcore.callbacks.LearningRateScheduler` and :class:`~dlcore.callbacks.ReduceLROnPlateau`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from .kernels import ScheduleRule, find
from .kernels.schedules import piecewise


class LearningRateSchedule:
    """A schedule rule with its values: ``LearningRateSchedule("exponential", 0.1, decay=0.9, per="epoch")``.

    ``rule`` is a name or what ``@dlcore.kernels.schedule`` made, ``per`` is ``"step"`` or ``"epoch"``.

    >>> rate = LearningRateSchedule("inverse_time", 0.2, decay=1.0, per="epoch")
    >>> [round(rate(epoch), 4) for epoch in range(4)]
    [0.1, 0.0667, 0.05, 0.04]
    """

    def __init__(self, rule: Any, learning_rate: float, *, per: str = "step", **values: float) -> None:
        self.rule: ScheduleRule = find("schedule", rule)
        if per not in ("step", "epoch"):
            raise ValueError(f"per must be 'step' or 'epoch', got {per!r}")
        unknown = sorted(set(values) - set(self.rule.parameters))
        if unknown:
            known = ", ".join(self.rule.parameters) or "none"
            raise TypeError(f"schedule {self.rule.name} has no parameter {unknown[0]!r}; it has: {known}")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                raise ValueError(f"{name} must be a number, got {value!r}")
        self.learning_rate, self.per = float(learning_rate), per
        self.values = {**self.rule.parameters, **{name: float(value) for name, value in values.items()}}

    def __call__(self, step: float) -> float:
        """The rate at ``step`` (or epoch), counted from 0."""
        return float(self.rule.variant(**self.values).at(self.learning_rate, float(step) + 1.0))

    def config(self) -> dict[str, Any]:
        """The arguments that make the schedule again, as JSON."""
        return {"rule": self.rule.name, "learning_rate": self.learning_rate, "per": self.per, **self.values}

    def __repr__(self) -> str:
        values = "".join(f", {name}={value:g}" for name, value in self.values.items())
        return f"LearningRateSchedule({self.rule.name!r}, {self.learning_rate:g}, per={self.per!r}{values})"


def from_config(config: dict[str, Any]) -> LearningRateSchedule:
    """The schedule that ``schedule.config()`` described."""
    rule = str(config["rule"])
    if rule.startswith("piecewise_constant_"):
        piecewise(int(rule.rpartition("_")[2]))  # those are made when they are asked for
    return LearningRateSchedule(**config)


def _at_least(name: str, value: float, low: float, *, strict: bool = True) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value > low or (value == low and not strict)):
        raise ValueError(f"{name} must be {'above' if strict else 'at least'} {low:g}, got {value!r}")
    return float(value)


class ExponentialDecay(LearningRateSchedule):
    """``lr0 * decay_rate^(step / decay_steps)``; with ``staircase`` the exponent is rounded down: step decay."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float = 1,
        decay_rate: float = 0.95,
        staircase: bool = False,
        *,
        per: str = "step",
        start: int = 0,
    ) -> None:
        every = _at_least("decay_steps", decay_steps, 0.0)
        values = {"every": every, "decay": decay_rate, "staircase": int(staircase), "start": start}
        super().__init__("exponential", initial_learning_rate, per=per, **values)


class InverseTimeDecay(LearningRateSchedule):
    """``lr0 / (1 + decay_rate * step / decay_steps)``; with ``staircase`` the quotient is rounded down."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float = 1,
        decay_rate: float = 1.0,
        staircase: bool = False,
        *,
        per: str = "step",
        start: int = 0,
    ) -> None:
        every = _at_least("decay_steps", decay_steps, 0.0)
        values = {"every": every, "decay": decay_rate, "staircase": int(staircase), "start": start}
        super().__init__("inverse_time", initial_learning_rate, per=per, **values)


class InverseSquareRootDecay(LearningRateSchedule):
    """``lr0 * k / sqrt(t)``, ``t`` the number of the step or epoch from 1."""

    def __init__(self, initial_learning_rate: float, k: float = 1.0, *, per: str = "step") -> None:
        super().__init__("inverse_square_root", initial_learning_rate, per=per, k=_at_least("k", k, 0.0))


class PolynomialDecay(LearningRateSchedule):
    """``(lr0 - end) (1 - step / decay_steps)^power + end``, then ``end``; ``cycle`` begins again."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        *,
        per: str = "step",
    ) -> None:
        total = _at_least("decay_steps", decay_steps, 0.0)
        values = {"total": total, "end": end_learning_rate, "power": power, "cycle": int(cycle)}
        super().__init__("polynomial", initial_learning_rate, per=per, **values)


class CosineDecay(LearningRateSchedule):
    """Half a cosine from ``lr0`` to ``alpha lr0`` over ``decay_steps``. Loshchilov & Hutter 2017.

    With ``warmup_target`` first linear from ``lr0`` to that over ``warmup_steps``, and the cosine from there.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        alpha: float = 0.0,
        warmup_target: float | None = None,
        warmup_steps: float = 0,
        *,
        per: str = "step",
    ) -> None:
        total = _at_least("decay_steps", decay_steps, 0.0)
        warmup = _at_least("warmup_steps", warmup_steps, 0.0, strict=False) if warmup_target is not None else 0.0
        peak = initial_learning_rate if warmup_target is None else warmup_target
        values = {"total": total, "alpha": alpha, "warmup": warmup, "begin": initial_learning_rate}
        super().__init__("cosine", peak, per=per, **values)


class CosineDecayRestarts(LearningRateSchedule):
    """Cosine decay over ``first_decay_steps``, then over ``t_mul`` times as many from ``m_mul`` times the rate, ..."""

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: float,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        *,
        per: str = "step",
    ) -> None:
        first = _at_least("first_decay_steps", first_decay_steps, 0.0)
        t_mul = _at_least("t_mul", t_mul, 1.0, strict=False)
        values = {"first": first, "t_mul": t_mul, "m_mul": m_mul, "alpha": alpha}
        super().__init__("cosine_restarts", initial_learning_rate, per=per, **values)


class OneCycle(LearningRateSchedule):
    """Up to ``max_learning_rate`` over a share of ``total_steps``, then down. Smith 2018; PyTorch's ``OneCycleLR``."""

    def __init__(
        self,
        max_learning_rate: float,
        total_steps: float,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        *,
        per: str = "step",
    ) -> None:
        total = _at_least("total_steps", total_steps, 1.0)
        if not 0.0 < pct_start < 1.0 or pct_start * total <= 1.0:
            raise ValueError(
                f"pct_start must leave more than one of {total_steps} steps to both parts, got {pct_start!r}"
            )
        begin = 1.0 / _at_least("div_factor", div_factor, 0.0)
        end = begin / _at_least("final_div_factor", final_div_factor, 0.0)
        super().__init__("one_cycle", max_learning_rate, per=per, total=total, share=pct_start, begin=begin, end=end)


class WarmUp(LearningRateSchedule):
    """Linear up to ``learning_rate``, reached at step ``warmup_steps``, then constant. Goyal et al. 2017."""

    def __init__(self, learning_rate: float, warmup_steps: float, *, per: str = "step") -> None:
        super().__init__("warm_up", learning_rate, per=per, warmup=_at_least("warmup_steps", warmup_steps, 0.0))


class Cyclic(LearningRateSchedule):
    """Linear from ``base`` to ``max`` and back, ``step_size`` each way; ``shrink`` lowers every cycle. Smith 2017."""

    def __init__(
        self,
        base_learning_rate: float,
        max_learning_rate: float,
        step_size: float,
        shrink: float = 1.0,
        *,
        per: str = "step",
    ) -> None:
        half = _at_least("step_size", step_size, 0.0)
        values = {"base": base_learning_rate, "half": half, "shrink": shrink}
        super().__init__("triangular", max_learning_rate, per=per, **values)


class PiecewiseConstantDecay(LearningRateSchedule):
    """``values[0]`` until step ``boundaries[0]`` has passed, then ``values[1]``, and so on: a schedule by hand.

    >>> rate = PiecewiseConstantDecay([10, 20], [0.1, 0.01, 0.001])
    >>> rate(10), rate(11), rate(21)
    (0.1, 0.01, 0.001)
    """

    def __init__(self, boundaries: Sequence[float], values: Sequence[float], *, per: str = "step") -> None:
        if len(values) != len(boundaries) + 1 or not boundaries:
            raise ValueError(
                f"values must be one more than boundaries, which must not be empty; got {len(values)} and "
                f"{len(boundaries)}"
            )
        if any(b <= a for a, b in itertools.pairwise(boundaries)):
            raise ValueError(f"boundaries must ascend, got {list(boundaries)}")
        numbers = {f"b{k}": b for k, b in enumerate(boundaries, 1)} | {f"v{k}": v for k, v in enumerate(values[1:], 1)}
        super().__init__(piecewise(len(boundaries)), values[0], per=per, **numbers)
