"""Matrix products on the CPU, blocked for the caches around the tiles of microkernel.py.

Memory contract: the result is overwritten. Everything here is on addresses and strides in bytes; shapes were checked
when the instruction was made. Sums run over the inner index in ascending order in blocks of ``DEPTH``, whatever the
share of rows or columns a thread has, so that a result repeats bit for bit for every number of threads.
"""

from __future__ import annotations

from ..native import call_pack, call_panel, view, view_bytes, view_words
from .microkernel import VECTORS, masks_loads, vector_bytes

_VECTOR = vector_bytes()
_WIDE = VECTORS * _VECTOR  # bytes of a row of a packed panel
_MASKS_LOADS = masks_loads()
DEPTH = 512  # of the inner index: a packed panel of B takes 96 KiB
BLOCK_ROWS = 256  # of A, that pass over a panel of B while it is in the L2 cache
# Rows from which a copy of B is worth its stores; fewer where B does not stay in the cache, for the tile that copies
# fetches what lies ahead (8 rows of 4096 x 4096: 37 GF in place, 54 packed). Tiles of half the rows read B twice as
# often (float64 on AVX2, 32 rows: 26 GF in place, 35 packed).
_WORTH_PACKING = 64 if _VECTOR == 64 else 32
_WORTH_FETCHING = 4
_FAR = 1 << 21  # bytes of B
KERNELS, ROW_PRODUCT = 2 * VECTORS + 2, 2 * VECTORS + 1
SCRATCH = DEPTH * _WIDE  # bytes a thread needs: a panel of B


def panel_columns(left, lanes):
    """How many of the ``left`` columns the next panel takes: three vectors, or two where that avoids a thin rest."""
    if left <= 3 * lanes:
        return left
    return 3 * lanes if left > 4 * lanes else 2 * lanes


def slab_rows(n):
    """Rows of a weight gradient of ``n`` columns that are finished, and passed to the optimizer, at once."""
    return max(32, min(256, 131072 // n // 8 * 8))


def row_share(k, thread, threads):
    """First and last row of a thread's part of a weight gradient: whole tiles."""
    count = (k + 7) // 8
    return count * thread // threads * 8, min(k, count * (thread + 1) // threads * 8)


def column_share(n, size, thread, threads):
    """First and last column of a thread's part: whole vectors."""
    width = _VECTOR // size
    count = (n + width - 1) // width
    return count * thread // threads * width, min(n, count * (thread + 1) // threads * width)


def product(kernels_, scratch, a, a_row, a_step, b, b_row, transposed, c, c_row, m, k, n, bias, beside):
    """``C (m, n) = A B + bias``.

    Rows of ``A`` lie ``a_row`` apart, its elements along the inner index ``a_step``, rows of ``B`` ``b_row``, rows of
    ``C`` ``c_row``; where ``transposed`` is not 0, the rows of ``B`` are those of ``B^T``. ``bias`` is an address or 0.
    What lies ``beside`` bytes behind ``C``, unless that is 0, is fetched to be written next.
    ``kernels_`` is the address of a vector of addresses: the panels for ``n`` columns, pack_transposed and ROW_PRODUCT
    (see microkernel.py). Kernels reach this function by its address: it is compiled once for all.

    Panels of ``B`` are packed where that pays, by their first tile, and before it where a tile would read beyond the
    last row: tiles load whole vectors unless the CPU masks loads.
    """
    kernels = view_words(kernels_, KERNELS)
    size = view(c, 1).itemsize
    lanes = _VECTOR // size
    packs = m >= _WORTH_PACKING or (m >= _WORTH_FETCHING and k * n * size > _FAR)
    for i in range(0, m, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, m - i)
        for p in range(0, k, DEPTH):
            depth = min(DEPTH, k - p)
            source = a + i * a_row + p * a_step
            j = 0
            while j < n:
                columns = panel_columns(n - j, lanes)
                vectors = (columns + lanes - 1) // lanes
                tail = columns % lanes
                strip = b + p * b_row + j * size
                step = b_row
                packed = 0
                if transposed != 0:
                    step = _WIDE
                    call_pack(kernels[2 * VECTORS], b + j * b_row + p * size, b_row, scratch, depth, columns)
                    strip = scratch
                elif tail == 0 or _MASKS_LOADS:
                    if packs:
                        packed = scratch
                else:
                    step = vectors * _VECTOR
                    copy_panel(strip, b_row, scratch, step, depth, columns * size)
                    strip = scratch
                kernel = kernels[vectors - 1]
                if tail > 0:
                    kernel = kernels[vectors - 1 + VECTORS]
                add = 0
                if bias != 0 and p + depth == k:
                    add = bias + j * size
                to = c + i * c_row + j * size
                call_panel(
                    kernel, source, a_row, a_step, strip, step, packed, to, c_row, rows, depth, p, add, tail, beside
                )
                j += columns


def copy_panel(source, row, target, step, k, width):
    """``k`` runs of ``width`` bytes, ``row`` bytes apart, to runs ``step`` bytes apart."""
    for p in range(k):
        copy_bytes(source + p * row, target + p * step, width)


def copy_bytes(source, target, width):
    """``width`` bytes that do not overlap."""
    line = view_bytes(source, width)
    copy = view_bytes(target, width)
    for i in range(line.size):
        copy[i] = line[i]
