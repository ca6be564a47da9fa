"""Memory for large results, used again.

The C library returns large blocks to the system when they are freed, and the system clears every page that it hands
out. For a result of 16 MiB that is 2 ms and more in each call, several times what a kernel needs to fill it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

import numpy as np

from ..program import ALIGNMENT

# Bytes below which the C library does as well. Blocks of 1 MiB, too, it may give back with every call, by what else
# was allocated before: batch norm of 256 x 1024, forward and backward, took 0.15 ms in most processes and 1.1 in some.
SMALL = 1 << 18
KEPT, MOST = 1 << 28, 32  # bytes of free blocks, and their number; the oldest beyond are given back
_PAGE = 1 << 12
_FEW = SMALL // 16  # elements that are small in any dtype

_Memory = tuple[int, int, np.ndarray]  # bytes from an address on, which is a multiple of ALIGNMENT
_free: deque[_Memory] = deque()
# Only ever tried: a block may come back in the middle of anything, where a garbage collection sets in.
_lock = threading.Lock()


class _Block:
    """What an array lies on; its memory is free again when the last array on it is gone."""

    __slots__ = ("__array_interface__", "memory")

    def __init__(self, memory: _Memory, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.memory = memory
        self.__array_interface__ = {"data": (memory[1], False), "shape": shape, "typestr": dtype.str, "version": 3}

    def __del__(self) -> None:
        if _lock is not None and _lock.acquire(blocking=False):  # None: the interpreter is shutting down
            try:
                _free.append(self.memory)
                kept = sum(block[0] for block in _free)
                while kept > KEPT or len(_free) > MOST:
                    kept -= _free.popleft()[0]
            finally:
                _lock.release()


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of any content, as ``np.empty`` gives; a large one begins at a cache line, in memory used before."""
    elements = math.prod(shape)
    if elements < _FEW:  # without a look at the dtype: for small arrays, this is called as often as anything
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    nbytes = elements * dtype.itemsize
    if nbytes < SMALL:
        return np.empty(shape, dtype)
    return np.asarray(_Block(_take(-(-nbytes // _PAGE) * _PAGE), shape, dtype))


def allocator(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """What :func:`empty` comes to for arrays of this shape and dtype."""
    return np.empty if math.prod(shape) * dtype.itemsize < SMALL else empty


def _take(size: int) -> _Memory:
    if _lock.acquire(blocking=False):
        try:
            for k, block in enumerate(_free):
                if block[0] == size:
                    del _free[k]
                    return block
        finally:
            _lock.release()
    memory = np.empty(size + ALIGNMENT, np.uint8)
    address = memory.ctypes.data
    return size, address + -address % ALIGNMENT, memory
