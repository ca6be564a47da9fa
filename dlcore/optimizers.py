"""Optimizers as a user configures them: a rule, the values of its parameters, weight decay and clipping."""

from __future__ import annotations

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


class Optimizer:
    """A rule with values: ``Optimizer("adam", learning_rate=1e-3, weight_decay=0.01, global_clipnorm=1.0)``.

    ``rule`` is a name or what :func:`dlcore.optimizer` made. ``weight_decay`` adds ``weight_decay * w`` to the
    gradient, or, where the rule is decoupled (AdamW), takes ``learning_rate * weight_decay * w`` from the weights.
    ``global_clipnorm`` scales the whole gradient to at most this norm. Both happen inside the update's one pass.
    Values may be changed between epochs or steps: ``optimizer.learning_rate = 1e-4``.
    """

    def __init__(
        self, rule: Any, *, weight_decay: float = 0.0, global_clipnorm: float | None = None, **values: float
    ) -> None:
        self.rule: OptimizerRule = find("optimizer", rule)
        unknown = sorted(set(values) - set(self.rule.parameters))
        if unknown:
            known = ", ".join((*self.rule.parameters, "weight_decay", "global_clipnorm"))
            raise TypeError(f"{self.rule.name} has no parameter {unknown[0]!r}; it has: {known}")
        self.values = {name: _number(name, values.get(name, v)) for name, v in self.rule.parameters.items()}
        for name, value in self.values.items():
            if name.startswith("beta") and value >= 1.0:
                raise ValueError(f"{name} must be below 1, got {value!r}")
        self.weight_decay = _number("weight_decay", weight_decay)
        self.global_clipnorm = None if global_clipnorm is None else _number("global_clipnorm", global_clipnorm)
        if self.global_clipnorm == 0.0:
            raise ValueError("global_clipnorm must be positive or None, got 0.0")

    @property
    def learning_rate(self) -> float:
        """The learning rate."""
        return self.values[self.rule.rate]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.values[self.rule.rate] = _number("learning_rate", value)

    def hyper(self) -> np.ndarray:
        """The values as the kernels read them: the rule's parameters, weight decay, clipping norm (0: none)."""
        return np.array([*self.values.values(), self.weight_decay, self.global_clipnorm or 0.0], np.float64)

    def config(self) -> dict[str, Any]:
        """The arguments that make the optimizer again, as JSON."""
        return {
            "rule": self.rule.name,
            "weight_decay": self.weight_decay,
            "global_clipnorm": self.global_clipnorm,
            **self.values,
        }

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={value:g}" for key, value in self.values.items())
        return f"Optimizer({self.rule.name!r}, {values})"


class SGD(Optimizer):
    """Gradient descent ``w -= lr g``; with ``momentum`` the classical or the Nesterov form."""

    def __init__(
        self, learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False, **options: Any
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

    def __init__(self, learning_rate: float = 0.001, rho: float = 0.9, epsilon: float = 1e-8, **options: Any) -> None:
        super().__init__("rmsprop", learning_rate=learning_rate, beta=rho, epsilon=epsilon, **options)


class Adam(Optimizer):
    """Adam with bias correction and ``epsilon`` outside the root, as in the paper and in PyTorch."""

    _rule = "adam"

    def __init__(
        self,
        learning_rate: float = 0.001,
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
    return Optimizer(**config)
