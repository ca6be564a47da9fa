"""The CUDA engine against the CPU engine: every instruction, what it writes and what it updates in place.

On the simulator, or on a GPU with ``DLCORE_TEST_DEVICE=cuda``.
"""

import zlib

import numpy as np
import pytest
from numba import cuda
from tolerance import GRADIENT, assert_close

from dlcore import Sequential, kernels, layers, optimizers
from dlcore import random as dlrandom
from dlcore.kernels import Builder
from dlcore.kernels.compile import uniforms_of
from dlcore.kernels.cpu.engine import Engine as CpuEngine
from dlcore.kernels.device import simulated, why_no_gpu
from dlcore.kernels.instructions import OPS, Instruction
from dlcore.kernels.loss_scale import scaler
from dlcore.kernels.optimizer_rule import optimizer as make_optimizer
from dlcore.kernels.program import factors_of, tensor_blocks
from dlcore.kernels.rule import REGISTRY, find
from dlcore.kernels.rule import activation as make_activation
from dlcore.kernels.step_text import UNIFORM_HEADER

if not simulated() and why_no_gpu():
    pytest.skip(why_no_gpu(), allow_module_level=True)

from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.engine import Engine as CudaEngine
from dlcore.kernels.cuda.launch import host_function, plan, takes

if simulated():
    from simulator import thread_order
else:
    from contextlib import nullcontext as thread_order

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


def _check(name, got, cpu, reference, terms):
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


def _operands(op, size, rule, rng):
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


_SCALARS = {"momentum": 0.9, "epsilon": 1e-5, "rate": 0.3, "layer": 2.0, "mean": 1.0, "threshold": 0.3,
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
    b.emit(op.name, *buffers.values(), rule=rule, **{name: _SCALARS[name] for name in op.scalars})
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


def _compare(op, size, absent, rule, dtype):
    rng = np.random.default_rng(zlib.crc32(f"{op.name} {size}".encode()))
    values = _operands(op, size, rule, rng)
    cpu = _execute(CpuEngine, op, size, values, absent, rule, dtype)
    reference = cpu if dtype == np.float64 else _execute(CpuEngine, op, size, values, absent, rule, np.float64)
    got = _execute(CudaEngine, op, size, values, absent, rule, dtype)
    assert got.keys() == cpu.keys()
    for name in got:
        written = ~np.isnan(reference[name]) if reference[name].dtype.kind == "f" else slice(None)
        if reference[name].dtype.kind == "f":
            np.testing.assert_array_equal(np.isnan(got[name]), ~written, err_msg=f"{name}: what is written")
        _check(name, got[name][written], cpu[name][written], reference[name][written], _terms(op, values))


def _absences(op):
    optional = [spec.name for spec in op.operands if spec.optional]
    return [(), tuple(optional)] if optional else [()]


def _rule(op):
    return find(op.rule, {"activation": "tanh", "loss": "mean_squared_error", "optimizer": "adam"}[op.rule])


def _of(op, absent=()):
    """The rule that an instruction is tried with."""
    if op.rule and not absent and any(spec.name == "factors" for spec in op.operands):
        return find("optimizer", "sm3" if op.name == "factored_update" else "adafactor")
    return find("optimizer", "lamb") if op.name == "tensor_sums" else _rule(op) if op.rule else None


def _cases():
    for op in OPS.values():
        for absent in _absences(op):
            for label, size in (CHANNELS if op.multiples else SIZES).items():
                name = f"{op.name}{'-' if absent else ''}-{label}"
                yield pytest.param(op, size, absent, id=name)
            if op.name in CHUNKED and not op.multiples:
                yield pytest.param(op, TALL, absent, id=f"{op.name}{'-' if absent else ''}-tall")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "size", "absent"), list(_cases()))
def test_instruction(op, size, absent, dtype):
    _compare(op, size, absent, _of(op, absent), dtype)


# ----------------------------------------------------------------------------------------- rows in registers

_ROWS = ("softmax_forward", "softmax_backward", "softmax_cross_entropy", "softmax_cross_entropy_dense",
         "group_norm_forward", "group_norm_backward")  # fmt: skip
