"""Exponentially weighted averages of what one has measured: a noisy loss, temperatures, prices."""

from __future__ import annotations

from typing import Any

import numpy as np


def _beta(beta: float) -> float:
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0.0 <= beta < 1.0:
        raise ValueError(f"beta must be a number in [0, 1), got {beta!r}")
    return float(beta)


def ewa(values: Any, beta: float = 0.9, bias_correction: bool = True) -> np.ndarray:
    """``v_t = beta v_(t-1) + (1 - beta) theta_t`` with ``v_0 = 0``, for each ``theta_t`` of ``values``.

    ``values`` are ``(steps,)`` or ``(steps, ...)``; the result has their shape and is float64. The first averages are
    drawn towards 0; ``bias_correction`` divides by ``1 - beta^t``. See :func:`effective_window`.

    >>> ewa([40, 49, 45], 0.9, bias_correction=False).round(2).tolist()
    [4.0, 8.5, 12.15]
    >>> ewa([40, 49, 45], 0.9).round(1).tolist()
    [40.0, 44.7, 44.8]
    """
    beta = _beta(beta)
    theta = np.asarray(values)
    if theta.dtype.kind not in "biuf" or theta.ndim < 1:
        raise ValueError(f"values must be numbers, (steps,) or (steps, ...); got {theta.dtype} {theta.shape}")
    averages = np.empty(theta.shape)
    v = np.zeros(theta.shape[1:])
    left = 1.0  # beta^t
    for t, each in enumerate(theta):
        v = beta * v + (1.0 - beta) * each
        left *= beta
        averages[t] = v / (1.0 - left) if bias_correction else v
    return averages


def effective_window(beta: float) -> float:
    """``1 / (1 - beta)``: about how many of the last values an average is over; older ones weigh ``1/e`` or less.

    >>> [round(effective_window(beta)) for beta in (0.5, 0.9, 0.98)]
    [2, 10, 50]
    """
    return 1.0 / (1.0 - _beta(beta))
