"""Gradients of several mini-batches summed up on CUDA, for one update.

Memory contract: ``g`` is read once, ``total`` read (but at the first of a turn) and written once, at 128 bits where
both begin at such an address. What turn it is stays on the device: every mini-batch is the same graph.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from .columns import each, load, store
from .launch import Launch, ceil_div, flat, generated, kernel
from .update import indented
from .vector import access, aligned

_ADD = """
def {name}(g, total, turn, uniforms):
    if uniforms[4] != zero:
        return
    scale = uniforms[0]
    first = turn[0] == 0
    whole = g.size - g.size % {lanes}
    for i in range({lanes} * cuda.grid(1), whole, {lanes} * cuda.gridsize(1)):
        {load}
        {fresh}
        if not first:
            {load_total}
{add}
{store}
    i = whole + cuda.grid(1)
    if i < g.size:
        total[i] = scale * g[i] if first else total[i] + scale * g[i]
"""


@functools.cache
def _add_gradient(dtype: Any, wide: bool) -> Any:
    lanes, load_wide, store_wide = access(dtype, 0 if wide else 1)
    name = "add_gradient" if wide else "add_gradient_scalar"
    text = _ADD.format(
        name=name,
        lanes=lanes,
        load=load("g", "g", "i", lanes, wide),
        fresh=" = ".join(f"t{k}" for k in range(lanes)) + " = zero",
        load_total=load("t", "total", "i", lanes, wide),
        add=each("t{k} += scale * g{k}", lanes, 8),
        store=indented([store("total", "i", "t{k}", lanes, wide)]),
    )
    scope = {"cuda": cuda, "load": load_wide, "store": store_wide, "zero": np.dtype(dtype).type(0)}
    return generated(text, name, scope, np.dtype(dtype))


@kernel
def _end_turn() -> Any:
    def end_turn(turn, batches, step, uniforms, steps, share):  # type: ignore[no-untyped-def]
        batches[0] += 1
        if uniforms[4] == 0:
            turn[0] += 1
            if turn[0] >= steps:
                turn[0] = 0
                uniforms[0] = share
            else:
                uniforms[4] = 1
                step[0] -= 1

    return end_turn


def accumulate_gradient(
    g: Any, total: Any, turn: Any, batches: Any, step: Any, uniforms: Any, steps: float
) -> list[Launch]:
    """``total`` = the gradients of the turn so far, scaled; an update after ``steps`` of them, until then none."""
    wide = aligned(g, total)
    groups = ceil_div(g.size, access(g.dtype).lanes) if wide else g.size
    counts = np.int64(steps), g.dtype.type(1.0 / steps)
    return [
        Launch(_add_gradient(g.dtype, wide), *flat(groups), (g, total, turn, uniforms)),
        Launch(_end_turn(), (1,), (1,), (turn, batches, step, uniforms, *counts)),
    ]
