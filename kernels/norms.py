"""Batch, group and layer normalisation as functions on arrays; see ops.py for what they take.

Channels come first: ``(batch, channels)`` or ``(batch, channels, *spatial)``, C-contiguous (else it is copied).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .cpu import eager
from .instructions import ShapeError
from .ops import _backend, _float, _matrix, _run


def _floats(backend: Any, **arrays: Any) -> list[Any]:
    return [_float(name, array, backend) for name, array in arrays.items()]


def _rows(*arrays: Any) -> list[Any]:
    """Each array as the matrix of its samples."""
    return [a if a.ndim == 2 else a.reshape(a.shape[0], math.prod(a.shape[1:])) for a in arrays]


def _channels(x: Any, gamma: Any, dy: Any = None) -> None:
    """Raise where ``x`` has no channels, or ``gamma`` not as many, or ``dy`` not its shape."""
    if x.ndim < 2:
        raise ShapeError(f"x has shape {x.shape}; expected (batch, channels) or (batch, channels, *spatial)")
    if gamma.shape != x.shape[1:2]:
        raise ShapeError(f"gamma has shape {gamma.shape}; expected ({x.shape[1]},), the channels of x {x.shape}")
    if dy is not None and dy.shape != x.shape:
        raise ShapeError(f"dy has shape {dy.shape}; expected {x.shape}, that of x")


def _known(op: str, x: Any, gamma: Any, given: tuple[Any, ...], scalars: tuple[float, ...] = ()) -> Any:
    """The three results that ``op`` writes, if it is known for these arrays, which have no places beside channels."""
    if type(x) is type(gamma) is np.ndarray and gamma.shape == x.shape[1:]:
        return eager.known(op, given, None, scalars, 3)
    return None


def batch_norm_forward(
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Any,
    running_var: Any,
    *,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> tuple[Any, Any, Any]:
    """``(y, mean, rstd)`` of ``x (batch, channels, *spatial)``; the running statistics are updated in place.

    ``y = gamma (x - mean) rstd + beta``, ``rstd = 1 / sqrt(var + epsilon)`` with the biased variance over the batch
    and all places; the running variance takes the unbiased one: ``running = momentum * running + (1 - momentum) *
    batch``. All but ``x`` and ``y`` are of shape ``(channels,)``.
    """
    given = x, gamma, beta, running_mean, running_var
    results = _known("batch_norm_forward", x, gamma, given, (momentum, epsilon))
    if results is not None:
        mean, rstd, y = results
        return y, mean, rstd
    backend = _backend(x=x, gamma=gamma, beta=beta, running_mean=running_mean, running_var=running_var)
    x, gamma, beta = _floats(backend, x=x, gamma=gamma, beta=beta)
    _channels(x, gamma)
    running_mean = backend.in_place("running_mean", running_mean)
    running_var = backend.in_place("running_var", running_var)
    new, dtype = backend.empty, x.dtype
    y, mean, rstd = new(x.shape, dtype), new(gamma.shape, dtype), new(gamma.shape, dtype)
    flat_x, flat_y = _rows(x, y)
    operands = [flat_x, gamma, beta, running_mean, running_var, mean, rstd, flat_y]
    _run(backend, "batch_norm_forward", operands, None, (momentum, epsilon))
    return y, mean, rstd


def batch_norm_inference(
    x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any, *, epsilon: float = 1e-5
) -> Any:
    """``gamma (x - running_mean) / sqrt(running_var + epsilon) + beta`` for ``x (batch, channels, *spatial)``."""
    backend = _backend(x=x, gamma=gamma, beta=beta, running_mean=running_mean, running_var=running_var)
    x, *rest = _floats(backend, x=x, gamma=gamma, beta=beta, running_mean=running_mean, running_var=running_var)
    _channels(x, gamma)
    y = backend.empty(x.shape, x.dtype)
    flat_x, flat_y = _rows(x, y)
    _run(backend, "batch_norm_inference", [flat_x, *rest, flat_y], None, (epsilon,))
    return y


def _backward(op: str, dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, backend: Any = None) -> tuple[Any, Any, Any]:
    results = _known(op, x, gamma, (dy, x, gamma, mean, rstd))
    if results is not None:
        dx, dgamma, dbeta = results
        return dx, dgamma, dbeta
    backend = backend or _backend(dy=dy, x=x, gamma=gamma, mean=mean, rstd=rstd)
    dy, x, gamma, mean, rstd = _floats(backend, dy=dy, x=x, gamma=gamma, mean=mean, rstd=rstd)
    _channels(x, gamma, dy)
    new = backend.empty if x.size else backend.zeros  # sums over nothing are 0
    dx, dgamma, dbeta = new(x.shape, dy.dtype), new(gamma.shape, dy.dtype), new(gamma.shape, dy.dtype)
    flat_dy, flat_x, flat_dx = _rows(dy, x, dx)
    _run(backend, op, [flat_dy, flat_x, gamma, mean, rstd, flat_dx, dgamma, dbeta])
    return dx, dgamma, dbeta


def batch_norm_backward(dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """``(dx, dgamma, dbeta)``; ``mean`` and ``rstd`` are those :func:`batch_norm_forward` returned."""
    return _backward("batch_norm_backward", dy, x, gamma, mean, rstd)


def group_norm_forward(x: Any, gamma: Any, beta: Any, groups: int, *, epsilon: float = 1e-5) -> tuple[Any, Any, Any]:
    """``(y, mean, rstd)`` of ``x (batch, channels, *spatial)``; ``mean`` and ``rstd`` are ``(batch, groups)``.

    ``y = gamma (x - mean) rstd + beta``, ``rstd = 1 / sqrt(var + epsilon)``, with the mean and the biased variance of
    each group of ``channels / groups`` neighbouring channels of a sample, and ``gamma, beta (channels,)``. As many
    groups as channels are instance norm. Wu & He 2018; Ulyanov, Vedaldi & Lempitsky 2016.
    """
    backend = _backend(x=x, gamma=gamma, beta=beta)
    x, gamma, beta = _floats(backend, x=x, gamma=gamma, beta=beta)
    _channels(x, gamma)
    if isinstance(groups, bool) or not hasattr(groups, "__index__") or groups < 1 or x.shape[1] % groups:
        raise ShapeError(f"groups is {groups!r}; expected a divisor of the {x.shape[1]} channels of x")
    figures = x.shape[0], int(groups)
    y, mean, rstd = (backend.empty(s, x.dtype) for s in (x.shape, figures, figures))
    flat_x, flat_y = _rows(x, y)
    _run(backend, "group_norm_forward", [flat_x, gamma, beta, mean, rstd, flat_y], None, (epsilon,))
    return y, mean, rstd


def group_norm_backward(dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """``(dx, dgamma, dbeta)``; ``mean`` and ``rstd`` are those :func:`group_norm_forward` returned."""
    return _backward("group_norm_backward", dy, x, gamma, mean, rstd)


def layer_norm_forward(x: Any, gamma: Any, beta: Any, *, epsilon: float = 1e-5) -> tuple[Any, Any, Any]:
    """``(y, mean, rstd)`` of ``x (batch, features)``; ``mean`` and ``rstd`` are those of each row, ``(batch,)``.

    ``y = gamma (x - mean) rstd + beta``, ``rstd = 1 / sqrt(var + epsilon)`` with the biased variance.
    """
    backend = _backend(x=x, gamma=gamma, beta=beta)
    x, gamma, beta = _floats(backend, x=x, gamma=gamma, beta=beta)
    _matrix("x", x)
    _channels(x, gamma)
    y, mean, rstd = (backend.empty(s, x.dtype) for s in (x.shape, (x.shape[0], 1), (x.shape[0], 1)))
    _run(backend, "group_norm_forward", [x, gamma, beta, mean, rstd, y], None, (epsilon,))
    return y, mean.reshape(-1), rstd.reshape(-1)


def layer_norm_backward(dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """``(dx, dgamma, dbeta)``; ``mean`` and ``rstd`` are those :func:`layer_norm_forward` returned."""
    backend = _backend(dy=dy, x=x, gamma=gamma, mean=mean, rstd=rstd)
    x, mean, rstd = _floats(backend, x=x, mean=mean, rstd=rstd)
    _matrix("x", x)
    if mean.shape != x.shape[:1] or rstd.shape != mean.shape:
        name, shape = ("mean", mean.shape) if mean.shape != x.shape[:1] else ("rstd", rstd.shape)
        raise ShapeError(f"{name} has shape {shape}; expected ({x.shape[0]},), the rows of x")
    return _backward("group_norm_backward", dy, x, gamma, mean.reshape(-1, 1), rstd.reshape(-1, 1), backend)
