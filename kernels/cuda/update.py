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
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numba
import numpy as np
from numba import cuda

from ..rewriting import select_max, select_min
from ..step_text import begin_functions, begin_text, uniform_lines, update_text
from .block import block_sum
from .columns import load, single, store
from .elements import sum_blocks
from .launch import BLOCK, CUDA, Launch, ceil_div, element, flat, generated, kernel, lowered, scratch
from .machine_code import describe
from .vector import BYTES, access, aligned, half_access

SELECT = {f.__name__: CUDA.inline(f) for f in (select_max, select_min)}


# ---------------------------------------------------------------------------------------------------- begin

_begin: dict[Any, Any] = {}


def optimizer_begin(rule: Any, hyper: Any, step: Any, uniforms: Any) -> list[Launch]:
    """Count the step and compute the uniforms of ``rule``, by one thread in float64."""
    if rule.form not in _begin:
        sources = lowered(rule, "update", np.float32)[1].uniforms
        scope = {"cuda": cuda, "float64": numba.float64, "math": math}
        for name, low in begin_functions(rule, sources, CUDA).items():
            scope[name] = CUDA.inline(low.function)
            describe(scope[name], low.text)
        text = begin_text(rule, sources, "cuda.local.array({}, float64)")
        parts = [scope[name] for name in ("uniforms", "schedule") if name in scope]
        _begin[rule.form] = generated(text, "optimizer_begin", scope, *parts)
    return [Launch(_begin[rule.form], (1,), (1,), (hyper, step, uniforms))]


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
    block_sum({total}, sums)
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
    lanes, load_wide, _ = access(dtype)
    each = range(lanes)
    name = f"norm_blocks{'_mixed' if half else ''}{'' if wide else '_scalar'}"
    text = _NORM.format(
        name=name,
        BLOCK=BLOCK,
        lanes=lanes,
        totals=" = ".join(f"total{k}" for k in each),
        losts=" = ".join(f"lost{k}" for k in each),
        load=load("g", "g", "i", lanes, wide, half),
        add="\n".join(_ADD.format(k=k) for k in each),
        load_last=load("g", "g", "i", 1, half=half),
        add_last=_ADD.format(k=0),
        total=" + ".join(f"total{k}" for k in each),
    )
    dtype = np.dtype(dtype)
    scope = {"cuda": cuda, "element": element(dtype), "load": load_wide, **_half_scope(half, lanes)}
    scope |= {"block_sum": block_sum, "zero": dtype.type(0), "largest": np.finfo(dtype).max}
    return generated(text, name, scope, dtype, half)


@kernel
def _norm_finish(dtype: Any) -> Any:
    def norm_finish(partial, hyper, uniforms):  # type: ignore[no-untyped-def]
        limit = hyper[hyper.size - 1]
        if limit > 0.0:
            total = 0.0
            for i in range(partial.size):
                total += float(partial[i])
            norm = math.sqrt(total) * abs(float(uniforms[0]))
            if not norm <= limit:  # a norm that is not a number must not pass unseen
                uniforms[0] *= limit / norm

    return norm_finish


def clip_by_global_norm(g: Any, hyper: Any, uniforms: Any) -> list[Launch]:
    """``uniforms[0] *= c / max(c, ||uniforms[0] g||)`` with ``c = hyper[-1] > 0``."""
    blocks = sum_blocks(g.size)
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


# --------------------------------------------------------------------------------------------------- update

# where a thread finds its elements: low to high, beginning at number thread of threads
_FLAT = """\
    low = 0
    high = w.size
    thread = cuda.grid(1)
    threads = cuda.gridsize(1)
    u = given"""
_BY_TENSOR = """\
    b = cuda.blockIdx.x
    low = blocks[b, 0]
    high = blocks[b, 1]
    thread = cuda.threadIdx.x
    threads = cuda.blockDim.x
    u = given[blocks[b, 2]]"""

_UPDATE = """
def {name}({arrays}, given{blocks}):
{where}
    if u[4] != zero:
        return
{tensor}
{rows}
    whole = high - (high - low) % {lanes}
    for i in range(low + {lanes} * thread, whole, {lanes} * threads):
{loads}
{factors}
{updates}
{stores}
    i = whole + thread
    if i < high:
{factors_last}
{last}
"""

# of the tensor of a block: where it begins, its columns, and where the state of its rows and of its columns lies
TENSOR = """\
    tensor = tensors[blocks[b, 2]]
    start = tensor[0]
    columns = tensor[2]
    along = tensor[3] + 1
    down = along + tensor[1]
    mean = factors[along - 1]"""


def indented(lines: Iterable[str]) -> str:
    """The lines of a loop's body."""
    return textwrap.indent("\n".join(lines), 8 * " ")


def factor_text(lanes: int) -> str:
    """The factors ``f0_{k}``, ``f1_{k}`` of elements ``i + k``: those of rows over their mean, which is 0 at first."""
    lines = ["row = (i - start) // columns", "column = i - start - row * columns"]
    for k in range(lanes):
        lines += [
            f"f0_{k} = factors[along + row] / mean if mean != zero else factors[along + row]",
            f"f1_{k} = factors[down + column]",
        ]
        if k + 1 < lanes:
            lines += ["column += 1", "if column == columns:", "    column = 0", "    row += 1"]
    return indented(lines)


def _apply(rule: Any, uniforms: int, k: int, w: str, g: str, slots: Sequence[str], results: Sequence[str]) -> str:
    factors = [f"f{j}_{k}" for j in range(len(rule.factors))]
    return f"        {', '.join(results)} = {update_text(rule, uniforms, w, g, slots, factors)}"


