"""Initial values of parameters. ``fan_in`` and ``fan_out`` are the rows and columns of a weight matrix.

An initialiser is a callable ``(shape, rng) -> array``; the model gives the generator, so :func:`dlcore.set_seed` makes
it repeat. Those with options are made by calling their class: ``Constant(0.25)``, ``VarianceScaling(2.0, "fan_out")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from .kernels.names import unknown

Initializer = Callable[[Sequence[int], np.random.Generator], np.ndarray]

_CUT = 2.0  # standard deviations at which a normal distribution is cut off
_REMAINING = 0.87962566103423978  # the standard deviation of the standard normal that is cut off there


def _finite(owner: Any, *names: str, low: float = -math.inf) -> None:
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
            expected = "a finite number" if low == -math.inf else f"a finite number from {low:g}"
            raise ValueError(f"{name} must be {expected}, got {value!r}")


def _truncated(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Standard normal numbers, drawn again until they lie within two standard deviations."""
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > _CUT).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values


@dataclass(frozen=True)
class Constant:
    """All ``value``."""

    value: float = 0.0
    name: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        _finite(self, "value")

    def __call__(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """The array."""
        return np.full(shape, self.value, np.float64)


@dataclass(frozen=True)
class RandomNormal:
    """Normal with ``mean`` and standard deviation ``stddev``."""

    mean: float = 0.0
    stddev: float = 0.01
    name: ClassVar[str] = "random_normal"

    def __post_init__(self) -> None:
        _finite(self, "mean")
        _finite(self, "stddev", low=0.0)

    def __call__(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """The array."""
        return rng.normal(self.mean, self.stddev, shape)


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal with ``mean`` and ``stddev``, without what is more than two ``stddev`` from the mean."""

    mean: float = 0.0
    stddev: float = 0.05
    name: ClassVar[str] = "truncated_normal"

    def __post_init__(self) -> None:
        _finite(self, "mean")
        _finite(self, "stddev", low=0.0)

    def __call__(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """The array."""
        return self.mean + self.stddev * _truncated(shape, rng)


@dataclass(frozen=True)
class RandomUniform:
    """Uniform in ``[minval, maxval)``."""

    minval: float = -0.05
    maxval: float = 0.05
    name: ClassVar[str] = "random_uniform"

    def __post_init__(self) -> None:
        _finite(self, "minval", "maxval")
        if self.minval > self.maxval:
            raise ValueError(f"minval is {self.minval!r}; expected at most maxval, {self.maxval!r}")

    def __call__(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """The array."""
        return rng.uniform(self.minval, self.maxval, shape)


_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS = ("normal", "truncated_normal", "uniform")


@dataclass(frozen=True)
class VarianceScaling:
    """Mean 0 and variance ``scale / n``, ``n`` being ``fan_in``, ``fan_out`` or their mean, by ``mode``.

    ``distribution`` is ``"normal"``, ``"truncated_normal"`` (cut at two standard deviations, with the same variance) or
    ``"uniform"``.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    name: ClassVar[str] = "variance_scaling"

    def __post_init__(self) -> None:
        _finite(self, "scale", low=0.0)
        if self.mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {self.mode!r}")
        if self.distribution not in _DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {self.distribution!r}")

    def __call__(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """The array."""
        fans = {"fan_in": shape[0], "fan_out": shape[-1], "fan_avg": (shape[0] + shape[-1]) / 2.0}
        deviation = math.sqrt(self.scale / fans[self.mode])
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * self.scale / fans[self.mode])
            return rng.uniform(-limit, limit, shape)
        if self.distribution == "normal":
            return rng.normal(0.0, deviation, shape)
        return deviation / _REMAINING * _truncated(shape, rng)


@dataclass(frozen=True)
class Orthogonal:
    """``gain`` times a matrix of orthonormal rows or columns, whichever are fewer. Saxe, McClelland & Ganguli 2014.

    The factor Q of a matrix of normal numbers, with the signs of the diagonal of R: uniform among all such matrices.
    """

    gain: float = 1.0
    name: ClassVar[str] = "orthogonal"

    def __post_init__(self) -> None:
        _finite(self, "gain")

    def __call__(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """The array; ``shape`` has two axes."""
        if len(shape) != 2:
            raise ValueError(f"orthogonal takes a shape of two axes, got {tuple(shape)}")
        rows, columns = shape
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.where(np.diagonal(r) < 0.0, -1.0, 1.0)
        return self.gain * (q if rows >= columns else q.T)


def zeros(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """All 0."""
    return np.zeros(shape)


def ones(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """All 1."""
    return np.ones(shape)


random_normal = RandomNormal()  # mean 0 and standard deviation 0.01
random_uniform = RandomUniform()
truncated_normal = TruncatedNormal()
orthogonal = Orthogonal()


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


def lecun_uniform(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Uniform in ``+-sqrt(3 / fan_in)``. LeCun et al. 1998."""
    limit = math.sqrt(3.0 / shape[0])
    return rng.uniform(-limit, limit, shape)


def lecun_normal(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal with standard deviation ``sqrt(1 / fan_in)``. LeCun et al. 1998."""
    return rng.normal(0.0, math.sqrt(1.0 / shape[0]), shape)


_FUNCTIONS: dict[str, Initializer] = {
    f.__name__: f
    for f in (
        zeros, ones, glorot_uniform, glorot_normal, he_uniform, he_normal, lecun_uniform, lecun_normal,
    )
}  # fmt: skip
_BY_NAME = _FUNCTIONS | {f.name: f for f in (random_normal, random_uniform, truncated_normal, orthogonal)}
_CLASSES = {
    cls.name: cls for cls in (Constant, RandomNormal, RandomUniform, TruncatedNormal, VarianceScaling, Orthogonal)
}
_OTHER_NAMES = {"".join(word.title() for word in name.split("_")): name for name in [*_BY_NAME, *_CLASSES]} | {
    "xavier_uniform": "glorot_uniform",
    "xavier_normal": "glorot_normal", "kaiming_uniform": "he_uniform", "kaiming_normal": "he_normal",
}  # fmt: skip


def get(initializer: Any) -> Initializer:
    """The initialiser called ``initializer``; an initialiser, one of the classes, or a config of one passes through."""
    if isinstance(initializer, dict) and initializer.get("name") in _CLASSES:
        options = {key: value for key, value in initializer.items() if key != "name"}
        return _CLASSES[initializer["name"]](**options)
    if isinstance(initializer, type) and initializer in _CLASSES.values():
        return initializer()
    if callable(initializer):
        return initializer
    name = _OTHER_NAMES.get(initializer, initializer) if isinstance(initializer, str) else ""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in _CLASSES:
        return _CLASSES[name]()
    raise ValueError(unknown("initializer", initializer, {*_BY_NAME, *_CLASSES}, _OTHER_NAMES))


def name_of(initializer: Initializer) -> Any:
    """What :func:`get` finds ``initializer`` by: its name, or a config; raises for one that has neither."""
    name = getattr(initializer, "__name__", getattr(initializer, "name", ""))
    if _BY_NAME.get(name) == initializer:
        return name
    if type(initializer) in _CLASSES.values():
        return {"name": name, **asdict(initializer)}  # type: ignore[call-overload]
    raise ValueError(f"initializer {initializer!r} has no name and cannot be saved")
