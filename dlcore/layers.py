"""The layers. Each describes itself to a :class:`~dlcore.kernels.program.Builder` as instructions.

``forward`` emits the forward instructions and returns the output buffer with a function that emits the backward
ones: forward and backward of a layer stand side by side, and there is no other implementation of either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import constraints, initializers, regularizers
from .kernels import Builder, RuleError, find
from .kernels.names import unknown
from .kernels.rule import ALIASES, REGISTRY
from .layer import Backward, Layer, flat, positive_int
from .normalization import BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization

LINEAR = "linear"
ROWWISE = ("softmax", "log_softmax")  # activations that couple the features of a sample; instructions, not rules


def _activation(value: Any) -> Any:
    """The rule for ``value``, a name, a rule, or a name with parameters; what couples a row stays a name."""
    if value is None:
        return find("activation", LINEAR)
    if isinstance(value, dict):
        parameters = {key: number for key, number in value.items() if key != "name"}
        return find("activation", value["name"]).variant(**parameters)
    if isinstance(value, str):
        if value in ROWWISE:
            return value
        table, aliases = REGISTRY["activation"], ALIASES["activation"]
        if value not in table and value not in aliases:
            raise RuleError(unknown("activation", value, {*table, *ROWWISE}, aliases))
    return find("activation", value)


def _rule_config(rule: Any) -> Any:
    """What :func:`_activation` makes the activation of again: its name, with the parameters that are not its own."""
    if isinstance(rule, str) or rule.parameters == find("activation", rule.name).parameters:
        return getattr(rule, "name", rule)
    return {"name": rule.name, **rule.parameters}


class Input(Layer):
    """States the shape of one sample, ``Input((64,))``; the batch axis is not part of it."""

    def __init__(self, shape: Sequence[int], *, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        self.shape = tuple(positive_int("shape", s) for s in sizes)

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


class Dense(Layer):
    """``y = g(x W + b)`` with ``W (n_in, units)``, ``b (units,)``, as one fused kernel.

    ``activation`` is a name, a rule made with :func:`dlcore.activation`, ``"softmax"`` or ``"log_softmax"``.
    ``kernel_regularizer`` (:mod:`dlcore.regularizers`) adds a penalty on ``W`` to the loss, in training and in
    evaluation; ``kernel_constraint`` (:mod:`dlcore.constraints`) acts on ``W`` after each update.

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
        kernel_regularizer: Any = None,
        kernel_constraint: Any = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.units = positive_int("units", units)
        self.activation = _activation(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(units,)``"""
        flat(self, shape)
        return (self.units,)

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """``kernel (n_in, units)`` and ``bias (units,)``."""
        super().build(builder, shape)
        self._parameter(builder, "kernel", (flat(self, shape), self.units), self.kernel_initializer)
        if self.use_bias:
            self._parameter(builder, "bias", (self.units,), self.bias_initializer)
        kernel, gradient, _ = self.variables["kernel"]
        if self.kernel_regularizer is not None:
            self.penalties.append((kernel, gradient, self.kernel_regularizer))
        if self.kernel_constraint is not None:
            self.constraints.append((kernel, self.kernel_constraint))

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
            **({"kernel_regularizer": self.kernel_regularizer.config()} if self.kernel_regularizer else {}),
            **({"kernel_constraint": self.kernel_constraint.config()} if self.kernel_constraint else {}),
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
            flat(self, shape)
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


class PReLU(Layer):
    """``y = x`` for ``x > 0``, else ``alpha x`` with a learned slope for each feature. He et al. 2015.

    ``alpha`` begins at 0, as in Keras; ``initializers.Constant(0.25)`` is that of the paper and of PyTorch.
    """

    def __init__(self, *, alpha_initializer: Any = "zeros", name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.alpha_initializer = initializers.get(alpha_initializer)

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """``alpha (features,)``."""
        super().build(builder, shape)
        self._parameter(builder, "alpha", (flat(self, shape),), self.alpha_initializer)

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """``prelu_forward``"""
        alpha, d_alpha, _ = self.variables["alpha"]
        y = builder.rows(f"{self.name}.y", x.shape[1])
        builder.emit("prelu_forward", x, alpha, y)

        def backward(dy: Any, wanted: bool) -> Any:
            builder.emit("prelu_backward", dy, x, alpha, dy, d_alpha)
            return dy

        return y, backward

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"alpha_initializer": initializers.name_of(self.alpha_initializer), **super().config()}


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


_CLASSES: tuple[type[Layer], ...] = (
    Activation, BatchNormalization, Dense, Dropout, Flatten, GroupNormalization, InstanceNormalization, Input,
    LayerNormalization, PReLU,
)  # fmt: skip
LAYERS: dict[str, type[Layer]] = {cls.__name__: cls for cls in _CLASSES}


def from_config(kind: str, config: dict[str, Any]) -> Layer:
    """The layer that ``layer.config()`` described."""
    if kind not in LAYERS:
        raise ValueError(unknown("layer", kind, LAYERS))
    return LAYERS[kind](**config)
