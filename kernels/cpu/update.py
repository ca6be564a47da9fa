"""Optimizer steps on the CPU: clipping by the global norm, and one pass over all parameters.

Memory contract: ``w`` and ``slots`` are read once and written once, ``g`` is read. ``uniforms[0]`` scales the
gradient on the way. ``rule`` is the address of a strip of the optimizer (see compile.py). ``optimizer_begin`` is
generated for each rule, in compile.py.
"""

from __future__ import annotations

import math

from ..native import call_update


def clip_by_global_norm(g, hyper, uniforms):
    """``uniforms[0] = c / max(c, ||g||)`` with ``c = hyper[-1]``; 1 where ``c`` is 0. The sum is in float64."""
    limit = hyper[hyper.size - 1]
    uniforms[0] = 1
    if limit > 0:
        s0 = 0.0
        s1 = 0.0
        s2 = 0.0
        s3 = 0.0
        i = 0
        while i + 4 <= g.size:
            a = float(g[i])
            b = float(g[i + 1])
            c = float(g[i + 2])
            d = float(g[i + 3])
            s0 += a * a
            s1 += b * b
            s2 += c * c
            s3 += d * d
            i += 4
        while i < g.size:
            a = float(g[i])
            s0 += a * a
            i += 1
        norm = math.sqrt(s0 + s1 + s2 + s3)
        if not norm <= limit:  # a norm that is not a number must not pass unseen
            uniforms[0] = limit / norm


def optimizer_update(rule, w, g, slots, uniforms):
    """``w, slots = rule(keep w, scale g + l2 w, slots)`` for every element."""
    stride = slots.shape[1] * w.itemsize
    call_update(rule, w.ctypes.data, g.ctypes.data, slots.ctypes.data, stride, uniforms.ctypes.data, w.size)
