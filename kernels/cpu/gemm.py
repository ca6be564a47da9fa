"""Matrix products on the CPU, blocked for the caches around the tiles of microkernel.py.

Memory contract: the result is overwritten. Everything here is on addresses and strides in bytes; shapes were checked
when the instruction was made. Sums run over the inner index in ascending order in blocks of ``DEPTH``, whatever the
share of rows or columns a thread has, so that a result repeats bit for bit for every number of threads.
"""

from __future__ import annotations

from ..native import call_pack, call_panel, view, view_bytes
from .microkernel import VECTORS, vector_bytes

_VECTOR = vector_bytes()
_WIDE = VECTORS * _VECTOR  # bytes of a row of a packed panel
DEPTH = 512  # of the inner index: a packed panel of B takes 96 KiB
BLOCK_ROWS = 256  # of A, that pass over a panel of B while it is in the L2 cache
_WORTH_PACKING = 64  # rows; a copy of B costs about as much as four rows of tiles
SCRATCH = DEPTH * _WIDE  # bytes a thread needs: a panel of B


def panel_columns(left, lanes):
    """How many of the ``left`` columns the next panel takes: three vectors, or two where that avoids a thin rest."""
    if left <= 3 * lanes:
        return left
    return 3 * lanes if left > 4 * lanes else 2 * lanes


def slab_rows(n):
    """Rows of a weight gradient of ``n`` columns that are finished, and passed to the optimizer, at once."""
    return 64 if n <= 256 else 32


def column_share(n, size, thread, threads):
    """First and last column of a thread's part: whole vectors."""
    width = _VECTOR // size
    count = (n + width - 1) // width
    return count * thread // threads * width, min(n, count * (thread + 1) // threads * width)


def product(kernels, transpose, scratch, size, left, right, result, shape, bias):
    """``C (m, n) = A B + bias`` of elements of ``size`` bytes, with ``shape = (m, k, n)``.

    ``left`` is the address of ``A``, and how far its rows and its elements along the inner index lie apart; ``right``
    the address of ``B``, how far its rows lie apart, and whether these are the rows of ``B^T``; ``result`` the address
    of ``C`` and how far its rows lie apart. ``bias`` is an address, or 0. ``kernels`` and ``transpose`` are the
    addresses of the panels and of pack_transposed of microkernel.py.
    """
    a, a_row, a_step = left
    b, b_row, transposed = right
    c, c_row = result
    m, k, n = shape
    lanes = _VECTOR // size
    if m == 1 and a_step == size and not transposed:
        row_product(a, b, b_row, c, k, n, bias)
        return
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
                strip_step = b_row
                if transposed:
                    strip_step = _WIDE
                    call_pack(transpose, b + j * b_row + p * size, b_row, scratch, depth, columns)
                    strip = scratch
                elif m >= _WORTH_PACKING:
                    strip_step = vectors * _VECTOR
                    copy_panel(strip, b_row, scratch, strip_step, depth, columns * size)
                    strip = scratch
                kernel = kernels[vectors - 1]
                if tail > 0:
                    kernel = kernels[vectors + 2]
                add = 0
                if bias != 0 and p + depth == k:
                    add = bias + j * size
                target = c + i * c_row + j * size
                call_panel(kernel, source, a_row, a_step, strip, strip_step, target, c_row, rows, depth, p, add, tail)
                j += columns


def row_product(a, b, b_row, c, k, n, bias):
    """The product for one row: a pass over ``B``, which comes from memory as fast as it can, eight rows at a time."""
    out = view(c, n)
    out[:] = 0
    if bias != 0:
        out[:] = view(bias, n)
    x = view(a, k)
    p = 0
    while p + 8 <= k:
        at = b + p * b_row
        b0 = view(at, n)
        b1 = view(at + b_row, n)
        b2 = view(at + 2 * b_row, n)
        b3 = view(at + 3 * b_row, n)
        b4 = view(at + 4 * b_row, n)
        b5 = view(at + 5 * b_row, n)
        b6 = view(at + 6 * b_row, n)
        b7 = view(at + 7 * b_row, n)
        for j in range(out.size):
            low = (x[p] * b0[j] + x[p + 1] * b1[j]) + (x[p + 2] * b2[j] + x[p + 3] * b3[j])
            high = (x[p + 4] * b4[j] + x[p + 5] * b5[j]) + (x[p + 6] * b6[j] + x[p + 7] * b7[j])
            out[j] += low + high
        p += 8
    while p < k:
        row = view(b + p * b_row, n)
        for j in range(out.size):
            out[j] += x[p] * row[j]
        p += 1


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
