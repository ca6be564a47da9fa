"""Compilation for the CPU: native functions from Python text, kept on disk between processes (see cache.py)."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.core.errors import NumbaError

from . import cache, mathfn
from .lowering import lower
from .native import VIEWS, prefetch
from .optimizer_rule import Optimizer
from .panel_text import panel_text
from .rewriting import Lowered, select_max, select_min
from .rule import ON_REGISTER, Rule, RuleError
from .step_text import begin_functions, begin_text, strip_text

OPTIONS = mathfn.CPU_OPTIONS
_SUMMING = {"fastmath": OPTIONS["fastmath"] | {"reassoc"}}  # sums of a strip are vectors then
_CALLBACK_OPTIONS = {key: value for key, value in OPTIONS.items() if key != "nogil"}


class CpuBackend:
    """Numba's CPU target, as lowering sees it."""

    name = "cpu"

    def math(self, name: str, dtype: np.dtype) -> Callable[..., Any]:
        """The vectorisable function ``name`` for scalars of ``dtype``."""
        return mathfn.cpu(name, dtype)

    def inline(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that Numba inlines into its callers, before it infers types."""
        return numba.njit(inline="always", **OPTIONS)(function)


CPU = CpuBackend()

# ------------------------------------------------------------------------------------------- compilation

# Functions that were compiled, those of them that a second process compiled, functions from the disk, and all the time.
STATISTICS = {"compiled": 0, "elsewhere": 0, "loaded": 0, "seconds": 0.0}

# Called with the name of what is about to be compiled; the front ends show it.
ON_COMPILE: list[Callable[[str], None]] = []


@contextmanager
def announcing(hook: Callable[[str], None]) -> Iterator[None]:
    """Call ``hook`` with the name of what is compiled in the meantime."""
    ON_COMPILE.append(hook)
    try:
        yield
    finally:
        ON_COMPILE.remove(hook)


@contextmanager
def _counted(hits: Callable[[], int], fresh: bool = False) -> Iterator[None]:
    before, start = hits(), time.perf_counter()
    collects = gc.isenabled()
    gc.disable()  # the compiler makes many objects and few cycles: looking for them takes 5% of its time
    try:
        yield
    finally:
        if collects:
            gc.enable()
    STATISTICS["seconds"] += time.perf_counter() - start
    STATISTICS["loaded" if hits() > before and not fresh else "compiled"] += 1
    STATISTICS["elsewhere"] += fresh


def make(text: str, name: str, scope: dict[str, Any], *meanings: str) -> Any:
    """Execute ``text`` in ``scope`` and mark its function ``name`` with a fingerprint.

    Numba imports the module of a function when it loads it, and forms symbols from the qualified name: the one must
    exist and the other must be unique, or a second process would load another function under the same symbol.
    """
    namespace = {**scope, "__name__": __name__}
    exec(compile(text, f"<dlcore {name}>", "exec"), namespace)
    return _filed(namespace[name], text, *meanings)


def whole(function: Any, name: str, *meanings: str) -> Any:
    """A copy of a function of the kernels, to be compiled by itself under ``name``."""
    clone = FunctionType(function.__code__, function.__globals__, name)
    clone.__module__ = function.__module__
    return _filed(clone, function.__module__, function.__qualname__, *meanings)


def _filed(function: Any, *meanings: str) -> Any:
    function.__fingerprint__ = cache.fingerprint(*meanings)
    function.__qualname__ = f"{function.__name__}_{function.__fingerprint__[:12]}"
    return function


def native(function: Any, signature: Any, options: dict[str, Any] | None = None) -> Any:
    """A dispatcher for ``function`` (made by :func:`make`), compiled for ``signature`` or loaded from the disk."""
    dispatcher = numba.njit(**{**OPTIONS, **(options or {})})(function)
    dispatcher._cache = cache.NativeCache(function)
    if not dispatcher._cache.holds_it():
        _announce(function)
    with _counted(lambda: sum(dispatcher.stats.cache_hits.values())):
        dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


class Callback:
    """``function`` (made by :func:`make` or :func:`whole`) as a C function; ``rule`` is the one that errors name.

    It is compiled, or loaded from the disk, when its address is first asked for.
    """

    def __init__(self, function: Any, signature: Any, options: dict[str, Any] | None = None, rule: Any = None) -> None:
        signature = signature.args, signature.return_type
        self._compiled = CFunc(function, signature, {}, {**_CALLBACK_OPTIONS, **(options or {})})
        vars(self._compiled)["_cache"] = self._place = cache.CallbackCache(function)
        self._function, self._rule = function, rule

    @property
    def fingerprint(self) -> str:
        """The name under which it is filed."""
        return str(self._function.__fingerprint__)

    @property
    def missing(self) -> bool:
        """Whether it has to be compiled: neither this process has done so, nor does the disk hold it."""
        return "address" not in vars(self) and not self._place.holds_it()

    @functools.cached_property
    def address(self) -> int:
        """The address of the C function."""
        return self.compile()

    def compile(self, fresh: bool = False) -> int:
        """The address; what is ``fresh`` was compiled for this process by another, and counts as compiled."""
        if fresh or not self._place.holds_it():
            _announce(self._function)
        with _counted(lambda: self._compiled.cache_hits, fresh), _reporting(self._rule):
            self._compiled.compile()
        assert self._compiled.address is not None
        self.address = int(self._compiled.address)
        return self.address


def _announce(function: Any) -> None:
    for hook in ON_COMPILE:
        hook(function.__name__)


@contextmanager
def _reporting(rule: Rule | None) -> Iterator[None]:
    """Numba's errors, headed by the rule and its line."""
    try:
        yield
    except NumbaError as error:
        if rule is None:
            raise
        message = str(error).strip().splitlines()
        hint = next((line.strip() for line in message if line.strip() and "Failed in" not in line), "")
        raise RuleError(f"{rule.label} does not compile: {hint}") from error


# ------------------------------------------------------------------------------- rules, as strips of elements

# What strips of activations read first, and where their result goes. It may be the same memory: a loop is vectorised
# there only if it has one name for both.
OPERANDS = {"value": ("z", "y"), "slope": ("dy", "dz")}

_STRIPS = {
    "value": """
def {name}(z_, y_, n):
    z = view(z_, n)
    y = view(y_, n)
    for i in range(y.size):
        y[i] = value({source}[i])
""",
    "slope": """
def {name}(dy_, z_, y_, dz_, n):
    dy = view(dy_, n)
    z = view(z_, n)
    y = view(y_, n)
    dz = view(dz_, n)
    for i in range(dz.size):
        dz[i] = {source}[i] * slope(z[i], y[i])
""",
    "loss": """
def {name}(p_, y_, d_, n, scale_):
    p = view(p_, n)
    y = view(y_, n)
    total = 0.0
    for i in range(p.size):
        total += value(p[i], y[i])
    if d_ != 0:
        d = view(d_, n)
        scale = number(scale_)
        for i in range(p.size):
            d[i] = scale * slope(p[i], y[i])
    return total
""",
}

_I = types.int64
_F = types.float64
STRIP_SIGNATURES = {
    "value": types.void(_I, _I, _I),
    "slope": types.void(_I, _I, _I, _I, _I),
    "loss": types.float64(_I, _I, _I, _I, _F),
    "update": types.void(_I, _I, _I, _I, _I, _I),
    "summands": types.void(_I, _I, _I, _I, _I, _I, _I),
}
_PANEL_SIGNATURE = types.void(_I, _I, _I, _I, _I, _I, _I, _I, _F, _I, _I, _I, _I)  # all parts of a rule with factors


def _readable(rule: Rule, part: str, dtype: np.dtype) -> str:
    return f"{rule.kind}_{rule.name}_{part}_{dtype.name}"


_compiled: dict[Any, Callback] = {}


def form_of(rule: Any) -> tuple[Any, ...]:
    """Equal for rules that compile to the same."""
    if rule.kind == "optimizer":
        return tuple(rule.form)
    return rule.main, rule.slope, tuple(rule.parameters.items())


def strip(rule: Any, part: str, dtype: Any, in_place: bool = False) -> Callback:
    """The native strip of ``rule``, or the one that overwrites what it reads.

    Parts are ``value`` and ``slope`` of activations, ``loss`` of losses; of optimizers ``update``, ``summands`` where
    there are sums over tensors, and ``terms`` or ``step`` where there are factors (see panel_text.py).
    """
    key = (*form_of(rule), part, in_place, np.dtype(dtype))
    if key not in _compiled:
        dtype = np.dtype(dtype)
        name = _readable(rule, f"{part}_in_place" if in_place else part, dtype)
        scope: dict[str, Any] = {"view": VIEWS[dtype][1], "number": dtype.type}
        if part in ("update", "summands", "terms", "step"):
            names = ("terms", "update") if part == "step" else (part,)
            lowered = {n: lower(rule, n, dtype, CPU) for n in names}
            write = panel_text if rule.factors else strip_text
            text = write(rule, part, lowered[names[-1]].uniforms, name)
            scope |= {"view_double": VIEWS[np.dtype(np.float64)][1], "prefetch": prefetch}
            scope |= {f.__name__: CPU.inline(f) for f in (select_max, select_min)}
            scope |= {"math": math} | {f.__name__: CPU.inline(f) for f in mathfn.ordering(dtype)}
        else:
            names = ("value", "slope") if part == "loss" else (part,)
            lowered = {n: lower(rule, n, dtype, CPU) for n in names}
            source, result = OPERANDS.get(part, ("", ""))
            text = _STRIPS[part].format(name=name, source=result if in_place else source)
        scope.update({n: CPU.inline(low.function) for n, low in lowered.items()})
        function = make(text, name, scope, *(low.text for low in lowered.values()))
        options = _SUMMING if part in ("summands", "terms", "step") else None
        factored = rule.kind == "optimizer" and rule.factors
        signature = _PANEL_SIGNATURE if factored else STRIP_SIGNATURES[part]
        _compiled[key] = Callback(function, signature, options, rule)
    return _compiled[key]


@functools.cache
def uniforms_of(rule: Optimizer) -> list[str]:
    """The sources of the rule's uniforms; their number is what the buffer of uniforms must hold beside its header."""
    return lower(rule, "update", np.float32, CPU).uniforms


def begin(rule: Optimizer) -> tuple[str, dict[str, Lowered]]:
    """Text of ``optimizer_begin`` for the CPU, and the functions it calls."""
    sources = uniforms_of(rule)
    return begin_text(rule, sources, "np.empty({}, np.float64)"), begin_functions(rule, sources, CPU)


def _trial(rule: Any) -> None:
    """Compile a new rule at once, so that a mistake shows where the rule is written."""
    parts = {"activation": ["value", "slope"], "loss": ["loss"], "optimizer": ["update"]}[rule.kind]
    if isinstance(rule, Optimizer) and rule.after:
        parts = ["step"]
    elif isinstance(rule, Optimizer):
        parts += [part for part in ("summands", "terms") if getattr(rule, part) is not None]
    for part in parts:  # as training takes them
        in_place = part == "slope" or (part == "value" and not rule.uses_input)
        strip(rule, part, np.float32, in_place).compile()


ON_REGISTER.append(_trial)
