"""Memory for large results, used again.

The C library returns large blocks to the system when they are freed, and the system clears every page that it hands
out. For a result of 16 MiB that is 2 ms and more in each call, several times what a kernel needs to fill it.

A block is kept with an array on it that nobody else gets to see; results are views of that. It may be used again when
the references to its memory are our own alone. (Telling by ``__del__`` of something below the array takes twice the
Python: 2.8 us for 1.4, 4.8 for 2.5 where data has driven it out of the cache.) Of several such blocks the one that was
given out last is taken: what was written last is the likeliest to be in the cache.

Blocks begin at a page. Large arrays of NumPy begin 16 bytes behind one: where results begin 64 bytes behind one, every
load of an input is taken for one of what was just stored (see PAGE), which cost batch norm of 256 x 1024 8%.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np

from ..program import PAGE

# Bytes below which the C library does as well. Blocks of 1 MiB, too, it may give back with every call, by what else
# was allocated before: batch norm of 256 x 1024, forward and backward, took 0.15 ms in most processes and 1.1 in some.
SMALL = 1 << 18
KEPT, MOST = 1 << 28, 32  # bytes of blocks, and their number; those given out longest ago are forgotten beyond
_FEW = SMALL // 16  # elements that are small in any dtype


class _Block:
    """Memory of ``size`` bytes from ``offset`` on, and an array on it of the kind that was wanted last."""

    __slots__ = ("array", "memory", "offset", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.empty(size + PAGE, np.uint8)
        self.offset = -self.memory.ctypes.data % PAGE
        self.array = np.ndarray(size, np.uint8, self.memory, self.offset)

    def view(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array there."""
        if self.array.shape != shape or self.array.dtype != dtype:
            self.array = np.ndarray(shape, dtype, self.memory, self.offset)
        return self.array.view()


def _references(block: _Block) -> int:
    """To the memory: every array on it, and every view of one, has one."""
    return sys.getrefcount(block.memory)


_OURS = _references(_Block(1))
# Where threads run without a lock of the interpreter, the number says nothing.
_COUNTS = getattr(sys, "_is_gil_enabled", lambda: True)()
_blocks: list[_Block] = []  # those given out last at the end
# Only ever tried: a garbage collection may set in, and call anything, in the middle of anything.
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of any content, as ``np.empty`` gives; a large one begins at a page, in memory used before."""
    elements = math.prod(shape)
    if elements < _FEW:  # without a look at the dtype: for small arrays, this is called as often as anything
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    nbytes = elements * dtype.itemsize
    if nbytes < SMALL:
        return np.empty(shape, dtype)
    size = -(-nbytes // PAGE) * PAGE
    if not _COUNTS or size > KEPT or not _lock.acquire(blocking=False):
        return _Block(size).view(shape, dtype)
    try:
        return _free_block(size).view(shape, dtype)
    finally:
        _lock.release()


def zeros_beside(array: np.ndarray) -> np.ndarray:
    """Zeros like ``array``, C-contiguous, that begin at the same place in a page.

    Of two arrays that are read and written together no load is then taken for one of what was just stored (see PAGE).
    """
    if array.nbytes < PAGE:  # the loads that come too early are few, and a page would be much
        return np.zeros(array.shape, array.dtype)
    memory = np.zeros(array.nbytes + PAGE, np.uint8)
    offset = (array.ctypes.data - memory.ctypes.data) % PAGE
    return np.ndarray(array.shape, array.dtype, memory, offset)


def allocator(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """What :func:`empty` comes to for arrays of this shape and dtype."""
    return np.empty if math.prod(shape) * dtype.itemsize < SMALL else empty


def _free_block(size: int) -> _Block:
    """A block that nobody sees, a new one if there is none."""
    for k in range(len(_blocks) - 1, -1, -1):
        block = _blocks[k]
        if block.size == size and _references(block) == _OURS:
            del _blocks[k]
            break
    else:
        while _blocks and (len(_blocks) >= MOST or size + sum(block.size for block in _blocks) > KEPT):
            del _blocks[0]
        block = _Block(size)
    _blocks.append(block)
    return block
