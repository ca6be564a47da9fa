"""Optimizers as a user configures them: a rule, the values of its parameters, weight decay and clipping."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from . import schedules
from .kernels import OptimizerRule, ScheduleRule, find, loss_scale
from .kernels.rule import CONFIGURE
from .schedules import LearningRateSchedule

_CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")


def _number(name: str, value: Any, *, low: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not value >= low or value == float("inf"):
        raise ValueError(f"{name} must be finite and at least {low:g}, got {value!r}")
    return float(value)


def _limit(name: str, value: Any) -> float | None:
    limit = None if value is None else _number(name, value)
    if limit == 0.0:
        raise ValueError(f"{name} must be positive or None, got 0.0")
    return limit


def _scale(value: Any) -> float | str | None:
    if value is None or value == "dynamic":
        return value
    if isinstance(value, str) or _number("loss_scale", value) == 0.0:
        raise ValueError(f"loss_scale must be a positive number, 'dynamic' or None, got {value!r}")
    return float(value)


@functools.cache
def _composed(rule: OptimizerRule, limited: bool, schedule: ScheduleRule | None) -> OptimizerRule:
    """The rule with clipping by value and a schedule; the same object for the same parts."""
    return replace(rule, limited=limited, schedule=schedule) if limited or schedule is not None else rule


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

    All of it happens inside the fused step, and nothing of it is computed that is not asked for.
    """

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
        **values: Any,
    ) -> None:
        found: OptimizerRule = find("optimizer", rule)
        unknown = sorted(set(values) - set(found.parameters))
        if unknown:
            known = ", ".join((*found.parameters, "weight_decay", *_CLIPS, "skip_nonfinite", "loss_scale"))
            raise TypeError(f"{found.name} has no parameter {unknown[0]!r}; it has: {known}")
        rate = values.get(found.rate)
        self.schedule = rate if isinstance(rate, LearningRateSchedule) else None
        if self.schedule is not None:
            values = {**values, found.rate: self.schedule.learning_rate}
        self.values = {name: _number(name, values.get(name, v)) for name, v in found.parameters.items()}
        for name, value in self.values.items():
            if name.startswith("beta") and value >= 1.0:
                raise ValueError(f"{name} must be below 1, got {value!r}")
        self.weight_decay = _number("weight_decay", weight_decay)
        self.clipvalue, self.clipnorm = _limit("clipvalue", clipvalue), _limit("clipnorm", clipnorm)
        self.global_clipnorm = _limit("global_clipnorm", global_clipnorm)
        if sum(limit is not None for limit in (self.clipvalue, self.clipnorm, self.global_clipnorm)) > 1:
            raise ValueError(f"at most one of {', '.join(_CLIPS)} may be given")
        if found.sums and self.clipnorm is not None:
            raise ValueError(f"{found.name} scales by norms of each tensor itself; clipnorm does not go with it")
        self.skip_nonfinite, self.loss_scale = bool(skip_nonfinite), _scale(loss_scale)
        self.steps_per_epoch = 1  # what a schedule by epochs counts; fit sets it
        self.rule = _composed(found, self.clipvalue is not None, self.schedule.rule if self.schedule else None)

    @property
    def learning_rate(self) -> float:
        """The learning rate; where there is a schedule, the one that it starts from. Setting it ends the schedule."""
        return self.values[self.rule.rate]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.schedule = value if isinstance(value, LearningRateSchedule) else None
        self.values[self.rule.rate] = _number("learning_rate", getattr(value, "learning_rate", value))
        found = find("optimizer", self.rule.name) if self.rule.schedule is not None else self.rule
        self.rule = _composed(found, self.clipvalue is not None, self.schedule.rule if self.schedule else None)

    def rate_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 1."""
        if self.schedule is None:
            return self.learning_rate
        return self.schedule(step - 1 if self.schedule.per == "step" else (step - 1) // self.steps_per_epoch)

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
        for name in ("clipvalue", "clipnorm", "skip_nonfinite", "loss_scale"):
            if getattr(self, name):
                config[name] = getattr(self, name)
        return {**config, **self.values, **({"schedule": self.schedule.config()} if self.schedule else {})}

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={value:g}" for key, value in self.values.items())
        return f"Optimizer({self.rule.name!r}, {values})"


class SGD(Optimizer):
    """Gradient descent ``w -= lr g``; with ``momentum`` the classical or the Nesterov form."""

    def __init__(
        self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, **options: Any
    ) -> None:
        if momentum:
            super().__init__(
                "nesterov" if nesterov else "momentum", learning_rate=learning_rate, beta=momentum, **options
            )
        elif nesterov:
            raise ValueError("nesterov=True needs a momentum above 0")
        else:
            super().__init__("sgd", learning_rate=learning_rate, **options)


class RMSprop(Optimizer):
    """``s = rho s + (1 - rho) g^2; w -= lr g / (sqrt(s) + epsilon)``."""

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.9, epsilon: float = 1e-8, **options: Any) -> None:
        super().__init__("rmsprop", learning_rate=learning_rate, beta=rho, epsilon=epsilon, **options)


class Adam(Optimizer):
    """Adam with bias correction and ``epsilon`` outside the root, as in the paper and in PyTorch."""

    _rule = "adam"

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(
            self._rule, learning_rate=learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **options
        )


class AdamW(Adam):
    """Adam with weight decay on the weights, 0.01 unless given."""

    _rule = "adamw"

    def __init__(self, *arguments: Any, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(*arguments, weight_decay=weight_decay, **options)


CONFIGURE[0] = Optimizer  # calling a rule configures it: momentum(lr=0.1)

_CLASSES: dict[str, type[Optimizer]] = {cls.__name__.lower(): cls for cls in (SGD, RMSprop, Adam, AdamW)}


def get(optimizer: Any) -> Optimizer:
    """An :class:`Optimizer` from an instance, a class, a rule or a name (``"adam"``, ``"SGD"``, ``"nesterov"``)."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        return optimizer()  # type: ignore[call-arg]
    if isinstance(optimizer, str):
        known = _CLASSES.get(optimizer.lower())
        return known() if known is not None else Optimizer(optimizer.lower())  # type: ignore[call-arg]
    return Optimizer(optimizer)


def from_config(config: dict[str, Any]) -> Optimizer:
    """The optimizer that ``optimizer.config()`` described."""
    config = dict(config)
    schedule = config.pop("schedule", None)
    if schedule is not None:
        config[find("optimizer", config["rule"]).rate] = schedules.from_config(schedule)
    return Optimizer(**config)
