"""The compiled entry of a step: it turns the words of a row into arrays, cut to the thread's share, and calls the body.

A row of a table is a step: word 0 the address of its entry, then for every operand its address and sizes, then the
address of its rule, its scalars, and the panels that its matrix product needs. A context is what a thread knows.
"""

from __future__ import annotations

import functools
import inspect
import types as python_types
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types

from .. import compile as compiler
from .. import mathfn, native
from ..instructions import Instruction, Op
from ..native import VIEWS, float_of_bits, view_words
from . import dense, dropout, gemm, layer_norm, microkernel, norm, rowwise, threads, update
from .machine import VARIANT

WORDS = 40  # of a row; batch_norm_apply takes 38
CONTEXT = 16  # words, a thread's own two cache lines
ROWS, START, INDEX, THREAD, THREADS, FIRST, LAST, CHUNK, CHUNK_FIRST, CHUNK_LAST, CHUNKS, SCRATCH, CONTROL = range(13)
SIGNATURE = types.void(types.int64, types.int64)
_DTYPES = {"i": np.dtype(np.int64), "d": np.dtype(np.float64)}
_FROM_CONTEXT = {
    "rows": f"context[{ROWS}]", "start": f"context[{START}] + first", "index": f"context[{INDEX}]",
    "thread": f"context[{THREAD}]", "threads": f"context[{THREADS}]", "first": "first",
    "scratch": f"context[{SCRATCH}]", "control": f"context[{CONTROL}]",
}  # fmt: skip


def body_of(op: str) -> Any:
    """The plain Python function that a step runs; it reads like its formula."""
    for module in (dense, rowwise, norm, layer_norm, update, dropout, threads):
        body = getattr(module, op, None)
        if body is not None:
            return body
    raise LookupError(f"the CPU engine has no step {op!r}")


_specialised: dict[tuple[Any, np.dtype], Any] = {}


def specialise(function: Any, dtype: np.dtype) -> Any:
    """``function`` with the mathematics and the views of ``dtype``, and with its helpers compiled along with it."""
    key = (function, dtype)
    if key not in _specialised:
        scope = dict(function.__globals__)
        for name in function.__code__.co_names:
            value = scope.get(name)
            math_name = mathfn.name_of(value)
            if value is native.view:
                scope[name] = VIEWS[dtype][1]
            elif math_name is not None:
                scope[name] = mathfn.cpu(math_name, dtype)
            elif isinstance(value, python_types.FunctionType) and value.__module__.startswith("dlcore.kernels"):
                scope[name] = compiler.CPU.inline(specialise(value, dtype))
        clone = python_types.FunctionType(function.__code__, scope, function.__name__)
        clone.__module__ = function.__module__
        clone.__qualname__ = f"{function.__name__}_{dtype.name}"
        _specialised[key] = clone
    return _specialised[key]


def _operand_view(op: Op, number: int, word: int, dtype: np.dtype) -> str:
    """The expression of one operand as an array, cut to the share of the thread."""
    operand = op.operands[number]
    dims = operand.dims
    size = {"i": 8, "d": 8}.get(operand.dtype, dtype.itemsize)
    address = f"row[{word}]"
    sizes = [f"row[{word + 1 + axis}]" for axis in range(len(dims))]
    stride = " * ".join([str(size), *sizes[1:]])
    there = f"if row[{word}] != 0 else 0"  # a missing operand has address 0, and no rows
    if dims[0] == "m":
        sizes[0] = f"(m {there})"
        if op.division in ("rows", "chunks"):
            address += f" + first * {stride}"
    elif dims[0] == "c":
        address += f" + chunk * {stride}"
        sizes = sizes[1:]
    elif dims[0] == "C":
        sizes[0] = f"(context[{CHUNKS}] {there})"
    return f"view_{operand.dtype}{len(sizes)}({address}, {', '.join(sizes)})"


def _entry_text(op: Op, arguments: Sequence[str], name: str, dtype: np.dtype) -> str:
    lines = [
        f"def {name}(row_, context_):",
        f"    row = words(row_, {WORDS})",
        f"    context = words(context_, {CONTEXT})",
    ]
    indent = "    "
    if op.division == "rows":
        lines += [
            f"    first = context[{FIRST}]",
            f"    m = context[{LAST}] - first",
            "    if m <= 0:",
            "        return",
        ]
    elif op.division == "chunks":
        lines.append(f"    for chunk in range(context[{CHUNK_FIRST}], context[{CHUNK_LAST}]):")
        indent = "        "
        lines.append(f"{indent}first = chunk * context[{CHUNK}]")
        lines.append(f"{indent}m = min(context[{ROWS}], first + context[{CHUNK}]) - first")
    else:
        if op.division == "one":
            lines += [f"    if context[{THREAD}] != 0:", "        return"]
        lines += ["    first = 0", f"    m = context[{ROWS}]"]
    word = 1
    for number, operand in enumerate(op.operands):
        lines.append(f"{indent}{operand.name} = {_operand_view(op, number, word, dtype)}")
        word += 1 + len(operand.dims)
    lines.append(f"{indent}rule = row[{word}]")
    for k, scalar in enumerate(op.scalars):
        lines.append(f"{indent}{scalar} = real(row[{word + 1 + k}])")
    word += 1 + len(op.scalars)
    lines.append(f"{indent}gemm = row[{word}]")
    lines.append(f"{indent}kernels = row_ + {8 * word + 8}")
    values = [_FROM_CONTEXT.get(name, name) for name in arguments]
    lines.append(f"{indent}body({', '.join(values)})")
    return "\n".join(lines)


