"""Softmax and log-softmax, and their cross-entropy with class numbers and with probabilities, on CUDA.

Memory contract: outputs are overwritten. Gradients are those of the mean over the batch, 1/m included. A warp takes a
row and keeps it in registers, or reads a long one in each of three passes (warp.py). Sums are of the model's dtype, in
one fixed order.
"""

from __future__ import annotations

import functools
from typing import Any

from .launch import Launch
from .warp import PEAK, Passes, Row, row_kernel, row_launch, row_name, row_of

_FORWARD = """
def {name}(z, y, rows, columns):
{begin}
    peak = lowest
{peak}
    peak = warp_max(peak)
    total = zero
{exponentials}
    {last}
{y}
"""

_BACKWARD = """
def {name}(dy, y, dz, rows, columns):
{begin}
    total = zero
{dot}
    total = warp_sum(total)
{dz}
"""

_LABELS = """
def {name}(z, dz, labels, weight, loss, inverse, rows, columns):
{begin}
    peak = lowest
{peak}
    peak = warp_max(peak)
    total = zero
{exponentials}
    total = warp_sum(total)
    label = labels[row]{relative}
    w = {w}
    share = w * inverse
    scale = share / total
    mine = {mine}
    logit = {logit}
{find}
    if mine:
        loss[row] = w * (log(total) - (logit - peak))
{dz}
"""

_TARGETS = """
def {name}(z, target, dz, weight, loss, inverse, rows, columns):
{begin}
    peak = lowest
{peak}
    peak = warp_max(peak)
    total = zero
    mass = zero
    dot = zero
{sums}
    total = warp_sum(total)
    mass = warp_sum(mass)
    dot = warp_sum(dot)
    w = {w}
    share = w * inverse
    scale = mass * share / total
    if cuda.threadIdx.x == 0:
        loss[row] = w * (mass * log(total) - dot)
{dz}
"""

_EXPONENTIAL = {"e": "exp(z{e} - peak)"}


