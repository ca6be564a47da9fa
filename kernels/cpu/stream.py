"""Stores past the cache and loads ahead of it, for arrays so large that nobody finds them there again.

An ordinary store first reads the line it writes to, and drives out another: of the 16 MiB that a pass over a batch
reads, the next pass then finds nothing. A *streaming* store does neither. Where the result would have stayed in the
cache, it costs time instead: measured on 32 MiB of shared cache, 10 to 25% at 8 MiB a result, a gain of 20 to 40%
from 16 MiB on.

Of one array that is read from one end to the other, the CPU has too few lines under way: four arrays at once come a
quarter faster (Zen 4). Asking for each line some KiB before it is read makes up for it, 15 to 24% of batch norm of
8192 x 512, if not too many are asked for in one go. What is in a cache anyway takes a tenth longer.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..native import intrinsic, prefetch
from .microkernel import Emitter

LARGE = 12 << 20  # bytes of an array, of all threads
AHEAD = 4  # rows from that which is worked at to that which is fetched
_LINE = 64  # bytes of a line of the cache


def fetch(array, row, rows, left, right):
    """Fetch columns ``left`` to ``right`` of ``rows`` rows from ``row`` on into the second cache, if there are."""
    size = array.itemsize
    step = array.shape[1] * size
    for i in range(row, row + rows):
        start = array.ctypes.data + i * step
        for line in range(start + left * size, start + right * size, _LINE):
            prefetch(line)


def stream(line, target):
    """``target[:] = line`` past the cache; :func:`streamed` must come before another thread reads it."""
    head = min((-target.ctypes.data % _LINE) // target.itemsize, target.size)
    lines = (target.size - head) * target.itemsize // _LINE
    tail = head + lines * (_LINE // target.itemsize)
    for j in range(head):
        target[j] = line[j]
    _stream_lines(line.ctypes.data + head * line.itemsize, target.ctypes.data + head * line.itemsize, lines)
    for j in range(tail, target.size):
        target[j] = line[j]


@intrinsic
def _stream_lines(typing_context, source, target, count):
    """Copy ``count`` whole lines."""

    def codegen(context, builder, signature, arguments):
        e = Emitter(builder, np.dtype(np.float32), _LINE // 4)
        source, target, count = arguments
        place = cgutils.alloca_once_value(builder, e.constant(0))
        no_reuse = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])

        def copy():
            offset = builder.load(place)
            value = e.load(builder.add(source, offset))
            store = builder.store(value, e.at(builder.add(target, offset)), align=_LINE)
            store.set_metadata("nontemporal", no_reuse)
            builder.store(builder.add(offset, e.constant(_LINE)), place)

        e.loop(count, copy)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def streamed(typing_context):
    """Wait until what was streamed can be seen: x86 orders such stores with no others."""

    def codegen(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
