"""``dlcore tune``: the products of a network, measured on the GPU that is there."""

from __future__ import annotations

import argparse
from typing import Any

from .kernels import DeviceError, device
from .kernels.precision import check_precision

_FORMS = {"ab": "x W", "a^Tb": "x^T dz", "ab^T": "dz W^T"}


def tune(arguments: argparse.Namespace) -> None:
    """Measure every plan of every product of the layers, print what was found and keep the fastest."""
    reason = device.why_no_gpu()
    if reason is not None:
        raise DeviceError(f"dlcore tune needs a GPU: {reason}")
    if arguments.precision != "float64":
        check_precision(arguments.precision)
    if len(arguments.sizes) < 2:
        raise ValueError(f"tune expects the sizes of at least two layers, such as 784 256 10; got {arguments.sizes[0]}")
    from .kernels.cuda import choices
    from .kernels.cuda import tune as tuner

    print(f"{choices.gpu()}\nmini-batches of {arguments.batch_size}, {arguments.precision}")
    print(
        f"{'product':8s}{'result':>14s}{'inner':>8s}{'plans':>7s}  {'model':22s}{'us':>10s}  {'fastest':22s}{'us':>10s}"
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
        print(f"{_FORMS[form]:8s}{size:>14s}{inner:8d}{len(found.seconds):7d}  {figures}", flush=True)
    print(f"written to {choices.path()}; models that are trained from now on take the fastest")


def _plan(plan: Any) -> str:
    tile = getattr(plan, "tile", plan)
    parts = getattr(plan, "parts", 1)
    return f"{tile.rows} x {tile.columns}" + (f", {parts} parts" if parts > 1 else "")
