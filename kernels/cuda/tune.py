"""Measuring the plans of a matrix product on the GPU: events around repeated launches, every plan that is worth it.

What cuBLASLt offers is measured in the same way, where that library is there: with the pass of the activation behind
it, and only if its result agrees with ours.

The launches are replayed as a graph, as the engine does it: the host would take longer for one than a small product.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..rule import find
from . import choices, cublaslt, driver, gemm, gemm_tensor
from .launch import device_function
from .vector import BYTES

WORTH = 4.0  # plans of more than this times the least modelled cost are not measured
REPEATS = 20  # of a product in a graph
ALIKE = 0.05  # of the largest element: results further apart are not of the same product in any precision


class Measurement(NamedTuple):
    """What was measured of one product: seconds by plan, in the order of the model, which takes the first.

    Beside them the seconds of algorithms of cuBLASLt, and where there are none, why.
    """

    product: choices.Product
    seconds: dict[Any, float]
    library: dict[choices.Algorithm, float]
    refused: str | None

    @property
    def modelled(self) -> Any:
        """The plan that the model takes."""
        return next(iter(self.seconds))

    @property
    def fastest(self) -> Any:
        """The plan of least time; of equals, the one the model likes best."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def best(self) -> choices.Fastest:
        """The fastest plan, and the fastest algorithm of the library."""
        plan, library = self.fastest, None
        if self.library:
            algorithm = min(self.library, key=self.library.__getitem__)
            library = choices.Library(cublaslt.version(), algorithm, self.library[algorithm])
        return choices.Fastest(plan, self.seconds[plan], library)


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
    if precision not in choices.STRICT:
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
    stream, seconds = cupy.cuda.Stream(non_blocking=True), {}
    with stream:
        a, b = (cupy.array(rng.standard_normal(shape).astype(dtype)) for shape in shapes)
        out, bias, rule, value = cupy.zeros((rows, columns), dtype), None, None, None
        if form == "ab":
            lanes = BYTES // dtype.itemsize  # an address of 16 bytes and no more, as any bias has
            bias, rule = cupy.zeros((lanes + columns,), dtype)[lanes:], find("activation", "relu")
            value = device_function(rule, "value", dtype)
        for plan in plans(precision, rows, columns, inner):
            if precision in choices.STRICT:
                launches = gemm.multiply(a, b, out, form, value, bias, plan=plan)
            else:
                launches = gemm_tensor.multiply(precision, a, b, out, form, value, bias, tile=plan)
            seconds[plan] = _seconds(launches, stream)
        library: dict[choices.Algorithm, float] = {}
        refused = cublaslt.why_not()
        if refused is None:
            library, refused = _library(stream, precision, a, b, out, form, rule, bias)
    return Measurement(choices.product(precision, form, a, b, out), seconds, library, refused)


def _seconds(launches: Sequence[Any], stream: Any) -> float:
    calls = driver.prepare(launches)  # they hold the memory that the graph works on
    driver.run(calls, stream)  # a library that cannot do it says so here, and loads its kernels
    graph = driver.capture(calls * REPEATS, stream)
    return driver.seconds(functools.partial(graph.launch, stream)) / REPEATS


def _library(
    stream: Any, precision: str, a: Any, b: Any, out: Any, form: str, rule: Any, bias: Any
) -> tuple[dict[choices.Algorithm, float], str | None]:
    """Seconds of the library's algorithms that can be taken; or none, and why. ``out`` holds our result."""
    import cupy

    ours = cupy.asnumpy(out)
    seconds, refused = {}, "it offers no algorithm of which results repeat"
    try:
        offered = cublaslt.Problem(precision, a, b, out, form, bias).algorithms()
    except cublaslt.LibraryError as error:
        return {}, str(error)
    for algorithm in offered:
        out.fill(0)
        try:
            took = _seconds(cublaslt.multiply(algorithm, precision, a, b, out, form, rule, bias), stream)
        except cublaslt.LibraryError as error:
            refused = str(error)
            continue
        apart = float(np.abs(cupy.asnumpy(out) - ours).max())
        if apart <= ALIKE * float(np.abs(ours).max()):
            seconds[algorithm] = took
        else:
            refused = f"its result is {apart:.3g} from ours"
    return seconds, None if seconds else refused


def keep(measurements: Sequence[Measurement]) -> None:
    """Let the fastest plans be taken from now on; models that were trained before keep those they have."""
    choices.keep({m.product: m.best for m in measurements})
