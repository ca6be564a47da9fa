"""Dense layers on the CPU: ``y = g(x W + b)`` and its three gradients.

Memory contract: outputs are overwritten; ``z`` is written only where it is given, which is when the derivative of
the activation reads it. ``rule`` is the address of a strip of the activation (see compile.py), 0 for the identity;
``gemm`` is the address of the matrix product of gemm.py, ``kernels`` of the addresses of what it calls.
"""

from __future__ import annotations

from ..native import call_product, call_row, call_slope, call_update, call_value, view_words
from .gemm import BLOCK_ROWS, KERNELS, ROW_PRODUCT, column_share, copy_bytes, row_share, slab_rows


def dense_forward(rule, gemm, kernels, scratch, rows, x, w, b, z, y):
    """``z = x W + b``, ``y = g(z)``; the activation runs on a block of rows while it is in the cache."""
    _forward(rule, gemm, kernels, scratch, rows, x, w, b, z, y, 0, y.shape[1])


def dense_forward_columns(rule, gemm, kernels, scratch, rows, thread, threads, x, w, b, z, y):
    """The same, for the thread's part of the columns."""
    first, last = column_share(y.shape[1], y.itemsize, thread, threads)
    if last > first:
        _forward(rule, gemm, kernels, scratch, rows, x, w, b, z, y, first, last)


def _forward(rule, gemm, kernels, scratch, mini_batch, x, w, b, z, y, first, last):
    m, k = x.shape
    n = y.shape[1]
    size = y.itemsize
    bias = 0
    if b.size > 0:
        bias = b.ctypes.data + first * size
    pre = y.ctypes.data
    if z.size > 0:
        pre = z.ctypes.data
    out = y.ctypes.data
    count = last - first
    weights = w.ctypes.data + first * size
    for i in range(0, m, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, m - i)
        at = (i * n + first) * size
        source = x.ctypes.data + i * k * size
        result = pre + at
        if mini_batch == 1:  # not where a thread's share or the last block has one row: that must not change its bits
            one_row = view_words(kernels, KERNELS)[ROW_PRODUCT]
            call_row(one_row, source, weights, n * size, result, k, count, bias)
        else:
            call_product(
                gemm,
                kernels,
                scratch,
                source,
                k * size,
                size,
                weights,
                n * size,
                0,
                result,
                n * size,
                rows,
                k,
                count,
                bias,
                0,
            )
        if rule == 0:
            copy_rows(pre + at, out + at, rows, count * size, n * size)
        elif count == n:
            call_value(rule, pre + at, out + at, rows * n)
        else:
            for r in range(rows):
                call_value(rule, pre + at + r * n * size, out + at + r * n * size, count)


def copy_rows(source, target, rows, width, stride):
    """``rows`` runs of ``width`` bytes, ``stride`` apart on both sides; nothing where they are the same memory."""
    if source != target:
        for r in range(rows):
            copy_bytes(source + r * stride, target + r * stride, width)


def dense_backward_z(rule, dy, z, y, dz, sums):
    """``dz = dy * g'(z, y)`` and, where they are wanted, the ``sums`` of the columns of ``dz``."""
    before = y.ctypes.data
    if z.size > 0:
        before = z.ctypes.data
    if rule == 0:
        copy_rows(dy.ctypes.data, dz.ctypes.data, 1, dz.size * dz.itemsize, 0)
    else:
        call_slope(rule, dy.ctypes.data, before, y.ctypes.data, dz.ctypes.data, dz.size)
    if sums.size > 0:
        sums[:] = 0
        for i in range(dz.shape[0]):
            row = dz[i]
            for j in range(row.size):
                sums[j] += row[j]


def sum_chunks(sums, total):
    """``total`` = the sum of the rows of ``sums``, in order."""
    total[:] = 0
    for c in range(sums.shape[0]):
        row = sums[c]
        for j in range(row.size):
            total[j] += row[j]


