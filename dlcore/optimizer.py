"""What every optimizer is: a rule, the values of its parameters, and what surrounds it in the fused step."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from .kernels import OptimizerRule, ScheduleRule, find, loss_scale
from .kernels.optimizer_rule import CONFIGURE
from .kernels.wrappers import Wrapper, ema, wrapped
from .schedules import LearningRateSchedule

_CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")
_OPTIONS = ("skip_nonfinite", "loss_scale", "maximize", "gradient_accumulation_steps")
_EMA = ("use_ema", "ema_momentum", "ema_overwrite_frequency")


def number(name: str, value: Any, *, low: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not value >= low or value == float("inf"):
        raise ValueError(f"{name} must be finite and at least {low:g}, got {value!r}")
    return float(value)


def _limit(name: str, value: Any) -> float | None:
    limit = None if value is None else number(name, value)
    if limit == 0.0:
        raise ValueError(f"{name} must be positive or None, got 0.0")
    return limit


def _scale(value: Any) -> float | str | None:
    if value is None or value == "dynamic":
        return value
    if isinstance(value, str) or number("loss_scale", value) == 0.0:
        raise ValueError(f"loss_scale must be a positive number, 'dynamic' or None, got {value!r}")
    return float(value)


def count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def share(name: str, value: Any) -> float:
    if number(name, value) > 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


@functools.cache
def _composed(
    rule: OptimizerRule, limited: bool, maximize: bool, schedule: ScheduleRule | None, wrappers: tuple[Wrapper, ...]
) -> OptimizerRule:
    """The rule with clipping by value, climbing, a schedule and wrappers; the same object for the same parts."""
    changed = limited or maximize or schedule is not None
    rule = replace(rule, limited=limited, maximize=maximize, schedule=schedule) if changed else rule
    return wrapped(rule, wrappers)


class Optimizer:
    """A rule with values: ``Optimizer("adam", learning_rate=1e-3, weight_decay=0.01, global_clipnorm=1.0)``.

    ``rule`` is a name or what :func:`dlcore.optimizer` made. ``weight_decay`` adds ``weight_decay * w`` to the
    gradient, or, where the rule is decoupled (AdamW), takes ``learning_rate * weight_decay * w`` from the weights.
    The learning rate may be a number or a schedule (see :mod:`dlcore.schedules`). Values may be changed between epochs
    or steps: ``optimizer.learning_rate = 1e-4``.

    Gradients are clipped by one of ``clipvalue`` (each element to at most this), ``clipnorm`` (each tensor to at most
    this norm) and ``global_clipnorm`` (all of them together). ``skip_nonfinite`` leaves parameters and state as they
    are after a step whose gradient is not finite. ``loss_scale`` does that too, and computes the gradient of the loss
    times a number, which the update divides again: for products in float16. ``"dynamic"`` halves it then, and doubles
    it after 2000 steps without.

    ``maximize`` climbs: the step of ``-g``.

    ``use_ema`` keeps an exponential moving average of the weights, ``m average + (1 - m) w`` with ``m = ema_momentum``;
    every ``ema_overwrite_frequency`` updates the weights become it (None: never, at the end of ``fit`` neither).
    ``with model.averaged_weights():`` evaluates, predicts and saves with it.

    ``gradient_accumulation_steps`` makes one update of the mean of the gradients of so many mini-batches (one that is
    not finite and skipped does not count); schedules, and ``h.t`` of a rule, count updates. Batch norm sees each
    mini-batch by itself.

    All of it happens inside the fused step, and nothing of it is computed that is not asked for.
    """

    _changes = 0  # how often attributes were set

    def __init__(
        self,
        rule: Any,
        *,
        weight_decay: float = 0.0,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        skip_nonfinite: bool = False,
        loss_scale: float | str | None = None,
        maximize: bool = False,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        gradient_accumulation_steps: int | None = None,
        **values: Any,
    ) -> None:
        self._found = found = find("optimizer", rule)
        unknown = sorted(set(values) - set(found.parameters))
        if unknown:
            known = ", ".join((*found.parameters, "weight_decay", *_CLIPS, *_OPTIONS, *_EMA))
            raise TypeError(f"{found.name} has no parameter {unknown[0]!r}; it has: {known}")
        rate = values.get(found.rate)
        self.schedule = rate if isinstance(rate, LearningRateSchedule) else None
        if self.schedule is not None:
            values = {**values, found.rate: self.schedule.learning_rate}
        self.values = {name: number(name, values.get(name, v)) for name, v in found.parameters.items()}
        for name, value in self.values.items():
            if name.startswith("beta") and value >= 1.0:
                raise ValueError(f"{name} must be below 1, got {value!r}")
        self.weight_decay = number("weight_decay", weight_decay)
        self.clipvalue, self.clipnorm = _limit("clipvalue", clipvalue), _limit("clipnorm", clipnorm)
        self.global_clipnorm = _limit("global_clipnorm", global_clipnorm)
        if sum(limit is not None for limit in (self.clipvalue, self.clipnorm, self.global_clipnorm)) > 1:
            raise ValueError(f"at most one of {', '.join(_CLIPS)} may be given")
        if found.by_tensor and self.clipnorm is not None:
            why = "scales by norms of each tensor itself" if found.sums else "keeps state of rows and columns"
            raise ValueError(f"{found.name} {why}; clipnorm does not go with it, clipvalue and global_clipnorm do")
        self.skip_nonfinite, self.loss_scale = flag("skip_nonfinite", skip_nonfinite), _scale(loss_scale)
        self.maximize = flag("maximize", maximize)
        steps = gradient_accumulation_steps
        self.gradient_accumulation_steps = None if steps is None else count("gradient_accumulation_steps", steps)
        self.sharpness: tuple[float, float, float] | None = None  # see SAM
        self.wrappers: tuple[Wrapper, ...] = ()
        self.use_ema = flag("use_ema", use_ema)
        if self.use_ema:
            every = 0 if ema_overwrite_frequency is None else count("ema_overwrite_frequency", ema_overwrite_frequency)
            momentum = share("ema_momentum", ema_momentum)
            self._add(ema, {"ema_momentum": momentum, "ema_overwrite_frequency": every})
        elif (ema_momentum, ema_overwrite_frequency) != (0.99, None):
            raise ValueError("ema_momentum and ema_overwrite_frequency need use_ema=True")
        self.steps_per_epoch = 1.0  # updates, what a schedule by epochs counts; fit sets it
        _ = self.rule  # raises where names of parameters collide

    @property
    def rule(self) -> OptimizerRule:
        """The rule with all that is compiled into its update; the same object as long as that is the same."""
        schedule = self.schedule.rule if self.schedule else None
        return _composed(self._found, self.clipvalue is not None, self.maximize, schedule, self.wrappers)

    def _add(self, wrapper: Wrapper, values: dict[str, float]) -> None:
        """Let ``wrapper`` follow; the moving average stays the last, so that it is one of the weights as they end."""
        self.wrappers = tuple(sorted((*self.wrappers, wrapper), key=lambda w: w is ema))
        known = {**self.values, **{name: float(value) for name, value in values.items()}}
        self.values = {name: known[name] for owner in (self._found, *self.wrappers) for name in owner.parameters}

    @property
    def average(self) -> int | None:
        """Which slot holds averaged weights, those of the last wrapper; None where there are none."""
        return len(self.rule.slots) - len(self.wrappers[-1].slots) if self.wrappers else None

    @property
    def learning_rate(self) -> float:
        """The learning rate; where there is a schedule, the one that it starts from. Setting it ends the schedule."""
        return self.values[self._found.rate]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.schedule = value if isinstance(value, LearningRateSchedule) else None
        self.values[self._found.rate] = number("learning_rate", getattr(value, "learning_rate", value))

    def rate_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 1."""
        if self.schedule is None:
            return self.learning_rate
        return self.schedule(step - 1 if self.schedule.per == "step" else math.ceil(step / self.steps_per_epoch) - 1)

    def count_epochs(self, batches: int) -> None:
        """An epoch has ``batches`` mini-batches."""
        self.steps_per_epoch = batches / (self.gradient_accumulation_steps or 1)

    @property
    def surroundings(self) -> tuple[Any, ...]:
        """Equal for optimizers of one rule whose programs are the same: what they emit around the update."""
        checked = self.loss_scale, self.skip_nonfinite
        return self.clipped, checked, self.gradient_accumulation_steps or 1, self.sharpness

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        super().__setattr__("_changes", self._changes + 1)

    @property
    def settings(self) -> tuple[Any, ...]:
        """Others once rule, surroundings or values are; quicker to compare than to make those again.

        Attributes are many and seldom set: how often is counted, whatever they are set to.
        """
        schedule = self.schedule
        changing = () if schedule is None else (*vars(schedule).values(), *schedule.values.values())
        return self._changes, *self.values.values(), *changing

    @property
    def clipped(self) -> str:
        """``"global"`` or ``"tensor"`` where gradients are scaled to a norm, else empty."""
        return "global" if self.global_clipnorm is not None else "" if self.clipnorm is None else "tensor"

    @property
    def scaler(self) -> np.ndarray | None:
        """What the scale of the loss begins with; None where gradients are not checked."""
        if self.loss_scale == "dynamic":
            return loss_scale.scaler()
        if self.loss_scale is not None or self.skip_nonfinite:
            return loss_scale.scaler(float(self.loss_scale or 1.0), 0)
        return None

    def hyper(self) -> np.ndarray:
        """The values as the kernels read them, in the order of ``rule.hyper``; clipping norm 0: none."""
        values = [*self.values.values(), self.weight_decay]
        if self.clipvalue is not None:
            values.append(self.clipvalue)
        if self.schedule is not None:
            values += [self.steps_per_epoch if self.schedule.per == "epoch" else 1, *self.schedule.values.values()]
        return np.array([*values, self.clipnorm or self.global_clipnorm or 0.0], np.float64)

    def config(self) -> dict[str, Any]:
        """The arguments that make the optimizer again, as JSON."""
        config = {"rule": self.rule.name, "weight_decay": self.weight_decay, "global_clipnorm": self.global_clipnorm}
        for name in ("clipvalue", "clipnorm", *_OPTIONS):
            if getattr(self, name):
                config[name] = getattr(self, name)
        config |= {name: self.values[name] for name in self._found.parameters}
        if self.schedule:
            config["schedule"] = self.schedule.config()
        if self.sharpness:
            config["sharpness"] = self.sharpness
        if self.wrappers:
            config["wrappers"] = {w.name: {name: self.values[name] for name in w.parameters} for w in self.wrappers}
        return config

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={value:g}" for key, value in self.values.items())
        return f"Optimizer({self.rule.name!r}, {values})"


CONFIGURE[0] = Optimizer  # calling a rule configures it: momentum(lr=0.1)
