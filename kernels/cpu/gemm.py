"""Matrix products on the CPU, blocked for the caches around the tiles of microkernel.py.

Memory contract: the result is overwritten. Everything here is on addresses and strides in bytes; shapes were checked
when the instruction was made. Sums run over the inner index in ascending order in blocks of ``DEPTH``, whatever the
share of rows or columns a thread has, so that a result repeats bit for bit for every number of threads.
"""

from __future__ import annotations

from ..native import call_pack, call_panel, view_bytes
from .microkernel import VECTORS, copy_line, masks_loads, vector_bytes

_VECTOR = vector_bytes()
_MASKS_LOADS = masks_loads()
DEPTH = 256  # of the inner index: a packed panel of B takes 48 KiB, a block of A 256 KiB
_ROWS = 256  # of A that pass over a panel of B while it is in the L2 cache
# Rows. A copy of B costs about as much as four rows of tiles; tiles of half the rows read B twice as often (float64 on
# AVX2, 32 rows: 26 GF in place, 35 packed).
_WORTH_PACKING = 64 if _VECTOR == 64 else 32


def panel_columns(left, lanes):
    """How many of the ``left`` columns the next panel takes: three vectors, or two where that avoids a thin rest."""
    if left <= 3 * lanes:
        return left
    return 3 * lanes if left > 4 * lanes else 2 * lanes


SCRATCH = DEPTH * VECTORS * _VECTOR  # bytes a thread needs for a packed panel


def block_rows(n):
    """Rows of ``n`` columns that an activation passes over while they are in the L2 cache."""
    return max(32, min(_ROWS, 65536 // n // 8 * 8))


def slab_rows(n):
    """Rows of a weight gradient of ``n`` columns that are finished, and passed to the optimizer, at once."""
    return 64 if n <= 256 else 32


def column_share(n, size, thread, threads):
    """First and last column of a thread's part: whole panels of three vectors."""
    width = 3 * _VECTOR // size
    count = (n + width - 1) // width
    return count * thread // threads * width, min(n, count * (thread + 1) // threads * width)


def product(kernels, pack, scratch, size, a, a_row, a_step, b, b_row, c, c_row, m, k, n, bias):
    """``C (m, n) = A B + bias``; rows of ``A`` and of ``C`` lie ``a_row`` and ``c_row`` bytes apart.

    ``B (k, n)`` has its rows ``b_row`` apart; where ``pack`` is not 0 it is ``B^T`` that has, and panels of it are
    transposed on the way into ``scratch``. ``bias`` is an address, or 0.

    Otherwise panels of ``B`` are packed where that pays, and where a tile would read beyond its last row: tiles load
    whole vectors unless the CPU masks loads.
    """
    lanes = _VECTOR // size
    for i in range(0, m, _ROWS):
        rows = min(_ROWS, m - i)
        for p in range(0, k, DEPTH):
            depth = min(DEPTH, k - p)
            j = 0
            while j < n:
                columns = panel_columns(n - j, lanes)
                vectors = (columns + lanes - 1) // lanes
                tail = columns % lanes
                source = b + p * b_row + j * size
                step = b_row
                if pack != 0:
                    step = 3 * _VECTOR
                    call_pack(pack, b + j * b_row + p * size, b_row, scratch, depth, columns)
                    source = scratch
                elif m >= _WORTH_PACKING or (tail > 0 and not _MASKS_LOADS):
                    step = vectors * _VECTOR
                    copy_panel(source, b_row, scratch, step, depth, columns * size)
                    source = scratch
                kernel = kernels[vectors - 1]
                if tail > 0:
                    kernel = kernels[vectors + 2]
                add = 0
                if bias != 0 and p + depth == k:
                    add = bias + j * size
                first = a + i * a_row + p * a_step
                result = c + i * c_row + j * size
                call_panel(kernel, first, a_row, a_step, source, step, result, c_row, rows, depth, p, add, tail)
                j += columns


def copy_panel(source, row, target, step, k, width):
    """``k`` runs of ``width`` bytes, ``row`` bytes apart, to runs ``step`` bytes apart."""
    if width == VECTORS * _VECTOR:
        for p in range(k):
            copy_line(source + p * row, target + p * step)
    else:
        for p in range(k):
            copy_bytes(source + p * row, target + p * step, width)


def copy_bytes(source, target, width):
    """``width`` bytes that do not overlap."""
    line = view_bytes(source, width)
    copy = view_bytes(target, width)
    for i in range(line.size):
        copy[i] = line[i]
