"""Optimizer steps on CUDA: clipping by the global norm, and one pass over all parameters.

Memory contract: ``w`` and ``slots`` are read once and written once, ``g`` is read. ``uniforms[0]`` scales the
gradient on the way. The norm is summed in two stages of fixed order: each thread adds squares with Kahan's
compensation in the model's dtype, a block adds its threads in a tree, and one thread adds the blocks in float64. A
float32 gradient with elements beyond 1.8e19 has an infinite norm here (its square overflows) and is scaled to 0.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numba import cuda

from ..compile import UNIFORM_HEADER, decay_terms
from ..lowering import lower_uniforms
from .launch import BLOCK, CUDA, Launch, ceil_div, element, flat, generated, kernel, lowered, scratch
from .machine_code import describe

NORM_BLOCKS = 256  # at most; one thread adds their sums


# ---------------------------------------------------------------------------------------------------- begin

_BEGIN = """
def optimizer_begin(hyper, step, u):
    out = cuda.local.array({size}, float64)
    step[0] += 1
    uniforms(hyper, float(step[0]), out)
    u[0] = 1.0
    u[1] = {l2}
    u[2] = {keep}
    for i in range({count}):
        u[{header} + i] = out[i]
"""

_begin: dict[Any, Any] = {}


def optimizer_begin(rule: Any, hyper: Any, step: Any, uniforms: Any) -> list[Launch]:
    """Count the step and compute the uniforms of ``rule``, by one thread in float64."""
    key = (rule.main, tuple(rule.parameters), rule.decoupled)
    if key not in _begin:
        sources = lowered(rule, "update", np.float32)[1].uniforms
        l2, keep = decay_terms(rule)
        count = len(sources)
        text = _BEGIN.format(size=max(1, count), count=count, header=UNIFORM_HEADER, l2=l2, keep=keep)
        low = lower_uniforms(rule, sources, CUDA)
        function = CUDA.inline(low.function)
        describe(function, low.text)
        scope = {"cuda": cuda, "float64": numba.float64, "uniforms": function}
        _begin[key] = generated(text, "optimizer_begin", scope, function)
    return [Launch(_begin[key], (1,), (1,), (hyper, step, uniforms))]


# ----------------------------------------------------------------------------------------------------- norm


@kernel
def _norm_blocks(dtype: Any) -> Any:
    zero, largest = np.dtype(dtype).type(0), np.finfo(dtype).max
    kind = element(dtype)

    def norm_blocks(g, partial):  # type: ignore[no-untyped-def]
        sums = cuda.shared.array(BLOCK, kind)
        t = cuda.threadIdx.x
        total = zero
        lost = zero  # what rounding took from the total so far
        for i in range(cuda.grid(1), g.size, cuda.gridsize(1)):
            term = g[i] * g[i] - lost
            following = total + term
            # beyond the largest number the difference would be NaN
            lost = (following - total) - term if following <= largest else zero
            total = following
        sums[t] = total
        cuda.syncthreads()
        half = BLOCK // 2
        while half > 0:
            if t < half:
                sums[t] += sums[t + half]
            cuda.syncthreads()
            half //= 2
        if t == 0:
            partial[cuda.blockIdx.x] = sums[0]

    return norm_blocks


@kernel
def _norm_finish(dtype: Any) -> Any:
    def norm_finish(partial, hyper, uniforms):  # type: ignore[no-untyped-def]
        limit = hyper[hyper.size - 1]
        uniforms[0] = 1.0
        if limit > 0.0:
            total = 0.0
            for i in range(partial.size):
                total += float(partial[i])
            norm = math.sqrt(total)
            if not norm <= limit:  # a norm that is not a number must not pass unseen
                uniforms[0] = limit / norm

    return norm_finish


def clip_by_global_norm(g: Any, hyper: Any, uniforms: Any) -> list[Launch]:
    """``uniforms[0] = c / max(c, ||g||)`` with ``c = hyper[-1]``; 1 where ``c`` is 0."""
    blocks = max(1, min(ceil_div(g.size, 4 * BLOCK), NORM_BLOCKS))
    partial = scratch(g, (blocks,))
    return [
        Launch(_norm_blocks(g.dtype), (blocks,), (BLOCK,), (g, partial)),
        Launch(_norm_finish(g.dtype), (1,), (1,), (partial, hyper, uniforms)),
    ]


# --------------------------------------------------------------------------------------------------- update

_UPDATE = """
def optimizer_update(w, g, s, u):
    scale = u[0]
    l2 = u[1]
    keep = u[2]
{load}
    for i in range(cuda.grid(1), w.size, cuda.gridsize(1)):
        x = w[i]
        {results} = update(x * keep, g[i] * scale + l2 * x{slots}{arguments})
"""


@functools.cache
def _update(update: Any, slots: int, uniforms: int) -> Any:
    text = _UPDATE.format(
        load="\n".join(f"    u{k} = u[{k + UNIFORM_HEADER}]" for k in range(uniforms)),
        results=", ".join(["w[i]", *[f"s[{k}, i]" for k in range(slots)]]),
        slots="".join(f", s[{k}, i]" for k in range(slots)),
        arguments="".join(f", u{k}" for k in range(uniforms)),
    )
    return generated(text, "optimizer_update", {"cuda": cuda, "update": update}, update)


def optimizer_update(rule: Any, w: Any, g: Any, slots: Any, uniforms: Any) -> list[Launch]:
    """``w, slots = rule(keep w, scale g + l2 w, slots)`` for every element."""
    function, low = lowered(rule, "update", w.dtype)
    made = _update(function, len(rule.slots), len(low.uniforms))
    return [Launch(made, *flat(w.size), (w, g, slots, uniforms))]
