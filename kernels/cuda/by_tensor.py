"""Optimizer steps on CUDA that need sums over each tensor: clipping by its norm, and layer-wise rules.

Memory contract: as in update.py; sums read what they need once more, at 128 bits where an array allows that, with the
same bits either way. ``blocks`` cuts the tensors into ranges ``(first, last, tensor)`` (see program.py): a block of the
GPU adds one of them in a tree, and another adds those of a tensor. No atomics: a result repeats bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from ..step_text import gradient_text, uniform_lines
from .block import block_sum
from .columns import load
from .launch import BLOCK, CUDA, Launch, element, generated, lowered, scratch
from .update import SELECT, TENSOR, factor_text, indented, wide_arrays
from .vector import access, aligned

_SUMS = """
def {name}({arrays}, {given}blocks, partial):
{shared}
    t = cuda.threadIdx.x
    b = cuda.blockIdx.x
    low = blocks[b, 0]
    high = blocks[b, 1]
    {totals} = zero
{rows}
    whole = high - (high - low) % {lanes}
    for i in range(low + {lanes} * t, whole, {lanes} * {BLOCK}):
{loads}
{factors}
{add}
    i = whole + t
    if i < high:
{last}
{factors_last}
{add_last}
{tree}
    if t == 0:
{store}
"""


def _scope(dtype: np.dtype) -> dict[str, Any]:
    return {"cuda": cuda, "block_sum": block_sum, "element": element(dtype), "zero": dtype.type(0)}


def _sums_text(
    name: str,
    arrays: Sequence[str],
    given: str,
    rows: Sequence[str],
    sums: int,
    wide: Sequence[bool],
    lanes: int,
    call: str,
    factored: bool = False,
) -> str:
    """``call`` gives the summands of one element, with ``{k}`` for its number behind the name of each array."""
    each = range(sums)
    inputs = [a for a in arrays if a != "s"] + [f"s{k}" for k in range(len(rows)) if f"    s{k} = s[{k}]" in rows]

    def added(k: int) -> list[str]:
        results = "".join(f"q{j}, " for j in each) if sums > 1 else "q0"
        return [f"        {results} = {call.format(k=k)}", *(f"        total{j} += q{j}" for j in each)]

    return _SUMS.format(
        name=name, arrays=", ".join(arrays), given=given, BLOCK=BLOCK, lanes=lanes,
        shared="\n".join(f"    sums{k} = cuda.shared.array({BLOCK}, element)" for k in each),
        totals=" = ".join(f"total{k}" for k in each),
        rows="\n".join(rows),
        loads=indented(load(f"{a}_", a, "i", lanes, flag) for a, flag in zip(inputs, wide, strict=True)),
        factors=factor_text(lanes) if factored else "",
        factors_last=factor_text(1) if factored else "",
        add="\n".join(line for k in range(lanes) for line in added(k)),
        last="\n".join(f"        {a}_0 = {a}[i]" for a in inputs),
        add_last="\n".join(added(0)),
        tree="\n".join(f"    block_sum(total{k}, sums{k})" for k in each),
        store="\n".join(f"        partial[b, {k}] = sums{k}[0]" for k in each),
    )  # fmt: skip


_ROWS = """
def {name}(partial, {hyper}uniforms, blocks, rows):
{shared}
    t = cuda.threadIdx.x
    tensor = cuda.blockIdx.x
{gather}
    for k in range(t, uniforms.size, {BLOCK}):
        rows[tensor, k] = uniforms[k]
{store}
"""

_GATHER = """\
    {totals} = zero
    for b in range(t, blocks.shape[0], {BLOCK}):
        if blocks[b, 2] == tensor:
{add}
{tree}"""

_SCALED = """\
    if t == 0:  # which wrote the scale itself
        limit = hyper[hyper.size - 1]
        norm = sqrt(sums0[0]) * abs(uniforms[0])
        if limit > 0.0 and not norm <= limit:  # a norm that is not a number must not pass unseen
            rows[tensor, 0] = uniforms[0] * number(limit / norm)"""


@functools.cache
def _rows(dtype: Any, sums: int, clip: bool) -> Any:
    each = range(sums)
    name = "norms_of_tensors" if clip else "sums_of_tensors"
    gather = _GATHER.format(
        BLOCK=BLOCK,
        totals=" = ".join(f"total{k}" for k in each),
        add="\n".join(f"            total{k} += partial[b, {k}]" for k in each),
        tree="\n".join(f"    block_sum(total{k}, sums{k})" for k in each),
    )
    text = _ROWS.format(
        name=name, hyper="hyper, " if clip else "", BLOCK=BLOCK,
        shared="\n".join(f"    sums{k} = cuda.shared.array({BLOCK}, element)" for k in each),
        gather=gather if sums else "",
        store=_SCALED if clip else "\n".join(f"    rows[tensor, uniforms.size + {k}] = sums{k}[0]" for k in each),
    )  # fmt: skip
    dtype = np.dtype(dtype)
    scope = _scope(dtype) | {"number": dtype.type, "sqrt": CUDA.math("sqrt", dtype)}
    return generated(text, name, scope, dtype)


@functools.cache
def _squares(dtype: Any, wide: bool) -> Any:
    lanes, load_wide, _ = access(dtype)
    name = "block_squares" if wide else "block_squares_scalar"
    text = _sums_text(name, ["g"], "", [], 1, [wide], lanes, "g_{k} * g_{k}")
    dtype = np.dtype(dtype)
    return generated(text, name, _scope(dtype) | {"load": load_wide}, dtype)


def clip_by_norm(g: Any, hyper: Any, uniforms: Any, blocks: Any, rows: Any) -> list[Launch]:
    """``rows[t]`` = uniforms, the scale of the gradient times ``c / max(c, ||scale g_t||)``, ``c = hyper[-1] > 0``."""
    partial = scratch(g, (blocks.shape[0], 1))
    return [
        Launch(_squares(g.dtype, aligned(g)), (blocks.shape[0],), (BLOCK,), (g, blocks, partial)),
        Launch(_rows(g.dtype, 1, True), (rows.shape[0],), (BLOCK,), (partial, hyper, uniforms, blocks, rows)),
    ]


_summands: dict[Any, Any] = {}


def _block_sums(rule: Any, dtype: Any, wide: tuple[bool, ...]) -> Any:
    key = rule.form, dtype, wide
    if key not in _summands:
        function, low = lowered(rule, "summands", dtype)
        lanes, load_wide, _ = access(dtype)
        slots = [f"s{k}" for k in range(len(rule.own_slots))]
        rows = [f"    {slot} = s[{k}]" for k, slot in enumerate(slots)]
        rows += uniform_lines(len(low.uniforms))
        rows += [TENSOR] if rule.factors else []
        extra = [f"{slot}_{{k}}" for slot in (*slots, *(f"f{k}" for k in range(len(rule.factors))))]
        extra += [f"u{k}" for k in range(len(low.uniforms))]
        call = f"summands({', '.join(['w_{k} * keep', gradient_text(rule, 'g_{k}', 'w_{k}'), *extra])})"
        name = "block_sums" if any(wide) else "block_sums_scalar"
        arrays = ["w", "g", "s"]
        given = "u, factors, tensors, " if rule.factors else "u, "
        text = _sums_text(name, arrays, given, rows, len(rule.sums), wide, lanes, call, bool(rule.factors))
        dtype = np.dtype(dtype)
        scope = _scope(dtype) | {"load": load_wide, "summands": function}
        _summands[key] = generated(text, name, scope | SELECT, dtype, function)
    return _summands[key]


def tensor_sums(
    rule: Any, w: Any, g: Any, slots: Any, uniforms: Any, blocks: Any, factors: Any, tensors: Any, rows: Any
) -> list[Launch]:
    """``rows[t]`` = uniforms, and behind them the sums over tensor ``t`` of the rule's summands."""
    partial = scratch(w, (blocks.shape[0], len(rule.sums)))
    add = Launch(_rows(w.dtype, len(rule.sums), False), (rows.shape[0],), (BLOCK,), (partial, uniforms, blocks, rows))
    if not rule.sums:
        return [add]
    sums = _block_sums(rule, w.dtype, wide_arrays(rule, w, g, slots)[: 2 + len(rule.own_slots)])
    state = (factors, tensors) if rule.factors else ()
    return [Launch(sums, (blocks.shape[0],), (BLOCK,), (w, g, slots, uniforms, *state, blocks, partial)), add]
