"""Optimizer steps on CUDA: clipping by the global norm, and one pass over all parameters.

Memory contract: ``w`` and ``slots`` are read once and written once, ``g`` is read once; all are C-contiguous.
``uniforms[0]`` scales the gradient on the way, and what is not finite there reaches every parameter. Both kernels
access 128 bits at once where an array, or a row of ``slots``, begins at such an address, and else element by element.

The norm is summed in two stages of fixed order: each thread adds squares with Kahan's compensation in the model's
dtype, a block adds its threads in a tree, and one thread adds the blocks in float64. A float32 gradient with elements
beyond 1.8e19 has an infinite norm here (its square overflows) and is scaled to 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import cuda

from ..compile import UNIFORM_HEADER, decay_terms
from ..lowering import lower_uniforms
from .launch import BLOCK, CUDA, Launch, ceil_div, element, flat, generated, kernel, lowered, scratch
from .machine_code import describe
from .vector import access, aligned

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

_NORM = """
def {name}(g, partial):
    sums = cuda.shared.array({BLOCK}, element)
    t = cuda.threadIdx.x
    {totals} = zero
    {losts} = zero
    whole = g.size - g.size % {lanes}
    for i in range({lanes} * cuda.grid(1), whole, {lanes} * cuda.gridsize(1)):
{load}
{add}
    i = whole + cuda.grid(1)
    if i < g.size:
        g0 = g[i]
{add_last}
    sums[t] = {total}
    cuda.syncthreads()
    half = {BLOCK} // 2
    while half > 0:
        if t < half:
            sums[t] += sums[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        partial[cuda.blockIdx.x] = sums[0]
"""

# Kahan's step: lost is what rounding took from the total so far; beyond the largest number it would be NaN
_ADD = """\
        term = g{k} * g{k} - lost{k}
        following = total{k} + term
        lost{k} = (following - total{k}) - term if following <= largest else zero
        total{k} = following"""


@functools.cache
def _norm_blocks(dtype: Any, wide: bool) -> Any:
    """Both variants add in the same order: the bits do not depend on where the gradient lies."""
    lanes, load, _ = access(dtype)
    each = range(lanes)
    name = "norm_blocks" if wide else "norm_blocks_scalar"
    text = _NORM.format(
        name=name,
        BLOCK=BLOCK,
        lanes=lanes,
        totals=" = ".join(f"total{k}" for k in each),
        losts=" = ".join(f"lost{k}" for k in each),
        load=_load("g", "g", lanes, wide),
        add="\n".join(_ADD.format(k=k) for k in each),
        add_last=_ADD.format(k=0),
        total=" + ".join(f"total{k}" for k in each),
    )
    dtype = np.dtype(dtype)
    scope = {"cuda": cuda, "element": element(dtype), "load": load}
    scope |= {"zero": dtype.type(0), "largest": np.finfo(dtype).max}
    return generated(text, name, scope, dtype)


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
        Launch(_norm_blocks(g.dtype, aligned(g)), (blocks,), (BLOCK,), (g, partial)),
        Launch(_norm_finish(g.dtype), (1,), (1,), (partial, hyper, uniforms)),
    ]


# --------------------------------------------------------------------------------------------------- update

_UPDATE = """
def {name}(w, g, s, u):
    scale = u[0]
    l2 = u[1]
    keep = u[2]
{rows}
    whole = w.size - w.size % {lanes}
    for i in range({lanes} * cuda.grid(1), whole, {lanes} * cuda.gridsize(1)):
{loads}
{updates}
{stores}
    i = whole + cuda.grid(1)
    if i < w.size:
{last}
"""


def _load(name: str, array: str, lanes: int, wide: bool) -> str:
    values = "".join(f"{name}{k}, " for k in range(lanes))
    return f"        {values}= " + (
        f"load({array}, i)" if wide else "".join(f"{array}[i + {k}], " for k in range(lanes))
    )


def _store(name: str, array: str, lanes: int, wide: bool) -> str:
    values = "".join(f"{name}{k}, " for k in range(lanes))
    if wide:
        return f"        store({array}, i, ({values}))"
    return "\n".join(f"        {array}[i + {k}] = {name}{k}" for k in range(lanes))


def _apply(w: str, g: str, slots: Sequence[str], results: Sequence[str], uniforms: int) -> str:
    arguments = ", ".join([*slots, *(f"u{k}" for k in range(uniforms))])
    return f"        {', '.join(results)} = update({w} * keep, {g} * scale + l2 * {w}, {arguments})"


@functools.cache
def _update(update: Any, dtype: Any, uniforms: int, wide: tuple[bool, ...]) -> Any:
    """The kernel where those of ``w``, ``g`` and the rows of ``slots`` that are ``wide`` take 128-bit access.

    Where none does, a thread takes single elements, neighbours of those of its neighbours.
    """
    lanes, load, store = access(dtype)
    lanes = lanes if any(wide) else 1
    slots = [f"s{k}_" for k in range(len(wide) - 2)]
    arrays = ["w", "g", *(f"s{k}" for k in range(len(slots)))]
    rows = [f"    {array} = s[{k}]" for k, array in enumerate(arrays[2:])]
    rows += [f"    u{k} = u[{k + UNIFORM_HEADER}]" for k in range(uniforms)]
    written = dict(zip(["new_w", *(f"new_{slot}" for slot in slots)], [0, *range(2, len(arrays))], strict=True))
    name = "optimizer_update" if any(wide) else "optimizer_update_scalar"
    text = _UPDATE.format(
        name=name,
        lanes=lanes,
        rows="\n".join(rows),
        loads="\n".join(
            _load(value, array, lanes, flag)
            for value, array, flag in zip(["w_", "g_", *slots], arrays, wide, strict=True)
        ),
        updates="\n".join(
            _apply(f"w_{k}", f"g_{k}", [f"{slot}{k}" for slot in slots], [f"{value}{k}" for value in written], uniforms)
            for k in range(lanes)
        ),
        stores="\n".join(_store(value, arrays[at], lanes, wide[at]) for value, at in written.items()),
        last="        x = w[i]\n"
        + _apply(
            "x", "g[i]", [f"{a}[i]" for a in arrays[2:]], [f"{arrays[at]}[i]" for at in written.values()], uniforms
        ),
    )
    scope = {"cuda": cuda, "update": update, "load": load, "store": store}
    return generated(text, name, scope, dtype, update)


def optimizer_update(rule: Any, w: Any, g: Any, slots: Any, uniforms: Any) -> list[Launch]:
    """``w, slots = rule(keep w, scale g + l2 w, slots)`` for every element."""
    function, low = lowered(rule, "update", w.dtype)
    arrays = [w, g, *(slots[k] for k in range(len(rule.slots)))]
    wide = tuple(aligned(array) for array in arrays)
    made = _update(function, w.dtype, len(low.uniforms), wide)
    groups = ceil_div(w.size, access(w.dtype).lanes) if any(wide) else w.size
    return [Launch(made, *flat(groups), (w, g, slots, uniforms))]
