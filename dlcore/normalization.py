"""Layers that normalise: over the mini-batch, or over the features of each sample. Channels come first."""

from __future__ import annotations

import math
from typing import Any

from . import initializers
from .kernels import Builder
from .layer import Backward, Layer, positive, positive_int


class BatchNormalization(Layer):
    """``y = gamma (x - mean) / sqrt(var + epsilon) + beta`` for each channel. Ioffe & Szegedy 2015.

    A sample is ``(channels,)`` or ``(channels, *spatial)``: channels come first. In training ``mean`` and the biased
    ``var`` are those of the mini-batch, over all places of a channel, and the running statistics move to ``momentum *
    running + (1 - momentum) * batch`` with the unbiased variance; otherwise the running ones are used.
    """

    def __init__(
        self, *, momentum: float = 0.9, epsilon: float = 1e-5, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")
        self.momentum, self.epsilon = float(momentum), positive("epsilon", epsilon)

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """``gamma``, ``beta``, ``moving_mean``, ``moving_variance``, each ``(channels,)``."""
        super().build(builder, shape)
        channels = shape[:1]
        self._parameter(builder, "gamma", channels, initializers.ones)
        self._parameter(builder, "beta", channels, initializers.zeros)
        self._state(builder, "moving_mean", channels, initializers.zeros)
        self._state(builder, "moving_variance", channels, initializers.ones)

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


class _OfSamples(Layer):
    """``y = gamma (x - mean) / sqrt(var + epsilon) + beta`` within each sample, in training and otherwise."""

    def __init__(self, *, epsilon: float = 1e-3, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.epsilon = positive("epsilon", epsilon)
        self._groups = 1  # of the samples it was built for

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many elements ``gamma`` has for samples of ``shape``, and the number of groups."""
        raise NotImplementedError

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        self._sizes(shape)
        return shape

    def build(self, builder: Builder, shape: tuple[int, ...]) -> None:
        """``gamma`` and ``beta``."""
        super().build(builder, shape)
        size, self._groups = self._sizes(shape)
        self._parameter(builder, "gamma", (size,), initializers.ones)
        self._parameter(builder, "beta", (size,), initializers.zeros)

    def forward(self, builder: Builder, x: Any, training: bool) -> tuple[Any, Backward]:
        """``group_norm_forward``"""
        (gamma, d_gamma, _), (beta, d_beta, _) = self.variables.values()
        y = builder.rows(f"{self.name}.y", x.shape[1])
        mean, rstd = (builder.rows(f"{self.name}.{figure}", self._groups) for figure in ("mean", "rstd"))
        builder.emit("group_norm_forward", x, gamma, beta, mean, rstd, y, epsilon=self.epsilon)

        def backward(dy: Any, wanted: bool) -> Any:
            builder.emit("group_norm_backward", dy, x, gamma, mean, rstd, dy, d_gamma, d_beta)
            return dy

        return y, backward

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"epsilon": self.epsilon, **super().config()}


class LayerNormalization(_OfSamples):
    """``y = gamma (x - mean) / sqrt(var + epsilon) + beta`` for each sample. Ba, Kiros & Hinton 2016.

    ``mean`` and the biased ``var`` are those of all elements of a sample, in training and otherwise; each has its own
    ``gamma`` and ``beta``, which lie flat where samples have several axes.
    """

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return math.prod(shape), 1


class GroupNormalization(_OfSamples):
    """``y = gamma (x - mean) / sqrt(var + epsilon) + beta`` for each group of a sample's channels. Wu & He 2018.

    A sample is ``(channels,)`` or ``(channels, *spatial)``: channels come first. ``mean`` and the biased ``var`` are
    those of ``channels / groups`` neighbouring channels at all places, in training and otherwise; ``gamma`` and
    ``beta`` are ``(channels,)``. ``groups=-1`` are as many as channels.

    >>> import dlcore
    >>> dlcore.layers.GroupNormalization(4).output_shape((8, 5, 5))
    (8, 5, 5)
    """

    def __init__(self, groups: int = 32, *, epsilon: float = 1e-3, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(epsilon=epsilon, name=name, dtype=dtype)
        self.groups = -1 if groups == -1 else positive_int("groups", groups)

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        channels = shape[0]
        groups = channels if self.groups == -1 else self.groups
        if channels % groups:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has groups={groups}; expected a divisor of the {channels} "
                f"channels of samples of {shape}, which come first"
            )
        if math.prod(shape) == groups:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} takes groups of two elements and more, whose deviations are not "
                f"0; samples of {shape} have {groups} groups of one"
            )
        return channels, groups

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return {"groups": self.groups, **super().config()}


class InstanceNormalization(GroupNormalization):
    """:class:`GroupNormalization` of each channel by itself, for samples ``(channels, *spatial)``.

    Ulyanov, Vedaldi & Lempitsky 2016.
    """

    def __init__(self, *, epsilon: float = 1e-3, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(-1, epsilon=epsilon, name=name, dtype=dtype)

    def config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return _OfSamples.config(self)
