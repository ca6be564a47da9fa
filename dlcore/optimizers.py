"""Optimizers as a user configures them: a rule, the values of its parameters, weight decay and clipping."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from . import schedules
from .kernels import OptimizerRule, ScheduleRule, find, loss_scale
from .kernels.rule import CONFIGURE
from .kernels.wrappers import WRAPPERS, Wrapper, ema, lookahead, swa, wrapped
from .schedules import LearningRateSchedule

_CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")
_OPTIONS = ("skip_nonfinite", "loss_scale", "maximize", "gradient_accumulation_steps")
_EMA = ("use_ema", "ema_momentum", "ema_overwrite_frequency")


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


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def _share(name: str, value: Any) -> float:
    if _number(name, value) > 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
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
        self.skip_nonfinite, self.loss_scale = _flag("skip_nonfinite", skip_nonfinite), _scale(loss_scale)
        self.maximize = _flag("maximize", maximize)
        steps = gradient_accumulation_steps
        self.gradient_accumulation_steps = None if steps is None else _count("gradient_accumulation_steps", steps)
        self.sharpness: tuple[float, float, float] | None = None  # see SAM
        self.wrappers: tuple[Wrapper, ...] = ()
        self.use_ema = _flag("use_ema", use_ema)
        if self.use_ema:
            every = 0 if ema_overwrite_frequency is None else _count("ema_overwrite_frequency", ema_overwrite_frequency)
            momentum = _share("ema_momentum", ema_momentum)
            self._add(ema, {"ema_momentum": momentum, "ema_overwrite_frequency": every})
        elif (ema_momentum, ema_overwrite_frequency) != (0.99, None):
            raise ValueError("ema_momentum and ema_overwrite_frequency need use_ema=True")
        self.steps_per_epoch = 1.0  # updates, what a schedule by epochs counts; fit sets it
        self.rule = self._compose(found)

    def _compose(self, found: OptimizerRule) -> OptimizerRule:
        schedule = self.schedule.rule if self.schedule else None
        return _composed(found, self.clipvalue is not None, self.maximize, schedule, self.wrappers)

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
        return self.values[self.rule.rate]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.schedule = value if isinstance(value, LearningRateSchedule) else None
        self.values[self.rule.rate] = _number("learning_rate", getattr(value, "learning_rate", value))
        if (self.schedule and self.schedule.rule) is not self.rule.schedule:
            self.rule = self._compose(self._found)

    def rate_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 1."""
        if self.schedule is None:
            return self.learning_rate
        return self.schedule(step - 1 if self.schedule.per == "step" else math.ceil(step / self.steps_per_epoch) - 1)

    def count_epochs(self, batches: int) -> None:
        """An epoch has ``batches`` mini-batches."""
        self.steps_per_epoch = batches / (self.gradient_accumulation_steps or 1)

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


class SGD(Optimizer):
    """Gradient descent ``w -= lr g``; with ``momentum`` the classical or the Nesterov form, as in PyTorch.

    ``v = momentum v + (1 - dampening) g`` (at first ``v = g``); ``w -= lr v``, or ``w -= lr (g + momentum v)``.
    Other forms go by their names: ``"ewa_momentum"``, ``"ewa_momentum_corrected"``, ``"heavy_ball"``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        **options: Any,
    ) -> None:
        if _flag("nesterov", nesterov) and (not momentum or dampening):
            raise ValueError(
                f"nesterov=True needs a momentum above 0 and no dampening, got {momentum!r}, {dampening!r}"
            )
        if dampening and not momentum:
            raise ValueError(f"dampening={dampening!r} needs a momentum above 0")
        if momentum:
            options |= {"beta": momentum} | ({} if nesterov else {"dampening": dampening})
        rule = "sgd" if not momentum else "nesterov" if nesterov else "momentum"
        super().__init__(rule, learning_rate=learning_rate, **options)


class Adagrad(Optimizer):
    """``s += g^2; w -= lr g / (sqrt(s) + epsilon)``; ``epsilon_mode="inside"``: ``sqrt(s + epsilon)``."""

    def __init__(
        self,
        learning_rate: Any = 0.01,
        initial_accumulator: float = 0.0,
        epsilon: float = 1e-10,
        epsilon_mode: str = "outside",
        **options: Any,
    ) -> None:
        options |= {"initial_accumulator": initial_accumulator, "epsilon": epsilon}
        super().__init__("adagrad" + _suffix(epsilon_mode, 2), learning_rate=learning_rate, **options)


class RMSprop(Optimizer):
    """``s = rho s + (1 - rho) g^2; w -= lr g / (sqrt(s) + epsilon)``.

    ``centered`` takes the variance, ``s`` less the squared average of ``g``; ``momentum`` gathers the steps.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        **options: Any,
    ) -> None:
        rule = "rmsprop" + "_centered" * _flag("centered", centered) + "_momentum" * bool(momentum)
        options |= {"momentum": momentum} if momentum else {}
        super().__init__(rule, learning_rate=learning_rate, beta=rho, epsilon=epsilon, **options)


