"""Learning-rate schedules, each a scalar rule ``(rate, h) -> rate``, computed in float64 inside the fused step.

``h.t`` counts steps or epochs from 1, as the optimizer's ``steps_per_epoch`` says (1: steps). Textbooks count what has
passed from 1 at the first epoch (``lr0 / (1 + decay * epoch)``), Keras and PyTorch from 0: ``h.start`` is that number.
"""

from __future__ import annotations

import functools
import linecache
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .mathfn import cos, floor, sqrt
from .rule import REGISTRY, Rule, RuleError, arguments_of, builtin, numbers_of, register

REGISTRY.setdefault("schedule", {})


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(Rule):
    """The learning rate of a step, from the one the optimizer was given: ``factor(rate, h)``."""

    rate: Callable[..., Any] = None  # type: ignore[assignment]

    kind: ClassVar[str] = "schedule"

    @property
    def main(self) -> Callable[..., Any]:
        """The function that was decorated."""
        return self.rate

    def at(self, rate: float, t: float) -> float:
        """The learning rate at step or epoch ``t``, counted from 1, in plain Python."""
        return float(self.rate(rate, types.SimpleNamespace(**self.parameters, t=float(t))))


def schedule(function: Any = None, /, **parameters: float) -> Any:
    """Make a schedule of ``(rate, h)``; the keyword arguments are its parameters with their defaults.

    >>> from dlcore import kernels
    >>> @kernels.schedule(decay=1.0)
    ... def harmonic(rate, h):
    ...     return rate / (1.0 + h.decay * h.t)
    >>> harmonic.at(0.2, 1)
    0.1
    """
    numbers = numbers_of(parameters, "schedule")
    if "t" in numbers:
        raise RuleError("schedule: t is the number of the step or epoch; it cannot be a parameter")

    def wrap(function: Callable[..., Any]) -> Schedule:
        made = Schedule(function.__name__, numbers, rate=function)
        if len(arguments_of(function)) != 2:
            raise RuleError(f"{made.label} takes ({', '.join(arguments_of(function))}); expected (rate, h)")
        if not builtin(made):
            check(made)
        return register(made)

    return wrap(function) if function is not None else wrap


def check(rule: Schedule) -> None:
    """Raise :class:`RuleError` where ``rule`` fails in plain Python, or gives no finite rate of at least 0."""
    for t in (1, 2, 3, 10, 1000, 10**6):
        try:
            rate = rule.at(0.1, t)
        except Exception as error:
            raise RuleError(f"{rule.label} fails in plain Python at t = {t}: {error!r}") from error
        if not 0.0 <= rate < math.inf:
            raise RuleError(f"{rule.label} gives the rate {rate!r} at t = {t}")


def _passed(t, start):
    """What has passed at the ``t``-th step or epoch."""
    return t - 1.0 + start


@schedule(every=1.0, decay=1.0, staircase=0.0, start=1.0)
def inverse_time(rate, h):
    """``rate / (1 + decay x)`` with ``x`` = what has passed ``/ every``, rounded down where ``staircase`` is not 0."""
    x = _passed(h.t, h.start) / h.every
    return rate / (1.0 + h.decay * (floor(x) if h.staircase > 0.0 else x))


@schedule(every=1.0, decay=0.95, staircase=0.0, start=1.0)
def exponential(rate, h):
    """``rate * decay^x``; with ``staircase`` in steps of ``every``, which is step decay."""
    x = _passed(h.t, h.start) / h.every
    return rate * h.decay ** (floor(x) if h.staircase > 0.0 else x)


@schedule(k=1.0)
def inverse_square_root(rate, h):
    """``rate * k / sqrt(t)``, ``t`` from 1."""
    return rate * h.k / sqrt(h.t)