_entries: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def entry(step: Instruction) -> tuple[Any, Any]:
    """The compiled entry of a step, as a C function, and its Python source."""
    op, dtype = step.op, step.dtype
    rule = step.rule if op.name == "optimizer_begin" else None
    key = (op.name, dtype, (rule.main, tuple(rule.parameters), rule.decoupled) if rule else None)
    if key not in _entries:
        name = f"{op.name}_{dtype.name}" + (f"_{rule.name}" if rule else "")
        scope: dict[str, Any] = {"words": view_words, "real": float_of_bits}
        for letter, kind in (("f", dtype), *_DTYPES.items()):
            for dimensions, view in VIEWS[kind].items():
                scope[f"view_{letter}{dimensions}"] = view
        meaning = f"{microkernel.vector_bytes()} {VARIANT}"
        if rule is not None:
            text, uniforms = compiler.begin(rule, dtype)
            body = compiler.make(text, op.name, {"uniforms": compiler.CPU.inline(uniforms.function), "np": np})
            arguments = ["hyper", "step", "uniforms"]
            meaning += text + uniforms.text
        else:
            body = specialise(body_of(op.name), dtype)
            arguments = list(inspect.signature(body_of(op.name)).parameters)
        scope["body"] = compiler.CPU.inline(body)
        function = compiler.make(_entry_text(op, arguments, name, dtype), name, scope, meaning)
        _entries[key] = (compiler.callback(function, SIGNATURE), function)
    return _entries[key]


_checked: dict[Any, Any] = {}


def checked_entry(step: Instruction) -> Any:
    """The entry as a dispatcher, which raises: an exception inside a C function would be swallowed."""
    function = entry(step)[1]
    if function not in _checked:
        _checked[function] = compiler.native(function, SIGNATURE)
    return _checked[function]


_PART = {"dense_forward": "value", "dense_forward_columns": "value", "activation_forward": "value"}
_DEFAULT_PART = {"activation": "slope", "loss": "loss", "optimizer": "update"}
IDENTITY = "linear"  # the activation that needs no call


def rule_address(step: Instruction) -> int:
    """The address of the strip of the rule of a step; 0 where it has none, or needs none."""
    rule = step.rule
    if rule is None or step.op.name == "optimizer_begin" or (rule.kind == "activation" and rule.name == IDENTITY):
        return 0
    part = _PART.get(step.op.name, _DEFAULT_PART[rule.kind])
    return int(compiler.strip(rule, part, step.dtype).address or 0)


@functools.cache
def _product_address(dtype: np.dtype) -> int:
    names = ", ".join(inspect.signature(gemm.product).parameters)
    scope = {"body": compiler.CPU.inline(specialise(gemm.product, dtype))}
    name = f"product_{dtype.name}"
    text = f"def {name}({names}):\n    body({names})\n"
    function = compiler.make(text, name, scope, str(microkernel.vector_bytes()))
    return int(compiler.callback(function, types.void(*[types.int64] * (names.count(",") + 1))).address or 0)


def product_words(step: Instruction, threads: int) -> list[int]:
    """What the matrix product of a step is called by: its address, and what it calls."""
    name, dtype = step.op.name, step.dtype
    if not name.startswith("dense_") or name == "dense_backward_z":
        return []
    columns = int(step.operands[2 if "backward_x" in name else -1].shape[-1])
    if name in ("dense_update", "dense_backward_w"):
        columns = int(step.operands[2].shape[1])
    panels = list(microkernel.panels(dtype, columns))
    if name.endswith("_columns"):
        for thread in range(threads):
            first, last = gemm.column_share(columns, dtype.itemsize, thread, threads)
            panels = [a or b for a, b in zip(panels, microkernel.panels(dtype, last - first), strict=True)]
    helpers = microkernel.pack_transposed(dtype), microkernel.row_product(dtype)
    return [_product_address(dtype), *panels, *(int(helper.address or 0) for helper in helpers)]
