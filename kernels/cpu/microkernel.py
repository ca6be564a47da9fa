"""The inner loops of matrix products, as explicit vector instructions.

A *tile* keeps ``rows x vectors`` vector registers of the result while it runs over the inner index: one load of a row
of ``B``, one broadcast of each element of ``A``, one fused multiply-add each. LLVM does not find this blocking by
itself; written out it reaches 97% of the multiply-add rate (measured on Zen 4, AVX-512 and AVX2 widths).

All arguments are int64: addresses, strides in bytes, counts.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config

from .. import compile as compiler
from ..compile import Callback
from ..native import emit_prefetch, intrinsic

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_LLVM = {np.dtype(np.float32): ir.FloatType(), np.dtype(np.float64): ir.DoubleType()}
VECTORS = 3  # of the widest tile
_UNROLL = 2
_AHEAD = 16  # rows of B that are fetched before they are needed, where it is packed


@functools.cache
def vector_bytes() -> int:
    """The width of the vectors of the CPU that Numba compiles for: 64 (AVX-512), 32 (AVX2) or 16 (NEON, SSE)."""
    text = vars(config).get("CPU_FEATURES")
    features = llvm.get_host_cpu_features().flatten() if text is None else text
    names = {word[1:] for word in features.split(",") if word.startswith("+")}
    if {"avx512f", "avx512dq"} <= names:
        return 64
    return 32 if {"avx2", "fma"} <= names else 16


def lanes(dtype: Any) -> int:
    """Elements of a vector."""
    return vector_bytes() // np.dtype(dtype).itemsize


def tile_rows() -> int:
    """Rows of a tile: 8 where there are 32 vector registers, 4 where there are 16."""
    has_sixteen = vector_bytes() == 32 or (vector_bytes() == 16 and "x86" in llvm.get_process_triple())
    return 4 if has_sixteen else 8


def masks_loads() -> bool:
    """Whether a part of a vector can be loaded at no cost; elsewhere narrow panels are padded when they are packed."""
    return vector_bytes() > 16


class Emitter:
    """Shorthands for the IR of one intrinsic on vectors of ``count`` elements."""

    def __init__(self, builder: Any, dtype: np.dtype, count: int) -> None:
        self.b, self.size, self.count = builder, dtype.itemsize, count
        self.element = _LLVM[dtype]
        self.vector = ir.VectorType(self.element, count)
        self.suffix = f"v{count}f{8 * self.size}"

    def constant(self, value: int) -> Any:
        return ir.Constant(_I64, value)

    def at(self, address: Any, offset: int = 0, kind: Any = None) -> Any:
        if offset:
            address = self.b.add(address, self.constant(offset))
        return self.b.inttoptr(address, (kind or self.vector).as_pointer())

    def function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        return cgutils.get_or_insert_function(self.b.module, ir.FunctionType(result, arguments), name)

    def splat(self, value: Any, kind: Any = None) -> Any:
        vector = ir.VectorType(kind, self.count) if kind else self.vector
        lane = ir.Constant(ir.VectorType(_I32, self.count), [0] * self.count)
        first = self.b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lane)

    def mask(self, elements: Any) -> Any:
        """Which lanes hold the first ``elements`` elements."""
        lane = ir.Constant(ir.VectorType(_I32, self.count), list(range(self.count)))
        return self.b.icmp_signed("<", lane, self.splat(self.b.trunc(elements, _I32), _I32))

    def load(self, address: Any, offset: int = 0, mask: Any = None) -> Any:
        if mask is None:
            return self.b.load(self.at(address, offset), align=self.size)
        name = f"llvm.masked.load.{self.suffix}.p0"
        kinds = [self.vector.as_pointer(), _I32, mask.type, self.vector]
        zero = ir.Constant(self.vector, [0.0] * self.count)
        function = self.function(name, self.vector, kinds)
        return self.b.call(function, [self.at(address, offset), ir.Constant(_I32, self.size), mask, zero])

    def store(self, value: Any, address: Any, offset: int = 0, mask: Any = None) -> None:
        if mask is None:
            self.b.store(value, self.at(address, offset), align=self.size)
            return
        name = f"llvm.masked.store.{self.suffix}.p0"
        kinds = [self.vector, self.vector.as_pointer(), _I32, mask.type]
        function = self.function(name, ir.VoidType(), kinds)
        self.b.call(function, [value, self.at(address, offset), ir.Constant(_I32, self.size), mask])

    def prefetch(self, address: Any, offset: int = 0, write: bool = False) -> None:
        """Fetch the cache line there, to be read or to be written."""
        emit_prefetch(self.b, self.at(address, offset, ir.IntType(8)), write)

    def loop(self, count: Any, body: Any) -> None:
        """``body()``, ``count`` times."""
        left = cgutils.alloca_once_value(self.b, count)
        test, inside, after = (self.b.append_basic_block(name) for name in ("test", "inside", "after"))
        self.b.branch(test)
        self.b.position_at_end(test)
        self.b.cbranch(self.b.icmp_signed(">", self.b.load(left), self.constant(0)), inside, after)
        self.b.position_at_end(inside)
        body()
        self.b.store(self.b.sub(self.b.load(left), self.constant(1)), left)
        self.b.branch(test)
        self.b.position_at_end(after)


def _tile(dtype: np.dtype, rows: int, vectors: int, masked: bool) -> Any:
    """An intrinsic ``tile(a, a_row, a_step, b, b_step, packed, c, c_row, count, k, accumulate, bias, tail,
    beside)``.

    ``C = A B``, plus ``C`` itself where ``accumulate``, plus a row of biases where its address is not 0; ``count``
    rows of ``rows``: the missing ones repeat the last. Of the last vector, ``tail`` elements are there if ``masked``.
    The rows of ``B`` are also written to ``packed``, one after another, unless that is 0: packing costs no time of its
    own beside the multiplications, and what lies ahead in ``B`` is fetched meanwhile. What lies ``beside`` bytes behind
    the tile of ``C``, unless that is 0, is fetched to be written, as ``C`` itself is.
    """
    count = lanes(dtype)
    width = vector_bytes()

    @intrinsic
    def tile(typing_context, a, a_row, a_step, b, b_step, packed, c, c_row, rows_, k, accumulate, bias, tail, beside):
        def codegen(context, builder, signature, arguments):
            a, a_row, a_step, b, b_step, packed, c, c_row, rows_, k, accumulate, bias, tail, beside = arguments
            e = Emitter(builder, dtype, count)
            multiply_add = e.function(f"llvm.fmuladd.{e.suffix}", e.vector, [e.vector] * 3)
            mask = e.mask(tail) if masked else None
            masks = [None] * (vectors - 1) + [mask]
            masks_b = masks if masks_loads() else [None] * vectors
            last = builder.sub(rows_, e.constant(1))
            row = [e.constant(0)]
            for r in range(1, rows):
                inside = builder.icmp_signed("<", e.constant(r), last)
                row.append(builder.select(inside, e.constant(r), last))
            a_offset = [builder.mul(r, a_row) for r in row]
            with builder.goto_entry_block():
                sums = [[builder.alloca(e.vector) for _ in range(vectors)] for _ in range(rows)]
            zero = ir.Constant(e.vector, [0.0] * count)
            for line in sums:
                for slot in line:
                    builder.store(zero, slot)
            at_a, at_b = cgutils.alloca_once_value(builder, a), cgutils.alloca_once_value(builder, b)
            at_copy = cgutils.alloca_once_value(builder, packed)
            ahead = builder.mul(b_step, e.constant(_AHEAD))

            def step(packing):
                here, there = builder.load(at_a), builder.load(at_b)
                line = [e.load(there, v * width, masks_b[v]) for v in range(vectors)]
                if packing:
                    copy = builder.load(at_copy)
                    for v in range(vectors):
                        e.prefetch(builder.add(there, ahead), v * width)
                        e.store(line[v], copy, v * width)
                    builder.store(builder.add(copy, e.constant(vectors * width)), at_copy)
                for r in range(rows):
                    x = builder.load(e.at(builder.add(here, a_offset[r]), kind=e.element), align=e.size)
                    x = e.splat(x)
                    for v in range(vectors):
                        product = builder.call(multiply_add, [x, line[v], builder.load(sums[r][v])])
                        builder.store(product, sums[r][v])
                builder.store(builder.add(here, a_step), at_a)
                builder.store(builder.add(there, b_step), at_b)

            c_offset = [builder.add(c, builder.mul(r, c_row)) for r in row]
            each = [(r, v) for r in range(rows) for v in range(vectors)]
            for r, v in each:
                e.prefetch(c_offset[r], v * width, write=True)
            with builder.if_then(builder.icmp_signed("!=", beside, e.constant(0))):
                for r, v in each:
                    e.prefetch(builder.add(c_offset[r], beside), v * width, write=True)
            with builder.if_else(builder.icmp_signed("!=", packed, e.constant(0))) as (packs, reads):
                with packs:
                    e.loop(k, lambda: step(True))
                with reads:
                    e.loop(builder.sdiv(k, e.constant(_UNROLL)), lambda: [step(False) for _ in range(_UNROLL)])
                    e.loop(builder.srem(k, e.constant(_UNROLL)), lambda: step(False))
            with builder.if_then(builder.icmp_signed("!=", accumulate, e.constant(0))):
                for r, v in each:
                    old = e.load(c_offset[r], v * width, masks[v])
                    builder.store(builder.fadd(builder.load(sums[r][v]), old), sums[r][v])
            with builder.if_then(builder.icmp_signed("!=", bias, e.constant(0))):
                biases = [e.load(bias, v * width, masks[v]) for v in range(vectors)]
                for r, v in each:
                    builder.store(builder.fadd(builder.load(sums[r][v]), biases[v]), sums[r][v])
            for r, v in each:
                e.store(builder.load(sums[r][v]), c_offset[r], v * width, masks[v])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 14), codegen

    return tile


_PANEL = """
def {name}(a, a_row, a_step, b, b_step, packed, c, c_row, m, k, accumulate, bias, tail, beside):
    copy = packed
    for i in range(0, m, {rows}):
        count = min({rows}, m - i)
        here, to = a + i * a_row, c + i * c_row
        tile(here, a_row, a_step, b, b_step, copy, to, c_row, count, k, accumulate, bias, tail, beside)
        if copy != 0:
            b, b_step, copy = packed, {width}, 0
