"""Matrix products on CUDA: ``x W``, ``x^T dz`` and ``dz W^T``, one generator of kernels for all three.

Memory contract: ``out`` (and ``z``, where it is given) is overwritten; arrays are C-contiguous and need no alignment.
A block computes a tile of the result, its threads hold the sums in registers, and the epilogue (bias, ``z``, the
activation) runs on them there: it needs no memory of its own. See gemm_text.py for how a tile is computed.

Sums run over the inner index in ascending order, by one thread. Where a result has few tiles and the inner index is
long, that is cut into parts: partial sums go to scratch, ``parts * rows * columns`` elements, and a second kernel adds
them in ascending order and runs the epilogue. Either way a result repeats bit for bit on GPUs of the same number of
multiprocessors. A plan that ``dlcore tune`` measured takes the place of the one that is chosen here; it may have other
parts, so that last bits may change with it, once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ..device import why_no_gpu
from . import choices
from .gemm_text import Factor, Tile, merge_text, product_text
from .launch import SIMULATED, Launch, ceil_div, element, flat, generated, scratch
from .machine_code import Kernel
from .vector import BYTES, access, aligned, outer_sum

# rows, columns, sums a thread holds of each, slice of the inner index, blocks on a multiprocessor
TILES = {
    np.dtype(np.float32): (
        Tile(128, 128, 8, 8, 8, 2),
        Tile(128, 64, 8, 8, 8, 3),
        Tile(64, 64, 4, 4, 16, 3),
        Tile(32, 32, 4, 4, 16, 8),
    ),
    np.dtype(np.float64): (
        Tile(128, 64, 8, 4, 8, 1),
        Tile(64, 64, 4, 4, 8, 2),
        Tile(32, 32, 4, 4, 8, 6),
    ),
}
BIG = 2**31  # elements of a matrix from which indices in the loops need 64 bits

# --------------------------------------------------------------------------------------- which tile, how many parts

MULTIPROCESSORS = 108  # of the GPU that a plan is made for where there is none
WARPS = 8  # that keep a multiprocessor busy
READ = 4  # multiply-adds in the time of one 128-bit read of shared memory
TRAFFIC = 16  # multiply-adds in the time of one element written to scratch, or read from it
LAUNCH = 2**18  # multiply-adds of a multiprocessor in the time of a launch
MOST_PARTS = 64
FEW = 4  # blocks for each multiprocessor, beyond which parts make no more: that bounds scratch too


class Plan(NamedTuple):
    """How a product is computed: its tile, and in how many parts of ``share`` inner indices each."""

    tile: Tile
    parts: int
    share: int


def multiprocessors() -> int:
    """Those of CuPy's current device, which need not be Numba's; of an A100 where there is none."""
    if SIMULATED or why_no_gpu() is not None:
        return MULTIPROCESSORS
    import cupy

    return int(cupy.cuda.Device().attributes["MultiProcessorCount"])


def blocks(plan: Plan, rows: int, columns: int) -> int:
    """The blocks of all tiles and parts."""
    return ceil_div(rows, plan.tile.rows) * ceil_div(columns, plan.tile.columns) * plan.parts


def work(plan: Plan, rows: int, columns: int) -> int:
    """The multiply-adds of all blocks, those beyond the edges included."""
    tile = plan.tile
    return blocks(plan, rows, columns) * tile.rows * tile.columns * plan.share


def cost(plan: Plan, lanes: int, rows: int, columns: int, count: int) -> float:
    """Multiply-adds that the busiest of ``count`` multiprocessors has time for, meanwhile.

    It computes as many tiles as blocks over multiprocessors, rounded up. A tile costs its multiply-adds, those beyond
    the edges included, and its reads of shared memory; a multiprocessor with less than :data:`WARPS` warps is as slow
    as if it had them. Parts add a launch, and their way through memory. The constants are the orders of magnitude of
    data sheets, not measurements.
    """
    tile = plan.tile
    turns = max(ceil_div(blocks(plan, rows, columns), count), WARPS * 32 / tile.threads)
    reads = (tile.line + tile.across) / lanes / (tile.line * tile.across)
    total = turns * tile.rows * tile.columns * plan.share * (1 + READ * reads)
    if plan.parts > 1:
        total += LAUNCH + TRAFFIC * 2 * plan.parts * rows * columns / count
    return total


@functools.cache
def candidates(dtype: np.dtype, rows: int, columns: int, inner: int, count: int) -> tuple[Plan, ...]:
    """The plans there are, by :func:`cost`; of equals, those of least work in all come first, and of fewer parts."""
    plans = []
    for tile in TILES[dtype]:
        slices = max(1, ceil_div(inner, tile.slice))
        whole = Plan(tile, 1, slices * tile.slice)
        plans.append(whole)
        parts = 2
        while parts <= min(MOST_PARTS, slices // 4) and parts * blocks(whole, rows, columns) <= FEW * count:
            share = ceil_div(slices, parts) * tile.slice
            plans.append(Plan(tile, ceil_div(inner, share), share))
            parts *= 2
    lanes = BYTES // dtype.itemsize
    return tuple(sorted(plans, key=lambda plan: (cost(plan, lanes, rows, columns, count), work(plan, rows, columns))))


def choose(dtype: np.dtype, rows: int, columns: int, inner: int, count: int) -> Plan:
    """The plan of least :func:`cost`."""
    return candidates(dtype, rows, columns, inner, count)[0]


# ------------------------------------------------------------------------------------------------------- kernels


def _kernel(name: str, text: str, dtype: np.dtype, *parts: Any, options: dict[str, Any], **scope: Any) -> Kernel:
    scope |= {"cuda": cuda, "element": element(dtype), "zero": dtype.type(0)}
    for lanes in (1, BYTES // dtype.itemsize):
        _, scope[f"load{lanes}"], scope[f"store{lanes}"] = access(dtype, lanes)
        scope[f"zeros{lanes}"] = (dtype.type(0),) * lanes
    return generated(text, name, scope, dtype, *parts, **options)


@functools.cache
def product(
    dtype: np.dtype,
    a: str,
    b: str,
    tile: Tile,
    wide: tuple[bool, bool, bool],
    index: Any = np.int32,
    value: Any = None,
    has_bias: bool = False,
    save_z: bool = False,
) -> Any:
    """The kernel of ``out = value(a b + bias)`` for factors ``"a"`` or ``"a^T"`` and ``"b"`` or ``"b^T"``.

    ``wide`` says whether ``a``, ``b`` and the results allow 128-bit access, ``index`` what indices in its loops are.
    """
    lanes = BYTES // dtype.itemsize
    factors = (
        Factor("left", "a", tile.rows, tile.line, a == "a", lanes if wide[0] else 1),
        Factor("right", "b", tile.columns, tile.across, b == "b^T", lanes if wide[1] else 1),
    )
    name = f"product_{(a + b).replace('^T', 't')}_{tile.rows}x{tile.columns}{'' if all(wide) else '_scalar'}"
    epilogue = {"has_bias": has_bias, "save_z": save_z, "activated": value is not None}
    alignment = "" if SIMULATED else f", {BYTES}"
    text = product_text(name, factors, tile, lanes, wide[2], alignment, **epilogue)
    # indices of 64 bits take registers that a ceiling for several blocks does not leave
    bounds = (tile.threads, tile.blocks if index is np.int32 else 1)
    outer, sums = outer_sum(dtype, tile.line, tile.across), tile.line * tile.across
    zeros = {f"zeros{sums}": (dtype.type(0),) * sums}
    parts = value, index, tile.line, tile.across
    scope = {"value": value, "index": index, "zero_index": index(0), "outer_sum": outer, **zeros}
    return _kernel(name, text, dtype, *parts, options={"launch_bounds": bounds}, **scope)


@functools.cache
def merge(dtype: np.dtype, wide: bool, value: Any, has_bias: bool, save_z: bool) -> Any:
    """The kernel that adds the parts of a product and runs its epilogue."""
    text = merge_text("product_merge", BYTES // dtype.itemsize if wide else 1, has_bias, save_z, value is not None)
    return _kernel("product_merge", text, dtype, value, options={}, value=value)


def multiply(
    a: Any, b: Any, out: Any, form: str = "ab", value: Any = None, bias: Any = None, z: Any = None, plan: Any = None
) -> list[Launch]:
    """The launches of ``z = a b + bias``, ``out = value(z)``; ``form`` is ``"ab"``, ``"a^Tb"`` or ``"ab^T"``.

    ``bias`` and ``z`` are left out where they are None, and so is ``value``. ``plan`` is chosen unless it is given.
    """
    if not out.size:
        return []
    wanted = choices.product(out.dtype.name, form, a, b, *([out] if z is None else [out, z]))
    wide, rows, columns, inner = wanted[2:]
    left, right = {"ab": ("a", "b"), "a^Tb": ("a^T", "b"), "ab^T": ("a", "b^T")}[form]
    if plan is None:
        known = out.dtype, rows, columns, inner, multiprocessors()
        plan = choices.measured(wanted, lambda: candidates(*known)) or choose(*known)
    # the indices of a thread go on by a slice beyond the last element, and its rows by those of a tile
    reach = max(array.size + (plan.tile.slice + plan.tile.rows) * max(array.shape) for array in (a, b, out))
    index = np.int64 if reach >= BIG else np.int32
    sizes = tuple(map(index, (rows, columns, inner, plan.share)))
    grid = (blocks(plan, rows, columns) // plan.parts, plan.parts)
    y, last = out.reshape(-1), (value, bias is not None, z is not None)
    addends = (y if bias is None else bias, y if z is None else z.reshape(-1))
    factors, block = (a.reshape(-1), b.reshape(-1)), (plan.tile.threads,)
    if plan.parts == 1:
        made = product(out.dtype, left, right, plan.tile, wide, index, *last)
        return [Launch(made, grid, block, (*factors, *addends, y, *sizes))]
    partial = scratch(out, (plan.parts, out.size))
    wide_parts = aligned(out, partial)  # the rows within a part are as long as those of out
    made = product(out.dtype, left, right, plan.tile, (*wide[:2], wide_parts), index)
    parts = partial.reshape(-1)
    wide_merge = wide[2] and wide_parts
    lanes = BYTES // out.dtype.itemsize if wide_merge else 1
    merged = (parts, *addends, y, np.int64(columns), np.int64(plan.parts))
    return [
        Launch(made, grid, block, (*factors, parts, parts, parts, *sizes)),
        Launch(merge(out.dtype, wide_merge, *last), *flat(ceil_div(out.size, lanes)), merged),
    ]
