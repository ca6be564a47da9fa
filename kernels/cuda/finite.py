"""The scale of the loss on CUDA, and steps that are skipped because a gradient is not finite.

Memory contract: ``dz`` is updated in place, ``g`` is read once. The flag and the scale stay on the device.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import cuda

from ..loss_scale import move
from .block import block_sum
from .elements import element_pass, sum_blocks
from .launch import BLOCK, CUDA, Launch, kernel, scratch
from .vector import access, aligned


def scale_loss(dz: Any, scaler: Any) -> list[Launch]:
    """``dz *= scaler[0]``"""
    begin = ["factor = number(scaler[0])"]
    return [element_pass("scale_loss", {"dz": dz}, {"dz": (dz, "dz{k} * factor")}, begin, scaler=scaler)]


@kernel
def _count(dtype: Any, wide: bool) -> Any:
    infinity = np.dtype(dtype).type(np.inf)
    lanes, load, _ = access(dtype, 0 if wide else 1)

    def count_not_finite(g, counts):  # type: ignore[no-untyped-def]
        found = cuda.shared.array(BLOCK, numba.int32)
        t = cuda.threadIdx.x
        total = np.int32(0)
        whole = g.size - g.size % lanes
        for i in range(lanes * cuda.grid(1), whole, lanes * cuda.gridsize(1)):
            for v in load(g, i):
                if not abs(v) < infinity:
                    total += np.int32(1)
        i = whole + cuda.grid(1)
        if i < g.size and not abs(g[i]) < infinity:
            total += np.int32(1)
        block_sum(total, found)
        if t == 0:
            counts[cuda.blockIdx.x] = found[0]

    return count_not_finite


@kernel
def _move_scale() -> Any:
    move_ = CUDA.inline(move)

    def move_scale(counts, scaler, step, uniforms):  # type: ignore[no-untyped-def]
        total = 0
        for b in range(counts.size):
            total += counts[b]
        uniforms[0] /= scaler[0]
        move_(total, scaler, step, uniforms)

    return move_scale


def check_finite(g: Any, scaler: Any, step: Any, uniforms: Any) -> list[Launch]:
    """``uniforms[0] /= scaler[0]``; where ``g`` is not finite the step is skipped. See loss_scale.py."""
    blocks = sum_blocks(g.size)
    counts = scratch(step, (blocks,))
    return [
        Launch(_count(g.dtype, aligned(g)), (blocks,), (BLOCK,), (g, counts)),
        Launch(_move_scale(), (1,), (1,), (counts, scaler, step, uniforms)),
    ]
