"""Rules: an activation, a loss or an optimizer as plain scalar Python, and the registry of their names.

A rule is written once, for one element, and fused into the kernels of every backend::

    @activation
    def squareplus(z):
        return 0.5 * (z + sqrt(z * z + 4.0))

    @squareplus.derivative
    def _(z, y):
        return 0.5 * (1.0 + z / sqrt(z * z + 4.0))

A rule may use numbers, arithmetic, comparisons, ``if``, the functions of :mod:`math`, and other plain functions.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from .names import unknown


class RuleError(ValueError):
    """A rule that is wrong: its signature, its derivative, or something in it that no backend can compile."""


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def arguments_of(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty for p in parameters):
        raise RuleError(f"{function.__name__} ({_where(function)}): a rule takes plain positional arguments")
    return tuple(p.name for p in parameters)


def _expect(function: Callable[..., Any], symbols: str, parameters: dict[str, float]) -> None:
    """Raise unless ``function`` takes one argument for each of ``symbols``, and ``h`` if it has parameters."""
    count = len(symbols.split()) + bool(parameters)
    got = arguments_of(function)
    if len(got) != count:
        expected = ", ".join([*symbols.split(), *(["h"] if parameters else [])])
        raise RuleError(f"{function.__name__} ({_where(function)}) takes ({', '.join(got)}); expected ({expected})")


@dataclass(frozen=True, eq=False)
class Rule:
    """What every rule has: a name, its parameters with their defaults, and where it comes from."""

    name: str
    parameters: dict[str, float] = field(default_factory=dict)

    kind: ClassVar[str]

    @property
    def namespace(self) -> types.SimpleNamespace:
        """The parameters as the rule sees them: ``h.alpha``."""
        return types.SimpleNamespace(**self.parameters)

    @property
    def main(self) -> Callable[..., Any]:
        """The function that was decorated."""
        raise NotImplementedError

    @property
    def lacks(self) -> str:
        """What is still to be attached: ``"derivative"``, ``"tensor sums"``, or nothing."""
        if getattr(self, "sums", ()):
            return "" if self.summands is not None else "tensor sums"  # type: ignore[attr-defined]
        return "derivative" if getattr(self, "slope", self) is None else ""

    @property
    def where(self) -> str:
        """File and line of the rule."""
        return _where(self.main)

    @property
    def label(self) -> str:
        """The rule as an error names it: kind, name, file and line."""
        return f"{self.kind} {self.name!r} ({self.where})"

    def __repr__(self) -> str:
        values = "".join(f", {key}={value:g}" for key, value in self.parameters.items())
        return f"<{self.kind} {self.name}{values}>"

    def variant(self, name: str | None = None, **parameters: float) -> Any:
        """The same rule with other values of its parameters; it is not registered."""
        unknown = sorted(set(parameters) - set(self.parameters))
        if unknown:
            known = ", ".join(self.parameters) or "none"
            raise RuleError(f"{self.label} has no parameter {unknown[0]!r}; it has: {known}")
        return replace(self, name=name or self.name, parameters={**self.parameters, **parameters})


@dataclass(frozen=True, eq=False, repr=False)
class Activation(Rule):
    """``y = value(z)`` and its derivative ``slope(z, y)``, element by element."""

    value: Callable[..., Any] = None  # type: ignore[assignment]
    slope: Callable[..., Any] = None  # type: ignore[assignment]

    kind: ClassVar[str] = "activation"

    @property
    def main(self) -> Callable[..., Any]:
        """The function that was decorated."""
        return self.value

    @property
    def uses_input(self) -> bool:
        """Whether the derivative reads ``z``; if not, only ``y`` is kept for the backward pass."""
        return _reads(self.slope, 0)

    def derivative(self, function: Callable[..., Any]) -> Activation:
        """Attach ``g'(z, y)``, check it against 4-point differences of ``g``, and register the rule."""
        _expect(function, "z y", self.parameters)
        return _complete(self, slope=function)


