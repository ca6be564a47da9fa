"""``dlcore tune``: the products of a network, measured on the GPU that is there."""

from __future__ import annotations

import argparse
from typing import Any

from .kernels import DeviceError, device
from .kernels.precision import check_precision

_FORMS = {"ab": "x W", "a^Tb": "x^T dz", "ab^T": "dz W^T"}


def tune(arguments: argparse.Namespace) -> None:
    """Measure every plan of every product of the layers, and cuBLASLt; print what was found and keep the fastest."""
    reason = device.why_no_gpu()
    if reason is not None:
        raise DeviceError(f"dlcore tune needs a GPU: {reason}")
    if arguments.precision != "float64":
        check_precision(arguments.precision)
    if len(arguments.sizes) < 2:
        raise ValueError(f"tune expects the sizes of at least two layers, such as 784 256 10; got {arguments.sizes[0]}")
    from .kernels.cuda import choices, cublaslt
    from .kernels.cuda import tune as tuner

    print(f"{choices.gpu()}\nmini-batches of {arguments.batch_size}, {arguments.precision}")
    absent = cublaslt.why_not()
    print(
        f"{cublaslt.name_of(cublaslt.version())} is measured too; * where it is faster by more than {choices.NOISE:.0%}"
        if absent is None
        else f"cuBLASLt is not measured: {absent}"
    )
    print(
        f"{'product':8s}{'result':>14s}{'inner':>8s}{'plans':>7s}  {'model':22s}{'us':>10s}  {'fastest':22s}{'us':>10s}"
        f"{'' if absent else '  cuBLASLt':>12s}{'' if absent else 'us':>10s}".rstrip()
    )
    for form, rows, columns, inner in dict.fromkeys(tuner.products(arguments.sizes, arguments.batch_size)):
        try:
            found = tuner.measure(arguments.precision, form, rows, columns, inner)
        except MemoryError:
            raise DeviceError(
                f"the GPU has no room for {rows} x {columns} from {inner}; take a smaller --batch-size"
            ) from None
        tuner.keep([found])  # now: whoever stops it keeps what was measured
        figures = "  ".join(
            f"{_plan(plan):22s}{found.seconds[plan] * 1e6:10.1f}" for plan in (found.modelled, found.fastest)
        )
        size = f"{rows} x {columns}"
        library = "" if absent else _library(found)
        print(f"{_FORMS[form]:8s}{size:>14s}{inner:8d}{len(found.seconds):7d}  {figures}{library}", flush=True)
    print(f"written to {choices.path()}; models that are trained from now on take the fastest")


def _plan(plan: Any) -> str:
    tile = getattr(plan, "tile", plan)
    parts = getattr(plan, "parts", 1)
    return f"{tile.rows} x {tile.columns}" + (f", {parts} parts" if parts > 1 else "")


def _library(found: Any) -> str:
    """The fastest of how many algorithms of cuBLASLt, and whether it is taken; or why there are none."""
    from .kernels.cuda.choices import faster

    library = found.best.library
    if library is None:
        return f"  none: {found.refused}"
    mark = " *" if faster(library.seconds, found.best.seconds) else ""
    return f"{f'of {len(found.library)}':>12s}{library.seconds * 1e6:10.1f}{mark}"