_BY_COLUMNS = ("batch_norm_forward", "batch_norm_inference", "batch_norm_backward", "dense_backward_z", "gather_rows")
# one vector and less, several, the last of them in part; single elements; the longest in registers, and longer ones
_COLUMNS = {np.float32: (4, 132, 1021, 1024, 1030), np.float64: (2, 66, 511, 512, 513)}


@pytest.mark.parametrize(("dtype", "columns"), [(d, n) for d in DTYPES for n in _COLUMNS[d]])
@pytest.mark.parametrize("name", _ROWS)
def test_rows_of_any_length(name, dtype, columns):
    _compare(OPS[name], (3, columns, columns, 1), (), None, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(3, 264, 4, 2), (2, 1032, 516, 1), (3, 2 * 261, 6, 2), (2, 2200, 4, 2)], ids=str)
@pytest.mark.parametrize("name", _ROWS[-2:])
def test_groups_of_any_length(name, size, dtype):
    """Channels of several columns that begin anywhere in a lane's vector; groups too long for registers."""
    _compare(OPS[name], size, (), None, dtype)


@pytest.mark.parametrize("name", _BY_COLUMNS[:3:2])
def test_channels_of_several_parts(name):
    """A thread takes elements of several samples, and a channel is more than a block adds up."""
    _compare(OPS[name], (31, 2 * 271, 2, 1), (), None, np.float64)


@pytest.mark.skipif(not simulated(), reason="arrays of NumPy run on the simulator only")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*_ROWS, *_BY_COLUMNS])
def test_the_same_bits_wherever_arrays_begin(name, dtype):
    """128-bit access and access to one element after another take the same elements."""

    op = OPS[name]
    values = _operands(op, (3, 132, 132, 1), None, np.random.default_rng(5))
    results, kinds = [], []
    for offset in (0, 1):
        operands = []
        for spec in op.operands:
            value = np.asarray(values[spec.name], np.int64 if spec.dtype == "i" else dtype)
            room = np.empty(value.size + 16, value.dtype)
            first = -room.ctypes.data % 16 // room.itemsize + offset
            operands.append(room[first : first + value.size].reshape(value.shape))
            operands[-1][...] = value
        rule = _rule(op) if op.rule else None
        instruction = Instruction(name, operands, rule, [_SCALARS[s] for s in op.scalars])
        launches = plan(instruction, operands, np.zeros(2, np.int64))
        memory.run(launches)
        kinds.append([launch.kernel.name.removesuffix("_scalar") for launch in launches])
        scalar = any(launch.kernel.name.endswith("_scalar") for launch in launches)
        assert scalar == (offset > 0 and name != "gather_rows")
        results.append([a for a, s in zip(operands, op.operands, strict=True) if s.access != "read"])
    assert kinds[0] == kinds[1]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


# the kernels with barriers or shuffles; the others have no order to depend on
_MEETING = ("dense_forward", "dense_backward_z", "dense_backward_w", "dense_backward_x", "batch_norm_forward",
            "batch_norm_backward", "group_norm_forward", "group_norm_backward", "softmax_forward", "softmax_backward", "softmax_cross_entropy",
            "softmax_cross_entropy_dense", "elementwise_loss", "categorical_accuracy", "categorical_accuracy_dense",
            "binary_accuracy", "record", "clip_by_global_norm", "clip_by_norm", "tensor_sums", "factor_sums", "factored_update", "factor_update", "check_finite", "ascend",
            "log_softmax_forward", "log_softmax_backward", "cosine_similarity", "categorical_hinge", "hellinger_distance",
            "prelu_backward", "weight_penalty", "constrain_norm")  # fmt: skip


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("name", _MEETING)
def test_order_of_threads(name, order):
    op = OPS[name]
    with thread_order(order, 7):
        for size in ("prime", "warp"):
            size = (CHANNELS if op.multiples else SIZES)[size]
            _compare(op, size, (), _of(op), np.float32)


@pytest.mark.parametrize("kind", ["activation", "loss", "optimizer"])
def test_every_rule(kind):
    ops = {
        "activation": ("dense_forward", "dense_backward_z", "activation_forward", "activation_backward"),
        "loss": ("elementwise_loss",),
        "optimizer": (
            "optimizer_begin",
            "optimizer_update",
            "factor_sums",
            "factored_update",
            "tensor_sums",
            "optimizer_update_by_tensor",
        ),
    }[kind]
    for rule in REGISTRY[kind].values():
        for name in ops:
            if kind == "optimizer" and not takes(name, rule):
                continue
            for dtype in DTYPES:
                _compare(OPS[name], SIZES["prime"], (), rule, dtype)


