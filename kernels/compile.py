"""Compilation for the CPU: native functions from Python text, kept on disk between processes.

What Numba's own cache cannot do here, and this one does: functions whose text was generated, functions that call a
user's rule, and a miss whenever the rule, anything it calls, or this package was edited. Every function is filed
under a fingerprint of its whole meaning (its text, the text of the rules in it, this package, Numba).
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import caching, config
from numba.core.ccallback import CFunc
from numba.core.errors import NumbaError

from . import mathfn
from .lowering import Lowered, lower, lower_uniforms
from .native import VIEWS
from .rule import ON_REGISTER, Optimizer, Rule, RuleError

OPTIONS = mathfn.CPU_OPTIONS
_CALLBACK_OPTIONS = {key: value for key, value in OPTIONS.items() if key != "nogil"}
_STALE_DAYS = 30


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

# ------------------------------------------------------------------------------------------------ cache


@functools.cache
def library_fingerprint() -> str:
    """A hash of every source file of this package and of the versions it was compiled with."""
    versions = (numba.__version__, np.__version__, sys.version_info[:2], vars(config)["BOUNDSCHECK"])
    digest = hashlib.sha256(repr(versions).encode())
    root = pathlib.Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _default_cache() -> pathlib.Path:
    if "DLCORE_CACHE_DIR" in os.environ:
        return pathlib.Path(os.environ["DLCORE_CACHE_DIR"])
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "dlcore"
    if os.name == "nt":
        return pathlib.Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "dlcore" / "Cache"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "dlcore"


@functools.cache
def cache_directory() -> pathlib.Path:
    """The folder of compiled code of this version: under ``DLCORE_CACHE_DIR`` or the user's cache folder."""
    base = _default_cache()
    path = base / library_fingerprint()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        path = pathlib.Path(tempfile.mkdtemp(prefix="dlcore-"))
        warnings.warn(
            f"the cache folder {base} cannot be written ({error.strerror}); compiled code is kept in {path} and lost "
            "with it. Set DLCORE_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )
        return path
    os.utime(path)
    _drop_stale(base, path)
    return path


def _drop_stale(base: pathlib.Path, current: pathlib.Path) -> None:
    """Remove the folders of other versions that nobody used for a month."""
    limit = time.time() - _STALE_DAYS * 86400
    for other in base.iterdir():
        versioned = other != current and len(other.name) == len(current.name) and other.is_dir()
        if versioned and other.stat().st_mtime < limit:
            shutil.rmtree(other, ignore_errors=True)


class _Locator(caching._CacheLocator):
    """Numba's question "where is the cache of this function, and is it stale?", answered by its fingerprint."""

    def __init__(self, function: Any) -> None:
        self._fingerprint = function.__fingerprint__
        self._py_file = function.__code__.co_filename

    def get_cache_path(self) -> str:
        return str(cache_directory())

    def get_source_stamp(self) -> str:
        return self._fingerprint

    def get_disambiguator(self) -> str:
        return self._fingerprint[:16]

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_func)


class _Implementation(caching.CompileResultCacheImpl):
    kind = "native"

    def __init__(self, function: Any) -> None:
        self._locator = _Locator(function)
        self._lineno = function.__code__.co_firstlineno
        name = f"{function.__name__}.{self.kind}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _CallbackImplementation(_Implementation):
    kind = "callback"  # compiled without the wrapper that Python calls: not to be taken for a native function


class _Cache(caching.FunctionCache):
    _impl_class = _Implementation


class _CallbackCache(caching.FunctionCache):
    _impl_class = _CallbackImplementation


STATISTICS = {"compiled": 0, "loaded": 0, "seconds": 0.0}

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


def fingerprint(*texts: str) -> str:
    """The name under which code with this meaning is filed."""
    return hashlib.sha256("\0".join([library_fingerprint(), *texts]).encode()).hexdigest()


@contextmanager
def _counted(name: str, hits: Callable[[], int]) -> Iterator[None]:
    before, start = hits(), time.perf_counter()
    yield
    STATISTICS["seconds"] += time.perf_counter() - start
    STATISTICS["loaded" if hits() > before else "compiled"] += 1


