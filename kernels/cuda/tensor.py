"""Tensor cores: 16 x 8 results of a warp, ``mma.sync``, on operands rounded to TF32, bfloat16 or float16.

A *word* is what a register of an operand holds: a number in TF32, two neighbours of the inner index in the formats of
16 bits. In words all forms are the same: lane ``l`` with ``g = l // 4`` and ``t = l % 4`` holds

* of A (16 rows, 8 words): rows ``g`` and ``g + 8`` of word ``t``, then of word ``t + 4``;
* of B (8 words, 8 columns): column ``g`` of words ``t`` and ``t + 4``;
* of C (16 rows, 8 columns): columns ``2t`` and ``2t + 1`` of row ``g``, then of row ``g + 8``.

Sums are of float32. Compute capability 8.0 and newer.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import numpy as np

from .launch import SIMULATED


class Rounding(NamedTuple):
    """How operands are rounded: ``pack(x, ...)`` makes a word of ``numbers`` neighbours, ``multiply`` a product."""

    numbers: int
    pack: Any
    multiply: Any  # (a0, a1, a2, a3, b0, b1, c0, c1, c2, c3) -> (c0, c1, c2, c3)


@functools.cache
def rounding(name: str) -> Rounding:
    """``"tf32"``, ``"bfloat16"`` or ``"float16"``."""
    numbers = {"tf32": 1, "bfloat16": 2, "float16": 2}[name]
    return Rounding(numbers, *(_simulated(name) if SIMULATED else _intrinsics(name)))


# ----------------------------------------------------------------------------------------------- simulated


def rounded(x: Any, name: str) -> np.ndarray:
    """float32 numbers as operands hold them: TF32 rounds ties away from zero, the formats of 16 bits to even.

    Beyond the largest float16, 65504, lies infinity (for 65520 and more); below 2^-14 its spacing stays 2^-24.
    """
    x = np.asarray(x, np.float32)
    if name == "float16":
        _, exponent = np.frexp(x)  # x = f 2^exponent with 1/2 <= f < 1
        spacing = np.ldexp(1.0, np.maximum(exponent, -13) - 11)
        nearest = np.rint(x / spacing) * spacing
        return np.where(np.abs(nearest) < 65536, nearest, x + np.copysign(np.inf, x)).astype(np.float32)
    bits = x.view(np.uint32)
    if name == "tf32":
        bits = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    else:
        bits = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), bits.view(np.float32))


def _simulated(name: str) -> tuple[Any, Any]:
    def pack(*numbers: Any) -> Any:
        exact = rounded(np.array(numbers, np.float32), name)
        if name == "float16":
            return exact.astype(np.float16).view(np.uint32)[0]
        bits = exact.view(np.uint32)
        return bits[0] if name == "tf32" else np.uint32(bits[0] >> np.uint32(16) | bits[1])

    def unpacked(word: Any) -> list[float]:
        if name == "float16":
            return np.array([word], np.uint32).view(np.float16).tolist()
        words = [word] if name == "tf32" else [word << np.uint32(16), word & np.uint32(0xFFFF0000)]
        return [float(np.uint32(w).view(np.float32)) for w in words]

    def multiply(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        cuda = sys._getframe(1).f_globals["cuda"]  # that of the kernel, which knows its lane
        lane = cuda.laneid
        rows = [cuda.shfl_sync(0xFFFFFFFF, (a0, a1, a2, a3), 4 * (lane // 4) + t) for t in range(4)]
        columns = [
            [cuda.shfl_sync(0xFFFFFFFF, (b0, b1), 4 * (2 * (lane % 4) + j) + t) for t in range(4)] for j in range(2)
        ]
        sums = [c0, c1, c2, c3]
        for half in range(2):  # words t, and words t + 4
            for t in range(4):
                for i in range(2):
                    left = unpacked(rows[t][i + 2 * half])
                    for j in range(2):
                        right = unpacked(columns[j][t][half])
                        for x, y in zip(left, right, strict=True):
                            sums[2 * i + j] = np.float32(sums[2 * i + j] + x * y)
        return tuple(sums)

    return pack, multiply


# ----------------------------------------------------------------------------------------------- intrinsics

_PACK = {
    "tf32": ("cvt.rna.tf32.f32 $0, $1;", "=r,f"),
    "bfloat16": ("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f"),
    "float16": ("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f"),
}
_MULTIPLY = {
    "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
}


def _intrinsics(name: str) -> tuple[Any, Any]:
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic

    word, real = ir.IntType(32), ir.FloatType()
    registers = ", ".join
    operands = [f"${k}" for k in range(14)]
    groups = [registers(operands[a:b]) for a, b in ((0, 4), (4, 8), (8, 10), (10, 14))]
    text = f"{_MULTIPLY[name]} {', '.join('{' + group + '}' for group in groups)};"
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    def packed(builder: Any, numbers: Any) -> Any:
        assembly, constraint = _PACK[name]
        return builder.asm(ir.FunctionType(word, [real] * len(numbers)), assembly, constraint, numbers, False)

    def pack_codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return packed(builder, arguments)

    @intrinsic
    def pack_one(typing_context, x):
        return types.uint32(types.float32), pack_codegen

    @intrinsic
    def pack_two(typing_context, x, y):
        return types.uint32(types.float32, types.float32), pack_codegen

    @intrinsic
    def multiply(typing_context, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.LiteralStructType([real] * 4), [word] * 6 + [real] * 4)
            # all lanes take part: not to be moved into a branch
            result = builder.asm(kind, text, constraints, arguments, True)
            sums = [builder.extract_value(result, k) for k in range(4)]
            return context.make_tuple(builder, signature.return_type, sums)

        return types.UniTuple(types.float32, 4)(*[types.uint32] * 6, *[types.float32] * 4), codegen

    return pack_one if name == "tf32" else pack_two, multiply
