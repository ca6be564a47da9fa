"""What every layer is: a description of itself to a :class:`~dlcore.kernels.program.Builder` as instructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .constraints import Constraint
from .initializers import Initializer
from .kernels import Builder
from .regularizers import Regularizer

Backward = Callable[[Any, bool], Any]  # (gradient of the output, is the input's wanted) -> gradient of the input


def positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def positive(name: str, value: float) -> float:
    if not value > 0.0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return float(value)


def flat(layer: Layer, shape: tuple[int, ...]) -> int:
    if len(shape) != 1:
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} takes samples of one axis, got {shape}; add Flatten() before"
        )
    return shape[0]


class Layer:
    """What all layers share. ``dtype`` is that of the model; the layers of a model agree on it."""

    def __init__(self, *, name: str | None = None, dtype: Any = None) -> None:
        self.name = name or ""
        self.dtype = None if dtype is None else np.dtype(dtype)
        if self.dtype is not None and self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        # name -> (buffer, gradient buffer or None, initialiser)
        self.variables: dict[str, tuple[Any, Any, Initializer]] = {}
        # of weights: (buffer, gradient buffer, regularizer) and (buffer, constraint)
        self.penalties: list[tuple[Any, Any, Regularizer]] = []
        self.constraints: list[tuple[Any, Constraint]] = []

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one output sample for input samples of ``shape``; raises where the layer cannot take them."""
        return shape

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """Create parameters and state for input samples of ``shape``."""
        self.variables, self.penalties, self.constraints = {}, [], []

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """Emit the forward instructions; return the output and what emits the backward ones."""
        raise NotImplementedError

    @property
    def final_activation(self) -> Any:
        """The activation that ends the layer, which a loss may absorb; None where it has none."""
        return None

    def without_activation(self) -> Layer:
        """The layer that computes what comes before :attr:`final_activation`, on the same parameters."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again, as JSON."""
        return {"name": self.name, **({"dtype": self.dtype.name} if self.dtype is not None else {})}

    def _parameter(self, builder: Builder, name: str, shape: Sequence[int], initializer: Any) -> None:
        value, gradient = builder.parameter(f"{self.name}/{name}", shape)
        self.variables[name] = (value, gradient, initializer)

    def _state(self, builder: Builder, name: str, shape: Sequence[int], initializer: Any) -> None:
        self.variables[name] = (builder.state(f"{self.name}/{name}", shape), None, initializer)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if value not in ("", None))
        return f"{type(self).__name__}({arguments})"
