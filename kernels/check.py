"""What a rule must stand before it is registered: its derivative against differences, its results counted."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from . import schedules
from .optimizer_rule import Optimizer
from .rule import ON_REGISTER, Activation, Rule, RuleError, find

# Spread without round numbers, so that no kink (0, 1, 3, 6, ...) of the usual rules is hit exactly.
_REAL = np.linspace(-5.7, 5.9, 41) + 0.0137
_GRIDS = {"real": _REAL, "positive": _REAL[_REAL > 0.0], "probability": np.linspace(0.0411, 0.9571, 21)}
_STEP = 1e-3
_AGREEMENT = 1e-6


def differences(function: Callable[[float], float], z: float) -> tuple[float, bool]:
    """The derivative of ``function`` at ``z`` by 4-point differences, and whether it is smooth there."""
    h = _STEP * max(1.0, abs(z))
    f = [float(function(z + k * h)) for k in (-2, -1, 0, 1, 2)]
    central = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * h)
    left, right = (3 * f[2] - 4 * f[1] + f[0]) / (2 * h), (4 * f[3] - 3 * f[2] - f[4]) / (2 * h)
    smooth = abs(left - right) <= 1e-2 * max(1.0, abs(central))
    return central, smooth


def check(rule: Any) -> None:
    """Raise :class:`RuleError` if a derivative is wrong or an optimizer returns the wrong number of values."""
    with np.errstate(all="ignore"):
        if isinstance(rule, Optimizer):
            _check_update(rule)
        elif isinstance(rule, Activation):
            _check_slope(rule, _REAL, lambda z: (z,), lambda z: (z, _call(rule, rule.value, z)))
        else:
            for y in (0.0, 1.0, -1.7) if rule.domain == "real" else (0.0, 1.0):
                grid = _GRIDS[rule.domain]
                _check_slope(rule, grid, lambda p, y=y: (p, y), lambda p, y=y: (p, y))


def check_rule(rule: Any) -> Any:
    """Check ``rule`` as at its registration, and return it; raises :class:`RuleError` with what is wrong.

    The derivative of an activation or a loss is compared with differences of its value, an optimizer is tried for the
    number of values it returns, a schedule for rates that are finite and at least 0; and the rule is compiled.

    >>> check_rule(find("activation", "gelu"))
    <activation gelu>
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"check_rule takes a rule, such as find('activation', 'relu'); got {rule!r}")
    rule = find(rule.kind, rule)
    if isinstance(rule, schedules.Schedule):
        schedules.check(rule)
    else:
        for hook in ON_REGISTER:
            hook(rule)
    return rule


def _call(rule: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments, *([rule.namespace] if rule.parameters else []))
    except Exception as error:
        raise RuleError(f"{rule.label} fails in plain Python at {arguments}: {error!r}") from error


def _check_slope(rule: Any, grid: Any, value_at: Any, slope_at: Any) -> None:
    checked = 0
    for z in grid:
        expected, smooth = differences(lambda x: _call(rule, rule.value, *value_at(x)), float(z))
        if not smooth or not np.isfinite(expected):
            continue
        got = float(_call(rule, rule.slope, *slope_at(float(z))))
        if not abs(got - expected) <= _AGREEMENT * max(1.0, abs(expected)):
            raise RuleError(
                f"{rule.label}: the derivative at {z:.4f} is {got:.6g}; differences of the value give {expected:.6g}"
            )
        checked += 1
    if checked < len(grid) // 2:
        raise RuleError(f"{rule.label} is finite and smooth at only {checked} of {len(grid)} points of its domain")


def _check_update(rule: Optimizer) -> None:
    h = types.SimpleNamespace(**rule.parameters, t=1.0)
    factors = [0.25] * len(rule.factors)
    arguments = (0.5, -0.25, *[0.0] * len(rule.slots), *factors)
    try:
        terms = [] if rule.terms is None else _tuple(rule.terms(-0.25, *factors, h))
        sums = [] if rule.summands is None else _tuple(rule.summands(*arguments, h))
        result = rule.update(*arguments, *sums, h)
    except Exception as error:
        raise RuleError(f"{rule.label} fails in plain Python at {arguments}: {error!r}") from error
    for names, values in ((("w", *rule.slots), _tuple(result)), (rule.factors, terms), (rule.sums, sums)):
        if len(values) != len(names):
            raise RuleError(f"{rule.label} returns {len(values)} values; expected ({', '.join(names)})")


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


ON_REGISTER.append(check)
