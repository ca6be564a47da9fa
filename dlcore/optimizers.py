"""Optimizers as a user configures them: a rule, the values of its parameters, weight decay and clipping."""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from .kernels import OptimizerRule, find
from .kernels.rule import CONFIGURE


def _number(name: str, value: Any, *, low: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not value >= low or value == float("inf"):
        raise ValueError(f"{name} must be finite and at least {low:g}, got {value!r}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _climbs_by_its_rate(rule: OptimizerRule, values: dict[str, float]) -> bool:
    """Whether steps at rate ``-lr`` along ``-g`` are, bit for bit, those at rate ``lr`` along ``g``."""

    def path(way: float) -> list[float]:
        h = {**values, rule.rate: way * values[rule.rate]}
        state: tuple[float, ...] = (0.5, *[0.0] * len(rule.slots))
        weights = []
        for t, g in enumerate((0.3, -0.7, 0.2, 0.9, -0.1, 0.4, 0.4, -0.6), 1):
            result = rule.update(state[0], way * g, *state[1:], types.SimpleNamespace(**h, t=float(t)))
            state = result if isinstance(result, tuple) else (result,)
            weights.append(float(state[0]))
        return weights

    return path(1.0) == path(-1.0)


class Optimizer:
    """A rule with values: ``Optimizer("adam", learning_rate=1e-3, weight_decay=0.01, global_clipnorm=1.0)``.

    ``rule`` is a name or what :func:`dlcore.optimizer` made. ``weight_decay`` adds ``weight_decay * w`` to the
    gradient, or, where the rule is decoupled (AdamW), takes ``learning_rate * weight_decay * w`` from the weights.
    ``global_clipnorm`` scales the whole gradient to at most this norm. Both happen inside the update's one pass.
    ``maximize`` climbs: the step of ``-g``. Values may be changed between epochs or steps:
    ``optimizer.learning_rate = 1e-4``.
    """

    def __init__(
        self,
        rule: Any,
        *,
        weight_decay: float = 0.0,
        global_clipnorm: float | None = None,
        maximize: bool = False,
        **values: float,
    ) -> None:
        self.rule: OptimizerRule = find("optimizer", rule)
        unknown = sorted(set(values) - set(self.rule.parameters))
        if unknown:
            known = ", ".join((*self.rule.parameters, "weight_decay", "global_clipnorm", "maximize"))
            raise TypeError(f"{self.rule.name} has no parameter {unknown[0]!r}; it has: {known}")
        self.values = {name: _number(name, values.get(name, v)) for name, v in self.rule.parameters.items()}
        for name, value in self.values.items():
            if name.startswith("beta") and value >= 1.0:
                raise ValueError(f"{name} must be below 1, got {value!r}")
        self.weight_decay = _number("weight_decay", weight_decay)
        self.global_clipnorm = None if global_clipnorm is None else _number("global_clipnorm", global_clipnorm)
        if self.global_clipnorm == 0.0:
            raise ValueError("global_clipnorm must be positive or None, got 0.0")
        self.maximize = _flag("maximize", maximize)
        if self.maximize and not _climbs_by_its_rate(self.rule, self.values):
            raise ValueError(
                f"maximize=True needs a step proportional to the learning rate; that of {self.rule.name} is not"
            )

    @property
    def learning_rate(self) -> float:
        """The learning rate."""
        return self.values[self.rule.rate]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.values[self.rule.rate] = _number("learning_rate", value)

    def hyper(self) -> np.ndarray:
        """The values as the kernels read them: the rule's parameters, weight decay, clipping norm (0: none).

        To climb is to descend with the rate and the decay negated: a step is odd in the gradient and linear in the
        rate. State that is linear in the gradients has the other sign then.
        """
        way = -1.0 if self.maximize else 1.0
        values = {**self.values, self.rule.rate: way * self.learning_rate}
        return np.array([*values.values(), way * self.weight_decay, self.global_clipnorm or 0.0], np.float64)

    def config(self) -> dict[str, Any]:
        """The arguments that make the optimizer again, as JSON."""
        return {
            "rule": self.rule.name,
            "weight_decay": self.weight_decay,
            "global_clipnorm": self.global_clipnorm,
            "maximize": self.maximize,
            **self.values,
        }

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
        learning_rate: float = 0.01,
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
        learning_rate: float = 0.01,
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
        learning_rate: float = 0.001,
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
        learning_rate: float = 0.001,
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
    return Optimizer(**config)
