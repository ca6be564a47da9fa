"""From instructions to the steps that threads share: what is cut where, and what is fused.

An instruction says what is computed; a step says also how threads divide it:

* ``rows``    each thread takes its own rows of the mini-batch; operands with ``m`` rows are cut to them;
* ``chunks``  the same, one call for each chunk of rows; operands with ``c`` rows are cut to the one of the chunk:
  sums over the mini-batch are taken chunk by chunk and the chunks added in order, so that they do not depend on the
  number of threads;
* ``parts``   every thread sees everything and takes its part of the columns, weights or parameters, and in some steps
              what others leave of theirs;
* ``one``     the first thread does it.

Operands with ``C`` rows hold all chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..instructions import CHUNKS, OPS, Instruction, Op, declare
from ..program import Buffer

CHUNK_ROWS = 16  # at least, and a multiple of the rows of a tile
MOST_CHUNKS = 32


def chunk_rows(rows: int) -> int:
    """The rows of a chunk of a mini-batch of ``rows`` rows; the last chunk may have fewer.

    Their number is a power of two, to be shared evenly, and about the square root of half the rows, so that the sums of
    chunks are few beside the rows.
    """
    count = 1
    while count < MOST_CHUNKS and rows >= 2 * CHUNK_ROWS * count and rows >= 8 * count * count:
        count *= 2
    return 8 * ((rows + 8 * count - 1) // (8 * count))


def chunk_count(rows: int) -> int:
    """How many chunks a mini-batch of ``rows`` rows has."""
    size = chunk_rows(rows)
    return (rows + size - 1) // size


_DIVISION = {
    "record": "one", "optimizer_begin": "one", "optimizer_update": "parts",
    "factor_sums": "parts", "factored_update": "parts", "factor_update": "parts",
    "restore_weights": "parts", "weight_penalty_gradient": "parts", "constrain_norm": "parts",
    "constrain_non_negative": "parts",
}  # fmt: skip  # the others: rows
TAKES_PIECES = ("optimizer_update", "optimizer_update_apart")  # by context.take_piece

# fmt: off
_NEW = [
    declare("dense_forward_columns", "x:mk w:kn b?:n >z?:mn >y:mn", "dense_forward, for few rows",
            rule="activation", division="parts"),
    declare("dense_backward_x_columns", "dz:mn w:kn >dx:mk", "dense_backward_x, for few rows", division="parts"),
    declare("dense_backward_z", "dy:mn z?:mn y:mn >dz:mn >sums?:cn", "dz = dy * g'(z, y); sums = its column sums",
            rule="activation", division="chunks"),
    declare("dense_backward_w", "x:mk dz:mn >dw:kn", "dW = x^T dz", division="parts"),
    declare("dense_update", "x:mk dz:mn >dw:kn +w:kn +slots:SP uniforms:U",
            "dW = x^T dz, and the optimizer on each slab of it while it is in the cache",
            scalars="offset", rule="optimizer", division="parts"),
    declare("sum_chunks", "sums:Cn >total:n", "total = the sum of the chunks, in order", division="one"),
    declare("sum_chunks_update", "sums:Cn >g:n +w:n +slots:SP uniforms:U", "the same, and the optimizer on it",
            scalars="offset", rule="optimizer", division="one"),
    declare("batch_norm_moments", "x:mn >shift:ck >offset:ck >squares:ck",
            "of each channel in a chunk: shift + offset = the mean, and the sum of squared deviations",
            division="chunks"),
    declare("batch_norm_apply",
            "x:mn gamma:k beta:k +running_mean:k +running_var:k shifts:Ck offsets:Ck squares:Ck =mean:k =rstd:k "
            ">y:mn",
            "y = gamma (x - mean) rstd + beta", scalars="momentum epsilon", division="rows"),
    declare("batch_norm_sums", "dy:mn x:mn mean:k rstd:k >dgamma:ck >dbeta:ck", "sums of dy xhat and of dy",
            division="chunks"),
    declare("batch_norm_gradient", "dy:mn x:mn gamma:k mean:k rstd:k dgamma:Ck dbeta:Ck >dx:mn",
            "dx = gamma rstd (dy - mean dy - xhat mean(dy xhat))", division="rows"),
    declare("group_norm_gradient", "dy:mn x:mn gamma:k mean:mg rstd:mg >dx:mn >dgamma:ck >dbeta:ck",
            "dx of group_norm_backward; sums of dy xhat and of dy", division="chunks"),
    declare("prelu_gradient", "dy:mn z:mn alpha:n >dz:mn >dalpha:cn",
            "dz of prelu_backward; sums over the rows where z <= 0 of z dy", division="chunks"),
    declare("penalty_sums", "w:kn >sums:B[d]", "sums of l1 |w| + l2 w^2 over blocks of rows", scalars="l1 l2",
            division="parts"),
    declare("penalty_add", "sums:B[d] +value:m", "value += the sum of the blocks", division="one"),
    declare("sum_of_squares", "g:P >squares:B[d]", "sums of g^2 over blocks of fixed size", division="parts"),
    declare("clip", "squares:B[d] hyper:K[d] +uniforms:U",
            "uniforms[0] *= c / max(c, ||uniforms[0] g||) where c = hyper[-1] > 0", division="one"),
    declare("count_not_finite", "g:P >counts:B[d]", "elements of g that are not finite, over blocks of fixed size",
            division="parts"),
    declare("move_scale", "counts:B[d] +scaler:L[d] +step:Q[i] +uniforms:U",
            "uniforms[0] /= scale, uniforms[4] = 1 where a count is not 0; the scale moves", division="one"),
    declare("ascent_squares", "w:P g:P >squares:B[d]", "sums of (T g)^2 over blocks of fixed size",
            scalars="eta adaptive", division="parts"),
    declare("ascend_by", "squares:B[d] +w:P g:P uniforms:U >kept:P", "the rest of ascend",
            scalars="rho eta adaptive", division="parts"),
    declare("add_gradient", "g:P +total:P turn:Q[i] uniforms:U", "total of accumulate_gradient", division="parts"),
    declare("end_turn", "+turn:Q[i] +batches:Q[i] +step:Q[i] +uniforms:U", "the rest of accumulate_gradient",
            scalars="steps", division="one"),
    declare("block_squares", "g:P blocks:Bt[i] >partial:Bs[d]", "sums of g^2 over the blocks", division="parts"),
    declare("block_sums", "w:P g:P slots:SP uniforms:U blocks:Bt[i] >partial:Bs[d]",
            "sums of the rule's summands over the blocks", rule="optimizer", division="parts"),
    declare("block_update", "+w:P g:P +slots:SP rows:TV blocks:Bt[i]", "optimizer_update_by_tensor",
            rule="optimizer", division="parts"),
    declare("panel_sums", "w:P g:P slots:SP factors:F uniforms:U tensors:Tf[i] panels:Dp[i] >partial:Ds[d]",
            "the same over panels, with factors of row and column", rule="optimizer", division="parts"),
    declare("panel_update", "+w:P g:P +slots:SP factors:F rows:TV tensors:Tf[i] panels:Dp[i]",
            "the same over panels, with the factors of row and column", rule="optimizer", division="parts"),
    declare("norms_of_tensors", "partial:Bs[d] hyper:K[d] uniforms:U blocks:Bt[i] >rows:TV",
            "rows of clip_by_norm", division="one"),
    declare("sums_of_tensors", "partial:Bs[d] uniforms:U blocks:Bt[i] >rows:TV", "rows of tensor_sums", division="one"),
    declare("optimizer_update_apart", "+w:P g:P +first?:P +second?:P uniforms:U",
            "optimizer_update, with up to two slots wherever they lie", rule="optimizer", division="parts"),
    declare("barrier", "", "wait for all threads", division="parts"),
]
# fmt: on
MADE_OF_STEPS = (
    "batch_norm_forward",
    "batch_norm_backward",
    "group_norm_backward",
    "prelu_backward",
    "weight_penalty",
    "check_finite",
    "ascend",
    "accumulate_gradient",
    "clip_by_global_norm",
    "clip_by_norm",
    "tensor_sums",
    "optimizer_update_by_tensor",
)

STEPS: dict[str, Op] = {
    name: Op(name, op.operands, op.scalars, op.rule, op.doc, _DIVISION.get(name, "rows"))
    for name, op in OPS.items()
    if name not in MADE_OF_STEPS
} | {op.name: op for op in _NEW}


def step(name: str, operands: Sequence[Any], rule: Any = None, scalars: Sequence[float] = ()) -> Instruction:
    """The step ``name`` on its operands."""
    return Instruction(STEPS[name], operands, rule, scalars)


def _temporary(name: str, shape: tuple[int, ...], dtype: Any) -> Buffer:
    return Buffer(name, shape, np.dtype(dtype), "temporary", -1)


NORM_BLOCK = 1 << 14  # elements that sum_of_squares adds in one go
PENALTY_BLOCKS = 64  # of rows, at most: sums over weights do not depend on the number of threads


def expand(instruction: Instruction) -> Iterator[Instruction]:
    """The steps of one instruction."""
    name, operands, dtype = instruction.op.name, instruction.operands, instruction.dtype
    if name == "dense_backward_z":
        dy, z, y, dz, db = operands
        sums = None if db is None else _temporary("sums", (CHUNKS, db.shape[0]), dtype)
        yield step(name, [dy, z, y, dz, sums], instruction.rule)
        if db is not None:
            yield step("sum_chunks", [sums, db])
    elif name == "batch_norm_forward":
        x, gamma, beta, running_mean, running_var, mean, rstd, y = operands
        moments = [_temporary(n, (CHUNKS, gamma.shape[0]), dtype) for n in ("shifts", "offsets", "squares")]
        yield step("batch_norm_moments", [x, *moments])
        rest = [running_mean, running_var, *moments, mean, rstd, y]
        yield step("batch_norm_apply", [x, gamma, beta, *rest], None, instruction.scalars)
    elif name == "batch_norm_backward":
        dy, x, gamma, mean, rstd, dx, dgamma, dbeta = operands
        parts = [_temporary(n, (CHUNKS, gamma.shape[0]), dtype) for n in ("dgamma", "dbeta")]
        yield step("batch_norm_sums", [dy, x, mean, rstd, *parts])
        yield step("batch_norm_gradient", [dy, x, gamma, mean, rstd, *parts, dx])
        for part, total in zip(parts, (dgamma, dbeta), strict=True):
            yield step("sum_chunks", [part, total])
    elif name == "group_norm_backward":
        *given, dx, dgamma, dbeta = operands
        parts = [_temporary(n, (CHUNKS, dgamma.shape[0]), dtype) for n in ("dgamma", "dbeta")]
        yield step("group_norm_gradient", [*given, dx, *parts])
        for part, total in zip(parts, (dgamma, dbeta), strict=True):
            yield step("sum_chunks", [part, total])
    elif name == "prelu_backward":
        *given, dz, dalpha = operands
        part = _temporary("dalpha", (CHUNKS, dalpha.shape[0]), dtype)
        yield step("prelu_gradient", [*given, dz, part])
        yield step("sum_chunks", [part, dalpha])
    elif name == "weight_penalty":
        w, value = operands
        sums = _temporary("penalties", (min(w.shape[0], PENALTY_BLOCKS),), np.float64)
        yield step("penalty_sums", [w, sums], None, instruction.scalars)
        yield step("penalty_add", [sums, value])
    elif name == "clip_by_global_norm":
        g, hyper, uniforms = operands
        squares = _temporary("squares", (-(-g.shape[0] // NORM_BLOCK),), np.float64)
        yield step("sum_of_squares", [g, squares])
        yield step("clip", [squares, hyper, uniforms])
    elif name == "check_finite":
        g, scaler, count, uniforms = operands
        counts = _temporary("counts", (-(-g.shape[0] // NORM_BLOCK),), np.float64)
        yield step("count_not_finite", [g, counts])
        yield step("move_scale", [counts, scaler, count, uniforms])
    elif name == "ascend":
        w, g, uniforms, kept = operands
        squares = _temporary("squares", (-(-g.shape[0] // NORM_BLOCK),), np.float64)
        yield step("ascent_squares", [w, g, squares], None, instruction.scalars[1:])
        yield step("ascend_by", [squares, w, g, uniforms, kept], None, instruction.scalars)
    elif name == "accumulate_gradient":
        g, total, turn, batches, count, uniforms = operands
        yield step("add_gradient", [g, total, turn, uniforms])
        yield step("end_turn", [turn, batches, count, uniforms], None, instruction.scalars)
    elif name == "clip_by_norm":
        g, hyper, uniforms, blocks, rows = operands
        partial = _temporary("partial", (blocks.shape[0], 1), np.float64)
        yield step("block_squares", [g, blocks, partial])
        yield step("norms_of_tensors", [partial, hyper, uniforms, blocks, rows])
    elif name == "tensor_sums":
        w, g, slots, uniforms, blocks, factors, tensors, panels, rows = operands
        parts = panels if instruction.rule.factors else blocks
        partial = _temporary("partial", (parts.shape[0], rows.shape[1] - uniforms.shape[0]), np.float64)
        if partial.shape[1] and instruction.rule.factors:
            yield step("panel_sums", [w, g, slots, factors, uniforms, tensors, panels, partial], instruction.rule)
        elif partial.shape[1]:
            yield step("block_sums", [w, g, slots, uniforms, blocks, partial], instruction.rule)
        yield step("sums_of_tensors", [partial, uniforms, parts, rows])
    elif name == "optimizer_update_by_tensor":
        w, g, slots, rows, blocks, factors, tensors, panels = operands
        if instruction.rule.factors:
            yield step("panel_update", [w, g, slots, factors, rows, tensors, panels], instruction.rule)
        else:
            yield step("block_update", [w, g, slots, rows, blocks], instruction.rule)
    else:
        yield step(name, operands, instruction.rule, instruction.scalars)


def divide_by_columns(steps: Sequence[Instruction], rows: int, threads: int) -> list[Instruction]:
    """``steps`` with dense products cut by columns where that is better than by rows.

    That is where there are fewer chunks of rows than threads, and where the rows are few beside the weights: cut by
    rows, every thread reads all weights.
    """
    cut = cut_by_columns(rows, threads)
    result = []
    for s in steps:
        if cut is not None and _by_columns(s, *cut):
            s = step(f"{s.op.name}_columns", s.operands, s.rule)
        result.append(s)
    return result


def cut_by_columns(rows: int, threads: int) -> tuple[int, int] | None:
    """From how many weights and columns on a dense product is cut by columns; None where none is."""
    columns = _columns_a_thread(rows) * threads
    if threads > chunk_count(rows):
        return _WEIGHTS, columns
    # each thread packs and fetches its part of the weights alone; with more rows that is little beside the products
    return (1 << 15, columns) if threads > 1 and rows < 256 * threads else None


_WEIGHTS = 1 << 17  # below, the barriers cost more than the second thread saves


def _columns_a_thread(rows: int) -> int:
    return 128 if rows == 1 else 32  # at least: a single row is all reading of weights, and strips are read slowly


def _by_columns(s: Instruction, least_weights: int, least_columns: int) -> bool:
    if s.op.name not in ("dense_forward", "dense_backward_x"):
        return False
    weights = s.operands[1].shape
    columns = weights[1] if s.op.name == "dense_forward" else weights[0]
    return math.prod(weights) >= least_weights and columns >= least_columns


def most_threads(steps: Sequence[Instruction], rows: int) -> int:
    """How many threads find work in ``steps``."""
    most = 1
    for s in steps:
        if s.op.division == "parts":
            return MOST_CHUNKS
        if s.op.division in ("rows", "chunks"):
            most = max(most, chunk_count(rows))
        if _by_columns(s, _WEIGHTS, _columns_a_thread(rows)):
            columns = s.operands[1].shape[1 if s.op.name == "dense_forward" else 0]
            most = max(most, columns // _columns_a_thread(rows))
    return most


_FUSED = {"dense_backward_w": "dense_update", "sum_chunks": "sum_chunks_update"}


def fuse_updates(steps: Sequence[Instruction], program: Any) -> list[Instruction]:
    """Let the optimizer run on each gradient as soon as it is there, instead of over all parameters at the end.

    Not where something reads all gradients first (clipping by the global norm), or work on rows comes later, which
    must see the weights as they were.
    """
    update = [s for s in steps if s.op.name == "optimizer_update"]
    if len(update) != 1 or update[0].operands[1] is not program.gradients:
        return list(steps)
    weight_of = dict(zip(program.buffers["gradient"], program.buffers["parameter"], strict=True))
    sources = {s.operands[-1]: s for s in steps if s.op.name in _FUSED and s.operands[-1] in weight_of}
    first = next((k for k, s in enumerate(steps) if s in sources.values()), len(steps))
    if set(sources) != set(weight_of) or any(s.op.division in ("rows", "chunks") for s in steps[first:]):
        return list(steps)
    if any(s.op.name in ("sum_of_squares", "count_not_finite") for s in steps):
        return list(steps)
    others = [s for s in steps if s not in sources.values() and s is not update[0]]
    if any(operand in weight_of for s in others for operand in s.operands if isinstance(operand, Buffer)):
        return list(steps)  # a penalty adds to a gradient that is there
    _, _, slots, uniforms = update[0].operands
    offsets, _, _ = program.layout(1)
    result = []
    for s in steps:
        if s in sources.values():
            weight = weight_of[s.operands[-1]]
            offset = (offsets[weight] - offsets[program.parameters]) // weight.dtype.itemsize
            operands = [*s.operands, weight, slots, uniforms]
            s = step(_FUSED[s.op.name], operands, update[0].rule, [offset])
        if s is not update[0]:
            result.append(s)
    return result
