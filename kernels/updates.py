"""Optimizer steps as a function on arrays, in one precision or in two; see ops.py for what arrays may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .compile import uniforms_of
from .cpu import eager, memory
from .instructions import MIXED, ShapeError
from .ops import _backend, _Cpu, _float
from .optimizer_rule import Optimizer
from .program import factors_of, tensor_blocks, update_by_tensor
from .rule import RuleError, find
from .step_text import UNIFORM_HEADER

_HALVES = ("float16", "bfloat16")


def optimizer_slots(rule: Any, w: Any) -> list[Any]:
    """The state of an optimizer rule before the first step, as :func:`optimizer_update` takes it: a list of zeros.

    ``w`` are the weights, of float32 or float64 and any one shape; in mixed precision those in float32, ``master``.
    There is one array of that shape for each slot of the rule and, of a rule with factors, one vector for the rows and
    one for the columns. They lie where ``w`` does: arrays of NumPy for the CPU, CuPy's for a GPU.

    On the CPU they begin at the same place in a page of 4096 bytes as ``w``. Where slots begin 64 to 384 bytes away
    from that, as ``np.zeros_like(w)`` may, an update takes up to 1.7 times as long (Adam, Zen 4): the CPU takes loads
    for ones of what was just stored. A gradient may still lie so.

    >>> import numpy as np
    >>> from dlcore import kernels
    >>> w, g = np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    >>> slots = kernels.optimizer_slots("momentum", w)
    >>> kernels.optimizer_update("momentum", w, g, slots, step=1, learning_rate=0.5)
    >>> w[0], [slot.shape for slot in slots]
    (array([0.75, 0.75, 0.75], dtype=float32), [(2, 3)])
    """
    rule = find("optimizer", rule)
    backend = _backend(w=w)
    w = _float("w", w, backend)
    if backend is _Cpu:
        slots = [memory.zeros_beside(w) for _ in rule.slots]
    else:
        slots = [backend.zeros(w.shape, w.dtype) for _ in rule.slots]
    return slots + [backend.zeros(shape, w.dtype) for shape in _slot_shapes(rule, w)[len(slots) :]]


def _slot_shapes(rule: Optimizer, w: Any) -> list[tuple[int, ...]]:
    """The shapes of the slots of weights ``w``, and of the factors behind them: of rows, and of columns."""
    factors = [(math.prod(w.shape[:-1]),), (math.prod(w.shape[-1:]),)] if rule.factors else []
    return [tuple(w.shape)] * len(rule.slots) + factors


def optimizer_update(
    rule: Any,
    w: Any,
    g: Any,
    slots: Any,
    *,
    step: int,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    master: Any = None,
    **values: float,
) -> None:
    """Update ``w`` and ``slots`` in place, in one pass: step number ``step`` (from 1) of an optimizer rule.

    ``w``, ``g`` have any one shape; ``slots`` is a list of arrays of that shape, zero before the first step, as
    :func:`optimizer_slots` makes them; where there are more than two, the CPU copies them there and back. A rule with
    factors takes two vectors more behind them, state of the rows and of the columns (the last axis) of ``w``; a vector
    is one row. The gradient is scaled to
    a norm of at most ``clip_norm`` (0: not at all). Rules that look at a whole tensor take ``w`` as one. ``values``
    override the rule's parameters.

    In mixed precision ``w`` and ``g`` are float16 or bfloat16 (NumPy's float16, or a dtype of the name bfloat16 such as
    that of ml_dtypes), ``master`` holds the weights in float32, and ``slots`` are float32. ``master`` and ``slots`` are
    updated from the gradient as float32 holds it; then ``w`` is ``master`` rounded to nearest, ties to even, which is
    infinite in float16 from 65520 on. On the GPU that is one pass too; the CPU converts with NumPy before and after the
    step in float32.
    """
    rule = find("optimizer", rule)
    assert isinstance(rule, Optimizer)
    clipped = clip_norm > 0.0
    settings = (weight_decay, clip_norm, tuple(values.items()))
    known = eager.known_update(rule, w, clipped) if type(w) is np.ndarray else None
    if (
        known is not None
        and master is None
        and step >= 1
        and (settings == known.settings or values.keys() <= known.names)
        and known((w, g, *slots), step, settings)
    ):
        return
    if values and not values.keys() <= rule.parameters.keys():
        unknown = min(values.keys() - rule.parameters.keys())
        raise RuleError(f"{rule.name} has no parameter {unknown!r}; it has: {', '.join(rule.parameters)}")
    backend = _backend(w=w, g=g, **{f"slots[{k}]": slot for k, slot in enumerate(slots)}, master=master)
    given = (w, g, *slots, master)
    w, g = backend.in_place("w", w), backend.array("g", g)
    slots = [backend.in_place(f"slots[{k}]", slot, contiguous=False) for k, slot in enumerate(slots)]
    master = None if master is None else backend.in_place("master", master)
    if backend is _Cpu and any(a is not b for a, b in zip((w, g, *slots, master), given, strict=True)):
        optimizer_update(  # arrays of another library: from here on they are NumPy's
            rule, w, g, slots, step=step, weight_decay=weight_decay, clip_norm=clip_norm, master=master, **values
        )
        return
    half = _half(w, g, master)
    weights, of = (w, "w") if master is None else (master, "master")
    names = *rule.slots, *rule.factors
    if len(slots) != len(names):
        raise ShapeError(f"slots holds {len(slots)} arrays; {rule.name} has {len(names)}: {', '.join(names)}")
    for k, (slot, shape) in enumerate(zip(slots, _slot_shapes(rule, weights), strict=True)):
        if slot.shape != shape or slot.dtype != weights.dtype:
            whose = f"those of {of}" if k < len(rule.slots) else f"{names[k]} of {of}"
            raise ShapeError(f"slots[{k}] is {slot.dtype} {slot.shape}; expected {weights.dtype} {shape}, {whose}")
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    gradient = backend.contiguous(g) if half else _float("g", g, backend)
    if gradient.shape != w.shape:
        raise ShapeError(f"g has shape {gradient.shape}; expected {w.shape}, that of w")
    if gradient.dtype != w.dtype:
        raise ShapeError(f"g is {gradient.dtype}; expected {w.dtype}, the dtype of w")
    if not w.size:
        return
    if half and backend is _Cpu:
        wide = gradient.astype(np.float32)
        optimizer_update(rule, master, wide, slots, step=step, weight_decay=weight_decay, clip_norm=clip_norm, **values)
        with np.errstate(over="ignore"):  # infinity is what was promised
            w[...] = master.astype(w.dtype)
        return
    if half and rule.by_tensor:
        raise RuleError(f"{rule.name} looks at the whole tensor; on CUDA its gradient must be float32, got {half}")
    if backend is _Cpu and len(slots) <= 2 and not rule.by_tensor and all(slot.flags.carray for slot in slots):
        eager.new_update(rule, w, clipped)((w, gradient, *slots), step, settings)
        return
    with backend.current():
        parameters = [*(rule.parameters | values).values()]
        hyper = backend.contiguous(np.array([*parameters, weight_decay, clip_norm], np.float64))
        count = backend.contiguous(np.array([step - 1], np.int64))
        uniforms = backend.empty((UNIFORM_HEADER + len(uniforms_of(rule)),), weights.dtype)
        state = backend.empty((len(rule.slots), w.size), weights.dtype)
        for row, slot in zip(state, slots, strict=False):
            row[...] = slot.ravel()
        copy, gradient = w.ravel(), gradient.ravel()
        if half == "bfloat16":  # CUDA has no arrays of it
            copy, gradient = copy.view(np.uint16), gradient.view(np.uint16)
        backend.run("optimizer_begin", [hyper, count, uniforms], rule)
        if clip_norm > 0:
            clip = MIXED["clip_by_global_norm_mixed"] if half else "clip_by_global_norm"
            backend.run(clip, [gradient, hyper, uniforms])
        if half:
            operands = [weights.ravel(), gradient, state, copy, uniforms]
            backend.run(MIXED["optimizer_update_mixed"], operands, rule)
        elif rule.by_tensor:
            blocks = backend.contiguous(tensor_blocks([w.size], [0]))
            rows = backend.empty((1, uniforms.size + len(rule.sums)), w.dtype)
            factors = _factors(rule, weights, slots[len(rule.slots) :], backend) if rule.factors else None
            of_rule = update_by_tensor(rule, copy, gradient, state, uniforms, blocks, rows, factors)
            for op, operands, its_rule, scalars in of_rule:
                backend.run(op, operands, its_rule, tuple(scalars.values()))
            if factors is not None:
                height = slots[-2].size
                slots[-2][...], slots[-1][...] = factors[0][1 : 1 + height], factors[0][1 + height :]
        else:
            backend.run("optimizer_update", [copy, gradient, state, uniforms], rule)
        for row, slot in zip(state, slots, strict=False):
            slot[...] = row.reshape(slot.shape)


def _factors(rule: Any, w: Any, given: Sequence[Any], backend: Any) -> tuple[Any, ...]:
    """State of rows and columns, tensors, panels and room for sums, of one tensor: see ``Builder.factors``."""
    found = factors_of([w.shape], [0])
    state = backend.empty((found.size,), w.dtype)
    rows, columns = given
    state[0] = 1.0 if rule.largest else rows.mean()
    state[1 : 1 + rows.size], state[1 + rows.size :] = rows, columns
    tables = (backend.contiguous(table) for table in (found.tensors, found.panels))
    return state, *tables, backend.empty((found.sums,), w.dtype)


def _half(w: Any, g: Any, master: Any) -> str:
    """The format of 16 bits that ``w`` has, checked against ``g`` and ``master``; nothing in one precision."""
    name = str(getattr(getattr(w, "dtype", None), "name", ""))
    if master is None:
        if name in _HALVES:
            raise ShapeError(f"w is {name}; master is missing, the weights in float32 that w is rounded from")
        return ""
    if name not in _HALVES:
        raise ShapeError(f"w is {w.dtype}; expected float16 or bfloat16 beside master")
    if getattr(g, "dtype", None) != w.dtype:
        raise ShapeError(f"g is {getattr(g, 'dtype', type(g).__name__)}; expected {w.dtype}, the dtype of w")
    if master.dtype != np.float32 or master.shape != w.shape:
        raise ShapeError(f"master is {master.dtype} {master.shape}; expected float32 {w.shape}, the shape of w")
    return name
