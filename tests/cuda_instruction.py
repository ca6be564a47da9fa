"""What the tests of CUDA instructions have in common: operands, and the CUDA engine against the CPU engine.

On the simulator, or on a GPU with ``DLCORE_TEST_DEVICE=cuda``.
"""

import zlib

import numpy as np
import pytest
from numba import cuda
from tolerance import GRADIENT, assert_close

from dlcore.kernels import Builder
from dlcore.kernels.compile import uniforms_of
from dlcore.kernels.cpu.engine import Engine as CpuEngine
from dlcore.kernels.device import simulated, why_no_gpu
from dlcore.kernels.program import factors_of, tensor_blocks
from dlcore.kernels.rule import find
from dlcore.kernels.step_text import UNIFORM_HEADER

if not simulated() and why_no_gpu():
    pytest.skip(why_no_gpu(), allow_module_level=True)

from dlcore.kernels.cuda.engine import Engine as CudaEngine

ORDERS = ("forward", "reverse", "random") if simulated() else ("forward",)
DTYPES = (np.float32, np.float64)

# rows, columns, inner or second columns; odd, prime, single, and beyond a tile of 64, a warp, a chunk of 256 rows
SIZES = {
    "one": (1, 1, 1),
    "row": (1, 7, 3),
    "column": (5, 1, 2),
    "prime": (13, 11, 7),
    "warp": (33, 37, 5),
    "tile": (67, 71, 19),
    "wide": (9, 136, 4),
}
# rows, columns, channels, groups of the norms
CHANNELS = {
    "one": (1, 1, 1, 1),
    "row": (1, 7, 7, 1),
    "column": (5, 1, 1, 1),
    "prime": (13, 33, 11, 11),
    "warp": (33, 37, 37, 1),
    "tile": (67, 71, 71, 1),
    "tall": (519, 5, 5, 1),
    "pairs": (9, 12, 12, 6),
    "places": (3, 140, 4, 2),
    "groups": (7, 195, 39, 3),
    "one place a channel": (2, 6, 6, 6),
    "wide": (5, 264, 264, 1),
    "wide places": (5, 264, 33, 3),
    "parts": (19, 2 * 487, 2, 1),  # more elements of a channel than a part of 8192
}
TALL = (519, 5, 3)  # more rows than two chunks
CHUNKED = ("dense_backward_z", "batch_norm_forward", "batch_norm_backward", "group_norm_backward", "prelu_backward")


def check(name, got, cpu, reference, terms):
    """Against a float64 run of the CPU engine, with the CPU engine in this dtype in the place of plain NumPy."""
    if np.issubdtype(got.dtype, np.floating):
        assert_close(name, got, reference, cpu, GRADIENT, terms)
    else:
        np.testing.assert_array_equal(got, cpu, err_msg=name)


def _terms(op, values):
    """The largest term of sums that cancel: elements for the norms, 1/rows for gradients of a mean."""
    if op.name.startswith(("batch_norm", "group_norm")):
        return float(np.abs(values["x"]).max(initial=0.0))
    if op.name in ("factor_sums", "factored_update"):  # the largest squares, as many as the longest row or column has
        return float(np.sort(values["g"] ** 2)[-values["tensors"][:, 1:3].max() :].sum())
    return 1.0 / max(1, len(next(iter(values.values()))))


# ------------------------------------------------------------------------------------------- one instruction


def _matrix(size):
    """The shape of a matrix of ``size`` elements, as near to a square as there is."""
    rows = next(d for d in range(int(size**0.5), 0, -1) if size % d == 0)
    return rows, size // rows


def operands_of(op, size, rule, rng):
    """Values in float64 for the operands of ``op``, by name."""
    m, n, k, *g = size
    letters = {
        "m": m,
        "n": n,
        "k": k,
        "g": g[0] if g else 0,
        "N": 2 * m + 1,
        "O": 2 * m + 1,
        "Q": 1,
        "H": 3,
        "P": m * n * k + 3,
        "A": m,
        "E": 1,
        "q": k * n,
    }
    if op.rule == "optimizer":
        count = UNIFORM_HEADER + len(uniforms_of(rule))
        letters |= {"S": len(rule.slots), "K": len(rule.hyper), "U": count, "V": count + len(rule.sums)}
    else:
        letters |= {"S": 1, "K": 3, "U": 16, "V": 16}
    half = letters["P"] // 8 * 4
    sizes, starts = ([half - 1, letters["P"] - half], [0, half]) if half > 4 else ([letters["P"]], [0])
    table, found = tensor_blocks(sizes, starts), factors_of([_matrix(size) for size in sizes], starts)
    tables = {"blocks": table, "tensors": found.tensors, "panels": found.panels}
    letters |= {"B": len(table), "t": 3, "T": len(sizes), "f": 5, "D": len(found.panels), "p": 7, "L": 4}
    letters |= {"F": found.size, "X": found.sums}
    values = {}
    for spec in op.operands:
        shape = [letters[letter] for letter in spec.dims]
        if spec.name in tables:
            values[spec.name] = tables[spec.name]
        elif spec.name == "scaler":
            values[spec.name] = np.array([8.0, 2.0, 3.0, 1.0])
        elif spec.name in ("uniforms", "rows") and spec.access == "read":
            values[spec.name] = rng.uniform(0.1, 0.9, shape)
            values[spec.name][..., 4] = 0  # no step is skipped
        elif spec.dtype == "i":
            high = n if spec.name == "labels" else letters["N"]
            values[spec.name] = rng.integers(0, high, shape)
        elif spec.name in ("rstd", "running_var", "weight", "slots", "factors"):
            values[spec.name] = rng.uniform(0.5, 1.5, shape)
        elif spec.name == "target" or (spec.name == "p" and (op.rule != "loss" or rule.domain != "real")):
            values[spec.name] = rng.uniform(0.05, 0.95, shape)
        elif spec.name == "hyper":
            parameters = list(rule.parameters.values()) if rule else [0.1]
            values[spec.name] = np.array([*parameters, 0.01, 0.7])
        elif spec.name == "uniforms":
            values[spec.name] = rng.uniform(0.1, 0.9, shape)
            values[spec.name][..., 4] *= (
                op.name != "accumulate_gradient"
            )  # which does nothing in a step that is skipped
        elif spec.access == "write":
            values[spec.name] = np.full(shape, np.nan)
        else:
            values[spec.name] = rng.standard_normal(shape)
        # values that float32 holds, so that the float64 run computes the same thing
        if spec.dtype == "f":
            values[spec.name] = values[spec.name].astype(np.float32).astype(np.float64)
    return values


