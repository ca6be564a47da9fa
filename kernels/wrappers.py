"""Wrappers: scalar functions ``(w, new, *slots, h) -> (new, *slots)`` that follow the update of any optimizer rule.

They run in the same pass over the parameters: ``w`` is a weight before the step, ``new`` the weight that the rule (or
the wrapper before) made of it, ``h`` holds the wrapper's parameters and ``h.t``, the number of the update. A wrapped
rule is a rule: its parameters and slots, and behind them those of its wrappers, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .optimizer_rule import Optimizer
from .rule import Rule, RuleError, arguments_of, numbers_of


@dataclass(frozen=True, eq=False, repr=False)
class Wrapper(Rule):
    """``after(w, new, *slots, h)``; its first slot is an average of the weights."""

    after: Callable[..., Any] = None  # type: ignore[assignment]
    slots: tuple[str, ...] = ()

    kind: ClassVar[str] = "wrapper"

    @property
    def main(self) -> Callable[..., Any]:
        """The function that was decorated."""
        return self.after


def wrapper(**parameters: float) -> Callable[[Callable[..., Any]], Wrapper]:
    """Make a wrapper of a function; ``parameters`` with their defaults."""

    def make(function: Callable[..., Any]) -> Wrapper:
        numbers = numbers_of(parameters, "wrapper")
        return Wrapper(function.__name__, numbers, after=function, slots=arguments_of(function)[2:-1])

    return make


def wrapped(rule: Optimizer, wrappers: Sequence[Wrapper]) -> Optimizer:
    """``rule`` with ``wrappers`` behind its own; each stands once."""
    for w in wrappers:
        taken = sorted(set(w.parameters) & set(rule.parameters))
        if w in rule.wrappers or taken:
            raise RuleError(f"{rule.label} has {f'a parameter {taken[0]!r}' if taken else w.name} already")
        parameters, slots = {**rule.parameters, **w.parameters}, (*rule.slots, *w.slots)
        rule = replace(rule, parameters=parameters, slots=slots, wrappers=(*rule.wrappers, w))
    return rule


@wrapper(lookahead_k=6.0, lookahead_alpha=0.5)
def lookahead(w, new, slow, h):
    """Every k steps ``slow += alpha (new - slow); new = slow``; slow begins as the weights. Zhang et al. 2019."""
    slow = w if h.t == 1 else slow
    slow = slow + h.lookahead_alpha * (new - slow) if h.t % h.lookahead_k == 0 else slow
    return slow if h.t % h.lookahead_k == 0 else new, slow


@wrapper(swa_start=1.0, swa_every=1.0)
def swa(w, new, average, h):
    """From step ``start`` on, the mean of the weights of every ``every``-th step; else ``w``. Izmailov et al. 2018.

    ``average += (new - average) / n``, n the weights in it; up to ``start`` it is the weights themselves.
    """
    count = (h.t - h.swa_start) / h.swa_every + 1.0
    taken = average + (new - average) / count if (h.t - h.swa_start) % h.swa_every == 0 else average
    return new, new if h.t <= h.swa_start else taken


@wrapper(ema_momentum=0.99, ema_overwrite_frequency=0.0)
def ema(w, new, average, h):
    """``average = m average + (1 - m) new``, at first the weights. Polyak & Juditsky 1992, as in Keras.

    Every ``overwrite_frequency`` steps (0: never) the weights become the average.
    """
    average = new if h.t == 1 else h.ema_momentum * average + (1.0 - h.ema_momentum) * new
    overwrite = h.ema_overwrite_frequency > 0 and h.t % h.ema_overwrite_frequency == 0
    return average if overwrite else new, average


WRAPPERS = {w.name: w for w in (lookahead, swa, ema)}
