"""Elementwise and Kronecker products on the CPU. Memory contract: ``out`` is overwritten, one element after another."""

from __future__ import annotations


def hadamard(a, b, out):
    """``out = a b``, element by element."""
    left = a.reshape(a.size)
    right = b.reshape(b.size)
    result = out.reshape(out.size)
    for k in range(result.size):
        result[k] = left[k] * right[k]


def _outer(factors, line, out):
    """``out_(jn+s) = factors_j line_s``"""
    n = line.size
    for j in range(factors.size):
        factor = factors[j]
        part = out[j * n : (j + 1) * n]
        for s in range(n):
            part[s] = factor * line[s]


def khatri_rao(a, b, out):
    """``out[i] = a[i] x b[i]``"""
    for i in range(out.shape[0]):
        _outer(a[i], b[i], out[i])


def kronecker(first, a, b, out):
    """``out[i p + r] = a[i] x b[r]`` with the ``p`` rows of ``b``; ``first`` is the number of the first row here."""
    p = b.shape[0]
    for i in range(out.shape[0]):
        _outer(a[(first + i) // p], b[(first + i) % p], out[i])
