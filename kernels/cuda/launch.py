"""From an instruction to kernel launches: rules as device functions, kernels by demand, grids.

The modules beside this one hold the kernels. Each instruction has a host function of its own name there, which takes
the operands (NumPy arrays when simulated or compiled offline, CuPy arrays on a GPU) and returns its launches. A kernel
is made by a small factory for one dtype, one rule and one set of flags, once; nothing is compiled at import.

float32 kernels hold no float64 arithmetic, with these exceptions: ``optimizer_begin`` (one thread), the last stages of
``clip_by_global_norm`` and ``ascend`` (one thread over at most 256 partial sums), ``clip_by_norm`` and
``check_finite``, reading the scale in ``scale_loss``, and ``record`` (one block, into a float64 history).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import linecache
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda

from .. import mathfn
from ..compile import form_of, uniforms_of
from ..device import simulated
from ..instructions import OPS, ROWS, Instruction
from ..lowering import lower
from ..rewriting import Lowered
from ..rule import REGISTRY, Rule
from ..step_text import UNIFORM_HEADER
from .machine_code import Kernel, argument_types, describe, meaning

SIMULATED = simulated()
MODULES = (
    "dense", "rowwise", "row_losses", "softmax", "prelu", "norm", "group_norm", "weights", "update", "by_tensor",
    "factors", "finite", "accumulation", "sharpness", "dropout", "products",
)  # fmt: skip
BLOCK = 256  # threads of a flat kernel
WIDTH, DEPTH = 32, 8  # threads of a kernel over columns and rows: a warp lies along a row
CHUNK = 256  # rows that one block sums before partial sums are merged
MAX_BLOCKS = 1024  # of a grid-stride kernel: several for each multiprocessor of a large GPU

# kernels for float32 whose float64 arithmetic is deliberate
DELIBERATE_FLOAT64 = (
    "optimizer_begin",
    "norm_finish",
    "norms_of_tensors",
    "ascent_ratio",
    "scale_loss",
    "scale_loss_scalar",
    "move_scale",
    "record",
)


class CudaBackend:
    """Numba's CUDA target, as lowering sees it."""

    name = "cuda"

    @staticmethod
    @functools.cache
    def math(name: str, dtype: Any) -> Callable[..., Any]:
        """The function ``name`` of libdevice for scalars of ``dtype``."""
        return mathfn.cuda(name, np.dtype(dtype))

    @staticmethod
    @functools.cache
    def inline(function: Callable[..., Any]) -> Callable[..., Any]:
        """A device function; on the simulator the plain function, which is faster, unless it asks for its thread."""
        if SIMULATED and "cuda" not in function.__code__.co_names:
            return function
        return cuda.jit(device=True)(function)


CUDA = CudaBackend()


class Launch(NamedTuple):
    """One launch of a kernel on arrays and scalars of NumPy's types."""

    kernel: Any
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]


def kernel(make: Callable[..., Any]) -> Callable[..., Kernel]:
    """Turn a factory of kernel functions into one of kernels, each made once."""

    @functools.cache
    def made(*key: Any) -> Kernel:
        return Kernel(make(*key), f"{make.__module__}.{make.__qualname__}", *map(meaning, key))

    return made


def generated(text: str, name: str, scope: dict[str, Any], *parts: Any, **options: Any) -> Kernel:
    """The kernel ``name`` of a generated text, with ``parts``: those of its scope that the text does not tell apart."""
    meanings = [text, *map(meaning, parts)]
    file = f"<dlcore {name} {hash(tuple(meanings)) & 0xFFFFFFFF:08x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    exec(compile(text, file, "exec"), scope)
    return Kernel(scope[name], *meanings, **options)


def element(dtype: Any) -> Any:
    """The Numba type of ``dtype``, for shared and local arrays."""
    return getattr(numba, np.dtype(dtype).name)


# ---------------------------------------------------------------------------------------------------- rules

_lowered: dict[Any, tuple[Any, Lowered]] = {}


def device_function(rule: Rule, part: str, dtype: Any) -> Callable[..., Any]:
    """Part ``value``, ``slope`` or ``update`` of ``rule`` as a device function; the same object for equal rules."""
    return lowered(rule, part, dtype)[0]


def lowered(rule: Rule, part: str, dtype: Any) -> tuple[Callable[..., Any], Lowered]:
    """The device function of a part of ``rule``, and what lowering says of it."""
    key = (*form_of(rule), part, np.dtype(dtype))
    if key not in _lowered:
        result = lower(rule, part, dtype, CUDA)
        function = CUDA.inline(result.function)
        describe(function, result.text)
        _lowered[key] = function, result
    return _lowered[key]


# ------------------------------------------------------------------------------------------- arrays and grids


# who gives scratch while launches for many models are planned: (function like np.empty, shape, dtype) -> array
SCRATCH: ContextVar[Callable[..., Any] | None] = ContextVar("scratch", default=None)