SCALARS = {"momentum": 0.9, "epsilon": 1e-5, "rate": 0.3, "layer": 2.0, "mean": 1.0, "threshold": 0.3,
            "keep": 0.9, "share": 0.02, "l1": 0.3, "l2": 0.2, "minimum": 1.1, "maximum": 1.7, "steps": 3.0, "rho": 0.3, "eta": 0.1, "adaptive": 1.0,
            "largest": 0.0}  # fmt: skip


def _program(op, values, absent, rule, dtype):
    b = Builder(dtype)
    buffers = {}
    for spec in op.operands:
        if spec.name in absent:
            buffers[spec.name] = None
        elif op.name.startswith("gather") and spec.name in ("source", "order"):
            dtype_of = {"i": np.int64, "f": None}[spec.dtype]
            buffers[spec.name] = b.extern(spec.name, np.shape(values[spec.name]), dtype_of)
        elif spec.name == "history":
            buffers[spec.name] = b.extern(spec.name, values[spec.name].shape, np.float64)
        else:
            kind = {"i": np.int64, "d": np.float64, "f": None}[spec.dtype]
            shape = values[spec.name].shape
            if spec.dims.startswith("m"):
                buffers[spec.name] = b.rows(spec.name, *shape[1:], dtype=kind)
            else:
                buffers[spec.name] = b.work(spec.name, shape, kind)
    b.emit(op.name, *buffers.values(), rule=rule, **{name: SCALARS[name] for name in op.scalars})
    b.finish("list")
    return b.program, buffers


def _execute(engine_class, op, size, values, absent, rule, dtype):
    """Run one instruction as mini-batch 1 of 2, in an arena with a row to spare; all floating operands afterwards."""
    m = size[0]
    program, buffers = _program(op, values, absent, rule, dtype)
    engine = engine_class(program, m + 1)
    externs = {}
    for spec in op.operands:
        buffer = buffers[spec.name]
        if buffer is None:
            continue
        value = np.asarray(values[spec.name], buffer.dtype)
        if buffer.region == "extern":
            externs[spec.name] = np.ascontiguousarray(value)
            continue
        if spec.dims.startswith("m"):
            value = np.concatenate([value, np.full_like(value[:1], 99)])
        engine.write(buffer, value)
    engine.bind(**externs)
    engine.run("list", 1, m, 2 * m, 1)
    result = {}
    for spec in op.operands:
        buffer = buffers[spec.name]
        if buffer is not None and spec.access != "read":
            array = engine.fetch(spec.name) if buffer.region == "extern" else engine.read(buffer)
            if spec.dims.startswith("m"):
                assert (array[m:] == 99).all(), f"{spec.name}: written beyond the last row"
                array = array[:m]
            result[spec.name] = array
    return result


def compare(op, size, absent, rule, dtype):
    rng = np.random.default_rng(zlib.crc32(f"{op.name} {size}".encode()))
    values = operands_of(op, size, rule, rng)
    cpu = _execute(CpuEngine, op, size, values, absent, rule, dtype)
    reference = cpu if dtype == np.float64 else _execute(CpuEngine, op, size, values, absent, rule, np.float64)
    got = _execute(CudaEngine, op, size, values, absent, rule, dtype)
    assert got.keys() == cpu.keys()
    for name in got:
        written = ~np.isnan(reference[name]) if reference[name].dtype.kind == "f" else slice(None)
        if reference[name].dtype.kind == "f":
            np.testing.assert_array_equal(np.isnan(got[name]), ~written, err_msg=f"{name}: what is written")
        check(name, got[name][written], cpu[name][written], reference[name][written], _terms(op, values))


def absences(op):
    optional = [spec.name for spec in op.operands if spec.optional]
    return [(), tuple(optional)] if optional else [()]


def _rule(op):
    return find(op.rule, {"activation": "tanh", "loss": "mean_squared_error", "optimizer": "adam"}[op.rule])


def rule_for(op, absent=()):
    """The rule that an instruction is tried with."""
    if op.rule and not absent and any(spec.name == "factors" for spec in op.operands):
        return find("optimizer", "sm3" if op.name == "factored_update" else "adafactor")
    return find("optimizer", "lamb") if op.name == "tensor_sums" else _rule(op) if op.rule else None


def on_device(array):
    return cuda.to_device(np.asarray(array))


def on_host(array):
    return array.copy_to_host() if hasattr(array, "copy_to_host") else array.get()
