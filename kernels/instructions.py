"""The instruction set: what both engines run, one line an instruction.

An operand is ``name:dims``, optionally ``name?`` (may be missing) and ``:dims[dtype]``. Dims are letters; the same
letter means the same size throughout an instruction. ``m`` is the number of rows of the mini-batch, known when the
instruction runs; upper-case letters are sizes of whole arrays. The dtype is that of the model unless given:
``i`` int64, ``d`` float64, ``h`` float16, or bfloat16 as uint16, since NumPy has no name for it. ``>`` marks operands
that are written, ``+`` operands that are read and written.

``multiples="nk"`` says that ``n`` is a multiple of ``k``.

An engine that breaks instructions into smaller steps declares those with :func:`declare` in the same notation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS = -1  # the size of a buffer's first axis that is the mini-batch
CHUNKS = -2  # that is the number of chunks of rows the CPU engine cuts a mini-batch into
_SYMBOLS = {ROWS: "rows", CHUNKS: "chunks"}


@dataclass(frozen=True)
class Operand:
    """One operand of an instruction, as declared."""

    name: str
    dims: str
    dtype: str
    optional: bool
    access: str  # "read", "write", "update", or "alike": written by every thread with the same values


@dataclass(frozen=True)
class Op:
    """One kind of instruction."""

    name: str
    operands: tuple[Operand, ...]
    scalars: tuple[str, ...]
    rule: str | None
    doc: str
    division: str = ""  # how the CPU engine divides it among threads: see cpu/steps.py
    multiples: tuple[tuple[str, str], ...] = ()  # ("n", "k"): the size n is a multiple of the size k


_OPERAND = re.compile(r"(?P<access>[>+=]?)(?P<name>\w+)(?P<optional>\??):(?P<dims>\w+)(?:\[(?P<dtype>[idh])\])?$")
_ACCESS = {"": "read", ">": "write", "+": "update", "=": "alike"}


def declare(
    name: str,
    operands: str,
    doc: str,
    *,
    scalars: str = "",
    rule: str | None = None,
    division: str = "",
    multiples: str = "",
) -> Op:
    """An :class:`Op` from the notation above."""
    parsed = []
    for word in operands.split():
        match = _OPERAND.match(word)
        assert match, word
        access = _ACCESS[match["access"]]
        parsed.append(Operand(match["name"], match["dims"], match["dtype"] or "f", bool(match["optional"]), access))
    pairs = tuple((whole, part) for whole, part in map(list, multiples.split()))
    return Op(name, tuple(parsed), tuple(scalars.split()), rule, doc, division, pairs)


# fmt: off
_LIST = [
    # -- data
    declare("gather_rows", "source:Nk order:O[i] >out:mk", "out[r] = source[order[start + r]]"),
    declare("gather_labels", "source:N[i] order:O[i] >out:m[i]", "out[r] = source[order[start + r]]"),
    declare("gather_values", "source:N order:O[i] >out:m", "out[r] = source[order[start + r]]"),
    # -- dense
    declare("dense_forward", "x:mk w:kn b?:n >z?:mn >y:mn", "z = x W + b; y = g(z)", rule="activation"),
    declare("dense_backward_z", "dy:mn z?:mn y:mn >dz:mn >db?:n", "dz = dy * g'(z, y); db = sum over rows of dz",
        rule="activation"),
    declare("dense_backward_w", "x:mk dz:mn >dw:kn", "dW = x^T dz"),
    declare("dense_backward_x", "dz:mn w:kn >dx:mk", "dx = dz W^T"),
    declare("activation_forward", "z:mn >y:mn", "y = g(z)", rule="activation"),
    declare("activation_backward", "dy:mn z:mn y:mn >dz:mn", "dz = dy * g'(z, y)", rule="activation"),
    # -- rows
    declare("softmax_forward", "z:mn >y:mn", "y = exp(z - max z) / sum exp(z - max z), row by row"),
    declare("softmax_backward", "dy:mn y:mn >dz:mn", "dz = y * (dy - sum(dy * y)), row by row"),
    declare("log_softmax_forward", "z:mn >y:mn", "y = z - max z - log sum exp(z - max z), row by row"),
    declare("log_softmax_backward", "dy:mn y:mn >dz:mn", "dz = dy - exp(y) * sum(dy), row by row"),
    declare("prelu_forward", "z:mn alpha:n >y:mn", "y = z where z > 0, else alpha z"),
    declare("prelu_backward", "dy:mn z:mn alpha:n >dz:mn >dalpha:n",
        "dz = dy where z > 0, else alpha dy; dalpha = sum over the other rows of z dy"),
    # -- batch norm, biased variance in the batch, unbiased in the running statistics; the n columns are those of k
    # channels, n/k neighbours each, which share their figures: (batch, channels) or (batch, channels, *spatial)
    declare("batch_norm_forward",
        "x:mn gamma:k beta:k +running_mean:k +running_var:k >mean:k >rstd:k >y:mn",
        "y = gamma (x - mean) rstd + beta; running = momentum * running + (1 - momentum) * batch",
        scalars="momentum epsilon", multiples="nk"),
    declare("batch_norm_inference", "x:mn gamma:k beta:k running_mean:k running_var:k >y:mn",
        "y = gamma (x - running_mean) / sqrt(running_var + epsilon) + beta", scalars="epsilon", multiples="nk"),
    declare("batch_norm_backward", "dy:mn x:mn gamma:k mean:k rstd:k >dx:mn >dgamma:k >dbeta:k",
        "dbeta = sum dy; dgamma = sum dy xhat; dx = gamma rstd (dy - mean dy - xhat mean(dy xhat))", multiples="nk"),
    # -- group norm, biased variance of each row's g groups of channels: one group is layer norm (which has k = n), a
    # group for each channel instance norm
    declare("group_norm_forward", "x:mn gamma:k beta:k >mean:mg >rstd:mg >y:mn",
        "y = gamma (x - mean) rstd + beta, group by group", scalars="epsilon", multiples="nk kg"),
    declare("group_norm_backward", "dy:mn x:mn gamma:k mean:mg rstd:mg >dx:mn >dgamma:k >dbeta:k",
        "h = gamma dy; dx = rstd (h - mean_j h - xhat mean_j(h xhat)); dgamma, dbeta = sums of dy xhat, dy",
        multiples="nk kg"),
    # -- dropout: Philox, counter (column // 4, row, step, layer), key = seed; kept if the word >= rate 2^32
    declare("dropout", "x:mn seed:Q[i] step:Q[i] >y:mn",
        "y = keep * x / (1 - rate); the backward pass is the same instruction on the gradient",
        scalars="rate layer"),
    # -- losses: per-sample loss, and the gradient of its mean over the batch, 1/m included
    declare("softmax_cross_entropy", "z:mn labels:m[i] weight?:m >loss:m >dz?:mn",
        "loss = log sum exp z - z[label]; dz = weight (softmax z - onehot) / m"),
    declare("softmax_cross_entropy_dense", "z:mn target:mn weight?:m >loss:m >dz?:mn",
        "loss = sum_j t_j (log sum exp z - z_j); dz = weight (softmax(z) sum t - t) / m"),
    declare("elementwise_loss", "p:mn target:mn weight?:m >loss:m >dp?:mn",
        "loss = reduce_j L(p_j, t_j); dp = weight L'(p, t) / m, / n too where mean != 0",
        scalars="mean", rule="loss"),
    declare("cosine_similarity", "p:mn target:mn weight?:m >loss:m >dp?:mn", "loss = -p t / (|p| |t|)"),
    declare("categorical_hinge", "p:mn target:mn weight?:m >loss:m >dp?:mn",
        "loss = max(0, 1 + max_j (1 - t_j) p_j - sum_j t_j p_j)"),
    declare("hellinger_distance", "p:mn target:mn weight?:m >loss:m >dp?:mn", "loss = |sqrt p - sqrt t| / sqrt 2"),
    declare("smooth_targets", "target:mn >out:mn", "out = keep * target + share", scalars="keep share"),
    declare("smooth_labels", "labels:m[i] >out:mn", "out = keep * onehot + share", scalars="keep share"),
    # -- products of matrices; q = k n, and m = A E in the second
    declare("hadamard", "a:mn b:mn >out:mn", "out = a b, element by element"),
    declare("kronecker", "a:Ak b:En >out:mq", "out[i E + r] = a[i] x b[r]"),
    declare("khatri_rao", "a:mk b:mn >out:mq", "out[i] = a[i] x b[i], the Kronecker product of two rows"),
    # -- weights: penalties, and constraints after an update
    declare("weight_penalty", "w:kn +value:m", "value += sum(l1 |w| + l2 w^2), in each row", scalars="l1 l2"),
    declare("weight_penalty_gradient", "w:kn +dw:kn", "dw += l1 sign(w) + 2 l2 w", scalars="l1 l2"),
    declare("constrain_norm", "+w:kn", "each column scaled to a norm within [minimum, maximum]",
        scalars="minimum maximum"),
    declare("constrain_non_negative", "+w:kn", "w = max(w, 0)"),
    # -- metrics: one value a row, and their mean into a history
    declare("categorical_accuracy", "score:mn labels:m[i] >hit:m",
        "hit = 1 where argmax score = label; the first maximum"),
    declare("categorical_accuracy_dense", "score:mn target:mn >hit:m", "hit = 1 where argmax score = argmax target"),
    declare("binary_accuracy", "score:mn target:mn >hit:m",
        "hit = mean_j of [score_j > threshold] = [target_j > 1/2]", scalars="threshold"),
    declare("record", "value:m +history:H[d]", "history[index] = mean over rows of value, in float64"),
    # -- optimizer, over all parameters at once. uniforms: see step_text.UNIFORM_HEADER; blocks: see Builder.blocks
    declare("optimizer_begin", "hyper:K[d] +step:Q[i] >uniforms:U",
        "step += 1; the schedule, and the expressions of the hyper-parameters alone, in float64", rule="optimizer"),
    declare("scale_loss", "+dz:mn scaler:L[d]", "dz *= scaler[0]: the gradient of a loss that is as many times larger"),
    declare("check_finite", "g:P +scaler:L[d] +step:Q[i] +uniforms:U",
        "uniforms[0] /= scaler[0]; where g is not finite, uniforms[4] = 1 (skip) and step -= 1; the scale moves"),
    declare("ascend", "+w:P g:P uniforms:U >kept:P",
        "kept = w; w += rho T^2 g / ||T g||, T = |w| + eta where adaptive, else 1; the other way where uniforms[0] < 0",
        scalars="rho eta adaptive"),
    declare("restore_weights", "kept:P >w:P", "w = kept"),
    declare("accumulate_gradient", "g:P +total:P +turn:Q[i] +batches:Q[i] +step:Q[i] +uniforms:U",
        "total = uniforms[0] g, + total where turn > 0; batches += 1; turn += 1; where that is less than steps "
        "uniforms[4] = 1 (skip) and step -= 1, else uniforms[0] = 1 / steps, the scale of total, and turn = 0",
        scalars="steps"),
    declare("clip_by_global_norm", "g:P hyper:K[d] +uniforms:U",
        "uniforms[0] *= c / max(c, ||uniforms[0] g||) where c = hyper[-1] > 0"),
    declare("clip_by_norm", "g:P hyper:K[d] uniforms:U blocks:Bt[i] >rows:TV",
        "rows[t] = uniforms, with rows[t][0] *= c / max(c, ||rows[t][0] g_t||) for every tensor, c = hyper[-1] > 0"),
    declare("tensor_sums", "w:P g:P slots:SP uniforms:U blocks:Bt[i] factors?:F tensors?:Tf[i] panels?:Dp[i] "
        ">rows:TV",
        "rows[t] = uniforms, and behind them the sums over tensor t of summands(w, scale * g + l2 * w, slots, factors)",
        rule="optimizer"),
    declare("optimizer_update", "+w:P g:P +slots:SP uniforms:U", "w, slots = rule(w, scale * g + l2 * w, slots)",
        rule="optimizer"),
    declare("optimizer_update_by_tensor", "+w:P g:P +slots:SP rows:TV blocks:Bt[i] factors?:F tensors?:Tf[i] "
        "panels?:Dp[i]",
        "the same, with the uniforms and sums of the tensor of each element, and the factors of its row and column",
        rule="optimizer"),
    # state of rows and columns, tensors and panels: see program.Factors
    declare("factor_sums", "w:P g:P factors:F uniforms:U tensors:Tf[i] panels:Dp[i] >sums:X",
        "over each row and column of a panel, sums of the rule's terms less the factor there is; or the largest terms",
        rule="optimizer"),
    declare("factored_update", "+w:P g:P +slots:SP factors:F uniforms:U tensors:Tf[i] panels:Dp[i] >sums:X",
        "optimizer_update with the factors of row and column, and factor_sums, where these change after the update",
        rule="optimizer"),
    declare("factor_update", "sums:X uniforms:U tensors:Tf[i] panels:Dp[i] +factors:F",
        "factors = means of terms over each row and column, behind that of the rows; or the largest terms, behind 1",
        scalars="largest"),
]
# fmt: on

OPS: dict[str, Op] = {op.name: op for op in _LIST}

# Instructions of CUDA that no program holds yet: weights and gradients of 16 bits, float32 weights behind them.
MIXED: dict[str, Op] = {
    op.name: op
    for op in (
        declare(
            "clip_by_global_norm_mixed", "g:P[h] hyper:K[d] +uniforms:U", "clip_by_global_norm of a gradient of 16 bits"
        ),
        declare(
            "optimizer_update_mixed",
            "+master:P g:P[h] +slots:SP >w:P[h] uniforms:U",
            "master, slots = rule(master, scale * g + l2 * master, slots); w = master, rounded",
            rule="optimizer",
        ),
    )
}


class ShapeError(ValueError):
    """Operands of an instruction that do not fit together."""


class Instruction:
    """An op with its operands: buffers of a program, or arrays when it runs at once.

    Raises :class:`ShapeError` where shapes or dtypes disagree, naming the operand, what came and what was expected.
    """

    __slots__ = ("op", "operands", "rule", "scalars")

    def __init__(self, op: str | Op, operands: Sequence[Any], rule: Any = None, scalars: Sequence[float] = ()) -> None:
        self.op = OPS[op] if isinstance(op, str) else op
        self.operands = tuple(operands)
        self.rule = rule
        self.scalars = tuple(float(s) for s in scalars)
        self._check()

    def _check(self) -> None:
        op = self.op
        if len(self.operands) != len(op.operands) or len(self.scalars) != len(op.scalars):
            raise TypeError(f"{op.name} takes {len(op.operands)} operands and {len(op.scalars)} scalars")
        if (self.rule is None) != (op.rule is None) or (self.rule is not None and self.rule.kind != op.rule):
            raise TypeError(f"{op.name} takes {op.rule or 'no'} rule, got {self.rule!r}")
        sizes: dict[str, tuple[int, str]] = {}
        for spec, value in zip(op.operands, self.operands, strict=True):
            if value is None:
                if not spec.optional:
                    raise ShapeError(f"{op.name}: {spec.name} is missing")
                continue
            shape = tuple(value.shape)
            if len(shape) != len(spec.dims):
                raise ShapeError(f"{op.name}: {spec.name} has shape {shape}; expected {self._expected(spec, sizes)}")
            for letter, size in zip(spec.dims, shape, strict=True):
                known = sizes.setdefault(letter, (size, spec.name))
                if known[0] != size:
                    raise ShapeError(
                        f"{op.name}: {spec.name} has shape {shape}; expected {self._expected(spec, sizes)} "
                        f"to fit {known[1]}"
                    )
            self._check_dtype(spec, value)
        for whole, part in op.multiples:
            (size, name), (parts, other) = sizes[whole], sizes[part]
            if size % parts if parts else size:
                raise ShapeError(f"{op.name}: {other} is of {parts}, {name} of {size}; expected a divisor of {size}")

    def _check_dtype(self, spec: Operand, value: Any) -> None:
        if spec.dtype == "f":
            if np.dtype(value.dtype) != self.dtype:
                raise ShapeError(f"{self.op.name}: {spec.name} is {value.dtype}; expected {self.dtype}")
            return
        if spec.dtype == "h":
            if np.dtype(value.dtype) not in (np.float16, np.uint16):
                raise ShapeError(
                    f"{self.op.name}: {spec.name} is {value.dtype}; expected float16, or uint16 for bfloat16"
                )
            return
        expected = np.dtype(np.int64 if spec.dtype == "i" else np.float64)
        if np.dtype(value.dtype) != expected:
            raise ShapeError(f"{self.op.name}: {spec.name} is {value.dtype}; expected {expected}")

    @staticmethod
    def _expected(spec: Operand, sizes: dict[str, tuple[int, str]]) -> str:
        words = [str(sizes[d][0]) if d in sizes and sizes[d][0] >= 0 else d for d in spec.dims]
        return "(" + ", ".join(words).replace("m", "rows") + ("," if len(words) == 1 else "") + ")"

    @property
    def dtype(self) -> np.dtype:
        """The floating dtype of the instruction; float64 where it has no operand of the model's dtype."""
        for spec, value in zip(self.op.operands, self.operands, strict=True):
            if spec.dtype == "f" and value is not None:
                return np.dtype(value.dtype)
        return np.dtype(np.float64)

    def __str__(self) -> str:
        def show(value: Any) -> str:
            name = getattr(value, "name", "array")
            return f"{name}({', '.join(_SYMBOLS.get(s, str(s)) for s in value.shape)})"

        read: list[str] = []
        written: list[str] = []
        for spec, value in zip(self.op.operands, self.operands, strict=True):
            if value is not None:
                (read if spec.access == "read" else written).append(f"{spec.name}={show(value)}")
        scalars = [f"{name}={value:g}" for name, value in zip(self.op.scalars, self.scalars, strict=True)]
        rule = f"[{self.rule.name}]" if self.rule is not None else ""
        return f"{self.op.name + rule:36s} {' '.join(read + scalars)} -> {' '.join(written)}"