def sum_chunks_update(rule, sums, g, w, slots, uniforms, offset):
    """The same into the gradient ``g``, and the optimizer on its parameter; its state begins at ``offset``."""
    sum_chunks(sums, g)
    stride = slots.shape[1] * g.itemsize
    state = slots.ctypes.data + int(offset) * g.itemsize
    call_update(rule, w.ctypes.data, g.ctypes.data, state, stride, uniforms.ctypes.data, g.size)


def dense_backward_w(gemm, kernels, scratch, thread, threads, x, dz, dw):
    """``dW = x^T dz``, for the thread's part of the rows of ``dW``."""
    k, n = dw.shape
    slab = slab_rows(n)
    first, last = row_share(k, thread, threads)
    for row in range(first, last, slab):
        _gradient(gemm, kernels, scratch, x, dz, dw, row, min(slab, last - row), 0)


def dense_update(rule, gemm, kernels, scratch, thread, threads, x, dz, dw, w, slots, uniforms, offset):
    """The same, and the optimizer on each slab of ``dW`` while it is in the cache.

    Other threads have read the weights: to write a line takes as long as to fetch it from where they run. Tiles ask
    for these lines beside those of ``dW``.
    """
    k, n = dw.shape
    size = dw.itemsize
    slab = slab_rows(n)
    first, last = row_share(k, thread, threads)
    stride = slots.shape[1] * size
    state = slots.ctypes.data + int(offset) * size
    beside = w.ctypes.data - dw.ctypes.data if threads > 1 else 0
    for row in range(first, last, slab):
        rows = min(slab, last - row)
        _gradient(gemm, kernels, scratch, x, dz, dw, row, rows, beside)
        at = row * n * size
        call_update(rule, w.ctypes.data + at, dw.ctypes.data + at, state + at, stride, uniforms.ctypes.data, rows * n)


def _gradient(gemm, kernels, scratch, x, dz, dw, first, rows, beside):
    m, k = x.shape
    n = dz.shape[1]
    size = dz.itemsize
    source = x.ctypes.data + first * size
    result = dw.ctypes.data + first * n * size
    right = dz.ctypes.data
    step = n * size
    call_product(gemm, kernels, scratch, source, size, k * size, right, step, 0, result, step, rows, m, n, 0, beside)


def dense_backward_x(gemm, kernels, scratch, dz, w, dx):
    """``dx = dz W^T``."""
    _backward_x(gemm, kernels, scratch, dz, w, dx, 0, dx.shape[1])


def dense_backward_x_columns(gemm, kernels, scratch, thread, threads, dz, w, dx):
    """The same, for the thread's part of the columns."""
    first, last = column_share(dx.shape[1], dx.itemsize, thread, threads)
    if last > first:
        _backward_x(gemm, kernels, scratch, dz, w, dx, first, last)


def _backward_x(gemm, kernels, scratch, dz, w, dx, first, last):
    m, n = dz.shape
    k = dx.shape[1]
    size = dz.itemsize
    weights = w.ctypes.data + first * n * size
    result = dx.ctypes.data + first * size
    count = last - first
    left = dz.ctypes.data
    step = n * size
    call_product(gemm, kernels, scratch, left, step, size, weights, step, 1, result, k * size, m, n, count, 0, 0)


def activation_forward(rule, z, y):
    """``y = g(z)``."""
    if rule == 0:
        copy_rows(z.ctypes.data, y.ctypes.data, 1, z.size * z.itemsize, 0)
    else:
        call_value(rule, z.ctypes.data, y.ctypes.data, z.size)


def activation_backward(rule, dy, z, y, dz):
    """``dz = dy * g'(z, y)``."""
    if rule == 0:
        copy_rows(dy.ctypes.data, dz.ctypes.data, 1, dz.size * dz.itemsize, 0)
    else:
        call_slope(rule, dy.ctypes.data, z.ctypes.data, y.ctypes.data, dz.ctypes.data, dz.size)
