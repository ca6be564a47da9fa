"""Penalties on weights and constraints of weights on CUDA.

Memory contract: ``w`` is read by the penalties, and updated in place by the constraints; ``dw`` and ``value`` are
updated in place. Sums are of the model's dtype and in a fixed order: strided over the threads, then in a tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .block import block_sum
from .column_sums import column_sums, partials, sum_partials
from .columns import column_pass
from .elements import element_pass, element_sum, sum_blocks
from .launch import BLOCK, CHUNK, Launch, ceil_div, element, kernel, scratch


@kernel
def _penalty_add(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def penalty_add(partial, value):  # type: ignore[no-untyped-def]
        sums = cuda.shared.array(BLOCK, kind)
        t = cuda.threadIdx.x
        block_sum(partial[t] if t < partial.size else zero, sums)
        for i in range(t, value.size, BLOCK):
            value[i] += sums[0]

    return penalty_add


def weight_penalty(w: Any, value: Any, l1: float, l2: float) -> list[Launch]:
    """``value += sum(l1 |w| + l2 w^2)``, in each row."""
    number = w.dtype.type
    partial = scratch(w, (sum_blocks(w.size),))
    term = "(l1 if w{k} >= zero else -l1) * w{k} + l2 * w{k} * w{k}"
    return [
        element_sum("penalty_blocks", {"w": w}, term, partial, l1=number(l1), l2=number(l2)),
        Launch(_penalty_add(w.dtype), (1,), (BLOCK,), (partial, value)),
    ]


def weight_penalty_gradient(w: Any, dw: Any, l1: float, l2: float) -> list[Launch]:
    """``dw += l1 sign(w) + 2 l2 w``; the sign of 0 is 0."""
    number = w.dtype.type
    sign = "(l1 if w{k} > zero else (-l1 if w{k} < zero else zero))"
    after = {"dw": (dw, f"dw{{k}} + ({sign} + twice_l2 * w{{k}})")}
    factors = {"l1": number(l1), "twice_l2": number(2.0 * l2)}
    return [element_pass("weight_penalty_gradient", {"w": w, "dw": dw}, after, **factors)]


def constrain_norm(w: Any, minimum: float, maximum: float) -> list[Launch]:
    """Each column scaled to a norm within ``[minimum, maximum]``."""
    number, norms = w.dtype.type, scratch(w, (w.shape[1],))
    partial = partials(norms, ceil_div(w.shape[0], CHUNK))
    scale = [
        "n{k} = sqrt(n{k})",
        "n{k} = maximum / n{k} if n{k} > maximum else (minimum / n{k} if n{k} > zero and n{k} < minimum else one)",
    ]
    limits = {"minimum": number(minimum), "maximum": number(maximum)}
    return [
        column_sums("squares_of_columns", {"w": w}, {"n": partial}, ["n{k} += w{k} * w{k}"]),
        *sum_partials(partial, norms),
        column_pass("constrain_norm", {"v": w}, {"n": norms}, ("w", w), "v{k} * n{k}", scale, **limits),
    ]


def constrain_non_negative(w: Any) -> list[Launch]:
    """``w = max(w, 0)``; NaN stays NaN."""
    return [element_pass("constrain_non_negative", {"w": w}, {"w": (w, "zero if w{k} < zero else w{k}")})]
