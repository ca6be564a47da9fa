"""The compiled entry of a step: it turns the words of a row into arrays, cut to the thread's share, and calls the body.

A row of a table is a step: word 0 the address of its entry, then for every operand its address and sizes, then the
address of its rule, its scalars, and the panels that its matrix product needs. A context is what a thread knows.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import textwrap
import types as python_types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .. import compile as compiler
from .. import mathfn, native
from ..compile import Callback
from ..instructions import Instruction, Op
from ..native import VIEWS, float_of_bits, view_words
from . import (
    accumulation,
    by_tensor,
    dense,
    dropout,
    factors,
    finite,
    gemm,
    group_norm,
    microkernel,
    norm,
    prelu,
    products,
    row_losses,
    rowwise,
    sharpness,
    update,
    waiting,
    weights,
)
from . import context as layout
from .machine import VARIANT

WORDS = 40  # of a row; batch_norm_apply takes 38
SIGNATURE = types.void(types.int64, types.int64)
_DTYPES = {"i": np.dtype(np.int64), "d": np.dtype(np.float64)}
_FROM_CONTEXT = {
    name: f"_context[{getattr(layout, name.upper())}]"
    for name in ("rows", "index", "thread", "threads", "scratch", "control")
} | {"start": f"_context[{layout.START}] + _first", "first": "_first", "context": "context_"}


def body_of(op: str) -> Any:
    """The plain Python function that a step runs; it reads like its formula."""
    for module in (
        dense, rowwise, row_losses, prelu, norm, group_norm, weights, update, by_tensor, factors, finite, accumulation,
        sharpness, dropout, products, waiting,
    ):  # fmt: skip
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
    address = f"_row[{word}]"
    sizes = [f"_row[{word + 1 + axis}]" for axis in range(len(dims))]
    stride = " * ".join([str(size), *sizes[1:]])
    there = f"if _row[{word}] != 0 else 0"  # a missing operand has address 0, and no rows
    if dims[0] == "m":
        sizes[0] = f"(_m {there})"
        if op.division in ("rows", "chunks"):
            address += f" + _first * {stride}"
    elif dims[0] == "c":
        address += f" + _chunk * {stride}"
        sizes = sizes[1:]
    elif dims[0] == "C":
        sizes[0] = f"(_context[{layout.CHUNKS}] {there})"
    return f"_view_{operand.dtype}{len(sizes)}({address}, {', '.join(sizes)})"


def _values(op: Op, dtype: np.dtype) -> dict[str, str]:
    """The expression of everything that a body may take, by its name."""
    values = dict(_FROM_CONTEXT)
    word = 1
    for number, operand in enumerate(op.operands):
        values[operand.name] = _operand_view(op, number, word, dtype)
        word += 1 + len(operand.dims)
    values["rule"] = f"_row[{word}]"
    for scalar in op.scalars:
        word += 1
        values[scalar] = f"_real(_row[{word}])"
    values["gemm"] = f"_row[{word + 1}]"
    values["kernels"] = f"row_ + {8 * (word + 2)}"
    return values


def _entry_text(op: Op, body: str, takes: Sequence[str] | None, name: str, dtype: np.dtype) -> str:
    """The source of an entry: the body's, behind assignments to its parameters of what it ``takes``.

    The body becomes part of the entry as source because that is much quicker to compile than as a function to inline.
    """
    definition = ast.parse(body).body[0]
    assert isinstance(definition, ast.FunctionDef)
    parameters = [argument.arg for argument in definition.args.args]
    statements = definition.body[1:] if ast.get_docstring(definition) else definition.body
    lines = [
        f"def {name}(row_, context_):",
        f"    _row = _words(row_, {WORDS})",
        f"    _context = _words(context_, {layout.CONTEXT})",
    ]
    indent = "    "
    if op.division == "rows":
        lines += [
            f"    _first = _context[{layout.FIRST}]",
            f"    _m = _context[{layout.LAST}] - _first",
            "    if _m <= 0:",
            "        return",
        ]
    elif op.division == "chunks":
        if any(isinstance(node, ast.Return) for node in ast.walk(definition)):
            raise TypeError(f"the body of {op.name} returns, which would end the loop over its chunks")
        indent = "        "
        lines += [
            f"    for _chunk in range(_context[{layout.CHUNK_FIRST}], _context[{layout.CHUNK_LAST}]):",
            f"{indent}_first = _chunk * _context[{layout.CHUNK}]",
            f"{indent}_m = min(_context[{layout.ROWS}], _first + _context[{layout.CHUNK}]) - _first",
        ]
    else:
        if op.division == "one":
            lines += [f"    if _context[{layout.THREAD}] != 0:", "        return"]
        lines += ["    _first = 0", f"    _m = _context[{layout.ROWS}]"]
    values = _values(op, dtype)
    lines += [f"{indent}{p} = {values[source]}" for p, source in zip(parameters, takes or parameters, strict=True)]
    lines += [textwrap.indent(ast.unparse(statement), indent) for statement in statements]
    return "\n".join(lines)


def _helpers(dtype: np.dtype) -> dict[str, Any]:
    helpers = {"_words": view_words, "_real": float_of_bits}
    for letter, kind in (("f", dtype), *_DTYPES.items()):
        helpers |= {f"_view_{letter}{dimensions}": view for dimensions, view in VIEWS[kind].items()}
    return helpers


_entries: dict[tuple[Any, ...], tuple[Callback, Any]] = {}


def entry(step: Instruction) -> tuple[Callback, Any]:
    """The entry of a step, as a C function and in Python."""
    op, dtype = step.op, step.dtype
    rule = step.rule if op.name == "optimizer_begin" else None
    key = (op.name, dtype, rule.form if rule else None)
    if key not in _entries:
        name = f"{op.name}_{dtype.name}" + (f"_{rule.name}" if rule else "")
        meaning = f"{microkernel.vector_bytes()} {VARIANT}"
        takes = None
        if rule is not None:
            body, functions = compiler.begin(rule)
            scope: dict[str, Any] = {name: compiler.CPU.inline(low.function) for name, low in functions.items()}
            scope |= {"np": np, "math": math}
            takes = ["hyper", "step", "uniforms"]
            meaning += "".join(low.text for low in functions.values())
        else:
            body = inspect.getsource(body_of(op.name))
            scope = specialise(body_of(op.name), dtype).__globals__
        text = _entry_text(op, body, takes, name, dtype)
        function = compiler.make(text, name, {**scope, **_helpers(dtype)}, meaning)
        _entries[key] = (Callback(function, SIGNATURE), function)
    return _entries[key]


_checked: dict[Any, Any] = {}


def checked_entry(step: Instruction) -> Any:
    """The entry as a dispatcher, which raises: an exception inside a C function would be swallowed."""
    function = entry(step)[1]
    if function not in _checked:
        _checked[function] = compiler.native(function, SIGNATURE)
    return _checked[function]


_PART = {
    "dense_forward": "value", "dense_forward_columns": "value", "activation_forward": "value", "block_sums": "summands",
    "factor_sums": "terms", "factored_update": "step", "panel_sums": "summands",
}  # fmt: skip
_DEFAULT_PART = {"activation": "slope", "loss": "loss", "optimizer": "update"}
IDENTITY = "linear"  # the activation that needs no call


def _strip(step: Instruction) -> Callback | None:
    """The strip of the rule of a step; None where it has none, or needs none."""
    rule = step.rule
    if rule is None or step.op.name == "optimizer_begin" or (rule.kind == "activation" and rule.name == IDENTITY):
        return None
    part = _PART.get(step.op.name, _DEFAULT_PART[rule.kind])
    if rule.kind != "activation":
        return compiler.strip(rule, part, step.dtype)
    operands = {spec.name: operand for spec, operand in zip(step.op.operands, step.operands, strict=True)}
    source, result = map(operands.get, compiler.OPERANDS[part])
    return compiler.strip(rule, part, step.dtype, in_place=source is None or source is result)


@functools.cache
def _product(dtype: np.dtype) -> Callback:
    product = specialise(gemm.product, dtype)
    function = compiler.whole(product, f"product_{dtype.name}", str(microkernel.vector_bytes()))
    signature = types.void(*[types.int64] * product.__code__.co_argcount)
    return Callback(function, signature)


def _product_functions(step: Instruction, threads: int) -> list[Callback | None]:
    """The matrix product of a step, and what it calls; None for a panel that its columns do not need."""
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
    return [_product(dtype), *panels, microkernel.pack_transposed(dtype), microkernel.row_product(dtype)]


class Functions(NamedTuple):
    """The C functions of a step: its entry, the strip of its rule, and its matrix product with what that calls."""

    entry: Callback
    strip: Callback | None
    product: list[Callback | None]

    def all(self) -> list[Callback]:
        """Those that are there, in the order in which they are compiled."""
        return [function for function in (self.entry, self.strip, *self.product) if function is not None]


def functions(step: Instruction, threads: int) -> Functions:
    """What a step needs; nothing is compiled before its address is asked for."""
    return Functions(entry(step)[0], _strip(step), _product_functions(step, threads))