def make(text: str, name: str, scope: dict[str, Any], *meanings: str) -> Any:
    """Execute ``text`` in ``scope`` and mark its function ``name`` with a fingerprint.

    Numba imports the module of a function when it loads it, and forms symbols from the qualified name: the one must
    exist and the other must be unique, or a second process would load another function under the same symbol.
    """
    namespace = {**scope, "__name__": __name__}
    exec(compile(text, f"<dlcore {name}>", "exec"), namespace)
    function = namespace[name]
    function.__fingerprint__ = fingerprint(text, *meanings)
    function.__qualname__ = f"{name}_{function.__fingerprint__[:12]}"
    return function


def native(function: Any, signature: Any, options: dict[str, Any] | None = None) -> Any:
    """A dispatcher for ``function`` (made by :func:`make`), compiled for ``signature`` or loaded from the disk."""
    dispatcher = numba.njit(**{**OPTIONS, **(options or {})})(function)
    dispatcher._cache = _Cache(function)
    _announce(function, dispatcher._cache, signature)
    with _counted(function.__name__, lambda: sum(dispatcher.stats.cache_hits.values())):
        dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


def callback(function: Any, signature: Any) -> CFunc:
    """``function`` as a C function with an address."""
    compiled = CFunc(function, (signature.args, signature.return_type), {}, _CALLBACK_OPTIONS)
    cache = _CallbackCache(function)
    vars(compiled)["_cache"] = cache
    _announce(function, cache, signature)
    with _counted(function.__name__, lambda: compiled.cache_hits):
        compiled.compile()
    return compiled


def _announce(function: Any, cache: Any, signature: Any) -> None:
    if ON_COMPILE and not os.path.exists(cache._cache_file._index_path):
        for hook in ON_COMPILE:
            hook(function.__name__)


# ------------------------------------------------------------------------------- rules, as strips of elements