def scratch(like: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised array beside ``like``, of its dtype, for what one kernel hands to the next."""
    empty: Any = np.empty
    if hasattr(type(like), "__cuda_array_interface__"):
        import cupy

        empty = cupy.empty
    given = SCRATCH.get()
    return empty(shape, like.dtype) if given is None else given(empty, shape, like.dtype)


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def flat(count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block of a grid-stride kernel over ``count`` elements."""
    return (max(1, min(ceil_div(count, BLOCK), MAX_BLOCKS)),), (BLOCK,)


def tiled(rows: int, columns: int, depth: int = DEPTH) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block of a kernel with warps along rows: x counts groups of ``depth`` rows, y groups of 32 columns."""
    return (ceil_div(rows, depth), ceil_div(columns, WIDTH)), (WIDTH, DEPTH)


# -------------------------------------------------------------------------------------------- instructions


@functools.cache
def host_function(op: str) -> tuple[Callable[..., list[Launch]], tuple[str, ...]]:
    """The function that plans instruction ``op``, and the names of its parameters."""
    for name in MODULES:
        function = getattr(importlib.import_module(f"{__package__}.{name}"), op, None)
        if function is not None:
            return function, tuple(inspect.signature(function).parameters)
    raise LookupError(f"the CUDA engine has no instruction {op!r}")


def plan(instruction: Instruction, operands: Sequence[Any], cursor: Any = None) -> list[Launch]:
    """The launches of ``instruction`` on arrays.

    ``cursor`` is an array of two int64 on the device, which a kernel reads: the first sample of the mini-batch in the
    order of samples, and the number of the mini-batch. Only gathers and ``record`` do.
    """
    op = instruction.op
    given: dict[str, Any] = {spec.name: array for spec, array in zip(op.operands, operands, strict=True)}
    given |= dict(zip(op.scalars, instruction.scalars, strict=True))
    given |= {"rule": instruction.rule, "cursor": cursor}
    function, parameters = host_function(op.name)
    return function(*(given[name] for name in parameters))


@kernel
def _advance() -> Any:
    def advance(cursor, rows):
        cursor[0] += rows
        cursor[1] += 1

    return advance


def launches(program: Any, name: str, array: Callable[[Any], Any], cursor: Any, rows: int) -> list[Launch]:
    """The launches of a list for a mini-batch of ``rows`` rows; the last one moves the cursor to the next mini-batch.

    ``array`` gives the array of an operand, with room for ``rows`` rows or more.
    """

    def operand(buffer: Any) -> Any:
        if buffer is None:
            return None
        found = array(buffer)
        return found[:rows] if buffer.shape and buffer.shape[0] == ROWS else found

    planned = [
        launch
        for instruction in program.lists[name]
        for launch in plan(instruction, [operand(o) for o in instruction.operands], cursor)
    ]
    return [*planned, Launch(_advance(), (1,), (1,), (cursor, np.int64(rows)))]


# ------------------------------------------------------------------------------------------------ catalogue


class Entry(NamedTuple):
    """A kernel to compile without a GPU."""

    name: str
    function: Callable[..., Any]
    signature: tuple[Any, ...]
    options: dict[str, Any]
    float64: bool  # whether float64 arithmetic belongs in it
    oldest: int = 0  # architecture


def _variants(op: Any, dtype: np.dtype, only: Sequence[str]) -> Iterator[tuple[str, Instruction]]:
    """Instructions on small arrays: every rule of the kind, with all optional operands and with none; many columns."""
    sizes = {letter: 3 for spec in op.operands for letter in spec.dims} | {"m": 2 * CHUNK, "g": 1}
    rules = [rule for rule in REGISTRY[op.rule].values() if not only or rule.name in only] if op.rule else [None]
    if op.rule == "optimizer":
        rules = [rule for rule in rules if takes(op.name, rule)]
    kinds = {"f": dtype, "i": np.dtype(np.int64), "d": np.dtype(np.float64)}
    shapes = [{}, {"n": 6, "g": 3}] if op.multiples else [{}]  # a channel with one column, and with several
    full = [True, False] if any(spec.optional for spec in op.operands) else [True]
    for rule, shape, given in itertools.product(rules, shapes, full):
        if rule is not None and op.rule == "optimizer":
            if len(full) > 1 and given != bool(rule.factors):
                continue
            count = UNIFORM_HEADER + len(uniforms_of(rule))
            sizes |= {"S": len(rule.slots), "K": len(rule.hyper), "U": count, "V": count + len(rule.sums)}
        letters = sizes | shape
        operands = [
            None if spec.optional and not given else np.ones([letters[d] for d in spec.dims], kinds[spec.dtype])
            for spec in op.operands
        ]
        label = f"{op.name}{f'[{rule.name}]' if rule else ''}{'' if given else '-'}{' spatial' if shape else ''}"
        yield label, Instruction(op.name, operands, rule, [0.5] * len(op.scalars))


def takes(op: str, rule: Any) -> bool:
    """Whether an instruction of the optimizer is for ``rule``: some rules look at a whole tensor, and need that."""
    if op == "optimizer_begin" or rule.after:
        return op in ("optimizer_begin", "factored_update")
    if op == "factor_sums":
        return bool(rule.factors)
    if op == "optimizer_update_by_tensor":
        return True
    return op != "factored_update" and (op == "tensor_sums") == rule.by_tensor


def catalogue(dtypes: Sequence[Any] = (np.float32, np.float64), rules: Sequence[str] = ()) -> list[Entry]:
    """Every kernel of every instruction, crossed with every rule (or those named); not on the simulator."""
    entries: dict[Any, Entry] = {}
    for op in OPS.values():
        for dtype in map(np.dtype, dtypes):
            for label, instruction in _variants(op, dtype, rules):
                for launch in plan(instruction, instruction.operands, np.zeros(2, np.int64)):
                    function = launch.kernel.py_func
                    signature = argument_types(launch.arguments)
                    name = f"{label}/{function.__name__}/{dtype.name}"
                    wide = dtype == np.float64 or function.__name__ in DELIBERATE_FLOAT64
                    entry = Entry(name, function, signature, launch.kernel.options, wide)
                    entries.setdefault((id(launch.kernel), signature), entry)
    return list(entries.values())