_kernels: dict[Any, Any] = {}


def _update(rule: Any, dtype: Any, wide: tuple[bool, ...], by_tensor: bool, half: str = "") -> Any:
    """The kernel where those of ``w``, ``g``, the rows of ``slots`` and the copy that are ``wide`` take wide access.

    Where none does, a thread takes single elements, neighbours of those of its neighbours. ``half`` is the format of
    ``g`` and of the copy of ``w`` in mixed precision; without it there is no copy.
    """
    key = rule.form, dtype, wide, by_tensor, half
    if key in _kernels:
        return _kernels[key]
    update, low = lowered(rule, "update", dtype)
    uniforms = len(low.uniforms)
    apply = functools.partial(_apply, rule, uniforms)
    lanes, load_wide, store_wide = access(dtype)
    lanes = lanes if any(wide) else 1
    slots = [f"s{k}_" for k in range(len(wide) - 2 - bool(half))]
    arrays = ["w", "g", *(f"s{k}" for k in range(len(slots)))]
    rows = [f"    {array} = s[{k}]" for k, array in enumerate(arrays[2:])]
    rows += uniform_lines(uniforms, len(rule.sums))
    written = dict(zip(["new_w", *(f"new_{slot}" for slot in slots)], [0, *range(2, len(arrays))], strict=True))
    stores = [store(arrays[at], "i", f"{value}{{k}}", lanes, wide[at]) for value, at in written.items()]
    last = [apply(0, "x", single("g", "i", half), [f"{a}[i]" for a in arrays[2:]], list(written))]
    last += [f"        {arrays[at]}[i] = {value}" for value, at in written.items()]
    if half:
        stores.append(store("copy", "i", "new_w{k}", lanes, wide[-1], half))
        last.append(f"        {store('copy', 'i', 'new_w', 1, half=half)}")
    form = "_by_tensor" if by_tensor else "_mixed" if half else ""
    name = f"optimizer_update{form}{'' if any(wide) else '_scalar'}"
    text = _UPDATE.format(
        name=name,
        arrays="w, g, s, copy" if half else "w, g, s",
        lanes=lanes,
        blocks=(", blocks" if by_tensor else "") + (", factors, tensors" if rule.factors else ""),
        tensor=TENSOR if rule.factors else "",
        factors=factor_text(lanes) if rule.factors else "",
        factors_last=factor_text(1) if rule.factors else "",
        where=_BY_TENSOR if by_tensor else _FLAT,
        rows="\n".join(rows),
        loads=indented(
            load(value, array, "i", lanes, flag, half if array == "g" else "")
            for value, array, flag in zip(["w_", "g_", *slots], arrays, wide, strict=False)
        ),
        updates="\n".join(
            apply(k, f"w_{k}", f"g_{k}", [f"{slot}{k}" for slot in slots], [f"{value}{k}" for value in written])
            for k in range(lanes)
        ),
        stores=indented(stores),
        last="\n".join(["        x = w[i]", *last]),
    )
    scope = {"cuda": cuda, "update": update, "load": load_wide, "store": store_wide, **SELECT}
    scope |= {"zero": np.dtype(dtype).type(0), **_half_scope(half, lanes)}
    _kernels[key] = generated(text, name, scope, dtype, update, half)
    return _kernels[key]


def wide_arrays(rule: Any, *arrays: Any) -> tuple[bool, ...]:
    """Whether ``w``, ``g``, the rows of ``slots`` and what follows allow access to four numbers at once."""
    w, g, slots, *copies = arrays
    rows = (slots[k] for k in range(len(rule.slots)))
    return tuple(aligned(a, size=_HALF_BYTES if a.dtype.itemsize == 2 else BYTES) for a in (w, g, *rows, *copies))


def _flat_update(rule: Any, arrays: Sequence[Any], uniforms: Any, half: str) -> list[Launch]:
    wide = wide_arrays(rule, *arrays)
    w = arrays[0]
    groups = ceil_div(w.size, access(w.dtype).lanes) if any(wide) else w.size
    return [Launch(_update(rule, w.dtype, wide, False, half), *flat(groups), (*arrays, uniforms))]


def optimizer_update(rule: Any, w: Any, g: Any, slots: Any, uniforms: Any) -> list[Launch]:
    """``w, slots = rule(keep w, scale g + l2 w, slots)`` for every element."""
    return _flat_update(rule, (w, g, slots), uniforms, "")


def optimizer_update_by_tensor(
    rule: Any, w: Any, g: Any, slots: Any, rows: Any, blocks: Any, factors: Any, tensors: Any
) -> list[Launch]:
    """``optimizer_update`` with ``rows[t]`` as the uniforms of tensor ``t``; a block of the GPU takes one of them.

    Blocks begin at multiples of 128 bits, where tensors do.
    """
    made = _update(rule, w.dtype, wide_arrays(rule, w, g, slots), True)
    state = (factors, tensors) if rule.factors else ()
    return [Launch(made, (blocks.shape[0],), (BLOCK,), (w, g, slots, rows, blocks, *state))]


def optimizer_update_mixed(rule: Any, master: Any, g: Any, slots: Any, w: Any, uniforms: Any) -> list[Launch]:
    """:func:`optimizer_update` of the float32 ``master`` from a gradient of 16 bits; ``w`` = ``master`` rounded.

    ``w`` and ``g`` have one format. All in one pass: 2 bytes of each are moved, 8 of ``master``, 8 of each slot.
    """
    w, half = _half(w)
    return _flat_update(rule, (master, _half(g)[0], slots, w), uniforms, half)