# Loops stand twice where they may run in place: an array that could overlap another in any way is not vectorised.
_STRIPS = {
    "value": """
def {name}(z_, y_, n):
    y = view(y_, n)
    if z_ == y_:
        for i in range(y.size):
            y[i] = value(y[i])
    else:
        z = view(z_, n)
        for i in range(y.size):
            y[i] = value(z[i])
""",
    "slope": """
def {name}(dy_, z_, y_, dz_, n):
    z = view(z_, n)
    y = view(y_, n)
    dz = view(dz_, n)
    if dy_ == dz_:
        for i in range(dz.size):
            dz[i] = dz[i] * slope(z[i], y[i])
    else:
        dy = view(dy_, n)
        for i in range(dz.size):
            dz[i] = dy[i] * slope(z[i], y[i])
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

_UPDATE = """
def {name}(w_, g_, s_, stride, u_, n):
    w = view(w_, n)
    g = view(g_, n)
    u = view(u_, {uniforms} + 3)
    scale = u[0]
    l2 = u[1]
    keep = u[2]
{load}
    for i in range(w.size):
        x = w[i]
        {results} = update(x * keep, g[i] * scale + l2 * x{slots}{arguments})
"""

_BEGIN = """
def {name}(hyper, step, u):
    step[0] += 1
    out = np.empty({size}, np.float64)
    uniforms(hyper, float(step[0]), out)
    u[0] = 1.0
    u[1] = {l2}
    u[2] = {keep}
    for i in range({uniforms}):
        u[3 + i] = out[i]
"""

_I = types.int64
_F = types.float64
STRIP_SIGNATURES = {
    "value": types.void(_I, _I, _I),
    "slope": types.void(_I, _I, _I, _I, _I),
    "loss": types.float64(_I, _I, _I, _I, _F),
    "update": types.void(_I, _I, _I, _I, _I, _I),
}
UNIFORM_HEADER = 3  # gradient scale, L2 coefficient, weight factor of decoupled decay


def update_text(rule: Optimizer, uniforms: list[str], name: str) -> str:
    """The strip of an optimizer: state read once, written once, clipping and weight decay on the way."""
    states = range(len(rule.slots))
    return _UPDATE.format(
        name=name,
        uniforms=len(uniforms),
        load="\n".join(
            [f"    s{k} = view(s_ + {k} * stride, n)" for k in states]
            + [f"    u{k} = u[{k + UNIFORM_HEADER}]" for k in range(len(uniforms))]
        ),
        results=", ".join(["w[i]", *[f"s{k}[i]" for k in states]]),
        slots="".join(f", s{k}[i]" for k in states),
        arguments="".join(f", u{k}" for k in range(len(uniforms))),
    )


def decay_terms(rule: Optimizer) -> tuple[str, str]:
    """The L2 coefficient and the factor on the weights, as expressions of ``hyper``.

    Coupled decay adds ``weight_decay * w`` to the gradient; decoupled decay takes ``rate * weight_decay * w`` from w.
    """
    decay = f"hyper[{len(rule.parameters)}]"
    rate = f"hyper[{list(rule.parameters).index(rule.rate)}]"
    return ("0.0", f"1.0 - {rate} * {decay}") if rule.decoupled else (decay, "1.0")


def begin_text(rule: Optimizer, uniforms: list[str], name: str) -> str:
    """The function that counts the step and computes its uniforms; it runs once, in float64."""
    l2, keep = decay_terms(rule)
    return _BEGIN.format(name=name, size=max(1, len(uniforms)), uniforms=len(uniforms), l2=l2, keep=keep)


def _readable(rule: Rule, part: str, dtype: np.dtype) -> str:
    return f"{rule.kind}_{rule.name}_{part}_{dtype.name}"


_compiled: dict[Any, Any] = {}


def _key(rule: Rule, part: str, dtype: Any) -> tuple[Any, ...]:
    return (rule.main, getattr(rule, "slope", None), tuple(rule.parameters.items()), part, np.dtype(dtype))


@contextmanager
def _reporting(rule: Rule) -> Iterator[None]:
    """Numba's errors, headed by the rule and its line."""
    try:
        yield
    except NumbaError as error:
        message = str(error).strip().splitlines()
        hint = next((line.strip() for line in message if line.strip() and "Failed in" not in line), "")
        raise RuleError(f"{rule.label} does not compile: {hint}") from error


def strip(rule: Any, part: str, dtype: Any) -> CFunc:
    """The native strip of ``rule``: part ``value``, ``slope`` (activations), ``loss`` or ``update``."""
    key = _key(rule, part, dtype)
    if key not in _compiled:
        dtype = np.dtype(dtype)
        name = _readable(rule, part, dtype)
        scope: dict[str, Any] = {"view": VIEWS[dtype][1], "number": dtype.type}
        with _reporting(rule):
            if part == "update":
                lowered = {"update": lower(rule, "update", dtype, CPU)}
                text = update_text(rule, lowered["update"].uniforms, name)
            else:
                names = ("value", "slope") if part == "loss" else (part,)
                lowered = {n: lower(rule, n, dtype, CPU) for n in names}
                text = _STRIPS[part].format(name=name)
            scope.update({n: CPU.inline(low.function) for n, low in lowered.items()})
            function = make(text, name, scope, *(low.text for low in lowered.values()))
            _compiled[key] = callback(function, STRIP_SIGNATURES[part])
    return _compiled[key]


@functools.cache
def uniforms_of(rule: Optimizer) -> list[str]:
    """The sources of the rule's uniforms; their number is what the buffer of uniforms must hold beside its header."""
    return lower(rule, "update", np.float32, CPU).uniforms


def begin(rule: Optimizer, dtype: Any) -> tuple[str, Lowered]:
    """Text and lowered uniforms of ``optimizer_begin`` for the CPU."""
    sources = uniforms_of(rule)
    return begin_text(rule, sources, "optimizer_begin"), lower_uniforms(rule, sources, CPU)


def _trial(rule: Any) -> None:
    """Compile a new rule at once, so that a mistake shows where the rule is written."""
    parts = {"activation": ("value", "slope"), "loss": ("loss",), "optimizer": ("update",)}[rule.kind]
    for part in parts:
        strip(rule, part, np.float32)


ON_REGISTER.append(_trial)