@dataclass(frozen=True, eq=False, repr=False)
class Loss(Rule):
    """Per-element loss ``value(p, y)`` and its derivative ``slope(p, y)`` with respect to ``p``.

    ``reduction`` is how the elements of one sample combine: ``"mean"`` or ``"sum"``.
    """

    value: Callable[..., Any] = None  # type: ignore[assignment]
    slope: Callable[..., Any] = None  # type: ignore[assignment]
    reduction: str = "mean"
    domain: str = "real"

    kind: ClassVar[str] = "loss"

    @property
    def main(self) -> Callable[..., Any]:
        """The function that was decorated."""
        return self.value

    def derivative(self, function: Callable[..., Any]) -> Loss:
        """Attach the derivative with respect to the first argument, check it, and register the rule."""
        _expect(function, "p y", self.parameters)
        return _complete(self, slope=function)


@dataclass(frozen=True, eq=False, repr=False)
class Optimizer(Rule):
    """One element's update ``(w, g, *slots, *sums, h) -> (w, *slots)``.

    ``h.t`` is the number of the step, counted from 1. Whatever depends on ``h`` alone is computed once a step, in
    float64. ``decoupled`` makes weight decay act on the weights (AdamW) and not on the gradient (L2). ``sums`` are what
    ``summands(w, g, *slots, h)`` adds up to over the tensor the element belongs to. ``limited`` clips the gradient by
    value, ``maximize`` takes its other sign, and ``schedule`` changes the learning rate from step to step. ``wrappers``
    follow the update (see wrappers.py); their parameters and slots stand behind the rule's own.
    """

    update: Callable[..., Any] = None  # type: ignore[assignment]
    slots: tuple[str, ...] = ()
    decoupled: bool = False
    sums: tuple[str, ...] = ()
    summands: Callable[..., Any] | None = None
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
        return *self.state, self.summands, tuple(self.parameters), *options, schedule

    def tensor_sums(self, function: Callable[..., Any]) -> Optimizer:
        """Attach ``summands``, one value for each of ``sums``, and register the rule."""
        _expect(function, " ".join(("w g", *self.slots)), self.parameters)
        if arguments_of(function)[-1] != arguments_of(self.update)[-1]:
            raise RuleError(f"{self.label}: its two functions must call their last argument alike")
        return _complete(self, summands=function)


REGISTRY: dict[str, dict[str, Any]] = {"activation": {}, "loss": {}, "optimizer": {}}

# Other names that users of the field know a built-in rule by.
ALIASES: dict[str, dict[str, str]] = {"activation": {}, "loss": {}, "optimizer": {}, "schedule": {}}

# What calling an optimizer rule makes; the layer API puts its own Optimizer here.
CONFIGURE: list[Callable[..., Any]] = [lambda rule, **values: rule.variant(**values)]

# Called with each rule that is defined outside this package: its check (check.py), a trial compilation (compile.py).
ON_REGISTER: list[Callable[[Any], None]] = []


def builtin(rule: Rule) -> bool:
    return rule.main.__module__.startswith("dlcore.kernels.")


def _complete(rule: Any, **changes: Any) -> Any:
    rule = replace(rule, **changes)
    if not builtin(rule):  # the tests do this for those of the package, so that importing it costs nothing
        for hook in ON_REGISTER:
            hook(rule)
    return register(rule)


def register(rule: Any) -> Any:
    """Enter ``rule`` under its name. A built-in name cannot be taken; a user's own may be redefined."""
    known = REGISTRY[rule.kind].get(rule.name)
    if known is not None and builtin(known) and not builtin(rule):
        raise RuleError(f"{rule.label}: the name {rule.name!r} belongs to a built-in {rule.kind}")
    REGISTRY[rule.kind][rule.name] = rule
    return rule


def find(kind: str, name: Any) -> Any:
    """The rule called ``name``; a rule passes through. Unknown names raise with one that is close."""
    if isinstance(name, Rule):
        if name.kind != kind:
            raise RuleError(f"expected an {kind}, got {name!r}")
        lacks = name.lacks
        if lacks:
            complete = REGISTRY[kind].get(name.name)  # ``@rule.derivative`` completed it after ``rule`` was bound
            if complete is not None and complete.main is name.main:
                return complete
            raise RuleError(f"{name.label} has no {lacks}; add one with @{name.name}.{lacks.replace(' ', '_')}")
        return name
    table = REGISTRY[kind]
    if not isinstance(name, str):
        raise RuleError(f"{kind} must be a name or a rule, got {type(name).__name__}")
    if name not in table:
        name = ALIASES[kind].get(name, name)
    if name not in table:
        raise RuleError(unknown(kind, name, table, ALIASES[kind]))
    return table[name]


