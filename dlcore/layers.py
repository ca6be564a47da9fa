"""The layers. Each describes itself to a :class:`~dlcore.kernels.program.Builder` as instructions.

``forward`` emits the forward instructions and returns the output buffer with a function that emits the backward
ones: forward and backward of a layer stand side by side, and there is no other implementation of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import initializers
from .kernels import Builder, find

Backward = Callable[[Any, bool], Any]  # (gradient of the output, is the input's wanted) -> gradient of the input
LINEAR = "linear"
ROWWISE = ("softmax", "log_softmax")  # activations that couple the features of a sample; instructions, not rules


def _positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def _positive(name: str, value: float) -> float:
    if not value > 0.0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return float(value)


def _activation(value: Any) -> Any:
    """The rule for ``value``, a name, a rule, or a name with parameters; what couples a row stays a name."""
    if value is None:
        return find("activation", LINEAR)
    if isinstance(value, dict):
        parameters = {key: number for key, number in value.items() if key != "name"}
        return find("activation", value["name"]).variant(**parameters)
    return value if isinstance(value, str) and value in ROWWISE else find("activation", value)


def _rule_config(rule: Any) -> Any:
    """What :func:`_activation` makes the activation of again: its name, with the parameters that are not its own."""
    if isinstance(rule, str) or rule.parameters == find("activation", rule.name).parameters:
        return getattr(rule, "name", rule)
    return {"name": rule.name, **rule.parameters}


class Layer:
    """What all layers share. ``dtype`` is that of the model; the layers of a model agree on it."""

    def __init__(self, *, name: str | None = None, dtype: Any = None) -> None:
        self.name = name or ""
        self.dtype = None if dtype is None else np.dtype(dtype)
        if self.dtype is not None and self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        # name -> (buffer, gradient buffer or None, initialiser)
        self.variables: dict[str, tuple[Any, Any, initializers.Initializer]] = {}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one output sample for input samples of ``shape``; raises where the layer cannot take them."""
        return shape

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """Create parameters and state for input samples of ``shape``."""
        self.variables = {}

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


class Input(Layer):
    """States the shape of one sample, ``Input((64,))``; the batch axis is not part of it."""

    def __init__(self, shape: Sequence[int], *, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        self.shape = tuple(_positive_int("shape", s) for s in sizes)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The stated shape, which the data must have."""
        if shape != self.shape:
            raise ValueError(f"samples have shape {shape}; this Input expects {self.shape}")
        return shape

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """Nothing to compute."""
        return x, lambda dy, wanted: dy

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"shape": list(self.shape), **super().config()}


class Flatten(Input):
    """``(batch, a, b, ...)`` to ``(batch, a b ...)``; samples already lie flat, so nothing is moved."""

    def __init__(self, *, name: str | None = None, dtype: Any = None) -> None:
        Layer.__init__(self, name=name, dtype=dtype)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One axis with all elements of the sample."""
        return (math.prod(shape),)

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return Layer.config(self)


def _flat(layer: Layer, shape: tuple[int, ...]) -> int:
    if len(shape) != 1:
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} takes samples of one axis, got {shape}; add Flatten() before"
        )
    return shape[0]