@functools.cache
def _forward(dtype: Any, row: Row) -> Any:
    name, go = row_name("softmax", row), Passes(row, {"z": "z"}, _EXPONENTIAL, z="lowest")
    text = _FORWARD.format(
        name=name,
        begin=row.begin,
        peak=go("z", PEAK),
        exponentials=go("z e", "total += e{e}"),
        last="scale = one / warp_sum(total)",
        y=go("z e", y="e{e} * scale"),
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _log_forward(dtype: Any, row: Row) -> Any:
    name, go = row_name("log_softmax", row), Passes(row, {"z": "z"}, z="lowest")
    text = _FORWARD.format(
        name=name,
        begin=row.begin,
        peak=go("z", PEAK),
        exponentials=go("z", "total += exp(z{e} - peak)"),
        last="shift = log(warp_sum(total))",
        y=go("z", y="(z{e} - peak) - shift"),
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _backward(dtype: Any, row: Row) -> Any:
    name, go = row_name("softmax_gradient", row), Passes(row, {"d": "dy", "y": "y"})
    dot, dz = go("d y", "total += d{e} * y{e}"), go("d y", dz="y{e} * (d{e} - total)")
    return row_kernel(_BACKWARD.format(name=name, begin=row.begin, dot=dot, dz=dz), name, dtype)


@functools.cache
def _log_backward(dtype: Any, row: Row) -> Any:
    name, go = row_name("log_softmax_gradient", row), Passes(row, {"d": "dy", "y": "y"})
    dot, dz = go("d", "total += d{e}"), go("d y", dz="d{e} - exp(y{e}) * total")
    return row_kernel(_BACKWARD.format(name=name, begin=row.begin, dot=dot, dz=dz), name, dtype)


@functools.cache
def _cross_entropy(dtype: Any, row: Row, weighted: bool, with_gradient: bool) -> Any:
    name, go = row_name("cross_entropy", row), Passes(row, {"z": "z"}, _EXPONENTIAL, z="lowest")
    kept = bool(row.vectors)  # the lane that keeps the logit of the label writes the loss
    here = "label == {j} - column" if kept else "label == {j}"
    text = _LABELS.format(
        name=name,
        begin=row.begin,
        peak=go("z", PEAK),
        exponentials=go("z e", "total += e{e}"),
        relative=" - column" if kept else "",
        w="weight[row]" if weighted else "one",
        mine="False" if kept else "cuda.threadIdx.x == 0",
        logit="zero" if kept else "z[row * columns + label]",
        find=row.each(f"if {here}: mine = True; logit = z{{e}}"),
        dz=go("z e", dz=f"e{{e}} * scale - (share if {here} else zero)") if with_gradient else "",
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _cross_entropy_dense(dtype: Any, row: Row, weighted: bool, with_gradient: bool) -> Any:
    name, go = row_name("cross_entropy_targets", row), Passes(row, {"z": "z", "t": "target"}, _EXPONENTIAL, z="lowest")
    # a class without mass costs nothing, whatever its logit
    dot = "mass += t{e}; dot += t{e} * (z{e} - peak) if t{e} != zero else zero"
    text = _TARGETS.format(
        name=name,
        begin=row.begin,
        peak=go("z", PEAK),
        sums=go("z t e", "total += e{e}", dot),
        w="weight[row]" if weighted else "one",
        dz=go("z t e", dz="e{e} * scale - share * t{e}") if with_gradient else "",
    )
    return row_kernel(text, name, dtype)


# ------------------------------------------------------------------------------------------------- instructions


def softmax_forward(z: Any, y: Any) -> list[Launch]:
    """``y = exp(z - max z) / sum exp(z - max z)`` for each row."""
    return [row_launch(_forward(z.dtype, row_of(z.shape[1], z, y)), [z, y])]


def softmax_backward(dy: Any, y: Any, dz: Any) -> list[Launch]:
    """``dz = y * (dy - sum(dy * y))`` for each row."""
    return [row_launch(_backward(y.dtype, row_of(y.shape[1], dy, y, dz)), [dy, y, dz])]


def log_softmax_forward(z: Any, y: Any) -> list[Launch]:
    """``y = z - max z - log sum exp(z - max z)`` for each row."""
    return [row_launch(_log_forward(z.dtype, row_of(z.shape[1], z, y)), [z, y])]


def log_softmax_backward(dy: Any, y: Any, dz: Any) -> list[Launch]:
    """``dz = dy - exp(y) * sum(dy)`` for each row."""
    return [row_launch(_log_backward(y.dtype, row_of(y.shape[1], dy, y, dz)), [dy, y, dz])]


def loss_launch(make: Any, row: Row, p: Any, target: Any, weight: Any, loss: Any, dp: Any, *scalars: Any) -> Launch:
    """The launch of a loss, made for a ``row``, whether it has weights, and whether its gradient is asked for.

    ``target`` is a matrix like ``p``, or a class number for each row; 1/m comes before ``scalars``.
    """
    made = make(p.dtype, row, weight is not None, dp is not None)
    matrices, labels = ([p, target], []) if target.ndim == 2 else ([p], [target])
    weight, dp = loss if weight is None else weight, p if dp is None else dp
    inverse = p.dtype.type(1.0 / p.shape[0])
    return row_launch(made, [*matrices, dp], *labels, weight, loss, inverse, *scalars)


def softmax_cross_entropy(z: Any, labels: Any, weight: Any, loss: Any, dz: Any) -> list[Launch]:
    """``loss = log sum exp z - z[label]``, ``dz = weight (softmax z - onehot) / m``."""
    row = row_of(z.shape[1], z, z if dz is None else dz)
    return [loss_launch(_cross_entropy, row, z, labels, weight, loss, dz)]


def softmax_cross_entropy_dense(z: Any, target: Any, weight: Any, loss: Any, dz: Any) -> list[Launch]:
    """``loss = sum_j t_j (log sum exp z - z_j)``, ``dz = weight (softmax(z) sum t - t) / m``."""
    row = row_of(z.shape[1], z, target, z if dz is None else dz)
    return [loss_launch(_cross_entropy_dense, row, z, target, weight, loss, dz)]
