"""Initial values of parameters. ``fan_in`` and ``fan_out`` are the rows and columns of a weight matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Initializer = Callable[[Sequence[int], np.random.Generator], np.ndarray]


def zeros(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """All 0."""
    return np.zeros(shape)


def ones(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """All 1."""
    return np.ones(shape)


def random_normal(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal with mean 0 and standard deviation 0.01."""
    return rng.normal(0.0, 0.01, shape)


def glorot_uniform(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Uniform in ``+-sqrt(6 / (fan_in + fan_out))``. Glorot & Bengio 2010."""
    limit = math.sqrt(6.0 / (shape[0] + shape[-1]))
    return rng.uniform(-limit, limit, shape)


def glorot_normal(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal with standard deviation ``sqrt(2 / (fan_in + fan_out))``. Glorot & Bengio 2010."""
    return rng.normal(0.0, math.sqrt(2.0 / (shape[0] + shape[-1])), shape)


def he_uniform(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Uniform in ``+-sqrt(6 / fan_in)``. He et al. 2015."""
    limit = math.sqrt(6.0 / shape[0])
    return rng.uniform(-limit, limit, shape)


def he_normal(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal with standard deviation ``sqrt(2 / fan_in)``. He et al. 2015."""
    return rng.normal(0.0, math.sqrt(2.0 / shape[0]), shape)


_BY_NAME: dict[str, Initializer] = {
    f.__name__: f
    for f in (zeros, ones, random_normal, glorot_uniform, glorot_normal, he_uniform, he_normal)
}  # fmt: skip


def get(initializer: Any) -> Initializer:
    """The initialiser called ``initializer``; a callable ``(shape, rng) -> array`` passes through."""
    if callable(initializer):
        return initializer
    if initializer in _BY_NAME:
        return _BY_NAME[initializer]
    raise ValueError(f"unknown initializer {initializer!r}; known: {', '.join(sorted(_BY_NAME))}")


def name_of(initializer: Initializer) -> str:
    """The name under which :func:`get` finds ``initializer``; raises for one that has none."""
    name = getattr(initializer, "__name__", "")
    if _BY_NAME.get(name) is initializer:
        return name
    raise ValueError(f"initializer {initializer!r} has no name and cannot be saved")