def numbers_of(parameters: dict[str, Any], kind: str) -> dict[str, float]:
    for key, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RuleError(f"{kind} parameter {key} must be a number, got {value!r}")
    return {key: float(value) for key, value in parameters.items()}


def activation(function: Any = None, /, **parameters: float) -> Any:
    """Make an activation of ``g(z)``: bare, or with parameters, ``@activation(alpha=0.2)``, read as ``h.alpha``.

    The rule is registered when its derivative follows, ``@name.derivative``. Raises :class:`RuleError` on a wrong
    signature.
    """
    numbers = numbers_of(parameters, "activation")

    def wrap(function: Callable[..., Any]) -> Activation:
        _expect(function, "z", numbers)
        return Activation(function.__name__, numbers, value=function)

    return wrap(function) if function is not None else wrap


DOMAINS = ("real", "positive", "probability")  # where a loss is checked: check.py has the points


def loss(function: Any = None, /, *, reduction: str = "mean", domain: str = "real", **parameters: float) -> Any:
    """Make a loss of ``L(p, y)`` for one element; ``reduction`` combines the elements of a sample.

    ``domain`` is where the derivative is checked: ``"real"``, ``"positive"`` or ``"probability"``, ``p`` in (0, 1).
    """
    if reduction not in ("mean", "sum"):
        raise RuleError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if domain not in DOMAINS:
        raise RuleError(f"domain must be one of {', '.join(map(repr, DOMAINS))}; got {domain!r}")
    numbers = numbers_of(parameters, "loss")

    def wrap(function: Callable[..., Any]) -> Loss:
        _expect(function, "p y", numbers)
        return Loss(function.__name__, numbers, value=function, reduction=reduction, domain=domain)

    return wrap(function) if function is not None else wrap


def optimizer(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    slots: int | None = None,
    sums: str = "",
    decoupled: bool = False,
    **parameters: float,
) -> Any:
    """Make an optimizer of one element's update ``(w, g, *slots, *sums, h) -> (w, *slots)``.

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
    """
    summed = tuple(sums.split())
    numbers = numbers_of(parameters, "optimizer")
    if name is not None and not name.isidentifier():
        raise RuleError(f"the name of an optimizer must be an identifier, got {name!r}")

    def wrap(function: Callable[..., Any]) -> Optimizer:
        arguments = arguments_of(function)
        place = f"optimizer {function.__name__!r} ({_where(function)})"
        if len(arguments) < 3:
            raise RuleError(f"{place} takes ({', '.join(arguments)}); expected (w, g, *slots, h)")
        names = arguments[2 : -1 - len(summed)]
        if arguments[2 + len(names) : -1] != summed:
            raise RuleError(f"{place} takes ({', '.join(arguments)}); expected (w, g, *slots, {', '.join(summed)}, h)")
        if slots is not None and slots != len(names):
            raise RuleError(f"{place} says slots={slots} and takes {len(names)}: {', '.join(names) or 'none'}")
        if not {"learning_rate", "lr"} & set(numbers):
            raise RuleError(f"{place} needs a learning_rate (or lr) among its parameters")
        for reserved in ("t", "weight_decay", "clip_value", "clip_norm", "steps_per_epoch"):
            if reserved in numbers:
                raise RuleError(f"{place}: {reserved} is given by the skeleton; it cannot be a parameter")
        called = name or function.__name__
        rule = Optimizer(called, numbers, update=function, slots=names, decoupled=decoupled, sums=summed)
        return rule if summed else _complete(rule)

    return wrap(function) if function is not None else wrap


def _reads(function: Callable[..., Any], position: int) -> bool:
    """Whether ``function`` reads its argument at ``position``."""
    import dis

    name = function.__code__.co_varnames[position]
    for instruction in dis.get_instructions(function):
        if not instruction.opname.startswith("LOAD_FAST") and "LOAD_FAST" not in instruction.opname:
            continue
        value = instruction.argval
        if value == name or (isinstance(value, tuple) and name in value):
            return True
    return False
