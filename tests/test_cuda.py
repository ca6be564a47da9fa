"""The CUDA engine against the CPU engine: every instruction, what it writes and what it updates in place.

On the simulator, or on a GPU with ``DLCORE_TEST_DEVICE=cuda``.
"""

import numpy as np
import pytest
from cuda_instruction import (
    CHANNELS,
    CHUNKED,
    DTYPES,
    ORDERS,
    SIZES,
    TALL,
    absences,
    check,
    compare,
    on_device,
    on_host,
    rule_for,
)  # fmt: skip

from dlcore import Sequential, kernels, layers, optimizers
from dlcore import random as dlrandom
from dlcore.kernels import Builder
from dlcore.kernels.compile import uniforms_of
from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.engine import Engine as CudaEngine
from dlcore.kernels.cuda.launch import host_function, plan, takes
from dlcore.kernels.device import simulated
from dlcore.kernels.instructions import OPS, Instruction
from dlcore.kernels.loss_scale import scaler
from dlcore.kernels.optimizer_rule import optimizer as make_optimizer
from dlcore.kernels.program import tensor_blocks
from dlcore.kernels.rule import REGISTRY, find
from dlcore.kernels.rule import activation as make_activation
from dlcore.kernels.step_text import UNIFORM_HEADER

if simulated():
    from simulator import thread_order
else:
    from contextlib import nullcontext as thread_order


def _cases():
    for op in OPS.values():
        for absent in absences(op):
            for label, size in (CHANNELS if op.multiples else SIZES).items():
                name = f"{op.name}{'-' if absent else ''}-{label}"
                yield pytest.param(op, size, absent, id=name)
            if op.name in CHUNKED and not op.multiples:
                yield pytest.param(op, TALL, absent, id=f"{op.name}{'-' if absent else ''}-tall")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "size", "absent"), list(_cases()))
def test_instruction(op, size, absent, dtype):
    compare(op, size, absent, rule_for(op, absent), dtype)


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
            compare(op, size, (), rule_for(op), np.float32)


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
                compare(OPS[name], SIZES["prime"], (), rule, dtype)


def test_begin_of_adamw_after_adam():
    """One update function, two begins: whether decay is decoupled is part of what is compiled."""
    for name in ("adam", "adamw"):
        compare(OPS["optimizer_begin"], SIZES["prime"], (), find("optimizer", name), np.float32)


def test_every_instruction_takes_its_operands_and_scalars():
    for name, op in OPS.items():
        known = {"rule", "cursor", *(operand.name for operand in op.operands), *op.scalars}
        taken = host_function(name)[1]
        assert set(taken) <= known, name
        assert [word for word in taken if word in op.scalars] == list(op.scalars), name


# ---------------------------------------------------------------------------------------------- edge values


def test_rows_with_infinities_and_nan():
    z = np.array([[0, np.nan, 1], [-np.inf, 0, -np.inf], [np.inf, 0, 1], [-np.inf] * 3, [1e4, -1e4, 0]], np.float32)
    np.testing.assert_allclose(on_host(kernels.softmax(on_device(z))), kernels.softmax(z), rtol=1e-6)


def test_accuracy_takes_the_first_maximum():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 3, (29, 67)).astype(np.float32)
    score[3, 0], score[4, 40], score[5, :] = np.nan, np.nan, -np.inf
    target = np.where(rng.random(29) < 0.5, np.argmax(np.nan_to_num(score, nan=-1), axis=1), 1)
    got = on_host(kernels.categorical_accuracy(on_device(score), on_device(target)))
    np.testing.assert_array_equal(got, kernels.categorical_accuracy(score, target))


def test_binary_accuracy_compares_with_the_threshold_in_float64():
    score = np.full((1, 2), 0.3, np.float32)  # float32(0.3) > 0.3
    assert on_host(kernels.binary_accuracy(on_device(score), on_device(np.ones_like(score)), threshold=0.3))[0] == 1.0


