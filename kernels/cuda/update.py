"""Optimizer steps on CUDA: clipping by the global norm, and one pass over all parameters.

Memory contract: ``w`` and ``slots`` are read once and written once, ``g`` is read once; all are C-contiguous.
``uniforms[0]`` scales the gradient on the way, and what is not finite there reaches every parameter. Both kernels
access 128 bits at once where an array, or a row of ``slots``, begins at such an address, and else element by element.
In mixed precision ``w`` and ``g`` have 16 bits (uint16 stands for bfloat16), of which 64 are accessed at once: ``w`` is
written, rounded from the float32 weights ``master``, which are read and written beside ``slots``.

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
from .vector import BYTES, access, aligned, half_access

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
{load_last}
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
def _norm_blocks(dtype: Any, wide: bool, half: str = "") -> Any:
    """All variants add in the same order: the bits do not depend on where the gradient lies, nor on its format."""
    lanes, load, _ = access(dtype)
    each = range(lanes)
    name = f"norm_blocks{'_mixed' if half else ''}{'' if wide else '_scalar'}"
    text = _NORM.format(
        name=name,
        BLOCK=BLOCK,
        lanes=lanes,
        totals=" = ".join(f"total{k}" for k in each),
        losts=" = ".join(f"lost{k}" for k in each),
        load=_load("g", "g", lanes, wide, half),
        add="\n".join(_ADD.format(k=k) for k in each),
        load_last=f"        g0 = {_one('g', half)}",
        add_last=_ADD.format(k=0),
        total=" + ".join(f"total{k}" for k in each),
    )
    dtype = np.dtype(dtype)
    scope = {"cuda": cuda, "element": element(dtype), "load": load, **_half_scope(half, lanes)}
    scope |= {"zero": dtype.type(0), "largest": np.finfo(dtype).max}
    return generated(text, name, scope, dtype, half)


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
    partial = scratch(uniforms, (blocks,))
    g, half = _half(g)
    wide = aligned(g, size=_HALF_BYTES) if half else aligned(g)
    return [
        Launch(_norm_blocks(uniforms.dtype, wide, half), (blocks,), (BLOCK,), (g, partial)),
        Launch(_norm_finish(uniforms.dtype), (1,), (1,), (partial, hyper, uniforms)),
    ]


def clip_by_global_norm_mixed(g: Any, hyper: Any, uniforms: Any) -> list[Launch]:
    """:func:`clip_by_global_norm` of a gradient of 16 bits, with the bits of the same gradient in float32."""
    return clip_by_global_norm(g, hyper, uniforms)


# ------------------------------------------------------------------------------------------- numbers of 16 bits

_HALF_BYTES = 8  # as many numbers as 128 bits of float32


def _half(array: Any) -> tuple[Any, str]:
    """An array of 16 bits as uint16 and the name of its format; any other as it is and no name."""
    if array.dtype.itemsize != 2:
        return array, ""
    return array.view(np.uint16), "float16" if array.dtype == np.float16 else "bfloat16"


def _half_scope(half: str, lanes: int) -> dict[str, Any]:
    if not half:
        return {}
    several, one = half_access(half, lanes), half_access(half, 1)
    return {"load_half": several.load, "store_half": several.store, "load_half1": one.load, "store_half1": one.store}


def _one(array: str, half: str) -> str:
    return f"load_half1({array}, i)[0]" if half else f"{array}[i]"


# --------------------------------------------------------------------------------------------------- update

_UPDATE = """
def {name}({arrays}):
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


def _load(name: str, array: str, lanes: int, wide: bool, half: str = "") -> str:
    values = "".join(f"{name}{k}, " for k in range(lanes))
    if wide:
        return f"        {values}= load{'_half' if half else ''}({array}, i)"
    each = (f"load_half1({array}, i + {k})[0], " if half else f"{array}[i + {k}], " for k in range(lanes))
    return f"        {values}= {''.join(each)}"


def _store(name: str, array: str, lanes: int, wide: bool, half: str = "") -> str:
    values = "".join(f"{name}{k}, " for k in range(lanes))
    if wide:
        return f"        store{'_half' if half else ''}({array}, i, ({values}))"
    if half:
        return "\n".join(f"        store_half1({array}, i + {k}, ({name}{k},))" for k in range(lanes))
    return "\n".join(f"        {array}[i + {k}] = {name}{k}" for k in range(lanes))


