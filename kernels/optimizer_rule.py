"""Rules of optimizers: one element's update, what it sums over a tensor, and what it keeps of rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .rule import Rule, RuleError, arguments_of, complete, expect, numbers_of, place_of

# What calling an optimizer rule makes; the layer API puts its own Optimizer here.
CONFIGURE: list[Callable[..., Any]] = [lambda rule, **values: rule.variant(**values)]


# rules by their updates, of which one of ``tensor_factors`` and ``tensor_sums`` is there, and the other still lacks
_BEGUN: dict[Callable[..., Any], Any] = {}


@dataclass(frozen=True, eq=False, repr=False)
class Optimizer(Rule):
    """One element's update ``(w, g, *slots, *factors, *sums, h) -> (w, *slots)``.

    ``h.t`` is the number of the step, counted from 1. Whatever depends on ``h`` alone is computed once a step, in
    float64. ``decoupled`` makes weight decay act on the weights (AdamW) and not on the gradient (L2). ``sums`` are what
    ``summands(w, g, *slots, *factors, h)`` adds up to over the tensor the element belongs to. ``factors`` are state of
    the element's row and of its column in that tensor, of what ``terms`` gives: see :meth:`tensor_factors`. ``limited``
    clips the gradient by value, ``maximize`` takes its other sign, and ``schedule`` changes the learning rate from step
    to step. ``wrappers`` follow the update (see wrappers.py); their parameters and slots stand behind the rule's own.
    """

    update: Callable[..., Any] = None  # type: ignore[assignment]
    slots: tuple[str, ...] = ()
    decoupled: bool = False
    sums: tuple[str, ...] = ()
    summands: Callable[..., Any] | None = None
    factors: tuple[str, ...] = ()
    terms: Callable[..., Any] | None = None
    largest: bool = False  # factors are the largest of the terms and not their mean
    after: bool = False  # factors change after the update and not before
    limited: bool = False
    maximize: bool = False
    schedule: Any = None
    wrappers: tuple[Any, ...] = ()

    kind: ClassVar[str] = "optimizer"

    @property
    def main(self) -> Callable[..., Any]:
        """The function that was decorated."""
        return self.update

    def __call__(self, **values: float) -> Any:
        """The rule with values of its parameters, weight decay and clipping, for a model to train with."""
        return CONFIGURE[0](self, **values)

    @property
    def rate(self) -> str:
        """The name of the parameter that is the learning rate: ``learning_rate`` or ``lr``."""
        return "lr" if "lr" in self.parameters else "learning_rate"

    @property
    def lacks(self) -> str:
        """``"tensor factors"``, ``"tensor sums"``, or nothing."""
        if self.factors and self.terms is None:
            return "tensor factors"
        return "tensor sums" if self.sums and self.summands is None else ""

    @property
    def own_slots(self) -> tuple[str, ...]:
        """The slots without those of the wrappers."""
        return self.slots[: len(self.slots) - sum(len(w.slots) for w in self.wrappers)]

    @property
    def state(self) -> tuple[Any, ...]:
        """Equal for rules that can go on from each other's slots."""
        return self.update, tuple(w.after for w in self.wrappers)

    @property
    def hyper(self) -> tuple[str, ...]:
        """The numbers that kernels read, in their order."""
        limit = ("clip_value",) if self.limited else ()
        schedule = () if self.schedule is None else ("steps_per_epoch", *self.schedule.parameters)
        return (*self.parameters, "weight_decay", *limit, *schedule, "clip_norm")

    @property
    def form(self) -> tuple[Any, ...]:
        """Equal for rules that are one kernel: those that differ in values only."""
        schedule = None if self.schedule is None else (self.schedule.main, tuple(self.schedule.parameters))
        options = self.decoupled, self.limited, self.maximize
        return *self.state, self.summands, self.terms, self.largest, tuple(self.parameters), *options, schedule

    @property
    def by_tensor(self) -> bool:
        """Whether the update of an element depends on others of its tensor."""
        return bool(self.sums or self.factors)

    def tensor_factors(self, function: Any = None, /, *, reduce: str = "mean", after: bool = False) -> Any:
        """Attach ``terms(g, row, column, h)``: what an element adds to the state of its row, and of its column.

        For ``@optimizer(factors="row column", ...)``. A matrix of ``n x m`` weights, the last axis for its columns, has
        a number for each row and each column as state, zero at first, instead of ``n m``; a vector is one row. Before
        each update, or ``after`` it, that of a row becomes the mean over the row of the first value (``reduce="max"``:
        the largest), that of a column the mean over the column of the second. The terms see the state from before. The
        update, and ``tensor_sums``, see a row's state over the mean of those of all rows (with ``"max"``: as it is), so
        that ``row * column`` stands for a mean square that is kept as factors. ``after`` does not go with sums. ::

            @optimizer(factors="r c", learning_rate=0.01)
            def factored(w, g, r, c, h):
                return w - h.learning_rate * g / sqrt(r * c)

            @factored.tensor_factors
            def _(g, r, c, h):
                return 0.99 * r + 0.01 * g * g, 0.99 * c + 0.01 * g * g
        """
        if reduce not in ("mean", "max"):
            raise RuleError(f"reduce must be 'mean' or 'max', got {reduce!r}")
        if after and self.sums:
            raise RuleError(f"{self.label} takes sums over the tensor: its factors cannot change after the update")

        def wrap(function: Callable[..., Any]) -> Optimizer:
            expect(function, " ".join(("g", *self.factors)), self.parameters)
            return self._attach(function, terms=function, largest=reduce == "max", after=after)

        return wrap(function) if function is not None else wrap

    def _attach(self, function: Callable[..., Any], **changes: Any) -> Optimizer:
        if arguments_of(function)[-1] != arguments_of(self.update)[-1]:
            raise RuleError(f"{self.label}: its functions must call their last argument alike")
        rule = replace(_BEGUN.pop(self.update, self), **changes)
        if rule.lacks:
            _BEGUN[self.update] = rule
            return rule
        return complete(rule)

    def tensor_sums(self, function: Callable[..., Any]) -> Optimizer:
        """Attach ``summands``, one value for each of ``sums``, and register the rule."""
        expect(function, " ".join(("w g", *self.slots, *self.factors)), self.parameters)
        return self._attach(function, summands=function)


