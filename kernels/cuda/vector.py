"""128-bit access: what one instruction of the hardware moves, four elements of float32 or two of float64.

NVVM does not merge neighbouring loads of an array by itself. An index is that of the first element, and the address
must be a multiple of 16 bytes: memory of the device begins at such addresses, views into it need not
(:func:`aligned`). Access to one element at a time has the same form, for kernels whose text serves both.

Numbers of 16 bits lie in arrays of uint16 here and are float32 in registers: :func:`half_access` converts on the way.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .driver import address
from .launch import SIMULATED, element
from .tensor import rounded

BYTES = 16
_GLOBAL = 1  # the address space that arrays given to a kernel lie in

_LLVM = {
    np.dtype(np.float32): ir.FloatType(),
    np.dtype(np.float64): ir.DoubleType(),
    np.dtype(np.uint32): ir.IntType(32),
    np.dtype(np.uint16): ir.IntType(16),
}


class Access(NamedTuple):
    """Access to 1-d arrays of one dtype, ``lanes`` elements at once."""

    lanes: int
    load: Any  # (array, index) -> tuple
    store: Any  # (array, index, tuple)


def aligned(*arrays: Any, size: int = BYTES) -> bool:
    """Whether access to ``size`` bytes of each array may begin at its first element, and at every row of a matrix."""
    return all(address(a) % size == 0 and (a.ndim < 2 or a.shape[-1] * a.dtype.itemsize % size == 0) for a in arrays)


@functools.cache
def access(dtype: Any, lanes: int = 0) -> Access:
    """Access to ``lanes`` elements of ``dtype``, by default 128 bits; on the simulator element by element.

    No index counts from the end: a negative one is an error of the caller. The simulator checks the address.
    """
    dtype = np.dtype(dtype)
    lanes = lanes or BYTES // dtype.itemsize
    return Access(lanes, *(_plain(lanes) if SIMULATED else _intrinsics(dtype, lanes)))


@functools.cache
def half_access(name: str, lanes: int) -> Access:
    """Access to arrays of uint16 that hold ``"float16"`` or ``"bfloat16"``, as tuples of float32.

    Stores round to nearest, ties to even; what is too large becomes infinity, and NaN stays NaN.
    """
    widen, narrow = {"float16": (_widen_float16, _narrow_float16), "bfloat16": (_widen_bfloat16, _narrow_bfloat16)}[
        name
    ]
    made = _plain_half(name, lanes) if SIMULATED else _intrinsics(np.dtype(np.uint16), lanes, widen, narrow)
    return Access(lanes, *made)


def _plain_half(name: str, lanes: int) -> tuple[Any, Any]:
    load_words, store_words = _plain(lanes)

    def load(array, index):
        words = np.array(load_words(array, index), np.uint16)
        if name == "float16":
            return tuple(words.view(np.float16).astype(np.float32))
        return tuple((words.astype(np.uint32) << np.uint32(16)).view(np.float32))

    def store(array, index, values):
        exact = rounded(np.array(values, np.float32), name)
        words = (
            exact.astype(np.float16).view(np.uint16) if name == "float16" else exact.view(np.uint32) >> np.uint32(16)
        )
        store_words(array, index, tuple(words.astype(np.uint16)))

    return load, store


def _plain(lanes: int) -> tuple[Any, Any]:
    def check(array, index):
        if lanes == 1:
            return  # every element is at a multiple of its own size
        memory = np.asarray(array)
        size = lanes * memory.itemsize
        if (memory.ctypes.data + int(index) * memory.itemsize) % size:
            raise IndexError(f"{8 * size}-bit access to element {index}, which is not at a multiple of {size} bytes")

    def load(array, index):
        check(array, index)
        return tuple(array[index + k] for k in range(lanes))

    def store(array, index, values):
        check(array, index)
        for k in range(lanes):
            array[index + k] = values[k]

    return load, store


_WORD, _BITS, _REAL, _HALF = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.HalfType()


def _widen_float16(builder: Any, word: Any) -> Any:
    return builder.fpext(builder.bitcast(word, _HALF), _REAL)


def _narrow_float16(builder: Any, value: Any) -> Any:
    return builder.bitcast(builder.fptrunc(value, _HALF), _WORD)


def _widen_bfloat16(builder: Any, word: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(word, _BITS), _BITS(16)), _REAL)


def _narrow_bfloat16(builder: Any, value: Any) -> Any:
    """In integers: Turing has no instruction for it. NaN keeps its sign and becomes quiet, or it would round to 0."""
    bits = builder.bitcast(value, _BITS)
    odd = builder.and_(builder.lshr(bits, _BITS(16)), _BITS(1))
    nearest = builder.add(bits, builder.add(odd, _BITS(0x7FFF)))
    quiet = builder.or_(bits, _BITS(0x400000))
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), quiet, nearest)
    return builder.trunc(builder.lshr(chosen, _BITS(16)), _WORD)


def _intrinsics(dtype: np.dtype, lanes: int, widen: Any = None, narrow: Any = None) -> tuple[Any, Any]:
    """``widen`` and ``narrow`` convert what lies in memory to float32 and back."""
    from numba import types
    from numba.cuda.extending import intrinsic

    kind = types.float32 if widen else element(dtype)
    several = types.UniTuple(kind, lanes)
    vector = ir.VectorType(_LLVM[dtype], lanes)
    align = lanes * dtype.itemsize

    # as a vector of half, which NVVM makes of it otherwise, it would be loaded 32 bits at a time
    loaded = ir.IntType(8 * align) if widen else vector

    def place(kind, context, builder, signature, array, index):
        data = context.make_array(signature.args[0])(context, builder, array).data
        first = builder.gep(data, [index])
        return builder.bitcast(first, ir.PointerType(kind, first.type.addrspace))

    def lane(k):
        return ir.Constant(ir.IntType(32), k)

    @intrinsic
    def load(typing_context, array, index):
        def codegen(context, builder, signature, arguments):
            value = builder.load(place(loaded, context, builder, signature, *arguments), align=align)
            if widen:
                words = [builder.trunc(builder.lshr(value, loaded(16 * k)), _WORD) for k in range(lanes)]
                elements = [widen(builder, word) for word in words]
            else:
                elements = [builder.extract_element(value, lane(k)) for k in range(lanes)]
            return context.make_tuple(builder, signature.return_type, elements)

        return several(array, types.int64), codegen

    @intrinsic
    def store(typing_context, array, index, values):
        def codegen(context, builder, signature, arguments):
            array, index, values = arguments
            value = ir.Constant(vector, ir.Undefined)
            for k in range(lanes):
                element = builder.extract_value(values, k)
                value = builder.insert_element(value, narrow(builder, element) if narrow else element, lane(k))
            builder.store(value, place(vector, context, builder, signature, array, index), align=align)
            return context.get_dummy_value()

        return types.void(array, types.int64, several), codegen

    return load, store


@functools.cache
def mover() -> Any:
    """The function (array, offset) -> the array of the same shape ``offset`` elements behind it."""
    if SIMULATED:

        def plain(array, offset):
            here = np.asarray(array)
            return type(array)(_view(here.ctypes.data + int(offset) * here.itemsize, here.dtype, here.shape))

        return plain

    from numba import types
    from numba.core.imputils import impl_ret_borrowed
    from numba.cuda.extending import intrinsic

    @intrinsic
    def moved(typing_context, array, offset):
        def codegen(context, builder, signature, arguments):
            there = context.make_array(signature.args[0])(context, builder, arguments[0])
            generic = there.data.type
            place = builder.addrspacecast(there.data, ir.PointerType(generic.pointee, _GLOBAL))
            place = builder.gep(place, [arguments[1]])
            # else NVVM adds the offset to every index, which takes two additions more for each address
            word = ir.IntType(64)
            number = builder.ptrtoint(place, word)
            number = builder.asm(ir.FunctionType(word, [word]), "", "=l,0", [number], False)
            there.data = builder.addrspacecast(builder.inttoptr(number, place.type), generic)
            return impl_ret_borrowed(context, builder, signature.return_type, there._getvalue())

        return array(array, types.int64), codegen

    return moved


@functools.lru_cache(10_000)
def _view(place: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Memory of the simulator as an array; each thread asks for the same ones."""
    size = math.prod(shape) * dtype.itemsize
    memory: Any = (ctypes.c_uint8 * size).from_address(place)
    return np.frombuffer(memory, dtype).reshape(shape)