@pytest.mark.parametrize(("g", "expected"), [([np.nan, 1], np.nan), ([np.inf, 1], 0), ([0.3, 0.4], 1), ([3, 4], 0.2)])
def test_norms_that_are_no_numbers_do_not_pass(g, expected):
    hyper, uniforms = np.array([0.0, 1.0]), np.ones(4, np.float32)
    operands = [on_device(a) for a in (np.asarray(g, np.float32), hyper, uniforms)]
    kernels.ops._backend(g=operands[0]).run("clip_by_global_norm", operands)
    np.testing.assert_allclose(on_host(operands[2])[0], np.float32(expected), rtol=1e-6)


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
    got = on_host(kernels.batch_norm_forward(*map(on_device, single))[0])
    assert np.abs(got - exact).max() < 2e-3  # float32 holds x to 6e-5


def test_layer_norm_far_from_zero():
    x = (np.random.default_rng(0).standard_normal((3, 600)) + 1000).astype(np.float32)
    ones, zeros = np.ones(600, np.float32), np.zeros(600, np.float32)
    exact = kernels.layer_norm_forward(*(a.astype(np.float64) for a in (x, ones, zeros)))[0]
    got = on_host(kernels.layer_norm_forward(*map(on_device, (x, ones, zeros)))[0])
    assert np.abs(got - exact).max() < 3e-6  # though the mean, as float32, is off by up to 3e-5


def test_layer_norm_in_place():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 300, 7))
    gamma, rstd = rng.uniform(0.5, 1.5, 7), rng.uniform(0.5, 1.5, 300)
    expected = kernels.layer_norm_backward(dy, x, gamma, x.mean(axis=1), rstd)
    operands = [on_device(a) for a in (dy, x, gamma, x.mean(axis=1, keepdims=True), rstd[:, None])]
    sums = [on_device(np.empty(7)) for _ in range(2)]
    kernels.ops._backend(dy=operands[0]).run("group_norm_backward", [*operands, operands[0], *sums])
    for got, e in zip((operands[0], *sums), expected, strict=True):
        np.testing.assert_allclose(on_host(got), e, rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------- functions on arrays


def test_functions_on_arrays():
    rng = np.random.default_rng(1)
    x, w, b, dy = (rng.standard_normal(s).astype(np.float32) for s in ((5, 3), (3, 4), (4,), (5, 4)))
    y, z = kernels.dense_forward(*map(on_device, (x, w, b)), "gelu", return_z=True)
    expected, z_expected = kernels.dense_forward(x, w, b, "gelu", return_z=True)
    np.testing.assert_allclose(on_host(y), expected, rtol=1e-5, atol=1e-6)
    got = kernels.dense_backward(on_device(dy), on_device(x), on_device(w), y, "gelu", z=z)
    for a, e in zip(got, kernels.dense_backward(dy, x, w, expected, "gelu", z=z_expected), strict=True):
        np.testing.assert_allclose(on_host(a), e, rtol=1e-5, atol=1e-5)
    order = np.array([2, 0, 4])
    np.testing.assert_array_equal(on_host(kernels.gather(on_device(x), on_device(order))), x[order])
    np.testing.assert_array_equal(
        on_host(kernels.dropout(on_device(x), 0.4, seed=2**40 + 3, step=5, layer=1)),
        kernels.dropout(x, 0.4, seed=2**40 + 3, step=5, layer=1),
    )
    weights, state = (x.copy(), x.copy()), [[np.zeros_like(x) for _ in range(2)] for _ in range(2)]
    there = on_device(weights[1]), [on_device(s) for s in state[1]]
    for slot, zeros in zip(kernels.optimizer_slots("adam", there[0]), state[1], strict=True):
        assert type(slot) is type(there[0])
        assert slot.dtype == zeros.dtype
        np.testing.assert_array_equal(on_host(slot), zeros)
    kernels.optimizer_update("adam", weights[0], x, state[0], step=3, clip_norm=0.5, weight_decay=0.1)
    kernels.optimizer_update("adam", there[0], on_device(x), there[1], step=3, clip_norm=0.5, weight_decay=0.1)
    np.testing.assert_allclose(on_host(there[0]), weights[0], rtol=1e-6)
    for a, e in zip(there[1], state[0], strict=True):
        np.testing.assert_allclose(on_host(a), e, rtol=1e-6)


def test_arrays_on_both_sides():
    x = np.ones((2, 2), np.float32)
    with pytest.raises(kernels.ShapeError, match="some arrays are on the GPU"):
        kernels.dense_forward(on_device(x), x)
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
        check(name, other[name], value, value, float(steps))


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
        check(name, np.asarray(got), np.asarray(expected), np.asarray(expected), 20.0)


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