_EPSILON_MODES = {"outside": "", "inside": "_inside", "hat": "_hat"}


def _suffix(epsilon_mode: str, modes: int = 3) -> str:
    known = list(_EPSILON_MODES)[:modes]
    if epsilon_mode not in known:
        raise ValueError(f"epsilon_mode must be one of {', '.join(known)}; got {epsilon_mode!r}")
    return _EPSILON_MODES[epsilon_mode]


class Adam(Optimizer):
    """Adam with bias correction, ``w -= lr mhat / (sqrt(vhat) + epsilon)``, as in the paper and in PyTorch.

    ``epsilon_mode``: ``"outside"`` of the root; ``"inside"``, ``sqrt(vhat + epsilon)``; ``"hat"``,
    ``sqrt(v) + epsilon`` before the correction, as in Keras. ``amsgrad`` takes the largest ``v`` so far.
    """

    _decay = ""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        epsilon_mode: str = "outside",
        **options: Any,
    ) -> None:
        rule = ("amsgrad" if _flag("amsgrad", amsgrad) else "adam") + self._decay + _suffix(epsilon_mode)
        options |= {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
        super().__init__(rule, learning_rate=learning_rate, **options)


class AdamW(Adam):
    """Adam with weight decay on the weights, 0.01 unless given."""

    _decay = "w"

    def __init__(self, *arguments: Any, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(*arguments, weight_decay=weight_decay, **options)


class _Wrapping(Optimizer):
    """A copy of ``inner`` that a wrapper follows."""

    def __init__(self, inner: Any, wrapper: Wrapper, values: dict[str, float]) -> None:
        vars(self).update(copy.copy(vars(get(inner))))
        if wrapper in self.wrappers:
            raise ValueError(f"{type(self).__name__} is around this optimizer already")
        self._add(wrapper, values)
        self.rule = self._compose(self._found)


class Lookahead(_Wrapping):
    """Every ``k`` updates of ``inner``, slow weights go ``alpha`` of the way to the fast ones, which begin there anew.

    ``inner`` is an optimizer, or what names one. ``with model.averaged_weights():`` holds the slow weights. Zhang,
    Lucas, Hinton & Ba 2019.

    >>> Lookahead("adam", k=5).config()["wrappers"]
    {'lookahead': {'lookahead_k': 5.0, 'lookahead_alpha': 0.5}}
    """

    def __init__(self, inner: Any, k: int = 6, alpha: float = 0.5) -> None:
        super().__init__(inner, lookahead, {"lookahead_k": _count("k", k), "lookahead_alpha": _share("alpha", alpha)})


class SWA(_Wrapping):
    """The mean of the weights from update ``start`` on, every ``every`` updates; training itself is that of ``inner``.

    ``with model.averaged_weights():`` holds the mean, before ``start`` the weights. Statistics of batch norm are those
    of the weights in training. Izmailov et al. 2018.
    """

    def __init__(self, inner: Any, start: int, every: int = 1) -> None:
        super().__init__(inner, swa, {"swa_start": _count("start", start), "swa_every": _count("every", every)})


class SAM(Optimizer):
    """``inner`` with the gradient at ``w + rho g / ||g||``, the norm over all parameters, ``g`` the gradient at ``w``.

    ``adaptive``: at ``w + rho T^2 g / ||T g||`` with ``T = |w| + eta``. Loss and metrics are those at ``w``, dropout
    has one mask for both passes, and statistics of batch norm move in the first. Foret, Kleiner, Mobahi & Neyshabur
    2021; Kwon, Kim, Park & Choi 2021.
    """

    def __init__(self, inner: Any, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01) -> None:
        vars(self).update(copy.copy(vars(get(inner))))
        if self.sharpness is not None:
            raise ValueError("SAM is around this optimizer already")
        self.sharpness = _number("rho", rho), _number("eta", eta), float(_flag("adaptive", adaptive))


CONFIGURE[0] = Optimizer  # calling a rule configures it: momentum(lr=0.1)

_CLASSES: dict[str, type[Optimizer]] = {cls.__name__.lower(): cls for cls in (SGD, Adagrad, RMSprop, Adam, AdamW)}


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
    wrappers, sharpness = config.pop("wrappers", {}), config.pop("sharpness", None)
    optimizer = Optimizer(**config)
    optimizer.sharpness = sharpness and tuple(sharpness)
    for name, values in wrappers.items():
        optimizer = _Wrapping(optimizer, WRAPPERS[name], values)
    return optimizer