@schedule(total=1.0, end=0.0, power=1.0, cycle=0.0, start=0.0)
def polynomial(rate, h):
    """``(rate - end) (1 - x / total)^power + end``; ``cycle`` lengthens ``total`` to its next multiple."""
    x = _passed(h.t, h.start)
    total = h.total
    if h.cycle > 0.0:
        total = h.total * max(1.0, -floor(-x / h.total))
    return (rate - h.end) * (1.0 - min(x / total, 1.0)) ** h.power + h.end


@schedule(total=1.0, alpha=0.0, warmup=0.0, begin=0.0, start=0.0)
def cosine(rate, h):
    """Linear from ``begin`` over ``warmup``, then ``rate ((1 - alpha) (1 + cos(pi x / total)) / 2 + alpha)``.

    Loshchilov & Hutter 2017.
    """
    x = _passed(h.t, h.start)
    fraction = min(max(x - h.warmup, 0.0) / h.total, 1.0)
    if x < h.warmup:
        return h.begin + (rate - h.begin) * x / h.warmup
    return rate * ((1.0 - h.alpha) * 0.5 * (1.0 + cos(math.pi * fraction)) + h.alpha)


@schedule(first=1.0, t_mul=2.0, m_mul=1.0, alpha=0.0, start=0.0)
def cosine_restarts(rate, h):
    """Cosine decay over ``first``, then again over ``t_mul`` times as long, from ``m_mul`` times the rate.

    Loshchilov & Hutter 2017 (SGDR).
    """
    x = _passed(h.t, h.start) / h.first
    length = 1.0
    height = 1.0
    while x >= length:
        x -= length
        length *= h.t_mul
        height *= h.m_mul
    return rate * ((1.0 - h.alpha) * 0.5 * height * (1.0 + cos(math.pi * x / length)) + h.alpha)


@schedule(total=100.0, share=0.3, begin=0.04, end=4e-6, start=0.0)
def one_cycle(rate, h):
    """Cosine from ``begin rate`` up to ``rate`` over ``share`` of ``total``, then down to ``end rate``. Smith 2018.

    As in PyTorch, the peak lies at ``share total - 1`` and the end at ``total - 1``.
    """
    x = min(_passed(h.t, h.start), h.total - 1.0)
    peak = h.share * h.total - 1.0
    low = h.begin if x <= peak else h.end
    distance = (peak - x) / peak if x <= peak else (x - peak) / (h.total - 1.0 - peak)
    return rate * (low + (1.0 - low) * 0.5 * (1.0 + cos(math.pi * distance)))


@schedule(warmup=1.0, start=1.0)
def warm_up(rate, h):
    """Linear up to ``rate`` over ``warmup``, then constant. Goyal et al. 2017."""
    return rate * min(_passed(h.t, h.start) / h.warmup, 1.0)


@schedule(base=0.1, half=1.0, shrink=1.0, start=0.0)
def triangular(rate, h):
    """From ``base`` to ``rate`` and back over ``half`` each; every cycle ``shrink`` times as high. Smith 2017."""
    x = _passed(h.t, h.start) / h.half
    cycle = floor(x / 2.0)
    return h.base + (rate - h.base) * (1.0 - abs(x - 2.0 * cycle - 1.0)) * h.shrink**cycle


@functools.cache
def piecewise(count: int) -> Schedule:
    """A constant between each two of ``count`` boundaries: ``v0`` until ``b1`` has passed, then ``v1``, and so on.

    ``rate`` is ``v0``.
    """
    name = f"piecewise_constant_{count}"
    expression = "rate"
    for k in range(1, count + 1):
        expression = f"(h.v{k} if h.t - 1.0 + h.start > h.b{k} else {expression})"
    text = f'def {name}(rate, h):\n    """The value of the last boundary that has passed."""\n    return {expression}\n'
    file = f"<dlcore {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    scope: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, file, "exec"), scope)
    parameters = {f"{letter}{k}": float(k) for letter in "bv" for k in range(1, count + 1)}
    return schedule(start=0.0, **parameters)(scope[name])
