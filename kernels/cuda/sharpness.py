"""The step of sharpness-aware minimisation to where the loss is larger, and back, on CUDA.

Memory contract: ``g`` (and ``w``, where adaptive) is read for the norm, then ``w`` is read and written once, ``g`` read
and ``kept`` written. The norm is summed in the model's dtype by blocks, in a fixed order, and by one thread in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .elements import element_pass, element_sum, sum_blocks
from .launch import Launch, kernel, scratch


@kernel
def _ascent_ratio(dtype: Any) -> Any:
    def ascent_ratio(partial, uniforms, rho, ratio):  # type: ignore[no-untyped-def]
        total = 0.0
        for b in range(partial.size):
            total += float(partial[b])
        found = rho / math.sqrt(total) if total > 0.0 else 0.0
        ratio[0] = -found if uniforms[0] < 0 else found

    return ascent_ratio


def ascend(w: Any, g: Any, uniforms: Any, kept: Any, rho: float, eta: float, adaptive: float) -> list[Launch]:
    """``kept = w``; ``w += rho T^2 g / ||T g||``; ``T = |w| + eta`` where adaptive, else 1."""
    partial, ratio = scratch(w, (sum_blocks(g.size),)), scratch(w, (1,))
    if adaptive:
        arrays, name, given = {"w": w, "g": g}, "_adaptive", {"eta": w.dtype.type(eta)}
        size = "(abs(w{k}) + eta)"
        square, move = f"({size} * g{{k}}) * ({size} * g{{k}})", f"{size} * {size} * g{{k}}"
    else:
        arrays, name, given, square, move = {"g": g}, "", {}, "g{k} * g{k}", "g{k}"
    after = {"kept": (kept, "w{k}"), "w": (w, f"w{{k}} + factor * ({move})")}
    return [
        element_sum(f"ascent_squares{name}", arrays, square, partial, **given),
        Launch(_ascent_ratio(w.dtype), (1,), (1,), (partial, uniforms, np.float64(rho), ratio)),
        element_pass(f"ascend{name}", {"w": w, "g": g}, after, ["factor = ratio[0]"], ratio=ratio, **given),
    ]


def restore_weights(kept: Any, w: Any) -> list[Launch]:
    """``w = kept``"""
    return [element_pass("restore_weights", {"kept": kept}, {"w": (w, "kept{k}")})]
