"""Every step whose body needs no addresses runs as plain Python, and agrees with its compiled entry."""

import ctypes
import inspect

import numpy as np
import pytest

from dlcore.kernels.cpu import dropout, entries, factors, norm, prepared, sharpness, steps, table, update
from dlcore.kernels.program import Buffer, factors_of

ROW_COUNT = 37  # 3 chunks
SIZES = {
    "m": ROW_COUNT,
    "k": 5,
    "n": 15,
    "g": 1,
    "N": 41,
    "O": 41,
    "H": 3,
    "Q": 1,
    "K": 4,
    "U": 5,
    "P": 40_000,
    "B": 3,
    "S": 2,
    "L": 4,
    "T": 2,
    "V": 6,
    "s": 1,
    "t": 3,
    "A": ROW_COUNT,
    "E": 1,
    "q": 75,
    "f": 5,
    "p": 7,
}
FACTORS = factors_of([(100, 200), (17, 1175)], [0, 20_016])
SIZES |= {"F": FACTORS.size, "X": FACTORS.sums, "D": len(FACTORS.panels)}
TABLES = {
    "blocks": np.array([[0, 4096, 0], [4096, 20_000, 0], [20_016, 39_999, 1]]),
    "tensors": FACTORS.tensors,
    "panels": FACTORS.panels,
}
# Steps that call what they know by its address only, or sum with vector instructions; the tests of the kernels compare
# them with oracles.
BY_ADDRESS = {
    "dense_forward", "dense_forward_columns", "dense_backward_x", "dense_backward_x_columns", "dense_backward_z",
    "dense_backward_w", "dense_update", "sum_chunks_update", "activation_forward", "activation_backward",
    "elementwise_loss", "optimizer_update", "optimizer_update_apart", "optimizer_begin", "barrier",
    "group_norm_forward", "group_norm_gradient", "block_sums", "block_update", "factor_sums", "factored_update", "panel_sums", "panel_update",
}  # fmt: skip
IN_PYTHON = [
    pytest.param(name, full, id=f"{name}, {'all' if full else 'needed'} operands")
    for name, op in steps.STEPS.items()
    if name not in BY_ADDRESS
    for full in ([True, False] if any(spec.optional for spec in op.operands) else [True])
]
SCALARS = {
    "momentum": 0.9, "epsilon": 1e-3, "rate": 0.4, "layer": 2, "threshold": 0.1, "mean": 1.0, "keep": 0.8,
    "share": 0.05, "l1": 0.3, "l2": 0.2, "minimum": 1.5, "maximum": 1.6, "steps": 9, "rho": 0.3, "eta": 0.1, "adaptive": 1.0,
    "largest": 0.0,
}  # fmt: skip


def operand(spec, dtype, rng, full):
    """An array for an operand, of positive numbers (variances are among them), but for weights; None for one missing."""
    if spec.optional and not full:
        return None
    chunks = steps.chunk_count(ROW_COUNT)
    shape = tuple(chunks if letter in "cC" else SIZES[letter] for letter in spec.dims)
    if spec.name in TABLES:
        return TABLES[spec.name].copy()
    if spec.dtype == "i":
        values = rng.permutation(SIZES["N"])[: shape[0]] if spec.name == "order" else rng.integers(0, 7, shape)
        return values.astype(np.int64)
    if spec.name == "hyper":
        return rng.uniform(0.01, 0.02, shape)  # a norm that clips
    values = rng.uniform(-1.0 if spec.name == "w" else 0.1, 2.0, shape)
    if spec.name == "uniforms":
        values[4] = 0  # no step is skipped
    return values.astype(np.float64 if spec.dtype == "d" else dtype)


def run_plainly(op, arrays, scalars, dtype):
    """What the compiled entry does for one thread, by Python alone."""
    body = entries.body_of(op.name)
    size = steps.chunk_rows(ROW_COUNT)
    starts = range(0, ROW_COUNT, size) if op.division == "chunks" else [0]
    for chunk, first in enumerate(starts):
        values = {
            "start": first,
            "first": first,
            "rows": ROW_COUNT,
            "index": 0,
            "thread": 0,
            "threads": 1,
            "scratch": 0,
        }
        values |= scalars
        for spec, array in zip(op.operands, arrays, strict=True):
            if array is None:
                array = np.zeros((0,) * len(spec.dims), dtype)
            elif op.division == "chunks" and spec.dims[0] == "m":
                array = array[first : first + size]
            elif spec.dims[0] == "c":
                array = array[chunk]
            values[spec.name] = array
        body(*(values[name] for name in inspect.signature(body).parameters))


def run_compiled(op, arrays, scalars):
    operands = [
        None if a is None else Buffer(spec.name, a.shape, a.dtype, "operand", k)
        for k, (spec, a) in enumerate(zip(op.operands, arrays, strict=True))
    ]
    one = steps.step(op.name, operands, None, list(scalars.values()))
    tables = table.Tables([one], lambda operand: None, ROW_COUNT)
    ready = prepared.Prepared(tables, [o for o in operands if o is not None], ROW_COUNT)
    ready(*(a for a in arrays if a is not None))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "full"), IN_PYTHON)
def test_a_body_is_plain_python(monkeypatch, name, full, dtype):
    op = steps.STEPS[name]
    rng = np.random.default_rng(2)
    given = [operand(spec, dtype, rng, full) for spec in op.operands]
    scalars = {scalar: SCALARS[scalar] for scalar in op.scalars}
    before, plainly, compiled = ([None if a is None else a.copy() for a in given] for _ in range(3))
    run_compiled(op, compiled, scalars)
    # memory of its own that a step asks for by address
    monkeypatch.setattr(norm, "view", lambda address, n: np.zeros(n, dtype))
    for module in (norm, factors):
        monkeypatch.setattr(module, "view_double", lambda address, n: np.zeros(n))
    monkeypatch.setattr(dropout, "view_bits", lambda address, n: np.zeros(n, np.uint32))

    def values_at(address, n):
        memory = (ctypes.c_char * (n * np.dtype(dtype).itemsize)).from_address(address)
        return np.frombuffer(memory, dtype).astype(float)

    def square_sum(addresses, zero, n):
        return ((values_at(addresses[0], n) ** 2).sum(),)

    def scaled_square_sum(addresses, scalars, n):
        g, w = (values_at(address, n) for address in addresses)
        return ((((np.abs(w) + scalars[0]) * g) ** 2).sum(),)

    # what sums with vector instructions
    monkeypatch.setattr(update, "wide_square_sum", square_sum)
    monkeypatch.setattr(sharpness, "scaled_square_sum", scaled_square_sum)
    run_plainly(op, plainly, scalars, dtype)
    for spec, was, a, b in zip(op.operands, before, plainly, compiled, strict=True):
        if a is not None:
            np.testing.assert_allclose(
                b, a, rtol=200 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps, err_msg=spec.name
            )
            assert np.array_equal(was, b) == (spec.access == "read"), spec.name
