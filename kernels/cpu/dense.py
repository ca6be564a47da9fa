"""Dense layers on the CPU: ``y = g(x W + b)`` and its three gradients.

Memory contract: outputs are overwritten; ``z`` is written only where it is given, which is when the derivative of
the activation reads it. ``rule`` is the address of a strip of the activation (see compile.py), 0 for the identity;
``kernels`` holds the addresses of the panels that the columns of the result need, ``transpose`` that of the routine
that packs a transposed matrix.
"""

from __future__ import annotations

from ..native import call_slope, call_update, call_value
from .gemm import BLOCK_ROWS, column_share, copy_bytes, product, slab_rows


def dense_forward(rule, kernels, transpose, scratch, x, w, b, z, y):
    """``z = x W + b``, ``y = g(z)``; the activation runs on a block of rows while it is in the cache."""
    _forward(rule, kernels, transpose, scratch, x, w, b, z, y, 0, y.shape[1])


def dense_forward_columns(rule, kernels, transpose, scratch, thread, threads, x, w, b, z, y):
    """The same, for the thread's part of the columns."""
    first, last = column_share(y.shape[1], y.itemsize, thread, threads)
    if last > first:
        _forward(rule, kernels, transpose, scratch, x, w, b, z, y, first, last)


def _forward(rule, kernels, transpose, scratch, x, w, b, z, y, first, last):
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
    right = (w.ctypes.data + first * size, n * size, False)
    for i in range(0, m, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, m - i)
        at = (i * n + first) * size
        left = (x.ctypes.data + i * k * size, k * size, size)
        product(kernels, transpose, scratch, size, left, right, (pre + at, n * size), (rows, k, count), bias)
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


def dense_backward_w(kernels, transpose, scratch, thread, threads, x, dz, dw):
    """``dW = x^T dz``, for the thread's part of the rows of ``dW``."""
    k, n = dw.shape
    slab = slab_rows(n)
    count = (k + slab - 1) // slab
    for s in range(count * thread // threads, count * (thread + 1) // threads):
        _gradient(kernels, transpose, scratch, x, dz, dw, s * slab, min(slab, k - s * slab))


def dense_update(rule, kernels, transpose, scratch, thread, threads, x, dz, dw, w, slots, uniforms, offset):
    """The same, and the optimizer on each slab of ``dW`` while it is in the cache."""
    k, n = dw.shape
    size = dw.itemsize
    slab = slab_rows(n)
    count = (k + slab - 1) // slab
    stride = slots.shape[1] * size
    state = slots.ctypes.data + int(offset) * size
    for s in range(count * thread // threads, count * (thread + 1) // threads):
        rows = min(slab, k - s * slab)
        _gradient(kernels, transpose, scratch, x, dz, dw, s * slab, rows)
        at = s * slab * n * size
        call_update(rule, w.ctypes.data + at, dw.ctypes.data + at, state + at, stride, uniforms.ctypes.data, rows * n)


def _gradient(kernels, transpose, scratch, x, dz, dw, first, rows):
    m, k = x.shape
    n = dz.shape[1]
    size = dz.itemsize
    left = (x.ctypes.data + first * size, size, k * size)
    right = (dz.ctypes.data, n * size, False)
    result = (dw.ctypes.data + first * n * size, n * size)
    product(kernels, transpose, scratch, size, left, right, result, (rows, m, n), 0)


def dense_backward_x(kernels, transpose, scratch, dz, w, dx):
    """``dx = dz W^T``."""
    _backward_x(kernels, transpose, scratch, dz, w, dx, 0, dx.shape[1])


def dense_backward_x_columns(kernels, transpose, scratch, thread, threads, dz, w, dx):
    """The same, for the thread's part of the columns."""
    first, last = column_share(dx.shape[1], dx.itemsize, thread, threads)
    if last > first:
        _backward_x(kernels, transpose, scratch, dz, w, dx, first, last)


def _backward_x(kernels, transpose, scratch, dz, w, dx, first, last):
    m, n = dz.shape
    k = dx.shape[1]
    size = dz.itemsize
    left = (dz.ctypes.data, n * size, size)
    right = (w.ctypes.data + first * n * size, n * size, True)
    result = (dx.ctypes.data + first * size, k * size)
    product(kernels, transpose, scratch, size, left, right, result, (m, n, last - first), 0)


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
