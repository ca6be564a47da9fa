"""State of the rows and columns of tensors on CUDA: what factored optimizer rules keep instead of a slot.

Memory contract: ``w`` (where weight decay is part of the gradient) and ``g`` are read once, warps along rows; where the
update is part of that, ``w`` and ``slots`` are read and written once. Of each panel (see program.py) one sum for each
row and each column goes from the first kernel to the second. No atomics: sums are taken in a fixed order, a lane's
along its row and then the lanes', and repeat bit for bit.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from ..program import PANEL_COLUMNS, PANEL_ROWS
from ..step_text import gradient_text, uniform_lines, update_text
from .block import block_sum
from .launch import BLOCK, CUDA, DEPTH, WIDTH, Launch, element, generated, lowered
from .update import SELECT

_SPREAD = 16  # blocks that share the rows and columns of a tensor

_SUMS = """
def {name}(w, g, {slots}factors, u, tensors, panels, sums):
    rows = cuda.shared.array(({PANEL_ROWS}, {WIDTH} + 1), element)  # a lane's share of each row
    columns = cuda.shared.array(({DEPTH}, {WIDTH}), element)  # a warp's share of each column
    if u[4] != zero:
        return
    lane = cuda.threadIdx.x
    warp = cuda.threadIdx.y
    panel = panels[cuda.blockIdx.x]
    tensor = tensors[panel[2]]
    height = panel[1] - panel[0]
    width = panel[4] - panel[3]
    at = panel[5]
    first = tensor[0] + panel[0] * tensor[2] + panel[3]
    along = tensor[3] + 1 + panel[0]
    down = tensor[3] + 1 + tensor[1] + panel[3]
{uniforms}
    for i in range(warp, height, {DEPTH}):
        rows[i, lane] = least
    for j in range(lane, {WIDTH} * ((width + {WIDTH} - 1) // {WIDTH}), {WIDTH}):
        below = least
        if j < width:
            column = factors[down + j]
            for i in range(warp, height, {DEPTH}):
                k = first + i * tensor[2] + j
{load}
                row = factors[along + i]
                a, b = terms({gradient}, row, column{extra})
                rows[i, lane] = merge(rows[i, lane], a{beside_row})
                below = merge(below, b{beside_column})
{update}
        columns[warp, lane] = below
        cuda.syncthreads()
        if warp == 0 and j < width:
            for i in range(1, {DEPTH}):
                below = merge(below, columns[i, lane])
            sums[at + height + j] = below
        cuda.syncthreads()
    for i in range({WIDTH} * warp + lane, height, {WIDTH} * {DEPTH}):
        total = least
        for k in range({WIDTH}):
            total = merge(total, rows[i, k])
        sums[at + i] = total
"""


@CUDA.inline
def _add(a, b):
    return a + b


@CUDA.inline
def _larger(a, b):
    return b if b > a else a


def _scope(dtype: np.dtype, largest: bool) -> dict[str, Any]:
    merge, least = (_larger, -np.inf) if largest else (_add, 0)
    return {"cuda": cuda, "element": element(dtype), "zero": dtype.type(0), "merge": merge, "least": dtype.type(least)}


_kernels: dict[Any, Any] = {}


def _sums(rule: Any, dtype: np.dtype, updating: bool) -> Any:
    key = rule.form, dtype, updating
    if key not in _kernels:
        terms, low = lowered(rule, "terms", dtype)
        count = range(len(low.uniforms))
        rows = uniform_lines(len(count))
        scope, parts, update = _scope(dtype, rule.largest) | {"terms": terms, **SELECT}, [terms], []
        gradient = gradient_text(rule, "y", "x")
        load = ["y = g[k]", *(["x = w[k]"] if updating or not rule.decoupled else [])]
        if updating:
            scope["update"] = lowered(rule, "update", dtype)[0]
            parts.append(scope["update"])
            arrays = ["w", *(f"s{k}" for k in range(len(rule.slots)))]
            rows += ["    mean = factors[tensor[3]]", *(f"    {a} = slots[{k}]" for k, a in enumerate(arrays[1:]))]
            call = update_text(rule, len(count), "x", "y", [f"{a}[k]" for a in arrays[1:]], ["share", "column"])
            update = ["share = row / mean if mean != zero else row"]
            update.append(f"{', '.join(f'{a}[k]' for a in arrays)} = {call}")
        name = "factored_update" if updating else "factor_sums"
        text = _SUMS.format(
            name=name,
            slots="slots, " if updating else "",
            update="\n".join(f"                {line}" for line in update),
            PANEL_ROWS=PANEL_ROWS,
            WIDTH=WIDTH,
            DEPTH=DEPTH,
            load="\n".join(f"                {line}" for line in load),
            gradient=gradient,
            beside_row="" if rule.largest else " - row",
            beside_column="" if rule.largest else " - column",
            uniforms="\n".join(rows),
            extra="".join(f", u{k}" for k in count),
        )
        _kernels[key] = generated(text, name, scope, dtype, str(rule.largest), *parts)
    return _kernels[key]


def factor_sums(
    rule: Any, w: Any, g: Any, factors: Any, uniforms: Any, tensors: Any, panels: Any, sums: Any
) -> list[Launch]:
    """Over each row of a panel, and behind them each column: sums of terms beside factors, or the largest term."""
    made = _sums(rule, np.dtype(w.dtype), False)
    return [Launch(made, (panels.shape[0],), (WIDTH, DEPTH), (w, g, factors, uniforms, tensors, panels, sums))]


def factored_update(
    rule: Any, w: Any, g: Any, slots: Any, factors: Any, uniforms: Any, tensors: Any, panels: Any, sums: Any
) -> list[Launch]:
    """``factor_sums``, and the update of each element with the factors there are."""
    made = _sums(rule, np.dtype(w.dtype), True)
    return [Launch(made, (panels.shape[0],), (WIDTH, DEPTH), (w, g, slots, factors, uniforms, tensors, panels, sums))]


_MERGE = """
def {name}(sums, u, tensors, panels, factors):
    if u[4] != zero:
        return
    tensor = tensors[cuda.blockIdx.x]
    rows = tensor[1]
    columns = tensor[2]
    place = tensor[3] + 1
    across = (columns + {PANEL_COLUMNS} - 1) // {PANEL_COLUMNS}
    down = (rows + {PANEL_ROWS} - 1) // {PANEL_ROWS}
    for i in range(cuda.blockIdx.y * {BLOCK} + cuda.threadIdx.x, rows + columns, {BLOCK} * cuda.gridDim.y):
        total = least
        if i < rows:
            p = tensor[4] + i // {PANEL_ROWS} * across
            for k in range(across):
                total = merge(total, sums[panels[p + k, 5] + i % {PANEL_ROWS}])
            factors[place + i] = {of_row}
        else:
            j = i - rows
            p = tensor[4] + j // {PANEL_COLUMNS}
            for k in range(down):
                panel = panels[p + k * across]
                total = merge(total, sums[panel[5] + panel[1] - panel[0] + j % {PANEL_COLUMNS}])
            factors[place + i] = {of_column}
"""

_WHOLE = """
def {name}(u, tensors, factors):
    shares = cuda.shared.array({BLOCK}, element)
    if u[4] != zero:
        return
    t = cuda.threadIdx.x
    tensor = tensors[cuda.blockIdx.x]
    place = tensor[3]
    total = zero
    for i in range(t, tensor[1], {BLOCK}):
        total += factors[place + 1 + i]
    block_sum(total, shares)
    if t == 0:
        factors[place] = {whole}
"""


@functools.cache
def _update(dtype: np.dtype, largest: bool) -> tuple[Any, Any]:
    form = "_largest" if largest else ""
    merge, whole = f"factor_update{form}", f"factor_mean{form}"
    texts = [
        template.format(
            name=name, BLOCK=BLOCK, PANEL_ROWS=PANEL_ROWS, PANEL_COLUMNS=PANEL_COLUMNS,
            of_row="total" if largest else "factors[place + i] + total / number(columns)",
            of_column="total" if largest else "factors[place + i] + total / number(rows)",
            whole="number(1)" if largest else "shares[0] / number(tensor[1])",
        )
        for name, template in ((merge, _MERGE), (whole, _WHOLE))
    ]  # fmt: skip
    scope = _scope(dtype, largest) | {"number": dtype.type, "block_sum": block_sum}
    return generated(texts[0], merge, dict(scope), dtype), generated(texts[1], whole, dict(scope), dtype)


def factor_update(sums: Any, uniforms: Any, tensors: Any, panels: Any, factors: Any, largest: float) -> list[Launch]:
    """Means over rows and columns, or the largest, from those of panels; in front, what rows are divided by."""
    merge, whole = _update(np.dtype(factors.dtype), largest != 0)
    count = tensors.shape[0]
    return [
        Launch(merge, (count, _SPREAD), (BLOCK,), (sums, uniforms, tensors, panels, factors)),
        Launch(whole, (count,), (BLOCK,), (uniforms, tensors, factors)),
    ]
