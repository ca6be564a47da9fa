"""Dense layers on the CPU: ``y = g(x W + b)`` and its three gradients.

Memory contract: outputs are overwritten; ``z`` is written only where it is given, which is when the derivative of
the activation reads it. ``rule`` is the address of a strip of the activation (see compile.py).
"""

from __future__ import annotations

from ..native import call_slope, call_value
from .gemm import multiply, multiply_transposed_left, transposed


def dense_forward(rule, x, w, b, z, y):
    """``z = x W + b``, ``y = g(z)``; the activation runs on a row while it is in the cache."""
    n = y.shape[1]
    if z.size > 0:
        pre = z
    else:
        pre = y
    multiply(x, w, pre)
    for i in range(y.shape[0]):
        row = pre[i]
        if b.size > 0:
            for j in range(n):
                row[j] += b[j]
        call_value(rule, row.ctypes.data, y[i].ctypes.data, n)


def dense_backward_z(rule, dy, z, y, dz, db):
    """``dz = dy * g'(z, y)`` and, where it is given, ``db`` = sum of the rows of ``dz``."""
    n = y.shape[1]
    db[:] = 0
    for i in range(y.shape[0]):
        row = dz[i]
        before = y[i]
        if z.size > 0:
            before = z[i]
        call_slope(rule, dy[i].ctypes.data, before.ctypes.data, y[i].ctypes.data, row.ctypes.data, n)
        for j in range(db.size):
            db[j] += row[j]


def dense_backward_w(x, dz, dw):
    """``dW = x^T dz``."""
    multiply_transposed_left(x, dz, dw)


def dense_backward_x(dz, w, dx):
    """``dx = dz W^T``."""
    multiply(dz, transposed(w), dx)


def activation_forward(rule, z, y):
    """``y = g(z)``."""
    call_value(rule, z.ctypes.data, y.ctypes.data, z.size)


def activation_backward(rule, dy, z, y, dz):
    """``dz = dy * g'(z, y)``."""
    call_slope(rule, dy.ctypes.data, z.ctypes.data, y.ctypes.data, dz.ctypes.data, z.size)
