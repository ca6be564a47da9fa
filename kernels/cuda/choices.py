"""Plans of matrix products that were measured to be the fastest, on the disk: what ``dlcore tune`` found.

The file lies beside the compiled code, in the folder of this version of the package. Choices are filed under the GPU,
the versions of its driver and of the tools, and what the product is: its precision, form, alignment and sizes. Whatever
is not found there, or is no plan, is chosen by the model of gemm.py.
"""

from __future__ import annotations

import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .. import cache
from ..device import why_no_gpu
from .machine_code import versions

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


def measured(product: Product, candidates: Callable[[], Iterable[Any]]) -> Any:
    """The candidate that was the fastest for ``product``; None where nobody measured, or it is no candidate."""
    found = gpu()
    known = _read().get(found) if found is not None else None
    entry = known.get(str(product)) if known else None
    if entry is None:
        return None
    return next((plan for plan in candidates() if _plain(plan) == entry["plan"]), None)


def keep(fastest: Mapping[Product, tuple[Any, float]]) -> None:
    """Add plans and their seconds, measured on the current GPU, to the file."""
    found = gpu()
    assert found is not None
    forget()  # another process may have added some
    choices = {name: dict(products) for name, products in _read().items()}
    entries = {str(product): {"plan": _plain(plan), "seconds": took} for product, (plan, took) in fastest.items()}
    choices.setdefault(found, {}).update(entries)
    cache.write_whole(path(), (json.dumps(choices, indent=1) + "\n").encode())
    forget()


def _plain(plan: Any) -> Any:
    """A plan as JSON gives it back."""
    return json.loads(json.dumps(plan))
