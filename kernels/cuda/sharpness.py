"""The step of sharpness-aware minimisation to where the loss is larger, and back, on CUDA.

Memory contract: ``g`` (and ``w``, where adaptive) is read for the norm, then ``w`` is read and written once, ``g`` read
and ``kept`` written. The norm is summed in the model's dtype by blocks, in a fixed order, and by one thread in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from .block import block_sum
from .launch import BLOCK, Launch, ceil_div, element, flat, kernel, scratch
from .update import NORM_BLOCKS


@kernel
def _ascent_squares(dtype: Any, adaptive: bool) -> Any:
    kind = element(dtype)
    zero = np.dtype(dtype).type(0)

    def ascent_squares(w, g, partial, eta):  # type: ignore[no-untyped-def]
        sums = cuda.shared.array(BLOCK, kind)
        t = cuda.threadIdx.x
        total = zero
        for i in range(cuda.grid(1), g.size, cuda.gridsize(1)):
            term = (abs(w[i]) + eta) * g[i] if adaptive else g[i]
            total += term * term
        block_sum(total, sums)
        if t == 0:
            partial[cuda.blockIdx.x] = sums[0]

    return ascent_squares


@kernel
def _ascent_ratio(dtype: Any) -> Any:
    def ascent_ratio(partial, uniforms, rho, ratio):  # type: ignore[no-untyped-def]
        total = 0.0
        for b in range(partial.size):
            total += float(partial[b])
        found = rho / math.sqrt(total) if total > 0.0 else 0.0
        ratio[0] = -found if uniforms[0] < 0 else found

    return ascent_ratio


@kernel
def _ascend(dtype: Any, adaptive: bool) -> Any:
    def ascend_by(w, g, ratio, kept, eta):  # type: ignore[no-untyped-def]
        factor = ratio[0]
        for i in range(cuda.grid(1), w.size, cuda.gridsize(1)):
            x = w[i]
            kept[i] = x
            t = abs(x) + eta
            w[i] = x + factor * (t * t * g[i] if adaptive else g[i])

    return ascend_by


def ascend(w: Any, g: Any, uniforms: Any, kept: Any, rho: float, eta: float, adaptive: float) -> list[Launch]:
    """``kept = w``; ``w += rho T^2 g / ||T g||``; ``T = |w| + eta`` where adaptive, else 1."""
    blocks = max(1, min(ceil_div(g.size, 4 * BLOCK), NORM_BLOCKS))
    partial, ratio = scratch(w, (blocks,)), scratch(w, (1,))
    floor, kind = w.dtype.type(eta), (w.dtype, bool(adaptive))
    return [
        Launch(_ascent_squares(*kind), (blocks,), (BLOCK,), (w, g, partial, floor)),
        Launch(_ascent_ratio(w.dtype), (1,), (1,), (partial, uniforms, np.float64(rho), ratio)),
        Launch(_ascend(*kind), *flat(w.size), (w, g, ratio, kept, floor)),
    ]


@kernel
def _restore(dtype: Any) -> Any:
    def restore_weights(kept, w):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), w.size, cuda.gridsize(1)):
            w[i] = kept[i]

    return restore_weights


def restore_weights(kept: Any, w: Any) -> list[Launch]:
    """``w = kept``"""
    return [Launch(_restore(w.dtype), *flat(w.size), (kept, w))]
