"""Penalties on weights and constraints of weights on CUDA.

Memory contract: ``w`` is read by the penalties, and updated in place by the constraints; ``dw`` and ``value`` are
updated in place. Sums are of the model's dtype and in a fixed order: strided over the threads, then in a tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .block import block_sum
from .launch import BLOCK, CUDA, DEPTH, WIDTH, Launch, ceil_div, element, flat, kernel, scratch

PENALTY_BLOCKS = 256  # at most: one block adds their sums, a thread each


@kernel
def _penalty_blocks(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def penalty_blocks(w, partial, l1, l2):  # type: ignore[no-untyped-def]
        sums = cuda.shared.array(BLOCK, kind)
        t = cuda.threadIdx.x
        total = zero
        for i in range(cuda.grid(1), w.size, cuda.gridsize(1)):
            v = w[i]
            total += (l1 if v >= zero else -l1) * v + l2 * v * v
        block_sum(total, sums)
        if t == 0:
            partial[cuda.blockIdx.x] = sums[0]

    return penalty_blocks


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
    blocks = max(1, min(ceil_div(w.size, BLOCK), PENALTY_BLOCKS))
    partial = scratch(w, (blocks,))
    return [
        Launch(_penalty_blocks(w.dtype), (blocks,), (BLOCK,), (w.ravel(), partial, number(l1), number(l2))),
        Launch(_penalty_add(w.dtype), (1,), (BLOCK,), (partial, value)),
    ]


@kernel
def _penalty_gradient(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)

    def weight_penalty_gradient(w, dw, l1, twice_l2):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), w.size, cuda.gridsize(1)):
            v = w[i]
            sign = l1 if v > zero else (-l1 if v < zero else zero)
            dw[i] += sign + twice_l2 * v

    return weight_penalty_gradient


def weight_penalty_gradient(w: Any, dw: Any, l1: float, l2: float) -> list[Launch]:
    """``dw += l1 sign(w) + 2 l2 w``; the sign of 0 is 0."""
    number = w.dtype.type
    arguments = (w.ravel(), dw.ravel(), number(l1), number(2.0 * l2))
    return [Launch(_penalty_gradient(w.dtype), *flat(w.size), arguments)]


@kernel
def _constrain_norm(dtype: Any) -> Any:
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    kind = element(dtype)
    sqrt = CUDA.math("sqrt", dtype)

    def constrain_norm(w, minimum, maximum):  # type: ignore[no-untyped-def]
        """A block takes 32 columns; thread (c, d) rows d, d + 8, ...; each adds the 8 sums in order."""
        shared = cuda.shared.array((DEPTH, WIDTH), kind)
        rows, columns = w.shape
        lane = cuda.threadIdx.x
        depth = cuda.threadIdx.y
        column = cuda.blockIdx.x * WIDTH + lane
        total = zero
        if column < columns:
            for row in range(depth, rows, DEPTH):
                total += w[row, column] * w[row, column]
        shared[depth, lane] = total
        cuda.syncthreads()
        total = zero
        for k in range(DEPTH):
            total += shared[k, lane]
        norm = sqrt(total)
        scale = one
        if norm > maximum:
            scale = maximum / norm
        elif norm > zero and norm < minimum:
            scale = minimum / norm
        if column < columns and scale != one:
            for row in range(depth, rows, DEPTH):
                w[row, column] *= scale

    return constrain_norm


def constrain_norm(w: Any, minimum: float, maximum: float) -> list[Launch]:
    """Each column scaled to a norm within ``[minimum, maximum]``."""
    number = w.dtype.type
    grid = (ceil_div(w.shape[1], WIDTH),)
    return [Launch(_constrain_norm(w.dtype), grid, (WIDTH, DEPTH), (w, number(minimum), number(maximum)))]


@kernel
def _constrain_non_negative(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)

    def constrain_non_negative(w):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), w.size, cuda.gridsize(1)):
            if w[i] < zero:
                w[i] = zero

    return constrain_non_negative


def constrain_non_negative(w: Any) -> list[Launch]:
    """``w = max(w, 0)``; NaN stays NaN."""
    return [Launch(_constrain_non_negative(w.dtype), *flat(w.size), (w.ravel(),))]
