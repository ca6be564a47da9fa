"""Plans of matrix products that were measured to be the fastest, on the disk: what ``dlcore tune`` found.

The file lies beside the compiled code, in the folder of this version of the package. Choices are filed under the GPU,
the versions of its driver and of the tools, and what the product is: its precision, form, alignment and sizes. Whatever
is not found there, or is no plan, is chosen by the model of gemm.py.

Beside the fastest of our plans stands the fastest algorithm of cuBLASLt, where that was measured, with its version. It
is taken where it was faster by more than times vary; where it cannot be, the plan still is.
"""

from __future__ import annotations

import functools
import json
import operator
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .. import cache
from ..device import why_no_gpu
from .machine_code import versions
from .vector import aligned

STRICT = ("float32", "float64")  # precisions of gemm.py; the others are of gemm_tensor.py
NOISE = 0.03  # of a time: what is faster by no more than this is not faster
Choices = dict[str, dict[str, dict[str, Any]]]  # by GPU, then by product: plan and seconds


class Product(NamedTuple):
    """What a choice is for; ``wide`` says which operands allow 128-bit access."""

    precision: str
    form: str
    wide: tuple[bool, ...]
    rows: int
    columns: int
    inner: int

    def __str__(self) -> str:
        marks = "".join("=" if wide else "~" for wide in self.wide)
        return f"{self.precision} {self.form} {marks} {self.rows}x{self.columns}x{self.inner}"


class Algorithm(NamedTuple):
    """How cuBLASLt computes a product: every attribute of its configuration, in the order of cublaslt.ATTRIBUTES."""

    number: int
    tile: int
    parts: int
    reduction: int
    swizzling: int
    custom: int
    stages: int
    inner_shape: int
    cluster_shape: int


class Library(NamedTuple):
    """An algorithm of cuBLASLt, the version of the library it is of, and the seconds it took."""

    version: int
    algorithm: Algorithm
    seconds: float


class Fastest(NamedTuple):
    """What was measured to be the fastest for a product: of our plans, and of cuBLASLt where that is there."""

    plan: Any
    seconds: float
    library: Library | None


def product(precision: str, form: str, a: Any, b: Any, *results: Any) -> Product:
    """What the choice for a product of these arrays is filed under."""
    rows, columns = results[0].shape
    wide = aligned(a), aligned(b), *([aligned(*results)] if precision in STRICT else [])
    return Product(precision, form, wide, rows, columns, a.shape[0] if form == "a^Tb" else a.shape[1])


def faster(library: float, plan: float) -> bool:
    """Whether the library is faster than our plan, and by more than :data:`NOISE`."""
    return library < (1 - NOISE) * plan


def path() -> pathlib.Path:
    """Where choices are kept."""
    return cache.cache_directory() / "products.json"


def gpu() -> str | None:
    """The name of the current GPU, its driver and the tools; None where there is none."""
    if why_no_gpu() is not None:
        return None
    import cupy

    return _described(cupy.cuda.Device().id)


@functools.cache
def _described(device: int) -> str:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
    return f"{name}, driver {cupy.cuda.runtime.driverGetVersion()}, tools {versions()}"


@functools.cache
def _read() -> Choices:
    """The file, once in a process; nothing, and one warning, where it cannot be read."""
    try:
        choices = json.loads(path().read_text(encoding="utf-8"))
        for products in choices.values():
            for entry in products.values():
                entry["plan"], float(entry["seconds"])
                if "library" in entry:
                    _library(entry)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(
            f"{path()} cannot be read ({type(error).__name__}: {error}); products are planned as if nothing had been "
            "measured. 'dlcore tune' writes it anew.",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    return choices


def forget() -> None:
    """Read the file again when it is asked for next."""
    _read.cache_clear()


def _entry(product: Product) -> dict[str, Any] | None:
    found = gpu()
    known = _read().get(found) if found is not None else None
    return known.get(str(product)) if known else None


def measured(product: Product, candidates: Callable[[], Iterable[Any]]) -> Any:
    """The candidate that was the fastest for ``product``; None where nobody measured, or it is no candidate."""
    entry = _entry(product)
    if entry is None:
        return None
    return next((plan for plan in candidates() if _plain(plan) == entry["plan"]), None)


def library(product: Product) -> Library | None:
    """The algorithm of cuBLASLt that was :func:`faster` than our plans for ``product``; None where none was."""
    entry = _entry(product)
    if entry is None or "library" not in entry:
        return None
    found = _library(entry)
    return found if faster(found.seconds, entry["seconds"]) else None


def _library(entry: dict[str, Any]) -> Library:
    version, algorithm, seconds = (entry["library"][field] for field in Library._fields)
    return Library(operator.index(version), Algorithm(*map(operator.index, algorithm)), float(seconds))


def keep(fastest: Mapping[Product, Fastest]) -> None:
    """Add what was measured on the current GPU to the file."""
    found = gpu()
    assert found is not None
    forget()  # another process may have added some
    choices = {name: dict(products) for name, products in _read().items()}
    entries = {str(product): _as_entry(*entry) for product, entry in fastest.items()}
    choices.setdefault(found, {}).update(entries)
    cache.write_whole(path(), (json.dumps(choices, indent=1) + "\n").encode())
    forget()


def _as_entry(plan: Any, seconds: float, library: Library | None) -> dict[str, Any]:
    entry = {"plan": _plain(plan), "seconds": seconds}
    return entry if library is None else {**entry, "library": library._asdict()}


def _plain(plan: Any) -> Any:
    """A plan as JSON gives it back."""
    return json.loads(json.dumps(plan))