"""
PANEL_SIGNATURE = types.void(*[types.int64] * 14)


@functools.cache
def panel(dtype: np.dtype, rows: int, vectors: int, masked: bool) -> Callback:
    """The C function that runs tiles down a panel of ``vectors`` vectors: ``m`` rows of ``C``.

    The first tile packs ``B``, and the others read what it wrote, unless ``packed`` is 0.
    """
    name = f"panel_{rows}x{vectors}{'_masked' if masked else ''}_{dtype.name}"
    text = _PANEL.format(name=name, rows=rows, width=vectors * vector_bytes())
    function = compiler.make(text, name, {"tile": _tile(dtype, rows, vectors, masked)}, str(vector_bytes()))
    return Callback(function, PANEL_SIGNATURE)


@functools.lru_cache(4096)
def panels(dtype: np.dtype, columns: int) -> tuple[Callback | None, ...]:
    """The panels that a product with ``columns`` columns needs: of 1 to 3 full vectors, then with a tail.

    The others are None; :func:`dlcore.kernels.cpu.gemm.panel_columns` says how columns are cut into panels.
    """
    from .gemm import panel_columns

    count = lanes(dtype)
    found: list[Callback | None] = [None] * (2 * VECTORS)
    left = columns
    while left > 0:
        width = panel_columns(left, count)
        vectors, tail = -(-width // count), width % count
        found[vectors - 1 + VECTORS * (tail > 0)] = panel(dtype, tile_rows(), vectors, tail > 0)
        left -= width
    return tuple(found)


_ROWS_AT_ONCE = 8


def _row(dtype: np.dtype) -> Any:
    """An intrinsic ``row(a, b, b_row, c, k, n, bias)``: ``C = A B + bias`` for one row of ``A`` and ``C``.

    ``B`` is read once, which is all the time it takes: row by row, so that it streams from memory, and several rows
    at a time, so that ``C`` is seldom loaded and stored.
    """
    count = lanes(dtype)
    width = vector_bytes()

    @intrinsic
    def row(typing_context, a, b, b_row, c, k, n, bias):
        def codegen(context, builder, signature, arguments):
            a, b, b_row, c, k, n, bias = arguments
            e = Emitter(builder, dtype, count)
            multiply_add = e.function(f"llvm.fmuladd.{e.suffix}", e.vector, [e.vector] * 3)
            whole, tail = builder.sdiv(n, e.constant(count)), builder.srem(n, e.constant(count))
            mask = e.mask(tail)

            def sweep(body):
                at = cgutils.alloca_once_value(builder, e.constant(0))

                def next_vector():
                    here = builder.load(at)
                    body(here, None)
                    builder.store(builder.add(here, e.constant(width)), at)

                e.loop(whole, next_vector)
                with builder.if_then(builder.icmp_signed(">", tail, e.constant(0))):
                    body(builder.load(at), mask)

            with builder.if_else(builder.icmp_signed("!=", bias, e.constant(0))) as (given, missing):
                with given:
                    sweep(lambda at, m: e.store(e.load(builder.add(bias, at), 0, m), builder.add(c, at), 0, m))
                with missing:
                    zero = ir.Constant(e.vector, [0.0] * count)
                    sweep(lambda at, m: e.store(zero, builder.add(c, at), 0, m))
            at_a, at_b = cgutils.alloca_once_value(builder, a), cgutils.alloca_once_value(builder, b)

            def add_rows(rows):
                here, there = builder.load(at_a), builder.load(at_b)
                factors = [e.splat(builder.load(e.at(here, r * e.size, e.element))) for r in range(rows)]
                lines = [builder.add(there, builder.mul(b_row, e.constant(r))) for r in range(rows)]

                def body(at, m):
                    total = e.load(builder.add(c, at), 0, m)
                    for x, line in zip(factors, lines, strict=True):
                        total = builder.call(multiply_add, [x, e.load(builder.add(line, at), 0, m), total])
                    e.store(total, builder.add(c, at), 0, m)

                sweep(body)
                builder.store(builder.add(here, e.constant(rows * e.size)), at_a)
                builder.store(builder.add(there, builder.mul(b_row, e.constant(rows))), at_b)

            e.loop(builder.sdiv(k, e.constant(_ROWS_AT_ONCE)), lambda: add_rows(_ROWS_AT_ONCE))
            e.loop(builder.srem(k, e.constant(_ROWS_AT_ONCE)), lambda: add_rows(1))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return row


@functools.cache
def row_product(dtype: np.dtype) -> Callback:
    """The C function ``(a, b, b_row, c, k, n, bias)``: the product for one row."""
    name = f"row_product_{dtype.name}"
    text = f"def {name}(a, b, b_row, c, k, n, bias):\n    row(a, b, b_row, c, k, n, bias)\n"
    function = compiler.make(text, name, {"row": _row(dtype)}, str(vector_bytes()))
    return Callback(function, types.void(*[types.int64] * 7))


def _transpose(dtype: np.dtype) -> Any:
    """An intrinsic ``transpose(source, source_row, target, target_row)`` of a square block, one vector a row."""
    count = lanes(dtype)

    @intrinsic
    def transpose(typing_context, source, source_row, target, target_row):
        def codegen(context, builder, signature, arguments):
            source, source_row, target, target_row = arguments
            e = Emitter(builder, dtype, count)

            def shuffle(left, right, indices):
                kind = ir.VectorType(_I32, count)
                return builder.shuffle_vector(left, right, ir.Constant(kind, indices))

            rows = [e.load(builder.add(source, builder.mul(source_row, e.constant(r)))) for r in range(count)]
            # log2(count) rounds of interleaving row r with row r + count / 2 transpose a square
            half = count // 2
            low = [lane for i in range(half) for lane in (i, count + i)]
            high = [lane for i in range(half, count) for lane in (i, count + i)]
            stage = count
            while stage > 1:
                rows = [shuffle(rows[r], rows[r + half], pick) for r in range(half) for pick in (low, high)]
                stage //= 2
            for r, value in enumerate(rows):
                e.store(value, builder.add(target, builder.mul(target_row, e.constant(r))))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return transpose


_PACK = """
def {name}(source, row, target, k, columns):
    # target[p, j] = source[j, p], rows of {width} elements; missing columns are 0
    whole = columns // {lanes}
    for block in range({vectors}):
        j = block * {lanes}
        p = 0
        if block < whole:
            while p + {lanes} <= k:
                transpose(source + j * row + {size} * p, row, target + {size} * (p * {width} + j), {size} * {width})
                p += {lanes}
        while p < k:
            line = view(target + {size} * (p * {width} + j), {lanes})
            for i in range({lanes}):
                if j + i < columns:
                    line[i] = view(source + (j + i) * row, k)[p]
                else:
                    line[i] = 0
            p += 1
"""


@functools.cache
def pack_transposed(dtype: np.dtype) -> Callback:
    """The C function ``(source, row, target, k, columns)`` that packs ``columns`` rows of a matrix as a panel."""
    from ..native import VIEWS

    name = f"pack_transposed_{dtype.name}"
    count = lanes(dtype)
    numbers = {"lanes": count, "vectors": VECTORS, "width": VECTORS * count, "size": dtype.itemsize}
    scope = {"transpose": _transpose(dtype), "view": VIEWS[dtype][1]}
    function = compiler.make(_PACK.format(name=name, **numbers), name, scope, str(vector_bytes()))
    return Callback(function, types.void(*[types.int64] * 5))
