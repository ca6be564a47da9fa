"""Measuring the plans of a matrix product on the GPU: events around repeated launches, every plan that is worth it.

The launches are replayed as a graph, as the engine does it: the host would take longer for one than a small product.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..rule import find
from . import choices, driver, gemm, gemm_tensor
from .launch import device_function
from .vector import BYTES, aligned

WORTH = 4.0  # plans of more than this times the least modelled cost are not measured
REPEATS = 20  # of a product in a graph


class Measurement(NamedTuple):
    """What was measured of one product: seconds by plan, in the order of the model, which takes the first."""

    product: choices.Product
    seconds: dict[Any, float]

    @property
    def modelled(self) -> Any:
        """The plan that the model takes."""
        return next(iter(self.seconds))

    @property
    def fastest(self) -> Any:
        """The plan of least time; of equals, the one the model likes best."""
        return min(self.seconds, key=self.seconds.__getitem__)


def products(layers: Sequence[int], batch: int) -> Iterator[tuple[str, int, int, int]]:
    """Form, rows, columns and inner size of the products in a training step of dense layers of these sizes.

    Forward ``x W``, then ``x^T dz`` and ``dz W^T``; the first layer has no use for the gradient of its input.
    """
    for at, (fan_in, fan_out) in enumerate(itertools.pairwise(layers)):
        yield "ab", batch, fan_out, fan_in
        yield "a^Tb", fan_in, fan_out, batch
        if at:
            yield "ab^T", batch, fan_in, fan_out


def plans(precision: str, rows: int, columns: int, inner: int) -> list[Any]:
    """Those worth measuring; the first is the one that is taken without measurements."""
    if precision not in ("float32", "float64"):
        return sorted(gemm_tensor.TILES, key=lambda tile: tile != gemm_tensor.choose(rows, columns))
    dtype, count = np.dtype(precision), gemm.multiprocessors()
    every = gemm.candidates(dtype, rows, columns, inner, count)
    costs = [gemm.cost(plan, BYTES // dtype.itemsize, rows, columns, count) for plan in every]
    return [plan for plan, cost in zip(every, costs, strict=True) if cost <= WORTH * costs[0]]


def measure(precision: str, form: str, rows: int, columns: int, inner: int) -> Measurement:
    """Time each of :func:`plans` on random factors; the product ``x W`` with bias and ReLU, as in a layer.

    ``precision`` is one of set_matmul_precision's, or ``"float64"``. Compiles what was not compiled before.
    """
    import cupy

    dtype = np.dtype(np.float64 if precision == "float64" else np.float32)
    shapes = {
        "ab": ((rows, inner), (inner, columns)),
        "a^Tb": ((inner, rows), (inner, columns)),
        "ab^T": ((rows, inner), (columns, inner)),
    }[form]
    rng = np.random.default_rng(0)
    tensor = precision not in ("float32", "float64")
    stream, seconds = cupy.cuda.Stream(non_blocking=True), {}
    with stream:
        a, b = (cupy.array(rng.standard_normal(shape).astype(dtype)) for shape in shapes)
        out, bias, value = cupy.zeros((rows, columns), dtype), None, None
        if form == "ab":
            bias, value = cupy.zeros((columns,), dtype), device_function(find("activation", "relu"), "value", dtype)
        for plan in plans(precision, rows, columns, inner):
            if tensor:
                launches = gemm_tensor.multiply(precision, a, b, out, form, value, bias, tile=plan)
            else:
                launches = gemm.multiply(a, b, out, form, value, bias, plan=plan)
            calls = driver.prepare(launches)  # they hold the memory that the graph works on
            graph = driver.capture(calls * REPEATS, stream)
            seconds[plan] = driver.seconds(functools.partial(graph.launch, stream)) / REPEATS
    wide = (aligned(a), aligned(b)) if tensor else (aligned(a), aligned(b), aligned(out))
    return Measurement(choices.Product(precision, form, wide, rows, columns, inner), seconds)


def keep(measurements: Sequence[Measurement]) -> None:
    """Let the fastest plans be taken from now on; models that were trained before keep those they have."""
    choices.keep({m.product: (m.fastest, m.seconds[m.fastest]) for m in measurements})
