"""The losses that couple the elements of a row, and label smoothing on CUDA; for cross-entropy see softmax.py.

Memory contract: outputs are overwritten. Gradients of losses are those of the mean over the batch, 1/m included. A warp
takes a row and keeps it in registers, or reads a long one in each pass (warp.py); sums are of the model's dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .elements import element_pass
from .launch import Launch
from .softmax import loss_launch
from .warp import Passes, Row, first_largest, row_kernel, row_launch, row_name, row_of

# ------------------------------------------------------------------------------------------ label smoothing


_SMOOTH = """
def {name}(out, labels, keep, share, rows, columns):
{begin}
    label = labels[row]
{elements}
"""


@functools.cache
def _smooth_labels(dtype: Any, row: Row) -> Any:
    name = row_name("smooth_labels", row)
    elements = Passes(row, {})("", out="keep + share if label == {j} else share")
    return row_kernel(_SMOOTH.format(name=name, begin=row.begin, elements=elements), name, dtype)


def smooth_targets(target: Any, out: Any, keep: float, share: float) -> list[Launch]:
    """``out = keep * target + share``."""
    number = out.dtype.type
    after = {"out": (out, "keep * target{k} + share")}
    return [element_pass("smooth_targets", {"target": target}, after, keep=number(keep), share=number(share))]


def smooth_labels(labels: Any, out: Any, keep: float, share: float) -> list[Launch]:
    """``out = keep * onehot + share``."""
    number = out.dtype.type
    made = _smooth_labels(out.dtype, row_of(out.shape[1], out, keep=False))
    return [row_launch(made, [out], labels, number(keep), number(share))]


# --------------------------------------------------------------------------------------------------- losses


_COSINE = """
def {name}(p, target, dp, weight, loss, inverse, rows, columns):
{begin}
    dot = zero
    squares = zero
    others = zero
{sums}
    dot = warp_sum(dot)
    squares = warp_sum(squares)
    others = warp_sum(others)
    held = squares < least  # then only the product depends on p
    if held:
        squares = least
    if others < least:
        others = least
    across = one / (sqrt(squares) * sqrt(others))
    w = {w}
    share = w * inverse
    along = zero if held else dot * across / squares
    if cuda.threadIdx.x == 0:
        loss[row] = -w * (dot * across)
{dp}
"""

_HINGE = """
def {name}(p, target, dp, weight, loss, inverse, rows, columns):
{begin}
    correct = zero
    largest = lowest
    worst = columns
{search}
    correct = warp_sum(correct)
{meet}
    margin = one + largest - correct
    w = {w}
    share = w * inverse
    if margin < zero:
        margin = zero
        share = zero
    if cuda.threadIdx.x == 0:
        loss[row] = w * margin
{dp}
"""

_HELLINGER = """
def {name}(p, target, dp, weight, loss, inverse, rows, columns):
{begin}
    total = zero
{sum}
    total = warp_sum(total)
    w = {w}
    share = zero
    if total != zero:
        share = w * inverse / sqrt(eight * total)
    if cuda.threadIdx.x == 0:
        loss[row] = w * sqrt(half * total)
{dp}
"""


@functools.cache
def _cosine_similarity(dtype: Any, row: Row, weighted: bool, with_gradient: bool) -> Any:
    name, go = row_name("cosine_similarity", row), Passes(row, {"p": "p", "t": "target"})
    text = _COSINE.format(
        name=name,
        begin=row.begin,
        sums=go("p t", "dot += p{e} * t{e}; squares += p{e} * p{e}; others += t{e} * t{e}"),
        w="weight[row]" if weighted else "one",
        dp=go("p t", dp="share * (along * p{e} - across * t{e})") if with_gradient else "",
    )
    return row_kernel(text, name, dtype, least=np.dtype(dtype).type(1e-12))


@functools.cache
def _categorical_hinge(dtype: Any, row: Row, weighted: bool, with_gradient: bool) -> Any:
    name, go = row_name("categorical_hinge", row), Passes(row, {"p": "p", "t": "target"})
    other = "other = (one - t{e}) * p{e} if {inside} else lowest"
    gradient = "share * (one - t{e}) - share * t{e} if worst == {j} else -share * t{e}"
    first = "worst = {j} if other > largest else worst; largest = other if other > largest else largest"
    text = _HINGE.format(
        name=name,
        begin=row.begin,
        meet=first_largest("largest", "worst"),
        search=go("p t", f"correct += t{{e}} * p{{e}}; {other}; {first}"),
        w="weight[row]" if weighted else "one",
        dp=go("t", dp=gradient) if with_gradient else "",
    )
    return row_kernel(text, name, dtype)


@functools.cache
def _hellinger_distance(dtype: Any, row: Row, weighted: bool, with_gradient: bool) -> Any:
    roots = {"a": "sqrt(clip if p{e} < clip else p{e})", "b": "sqrt(zero if t{e} < zero else t{e})"}
    name, go = row_name("hellinger_distance", row), Passes(row, {"p": "p", "t": "target"}, roots)
    distance = "total += (a{e} - b{e}) * (a{e} - b{e}) if {inside} else zero"
    text = _HELLINGER.format(
        name=name,
        begin=row.begin,
        sum=go("p t a b", distance),
        w="weight[row]" if weighted else "one",
        dp=go("p t a b", dp="share * (a{e} - b{e}) / a{e}") if with_gradient else "",
    )
    number = np.dtype(dtype).type
    return row_kernel(text, name, dtype, half=number(0.5), eight=number(8), clip=number(1e-7))


def _launch(make: Any, p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    row = row_of(p.shape[1], p, target, p if dp is None else dp)
    return [loss_launch(make, row, p, target, weight, loss, dp)]


def cosine_similarity(p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    """``loss = -p t / (|p| |t|)``, squared norms at least 1e-12; ``dp = weight (c p / |p|^2 - t / (|p| |t|)) / m``."""
    return _launch(_cosine_similarity, p, target, weight, loss, dp)


def categorical_hinge(p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    """``loss = max(0, 1 + max_j (1 - t_j) p_j - sum_j t_j p_j)``; the first maximum takes the gradient."""
    return _launch(_categorical_hinge, p, target, weight, loss, dp)


def hellinger_distance(p: Any, target: Any, weight: Any, loss: Any, dp: Any) -> list[Launch]:
    """``loss = |sqrt p - sqrt t| / sqrt 2``, ``p`` at least 1e-7; the gradient at distance 0 is 0."""
    return _launch(_hellinger_distance, p, target, weight, loss, dp)
