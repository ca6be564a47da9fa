"""What compiled code needs below Python: arrays over addresses, and calls through addresses.

Addresses live at the boundary only. A kernel body works on arrays; these helpers turn the words of an instruction
into arrays before it starts, and let it call a rule that was compiled elsewhere.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numba.np.arrayobj import make_array, populate_array

intrinsic: Any = _intrinsic  # its type hints count the typing context among the arguments

_I64 = ir.IntType(64)
_LLVM = {"i": _I64, "d": ir.DoubleType(), "v": ir.VoidType()}
_NUMBA = {"i": types.int64, "d": types.float64, "v": types.void}


def _view(dtype: Any, axes: int) -> Any:
    """An intrinsic ``view(address, *sizes)``: the memory as a C-contiguous array; cheaper to compile than carray."""
    kind = types.Array(numba.from_dtype(np.dtype(dtype)), axes, "C")
    size = np.dtype(dtype).itemsize
    signature = kind(types.int64, *[types.int64] * axes)

    def codegen(context, builder, signature, arguments):
        array = make_array(kind)(context, builder)
        address, *shape = arguments
        strides = [ir.Constant(_I64, size)]
        for extent in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], extent))
        data = builder.inttoptr(address, context.get_data_type(kind.dtype).as_pointer())
        populate_array(array, data, shape, strides, ir.Constant(_I64, size), None)
        return array._getvalue()

    names = ", ".join(f"n{k}" for k in range(axes))
    scope = {"answer": (signature, codegen)}
    exec(f"def view(typing_context, address, {names}): return answer", scope)
    return intrinsic(scope["view"])


def _views(dtype: Any) -> dict[int, Any]:
    return {axes: _view(dtype, axes) for axes in (1, 2)}


# dtype -> {dimensions: function (address, *shape) -> array}
VIEWS = {np.dtype(d): _views(d) for d in (np.float32, np.float64, np.int64)}
view_bytes = _views(np.int8)[1]
view_words = VIEWS[np.dtype(np.int64)][1]
view_double = VIEWS[np.dtype(np.float64)][1]
view_bits = _views(np.uint32)[1]


def view(address: int, n: int) -> Any:
    """``n`` numbers of the model's dtype at ``address``; stands for the view of its dtype in the bodies of kernels."""
    raise RuntimeError("view() is replaced when a kernel is compiled")


def _call(result: str, parameters: str) -> Any:
    """An intrinsic ``call(address, *arguments)`` of a C function; one letter a type: i int64, d float64, v void."""
    count = len(parameters)
    signature = _NUMBA[result](types.int64, *[_NUMBA[p] for p in parameters])
    function_type = ir.FunctionType(_LLVM[result], [_LLVM[p] for p in parameters])

    def codegen(context, builder, signature, arguments):
        target = builder.inttoptr(arguments[0], function_type.as_pointer())
        value = builder.call(target, arguments[1:])
        return context.get_dummy_value() if result == "v" else value

    names = ", ".join(f"a{k}" for k in range(count))
    scope = {"answer": (signature, codegen)}
    exec(f"def call(typing_context, address, {names}): return answer", scope)
    return intrinsic(scope["call"])


call_entry = _call("v", "ii")  # an instruction: (row, context)
call_launch = _call("v", "iiii")  # a job for several threads: (control, entry, argument, threads); see cpu/threads.py
call_value = _call("v", "iii")  # activation value: (z, y, n)
call_slope = _call("v", "iiiii")  # activation derivative: (dy, z, y, dz, n)
call_loss = _call("d", "iiiid")  # loss: (p, y, d, n, scale) -> sum
call_panel = _call("v", "i" * 14)  # a panel of a matrix product: see cpu/microkernel.py
call_product = _call("v", "i" * 15)  # a matrix product: see cpu/gemm.py
call_row = _call("v", "i" * 7)  # a product with one row: (a, b, b_row, c, k, n, bias)
call_pack = _call("v", "iiiii")  # (source, row, target, k, columns)
call_update = _call("v", "iiiiii")  # optimizer: (w, g, slots, stride, uniforms, n)
call_summands = _call("v", "iiiiiii")  # optimizer: (w, g, slots, stride, uniforms, n, sums)
# optimizer, of a panel: (w, g, slots, stride, uniforms, columns, rows, bytes of a row, whole, factors of rows, of
# columns, sums of columns, sums); see panel_text.py
call_factored = _call("v", "iiiiiiiidiiii")


def emit_prefetch(builder: Any, pointer: Any, write: bool = False, nearest: bool = True) -> None:
    """Fetch the cache line at ``pointer``, to be read or to be written; without ``nearest`` into the second cache."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    options = [number(option) for option in (int(write), 3 if nearest else 2, 1)]  # 1: data
    builder.call(function, [builder.bitcast(pointer, byte), *options])


@intrinsic
def prefetch(typing_context, address):
    """Fetch the cache line at ``address`` into the second cache; there need be no memory."""

    def codegen(context, builder, signature, arguments):
        emit_prefetch(builder, builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()), nearest=False)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def float_of_bits(typing_context, word):
    """The float64 whose bits are the int64 ``word``: how scalars travel in an instruction."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), codegen