class Dense(Layer):
    """``y = g(x W + b)`` with ``W (n_in, units)``, ``b (units,)``, as one fused kernel.

    ``activation`` is a name, a rule made with :func:`dlcore.activation`, ``"softmax"`` or ``"log_softmax"``.

    >>> import dlcore
    >>> dlcore.layers.Dense(8, activation="relu").units
    8
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        *,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.units = _positive_int("units", units)
        self.activation = _activation(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(units,)``"""
        _flat(self, shape)
        return (self.units,)

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """``kernel (n_in, units)`` and ``bias (units,)``."""
        super().build(builder, shape)
        self._parameter(builder, "kernel", (_flat(self, shape), self.units), self.kernel_initializer)
        if self.use_bias:
            self._parameter(builder, "bias", (self.units,), self.bias_initializer)

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """``dense_forward``; ``z`` is kept only where the derivative reads it."""
        if self.activation in ROWWISE:
            z, dense_backward = self.without_activation().forward(builder, x, training)
            y, activation_backward = Activation(self.activation, name=self.name).forward(builder, z, training)
            return y, lambda dy, wanted: dense_backward(activation_backward(dy, True), wanted)
        rule = self.activation
        kernel, d_kernel, _ = self.variables["kernel"]
        bias, d_bias, _ = self.variables.get("bias", (None, None, None))
        y = builder.rows(f"{self.name}.y", self.units)
        z = builder.rows(f"{self.name}.z", self.units) if training and rule.uses_input else None
        builder.emit("dense_forward", x, kernel, bias, z, y, rule=rule)

        def backward(dy: Any, wanted: bool) -> Any:
            builder.emit("dense_backward_z", dy, z, y, dy, d_bias, rule=rule)
            builder.emit("dense_backward_w", x, dy, d_kernel)
            if not wanted:
                return None
            dx = builder.rows(f"{self.name}.dx", x.shape[1])
            builder.emit("dense_backward_x", dy, kernel, dx)
            return dx

        return y, backward

    @property
    def final_activation(self) -> Any:
        """The activation."""
        return self.activation

    def without_activation(self) -> Layer:
        """``x W + b`` on the same parameters."""
        twin = Dense(self.units, use_bias=self.use_bias, name=self.name, dtype=self.dtype)
        twin.variables = self.variables
        return twin

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {
            "units": self.units,
            "activation": _rule_config(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.name_of(self.kernel_initializer),
            "bias_initializer": initializers.name_of(self.bias_initializer),
            **super().config(),
        }


class Activation(Layer):
    """An activation on its own: ``y = g(x)``, or softmax or log-softmax over the features."""

    def __init__(self, activation: Any, *, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.activation = _activation(activation)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's; softmax and log-softmax take one axis."""
        if self.activation in ROWWISE:
            _flat(self, shape)
        return shape

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """``activation_forward``, ``softmax_forward`` or ``log_softmax_forward``."""
        y = builder.rows(f"{self.name}.y", x.shape[1])
        if self.activation in ROWWISE:
            builder.emit(f"{self.activation}_forward", x, y)
        else:
            builder.emit("activation_forward", x, y, rule=self.activation)

        def backward(dy: Any, wanted: bool) -> Any:
            if wanted and self.activation in ROWWISE:
                builder.emit(f"{self.activation}_backward", dy, y, dy)
            elif wanted:
                builder.emit("activation_backward", dy, x, y, dy, rule=self.activation)
            return dy

        return y, backward

    @property
    def final_activation(self) -> Any:
        """The activation."""
        return self.activation

    def without_activation(self) -> Layer:
        """The identity."""
        return Flatten(name=self.name)

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"activation": _rule_config(self.activation), **super().config()}


class BatchNormalization(Layer):
    """``y = gamma (x - mean) / sqrt(var + epsilon) + beta`` for each feature. Ioffe & Szegedy 2015.

    In training ``mean`` and the biased ``var`` are those of the mini-batch, and the running statistics move to
    ``momentum * running + (1 - momentum) * batch`` with the unbiased variance; otherwise the running ones are used.
    """

    def __init__(
        self, *, momentum: float = 0.9, epsilon: float = 1e-5, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")
        self.momentum, self.epsilon = float(momentum), _positive("epsilon", epsilon)

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """``gamma``, ``beta``, ``moving_mean``, ``moving_variance``, each ``(features,)``."""
        super().build(builder, shape)
        features = (_flat(self, shape),)
        self._parameter(builder, "gamma", features, initializers.ones)
        self._parameter(builder, "beta", features, initializers.zeros)
        self._state(builder, "moving_mean", features, initializers.zeros)
        self._state(builder, "moving_variance", features, initializers.ones)

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """``batch_norm_forward`` in training, else ``batch_norm_inference``."""
        (gamma, d_gamma, _), (beta, d_beta, _), (mean, _, _), (variance, _, _) = self.variables.values()
        y = builder.rows(f"{self.name}.y", x.shape[1])
        if not training:
            builder.emit("batch_norm_inference", x, gamma, beta, mean, variance, y, epsilon=self.epsilon)
            return y, lambda dy, wanted: dy
        batch_mean = builder.work(f"{self.name}.mean", gamma.shape)
        batch_rstd = builder.work(f"{self.name}.rstd", gamma.shape)
        statistics = mean, variance, batch_mean, batch_rstd
        scalars = {"momentum": self.momentum, "epsilon": self.epsilon}
        builder.emit("batch_norm_forward", x, gamma, beta, *statistics, y, **scalars)

        def backward(dy: Any, wanted: bool) -> Any:
            builder.emit("batch_norm_backward", dy, x, gamma, batch_mean, batch_rstd, dy, d_gamma, d_beta)
            return dy

        return y, backward

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"momentum": self.momentum, "epsilon": self.epsilon, **super().config()}


class LayerNormalization(Layer):
    """``y = gamma (x - mean) / sqrt(var + epsilon) + beta`` for each sample. Ba, Kiros & Hinton 2016.

    ``mean`` and the biased ``var`` are those of the sample's features, in training and otherwise.
    """

    def __init__(self, *, epsilon: float = 1e-3, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.epsilon = _positive("epsilon", epsilon)

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """``gamma`` and ``beta``, each ``(features,)``."""
        super().build(builder, shape)
        features = (_flat(self, shape),)
        self._parameter(builder, "gamma", features, initializers.ones)
        self._parameter(builder, "beta", features, initializers.zeros)

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """``layer_norm_forward``"""
        (gamma, d_gamma, _), (beta, d_beta, _) = self.variables.values()
        y = builder.rows(f"{self.name}.y", x.shape[1])
        mean, rstd = builder.rows(f"{self.name}.mean"), builder.rows(f"{self.name}.rstd")
        builder.emit("layer_norm_forward", x, gamma, beta, mean, rstd, y, epsilon=self.epsilon)

        def backward(dy: Any, wanted: bool) -> Any:
            builder.emit("layer_norm_backward", dy, x, gamma, mean, rstd, dy, d_gamma, d_beta)
            return dy

        return y, backward

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"epsilon": self.epsilon, **super().config()}


class Dropout(Layer):
    """In training each element is 0 with probability ``rate``, and the others are divided by ``1 - rate``.

    The mask comes from a counter (Philox), the seed of the model and the step: it is not stored, and it is the same
    on every device. Srivastava et al. 2014.
    """

    def __init__(self, rate: float, *, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate must lie in [0, 1), got {rate!r}")
        self.rate = float(rate)
        self.stream: tuple[Any, Any, int] | None = None  # seed buffer, step buffer, number of the layer

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """``dropout``, and the same on the gradient."""
        if not training or self.rate == 0.0:
            return x, lambda dy, wanted: dy
        assert self.stream is not None, "the model sets the stream before it emits"
        seed, step, number = self.stream
        y = builder.rows(f"{self.name}.y", x.shape[1])
        builder.emit("dropout", x, seed, step, y, rate=self.rate, layer=number)

        def backward(dy: Any, wanted: bool) -> Any:
            if wanted:
                builder.emit("dropout", dy, seed, step, dy, rate=self.rate, layer=number)
            return dy

        return y, backward

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"rate": self.rate, **super().config()}


LAYERS: dict[str, type[Layer]] = {
    cls.__name__: cls for cls in (Activation, BatchNormalization, Dense, Dropout, Flatten, Input, LayerNormalization)
}


def from_config(kind: str, config: dict[str, Any]) -> Layer:
    """The layer that ``layer.config()`` described."""
    if kind not in LAYERS:
        raise ValueError(f"unknown layer {kind!r}; known: {', '.join(sorted(LAYERS))}")
    return LAYERS[kind](**config)
