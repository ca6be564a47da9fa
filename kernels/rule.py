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


def place_of(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def arguments_of(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty for p in parameters):
        raise RuleError(f"{function.__name__} ({place_of(function)}): a rule takes plain positional arguments")
    return tuple(p.name for p in parameters)


def expect(function: Callable[..., Any], symbols: str, parameters: dict[str, float]) -> None:
    """Raise unless ``function`` takes one argument for each of ``symbols``, and ``h`` if it has parameters."""
    count = len(symbols.split()) + bool(parameters)
    got = arguments_of(function)
    if len(got) != count:
        expected = ", ".join([*symbols.split(), *(["h"] if parameters else [])])
        raise RuleError(f"{function.__name__} ({place_of(function)}) takes ({', '.join(got)}); expected ({expected})")


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
        """What is still to be attached: ``"derivative"``, ``"tensor factors"``, ``"tensor sums"``, or nothing."""
        return "derivative" if getattr(self, "slope", self) is None else ""

    @property
    def where(self) -> str:
        """File and line of the rule."""
        return place_of(self.main)

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
        return reads(self.slope, 0)

    def derivative(self, function: Callable[..., Any]) -> Activation:
        """Attach ``g'(z, y)``, check it against 4-point differences of ``g``, and register the rule."""
        expect(function, "z y", self.parameters)
        return complete(self, slope=function)


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
        expect(function, "p y", self.parameters)
        return complete(self, slope=function)


REGISTRY: dict[str, dict[str, Any]] = {"activation": {}, "loss": {}, "optimizer": {}}

# Other names that users of the field know a built-in rule by.
ALIASES: dict[str, dict[str, str]] = {"activation": {}, "loss": {}, "optimizer": {}, "schedule": {}}

# Called with each rule that is defined outside this package: its check (check.py), a trial compilation (compile.py).
ON_REGISTER: list[Callable[[Any], None]] = []


def builtin(rule: Rule) -> bool:
    return rule.main.__module__.startswith("dlcore.kernels.")


def complete(rule: Any, **changes: Any) -> Any:
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
        expect(function, "z", numbers)
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
        expect(function, "p y", numbers)
        return Loss(function.__name__, numbers, value=function, reduction=reduction, domain=domain)

    return wrap(function) if function is not None else wrap


def reads(function: Callable[..., Any], position: int) -> bool:
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