def _apply(w: str, g: str, slots: Sequence[str], results: Sequence[str], uniforms: int) -> str:
    arguments = ", ".join([*slots, *(f"u{k}" for k in range(uniforms))])
    return f"        {', '.join(results)} = update({w} * keep, {g} * scale + l2 * {w}, {arguments})"


@functools.cache
def _update(update: Any, dtype: Any, uniforms: int, wide: tuple[bool, ...], half: str = "") -> Any:
    """The kernel where those of ``w``, ``g``, the rows of ``slots`` and the copy that are ``wide`` take wide access.

    Where none does, a thread takes single elements, neighbours of those of its neighbours. ``half`` is the format of
    ``g`` and of the copy of ``w`` in mixed precision; without it there is no copy.
    """
    lanes, load, store = access(dtype)
    lanes = lanes if any(wide) else 1
    slots = [f"s{k}_" for k in range(len(wide) - 2 - bool(half))]
    arrays = ["w", "g", *(f"s{k}" for k in range(len(slots)))]
    rows = [f"    {array} = s[{k}]" for k, array in enumerate(arrays[2:])]
    rows += [f"    u{k} = u[{k + UNIFORM_HEADER}]" for k in range(uniforms)]
    written = dict(zip(["new_w", *(f"new_{slot}" for slot in slots)], [0, *range(2, len(arrays))], strict=True))
    stores = [_store(value, arrays[at], lanes, wide[at]) for value, at in written.items()]
    last = [_apply("x", _one("g", half), [f"{a}[i]" for a in arrays[2:]], list(written), uniforms)]
    last += [f"        {arrays[at]}[i] = {value}" for value, at in written.items()]
    if half:
        stores.append(_store("new_w", "copy", lanes, wide[-1], half))
        last.append("        store_half1(copy, i, (new_w,))")
    name = f"optimizer_update{'_mixed' if half else ''}{'' if any(wide) else '_scalar'}"
    text = _UPDATE.format(
        name=name,
        arrays="w, g, s, copy, u" if half else "w, g, s, u",
        lanes=lanes,
        rows="\n".join(rows),
        loads="\n".join(
            _load(value, array, lanes, flag, half if array == "g" else "")
            for value, array, flag in zip(["w_", "g_", *slots], arrays, wide, strict=False)
        ),
        updates="\n".join(
            _apply(f"w_{k}", f"g_{k}", [f"{slot}{k}" for slot in slots], [f"{value}{k}" for value in written], uniforms)
            for k in range(lanes)
        ),
        stores="\n".join(stores),
        last="\n".join(["        x = w[i]", *last]),
    )
    scope = {"cuda": cuda, "update": update, "load": load, "store": store, **_half_scope(half, lanes)}
    return generated(text, name, scope, dtype, update, half)


def _planned(rule: Any, w: Any, g: Any, slots: Any, copies: Sequence[Any], uniforms: Any, half: str) -> list[Launch]:
    function, low = lowered(rule, "update", w.dtype)
    rows = [slots[k] for k in range(len(rule.slots))]
    wide = tuple(aligned(a, size=_HALF_BYTES if a.dtype.itemsize == 2 else BYTES) for a in (w, g, *rows, *copies))
    made = _update(function, w.dtype, len(low.uniforms), wide, half)
    groups = ceil_div(w.size, access(w.dtype).lanes) if any(wide) else w.size
    return [Launch(made, *flat(groups), (w, g, slots, *copies, uniforms))]


def optimizer_update(rule: Any, w: Any, g: Any, slots: Any, uniforms: Any) -> list[Launch]:
    """``w, slots = rule(keep w, scale g + l2 w, slots)`` for every element."""
    return _planned(rule, w, g, slots, (), uniforms, "")


def optimizer_update_mixed(rule: Any, master: Any, g: Any, slots: Any, w: Any, uniforms: Any) -> list[Launch]:
    """:func:`optimizer_update` of the float32 ``master`` from a gradient of 16 bits; ``w`` = ``master`` rounded.

    ``w`` and ``g`` have one format. All in one pass: 2 bytes of each are moved, 8 of ``master``, 8 of each slot.
    """
    w, half = _half(w)
    return _planned(rule, master, _half(g)[0], slots, (w,), uniforms, half)