def test_begin_of_adamw_after_adam():
    """One update function, two begins: whether decay is decoupled is part of what is compiled."""
    for name in ("adam", "adamw"):
        _compare(OPS["optimizer_begin"], SIZES["prime"], (), find("optimizer", name), np.float32)


def test_every_instruction_takes_its_operands_and_scalars():
    for name, op in OPS.items():
        known = {"rule", "cursor", *(operand.name for operand in op.operands), *op.scalars}
        taken = host_function(name)[1]
        assert set(taken) <= known, name
        assert [word for word in taken if word in op.scalars] == list(op.scalars), name


# ---------------------------------------------------------------------------------------------- edge values


def _device(array):
    return cuda.to_device(np.asarray(array))


def _host(array):
    return array.copy_to_host() if hasattr(array, "copy_to_host") else array.get()


def test_rows_with_infinities_and_nan():
    z = np.array([[0, np.nan, 1], [-np.inf, 0, -np.inf], [np.inf, 0, 1], [-np.inf] * 3, [1e4, -1e4, 0]], np.float32)
    np.testing.assert_allclose(_host(kernels.softmax(_device(z))), kernels.softmax(z), rtol=1e-6)


def test_accuracy_takes_the_first_maximum():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 3, (29, 67)).astype(np.float32)
    score[3, 0], score[4, 40], score[5, :] = np.nan, np.nan, -np.inf
    target = np.where(rng.random(29) < 0.5, np.argmax(np.nan_to_num(score, nan=-1), axis=1), 1)
    got = _host(kernels.categorical_accuracy(_device(score), _device(target)))
    np.testing.assert_array_equal(got, kernels.categorical_accuracy(score, target))


def test_binary_accuracy_compares_with_the_threshold_in_float64():
    score = np.full((1, 2), 0.3, np.float32)  # float32(0.3) > 0.3
    assert _host(kernels.binary_accuracy(_device(score), _device(np.ones_like(score)), threshold=0.3))[0] == 1.0


