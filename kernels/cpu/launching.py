"""One native call that runs a prepared job on the arrays it is given."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from .. import compile as compiler
from ..native import call_entry, view_words
from .machine import cycle_counter
from .threads import ask_later, at_once, is_well, start

# Words of a block, which tells a launcher all but the arrays. (Behind a job that has emptied the caches, every number
# of Python is an object more to be fetched.) The control block of the pool; how many threads the job is worth; entry,
# job and threads, for start(); room for the addresses of the arrays; the address of places, and their number: each is
# the address of a word, and the number of the array whose address it takes; the address of sizes: all axes of all
# arrays, then two ends for each array with a range.
BLOCK = 9
CONTROL, WORTH, ENTRY, JOB, THREADS, ADDRESSES, PLACES, COUNT, SIZES = range(BLOCK)

# What a launcher says: the arrays do not fit; done; ask the pool first; done, and the pool has something to tell.
MISFIT, DONE, ASK, HEAR = range(4)

_TEXT = """
def launch(block_, asked, {names}):
    block = words(block_, BLOCK)
{question}
    sizes = words(block[SIZES], {sizes})
    if {misfit}:
        return MISFIT
{ranges}
    addresses = words(block[ADDRESSES], {arrays})
{stores}
    count = block[COUNT]
    places = words(block[PLACES], 2 * count)
    for p in range(count):
        words(places[2 * p], 1)[0] = addresses[places[2 * p + 1]]
{run}
    return DONE
"""

_QUESTION = """
    control, threads = block[CONTROL], block[THREADS]
    if asked == 0 and not at_once(control, block[WORTH], threads):
        return ASK
"""
_RUN = """
    began = cycle_counter()
    start(control, block[ENTRY], block[JOB], threads)
    if asked == 0:
        return DONE if is_well(control) else HEAR
    if threads > 1:
        ask_later(control, began)
"""
_RUN_ALONE = "    call_entry(block[ENTRY], block[JOB], 0)"  # the rest takes a tenth of a second to compile

_RANGE = """
    low, high = sizes[{place}], sizes[{place} + 1]
    wrong = 0
    for value in {name}.flat:
        if not (value >= low and value <= high):
            wrong += 1
    if wrong != 0:
        return MISFIT
"""
_NUMBERS = {name: value for name, value in globals().items() if name.isupper() and isinstance(value, int)}


@functools.cache
def launcher(kinds: tuple[tuple[np.dtype, int, bool, bool], ...], pooled: bool) -> Any:
    """A native function that writes the addresses of arrays where a table wants them, and runs the job.

    ``launch(block, asked, *arrays)``, with the address of a block. A kind says an array's dtype, number of axes,
    whether it is written, and whether its elements must lie in a range. It does nothing and says MISFIT if the arrays
    do not have the sizes, or an element does not lie between the two ends of its array (NaN does not). For another
    dtype or number of axes, strides, or a read-only array that is to be written, there is a TypeError. Python alone
    would need a microsecond for each array.

    Where jobs are ``pooled``, who is inside ``with pool(...)`` has ``asked``. Another must hold the lock of the pool;
    if it cannot begin at once, nothing is done and it says ASK. Otherwise jobs run on the calling thread.
    """
    names = [f"a{k}" for k in range(len(kinds))]
    stores = "\n".join(f"    addresses[{k}] = {name}.ctypes.data" for k, name in enumerate(names))
    extents = [f"{names[k]}.shape[{axis}]" for k, (_, axes, *_) in enumerate(kinds) for axis in range(axes)]
    misfit = " or ".join(f"{extent} != sizes[{k}]" for k, extent in enumerate(extents))
    bounded = [names[k] for k, (*_, ranged) in enumerate(kinds) if ranged]
    ranges = "".join(_RANGE.format(name=name, place=len(extents) + 2 * k) for k, name in enumerate(bounded))
    text = _TEXT.format(
        names=", ".join(names),
        arrays=len(names),
        stores=stores,
        sizes=len(extents) + 2 * len(bounded),
        misfit=misfit or "False",
        ranges=ranges,
        question=_QUESTION if pooled else "",
        run=_RUN if pooled else _RUN_ALONE,
    )
    arrays = [types.Array(numba.from_dtype(kind), axes, "C", readonly=not written) for kind, axes, written, _ in kinds]
    scope = {"words": view_words, "call_entry": call_entry, "cycle_counter": cycle_counter, **_NUMBERS}
    if pooled:
        scope |= {body.__name__: compiler.CPU.inline(body) for body in (start, at_once, ask_later, is_well)}
    function = compiler.make(text, "launch", scope, str(kinds))
    return compiler.native(function, types.int64(types.int64, types.int64, *arrays))