@functools.cache
def outer_sum(dtype: Any, rows: int, columns: int) -> Any:
    """The function (sums, a, b) -> sums + a b^T, row by row, of tuples of ``rows * columns``, ``rows``, ``columns``.

    Sums as one tuple stay in registers, and compile in a fraction of the time of as many variables.
    """
    dtype = np.dtype(dtype)
    if SIMULATED:

        def plain(sums, a, b):
            return np.add(sums, np.multiply.outer(np.array(a, dtype), np.array(b, dtype)).ravel())

        return plain

    from numba import types
    from numba.cuda.extending import intrinsic

    kind = element(dtype)
    several = types.UniTuple(kind, rows * columns)

    @intrinsic
    def outer(typing_context, sums, a, b):
        def codegen(context, builder, signature, arguments):
            sums, a, b = arguments
            left = [builder.extract_value(a, i) for i in range(rows)]
            right = [builder.extract_value(b, j) for j in range(columns)]
            for i in range(rows):
                for j in range(columns):
                    k = i * columns + j
                    total = builder.fadd(builder.extract_value(sums, k), builder.fmul(left[i], right[j]))
                    sums = builder.insert_value(sums, total, k)
            return sums

        return several(several, types.UniTuple(kind, rows), types.UniTuple(kind, columns)), codegen

    return outer