@pytest.mark.parametrize(("g", "expected"), [([np.nan, 1], np.nan), ([np.inf, 1], 0), ([0.3, 0.4], 1), ([3, 4], 0.2)])
def test_norms_that_are_no_numbers_do_not_pass(g, expected):
    hyper, uniforms = np.array([0.0, 1.0]), np.ones(4, np.float32)
    operands = [_device(a) for a in (np.asarray(g, np.float32), hyper, uniforms)]
    kernels.ops._backend(g=operands[0]).run("clip_by_global_norm", operands)
    np.testing.assert_allclose(_host(operands[2])[0], np.float32(expected), rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_not_finite_is_found_wherever_it_lies(order):
    """One element of 1100: in each half of a block, at its end, and behind the last group; and none at all."""
    for place in (None, 0, 700, 1023, 1099):
        g = np.ones(1100, np.float32)
        if place is not None:
            g[place] = np.nan
        arrays = [
            memory.to_device(a) for a in (g, scaler(8.0), np.ones(1, np.int64), np.eye(1, 8, dtype=np.float32)[0])
        ]
        with thread_order(order, 3):
            memory.run(plan(Instruction("check_finite", arrays), arrays))
        assert bool(memory.to_host(arrays[3])[4]) == (place is not None)


@pytest.mark.parametrize("by_tensor", [False, True])
def test_a_step_that_is_skipped_changes_nothing(by_tensor):
    rule, rng = find("optimizer", "adam"), np.random.default_rng(2)
    w, g, slots = (rng.standard_normal(shape).astype(np.float32) for shape in ((7,), (7,), (2, 7)))
    uniforms = np.ones(UNIFORM_HEADER + len(uniforms_of(rule)), np.float32)
    for skipped in (1, 0):
        uniforms[4] = skipped
        arrays = [memory.to_device(a) for a in (w, g, slots)]
        rest = [uniforms[None], tensor_blocks([7], [0]), *[None] * 3] if by_tensor else [uniforms]
        arrays += [None if a is None else memory.to_device(a) for a in rest]
        name = "optimizer_update_by_tensor" if by_tensor else "optimizer_update"
        memory.run(plan(Instruction(name, arrays, rule), arrays))
        assert np.array_equal(memory.to_host(arrays[0]), w) == bool(skipped)
        assert np.array_equal(memory.to_host(arrays[2]), slots) == bool(skipped)


def test_batch_norm_far_from_zero():
    x = np.random.default_rng(0).standard_normal((600, 3)) + 1000
    ones, zeros = np.ones(3), np.zeros(3)
    exact = kernels.batch_norm_forward(x, ones, zeros, zeros.copy(), ones.copy())[0]
    single = [a.astype(np.float32) for a in (x, ones, zeros, zeros, ones)]
    got = _host(kernels.batch_norm_forward(*map(_device, single))[0])
    assert np.abs(got - exact).max() < 2e-3  # float32 holds x to 6e-5


def test_layer_norm_far_from_zero():
    x = (np.random.default_rng(0).standard_normal((3, 600)) + 1000).astype(np.float32)
    ones, zeros = np.ones(600, np.float32), np.zeros(600, np.float32)
    exact = kernels.layer_norm_forward(*(a.astype(np.float64) for a in (x, ones, zeros)))[0]
    got = _host(kernels.layer_norm_forward(*map(_device, (x, ones, zeros)))[0])
    assert np.abs(got - exact).max() < 3e-6  # though the mean, as float32, is off by up to 3e-5


def test_layer_norm_in_place():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 300, 7))
    gamma, rstd = rng.uniform(0.5, 1.5, 7), rng.uniform(0.5, 1.5, 300)
    expected = kernels.layer_norm_backward(dy, x, gamma, x.mean(axis=1), rstd)
    operands = [_device(a) for a in (dy, x, gamma, x.mean(axis=1, keepdims=True), rstd[:, None])]
    sums = [_device(np.empty(7)) for _ in range(2)]
    kernels.ops._backend(dy=operands[0]).run("group_norm_backward", [*operands, operands[0], *sums])
    for got, e in zip((operands[0], *sums), expected, strict=True):
        np.testing.assert_allclose(_host(got), e, rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------- functions on arrays


def test_functions_on_arrays():
    rng = np.random.default_rng(1)
    x, w, b, dy = (rng.standard_normal(s).astype(np.float32) for s in ((5, 3), (3, 4), (4,), (5, 4)))
    y, z = kernels.dense_forward(*map(_device, (x, w, b)), "gelu", return_z=True)
    expected, z_expected = kernels.dense_forward(x, w, b, "gelu", return_z=True)
    np.testing.assert_allclose(_host(y), expected, rtol=1e-5, atol=1e-6)
    got = kernels.dense_backward(_device(dy), _device(x), _device(w), y, "gelu", z=z)
    for a, e in zip(got, kernels.dense_backward(dy, x, w, expected, "gelu", z=z_expected), strict=True):
        np.testing.assert_allclose(_host(a), e, rtol=1e-5, atol=1e-5)
    order = np.array([2, 0, 4])
    np.testing.assert_array_equal(_host(kernels.gather(_device(x), _device(order))), x[order])
    np.testing.assert_array_equal(
        _host(kernels.dropout(_device(x), 0.4, seed=2**40 + 3, step=5, layer=1)),
        kernels.dropout(x, 0.4, seed=2**40 + 3, step=5, layer=1),
    )
    weights, state = (x.copy(), x.copy()), [[np.zeros_like(x) for _ in range(2)] for _ in range(2)]
    on_device = _device(weights[1]), [_device(s) for s in state[1]]
    kernels.optimizer_update("adam", weights[0], x, state[0], step=3, clip_norm=0.5, weight_decay=0.1)
    kernels.optimizer_update("adam", on_device[0], _device(x), on_device[1], step=3, clip_norm=0.5, weight_decay=0.1)
    np.testing.assert_allclose(_host(on_device[0]), weights[0], rtol=1e-6)
    for a, e in zip(on_device[1], state[0], strict=True):
        np.testing.assert_allclose(_host(a), e, rtol=1e-6)


def test_arrays_on_both_sides():
    x = np.ones((2, 2), np.float32)
    with pytest.raises(kernels.ShapeError, match="some arrays are on the GPU"):
        kernels.dense_forward(_device(x), x)
    with pytest.raises(kernels.ShapeError, match="got a _Other"):
        kernels.softmax(_Other())


class _Other:
    dtype, shape, ndim = np.dtype(np.float32), (1, 1), 2


# ---------------------------------------------------------------------------------------------- whole models


def _train(device, build, optimizer, x, y, epochs=4):
    dlrandom.set_seed(5)
    model = Sequential(build(), device=device)
    model.compile(optimizer(), "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(x, y, batch_size=9, epochs=epochs, verbose=0)
    return model, history


def _same(cpu, gpu, steps):
    """Weights, optimizer state and statistics of two float64 models: roundings of ``steps`` steps apart."""
    state, other = cpu._state(), gpu._state()
    assert state.keys() == other.keys()
    for name, value in state.items():
        _check(name, other[name], value, value, float(steps))


def _data():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((41, 6))
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def test_training_agrees_with_the_cpu():
    """20 steps of batch norm, ReLU, dropout, Adam and clipping; the last mini-batch of an epoch is smaller.

    No bias before the batch norm: its gradient is 0 but for rounding, and Adam makes whole steps of that.
    """

    def build():
        return [
            layers.Input((6,), dtype="float64"), layers.Dense(11, use_bias=False), layers.BatchNormalization(),
            layers.Activation("relu"), layers.Dropout(0.2), layers.Dense(3, "softmax"),
        ]  # fmt: skip

    def optimizer():
        return optimizers.Adam(learning_rate=0.01, global_clipnorm=0.5)

    x, y = _data()
    (cpu, h_cpu), (gpu, h_gpu) = (_train(d, build, optimizer, x, y) for d in ("cpu", "cuda"))
    assert int(cpu._engine.read(cpu._network.step)[0]) == 20
    _same(cpu, gpu, 20)
    for name, got, expected in (
        ("loss", h_gpu.history["loss"], h_cpu.history["loss"]),
        ("predictions", gpu.predict(x), cpu.predict(x)),
        ("evaluation", gpu.evaluate(x, y), cpu.evaluate(x, y)),
    ):
        _check(name, np.asarray(got), np.asarray(expected), np.asarray(expected), 20.0)


def test_rules_of_a_user():
    """An activation and an optimizer defined here, in a float64 model."""

    @make_activation(a=0.3)
    def bent(z, h):
        return z * h.a if z < 0.0 else z + 0.1 * z * z

    @bent.derivative
    def _(z, y, h):
        return h.a if z < 0.0 else 1.0 + 0.2 * z

    @make_optimizer(learning_rate=0.05, beta=0.8)
    def lion_like(w, g, m, h):
        m = h.beta * m + (1 - h.beta) * g
        return w - h.learning_rate * m / (1.0 - h.beta**h.t) / (abs(m) + 1.0), m

    def build():
        return [layers.Input((6,)), layers.Dense(5, "bent", dtype="float64"), layers.Dense(3, "softmax")]

    x, y = _data()
    (cpu, _), (gpu, _) = (_train(d, build, lambda: lion_like, x, y, 1) for d in ("cpu", "cuda"))
    assert cpu.dtype == np.float64
    _same(cpu, gpu, 5)


def test_reserve_keeps_state():
    b = Builder(np.float32)
    w, _ = b.parameter("w", (3,))
    x = b.rows("x", 2)
    engine = CudaEngine(b.program, 4)
    engine.write(w, [1, 2, 3])
    before = engine.nbytes
    engine.reserve(9)
    assert engine.array(x).shape == (9, 2)
    assert engine.nbytes > before
    np.testing.assert_array_equal(engine.read(w), [1, 2, 3])


def test_wrong_bindings_and_runs():
    b = Builder(np.float32)
    source, order = b.extern("source", (0, 2)), b.extern("order", (0,), np.int64)
    b.emit("gather_rows", source, order, b.rows("x", 2))
    b.finish("list")
    engine = CudaEngine(b.program, 4)
    with pytest.raises(ValueError, match="source is float64"):
        engine.bind(source=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"source has shape \(3, 3\)"):
        engine.bind(source=np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match="do not fit 3 samples"):
        engine.run("list", 2, 4, 3)