def optimizer(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    slots: int | None = None,
    sums: str = "",
    factors: str = "",
    decoupled: bool = False,
    **parameters: float,
) -> Any:
    """Make an optimizer of one element's update ``(w, g, *slots, *factors, *sums, h) -> (w, *slots)``.

    The slots start at zero; their number follows from the arguments, and ``slots`` only states it. The keyword
    arguments are the hyper-parameters with their defaults, read as ``h.name``; one is ``learning_rate`` or ``lr``.
    The rule is called ``name``, or as the function is.

    ``sums`` names arguments that are sums over the tensor of the element (a layer's kernel, a bias). What is summed
    follows, and completes the rule::

        @optimizer(sums="w2 g2", learning_rate=0.01)
        def normalised(w, g, w2, g2, h):
            return w - h.learning_rate * sqrt(w2 / g2) * g

        @normalised.tensor_sums
        def _(w, g, h):
            return w * w, g * g

    ``factors`` names two arguments that are state of the element's row and column: see
    :meth:`Optimizer.tensor_factors`.
    """
    summed, factored = tuple(sums.split()), tuple(factors.split())
    if len(factored) not in (0, 2):
        raise RuleError(f"factors must name two arguments, for the row and the column; got {factors!r}")
    numbers = numbers_of(parameters, "optimizer")
    if name is not None and not name.isidentifier():
        raise RuleError(f"the name of an optimizer must be an identifier, got {name!r}")

    def wrap(function: Callable[..., Any]) -> Optimizer:
        arguments = arguments_of(function)
        place = f"optimizer {function.__name__!r} ({place_of(function)})"
        if len(arguments) < 3:
            raise RuleError(f"{place} takes ({', '.join(arguments)}); expected (w, g, *slots, h)")
        given = *factored, *summed
        names = arguments[2 : -1 - len(given)]
        if arguments[2 + len(names) : -1] != given:
            raise RuleError(f"{place} takes ({', '.join(arguments)}); expected (w, g, *slots, {', '.join(given)}, h)")
        if slots is not None and slots != len(names):
            raise RuleError(f"{place} says slots={slots} and takes {len(names)}: {', '.join(names) or 'none'}")
        if not {"learning_rate", "lr"} & set(numbers):
            raise RuleError(f"{place} needs a learning_rate (or lr) among its parameters")
        for reserved in ("t", "weight_decay", "clip_value", "clip_norm", "steps_per_epoch"):
            if reserved in numbers:
                raise RuleError(f"{place}: {reserved} is given by the skeleton; it cannot be a parameter")
        called = name or function.__name__
        rule = Optimizer(
            called, numbers, update=function, slots=names, decoupled=decoupled, sums=summed, factors=factored
        )
        return rule if rule.lacks else complete(rule)

    return wrap(function) if function is not None else wrap
