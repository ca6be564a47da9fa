"""The skeleton around every optimizer rule: clipping, the scale of the loss, steps that are skipped, sums over tensors."""

import numpy as np
import oracle
import pytest
from numba import cuda, types
from tolerance import assert_close

import dlcore
from dlcore import kernels, optimizers, schedules
from dlcore.kernels import compile, loss_scale
from dlcore.kernels.cpu import threads as pool_of_threads
from dlcore.kernels.cpu.context import CONTEXT, THREAD, THREADS, take_piece
from dlcore.kernels.cpu.eager import execute
from dlcore.kernels.cpu.entries import checked_entry
from dlcore.kernels.cpu.interpreter import Workspace
from dlcore.kernels.cpu.machine import VARIANT
from dlcore.kernels.cpu.steps import STEPS
from dlcore.kernels.cpu.table import Table
from dlcore.kernels.cpu.update import PIECE
from dlcore.kernels.instructions import Instruction
from dlcore.kernels.program import TENSOR_BLOCK, tensor_blocks
from dlcore.kernels.rule import REGISTRY, RuleError, find

DEVICES = ["cpu", *(["cuda"] if cuda.is_available() else [])]
RATE = 0.5


def data(scale=1.0):
    rng = np.random.default_rng(8)
    return (scale * rng.standard_normal((24, 6))).astype(np.float32), rng.integers(0, 4, 24)


def model(optimizer, device="cpu", dtype=np.float32):
    dlcore.set_seed(11)
    made = dlcore.Sequential(
        [
            dlcore.layers.Dense(9, "tanh", dtype=dtype),
            dlcore.layers.BatchNormalization(dtype=dtype),
            dlcore.layers.Dropout(0.2, dtype=dtype),
            dlcore.layers.Dense(4, "softmax", dtype=dtype),
        ],
        device=device,
    )
    made.compile(optimizer, "sparse_categorical_crossentropy")
    return made


def trained(optimizer, device="cpu", dtype=np.float32, epochs=2):
    """The model after six steps of eight samples."""
    made = model(optimizer, device, dtype)
    made.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return made


def parameters(made):
    program = made.program
    return {b.name: made._engine.read(b) for b in program.buffers["parameter"]}


def gradients():
    """Of each parameter in the first step: what gradient descent takes away."""
    x, y = data()
    made = model(optimizers.SGD(RATE), dtype=np.float64)
    made.build(x.shape[1:])
    before = parameters(made)
    made.train_on_batch(x[:8], y[:8])
    return {name: (before[name] - after) / RATE for name, after in parameters(made).items()}


def norm(arrays):
    return np.sqrt(sum((a**2).sum() for a in arrays))


def clipped(kind, limit):
    """The gradients, clipped in NumPy."""
    found = gradients()
    if kind == "clipvalue":
        return {name: np.clip(g, -limit, limit) for name, g in found.items()}
    if kind == "clipnorm":
        return {name: g * min(1.0, limit / norm([g])) for name, g in found.items()}
    return {name: g * min(1.0, limit / norm(found.values())) for name, g in found.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "limit"), [("clipvalue", 0.02), ("clipnorm", 0.3), ("global_clipnorm", 0.3)])
def test_clipping_in_the_fused_step(kind, limit, device):
    assert any((g != clipped(kind, limit)[name]).any() for name, g in gradients().items())  # the limit is one
    x, y = data()
    made = model(optimizers.SGD(RATE, **{kind: limit}), device, np.float64)
    made.build(x.shape[1:])
    before = parameters(made)
    made.train_on_batch(x[:8], y[:8])
    after = parameters(made)
    for name, g in clipped(kind, limit).items():
        np.testing.assert_allclose(after[name], before[name] - RATE * g, rtol=1e-12, atol=1e-14, err_msg=name)


def test_clipping_by_value_keeps_what_is_not_a_number():
    rule = optimizers.SGD(1.0, clipvalue=0.5).rule
    for convert in [np.asarray, *([cuda.to_device] if cuda.is_available() else [])]:
        w, g = convert(np.zeros(5)), convert(np.array([np.nan, np.inf, -np.inf, 0.25, -0.75]))
        kernels.ops._backend(w=w).run(
            "optimizer_update",
            [w, g, convert(np.zeros((0, 5))), convert(np.array([1.0, 0.0, 1.0, 0.5, 0.0, 1.0]))],
            rule,
        )
        got = w.copy_to_host() if hasattr(w, "copy_to_host") else w
        np.testing.assert_array_equal(got, [np.nan, -0.5, 0.5, -0.25, 0.5])


OPTIMIZERS = {
    "clipvalue": lambda: optimizers.Adam(0.02, clipvalue=0.01),
    "clipnorm": lambda: optimizers.Adam(0.02, clipnorm=0.1, weight_decay=0.01),
    "dynamic scale": lambda: optimizers.AdamW(0.02, loss_scale="dynamic", global_clipnorm=0.3),
    "lamb": lambda: optimizers.Optimizer("lamb", learning_rate=0.02, decay=0.01),
    "lars": lambda: optimizers.Optimizer("lars", learning_rate=5.0, skip_nonfinite=True),
    "novograd": lambda: optimizers.Optimizer("novograd", clipvalue=0.02),
    "everything": lambda: optimizers.Adam(
        schedules.CosineDecay(0.02, 6), clipnorm=0.2, weight_decay=0.01, loss_scale=64.0
    ),
}


@pytest.mark.skipif(not cuda.is_available(), reason="needs the simulator or a GPU")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_both_engines_agree_on_weights_and_state(make):
    ours, theirs = (trained(make(), device, np.float64)._state() for device in ("cuda", "cpu"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        else:
            assert_close(name, ours[name], value, value, terms=6.0)  # roundings of six steps


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_number_of_threads_gives_the_same_bits(make):
    before = dlcore.get_num_threads()
    try:
        states = []
        for threads in (1, 3):
            dlcore.set_num_threads(threads)
            rng = np.random.default_rng(0)
            dlcore.set_seed(0)
            made = dlcore.Sequential([dlcore.layers.Dense(600, "relu"), dlcore.layers.Dense(5)], device="cpu")
            made.compile(make(), "mse")
            made.fit(
                rng.standard_normal((96, 300)).astype(np.float32), rng.standard_normal((96, 5)), verbose=0, epochs=2
            )
            states.append(made._state())
    finally:
        dlcore.set_num_threads(before)
    for name, value in states[0].items():
        assert value.tobytes() == states[1][name].tobytes(), name


# ------------------------------------------------------------------------------------------- the scale of the loss


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_that_is_a_power_of_two_changes_no_bit(device):
    plain = trained(optimizers.SGD(0.1, momentum=0.9), device)  # Adam would not see a scale
    scaled = trained(optimizers.SGD(0.1, momentum=0.9, loss_scale=1024.0), device)
    for a, b in zip(plain.get_weights(), scaled.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_is_not_finite_changes_nothing_but_the_scale(device):
    made = trained(optimizers.Adam(0.02, loss_scale="dynamic"), device)
    before = made._state()
    x, y = data()
    x[3, 2] = np.inf
    with np.errstate(all="ignore"):
        made.train_on_batch(x[:8], y[:8])
    after = made._state()
    scaler = made._network.scaler.name
    assert after[scaler].tolist() == [loss_scale.INITIAL / 2, 0.0, loss_scale.INTERVAL, 1.0]
    for name in before:
        if name != scaler and "moving" not in name and name != "uniforms":
            assert before[name].tobytes() == after[name].tobytes(), name
    history = made.fit(*data(), batch_size=8, verbose=0).history  # and it goes on
    assert history["skipped_steps"] == [1.0]
    assert (made._state()["step"] == before["step"] + 3).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_scale_halves_and_doubles(device):
    convert = np.array if device == "cpu" else cuda.to_device
    scaler, step = convert(loss_scale.scaler(8.0, 2)), convert(np.array([9]))
    seen = []
    for bad in (np.nan, 0.0, 0.0, -np.inf, 0.0, 0.0, 0.0):
        g = np.zeros(70001)
        g[70000] = bad
        g, uniforms = convert(g), convert(np.array([1.0, 0.0, 1.0, 0.0, 0.0]))
        kernels.ops._backend(g=g).run("check_finite", [g, scaler, step, uniforms])
        host = [a.copy_to_host() if hasattr(a, "copy_to_host") else a for a in (scaler, uniforms)]
        seen.append((host[0][0], 1 / host[1][0], host[1][4]))
    # the scale after the step, the one the step was divided by, and whether it was skipped (until the next begins)
    assert [s[0] for s in seen] == [4.0, 4.0, 8.0, 4.0, 4.0, 8.0, 8.0]
    assert [s[1] for s in seen] == [8.0, 4.0, 4.0, 8.0, 4.0, 4.0, 8.0]
    host = step.copy_to_host() if hasattr(step, "copy_to_host") else step
    assert host.tolist() == [7]


def test_a_fixed_scale_stays():
    state, step, uniforms = loss_scale.scaler(16.0, 0), np.array([3]), np.ones(5)
    for bad in (0.0, np.nan, 0.0):
        execute("check_finite", [np.array([bad]), state, step, uniforms])
    assert state.tolist() == [16.0, 1.0, 0.0, 1.0]


def test_another_scale_begins_anew():
    made = trained(optimizers.Adam(loss_scale="dynamic"))
    made.compile(optimizers.Adam(loss_scale=4.0), "sparse_categorical_crossentropy")
    assert made._engine.read(made._network.scaler)[0] == 4.0


# ------------------------------------------------------------------------------------------------ pieces of a share


@pytest.mark.parametrize("extra", [-1, 0, 1, PIECE + 1])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_element_is_updated_once(threads, extra, monkeypatch):
    monkeypatch.setattr(pool_of_threads, "_num_threads", threads)
    w = np.zeros(12 * PIECE + extra + 3, np.float32)[3:]  # begins between two cache lines
    g = np.ones_like(w)
    for _ in range(20):
        kernels.optimizer_update("sgd", w, g, [], step=1, learning_rate=1.0)
    assert (w == -20).all()


def test_a_thread_takes_what_another_has_not_begun():
    w, g = np.zeros(6 * PIECE, np.float32), np.ones(6 * PIECE, np.float32)
    uniforms = np.array([1, 0, 1, 0, 0, 0.5], np.float32)  # the last is the rate
    operands = [w, g, np.zeros((0, w.size), np.float32), uniforms]
    update = Instruction(STEPS["optimizer_update"], operands, find("optimizer", "sgd"))
    table, workspace = Table([update], lambda array: array, 1, 1, 2), Workspace(2, 0)
    for thread in (1, 0):
        workspace.contexts[thread, [THREAD, THREADS]] = thread, 2
        checked_entry(table.steps[0])(table.words[0].ctypes.data, workspace.contexts[thread].ctypes.data)
        assert (w[w.size // 2 :] == -0.5).all()
        assert (w == -0.5).sum() >= w.size - 16  # what lies before the first cache line is for thread 0
    assert (w == -0.5).all()


def test_what_an_owner_leaves_is_taken_once():
    taking = compile.native(compile.whole(take_piece, "take_piece", VARIANT), types.int64(*[types.int64] * 5))
    contexts = np.zeros((3, CONTEXT), np.int64)

    def take(thread, owner):
        return taking(contexts[thread].ctypes.data, owner, 4, thread, 3)

    for _ in range(2):  # the counts are ready for the next step
        assert [take(0, 0), take(2, 0), take(1, 0), take(0, 0)] == [0, 1, 2, 3]
        assert [take(0, 1), take(1, 1)] == [0, 1]  # those of another owner are others
        assert [take(k, 0) for k in (1, 0, 2)] == [-1] * 3
        assert [take(k, 1) for k in (2, 2, 2, 0, 1)] == [2, 3, -1, -1, -1]
        assert not contexts.any()


# ------------------------------------------------------------------------------------------------ sums over tensors


def test_blocks_cover_every_tensor():
    table = tensor_blocks([5, TENSOR_BLOCK, 2 * TENSOR_BLOCK + 1], [0, 16, TENSOR_BLOCK + 16])
    n = TENSOR_BLOCK
    assert table.tolist() == [
        [0, 5, 0], [16, n + 16, 1], [n + 16, 2 * n + 16, 2], [2 * n + 16, 3 * n + 16, 2], [3 * n + 16, 3 * n + 17, 2]
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(n for n, rule in REGISTRY["optimizer"].items() if rule.by_tensor))
def test_layers_are_looked_at_one_by_one(name):
    """Each tensor of a model moves as it would alone."""
    x, y = data()
    made = model(optimizers.Optimizer(name), dtype=np.float64)
    made.build(x.shape[1:])
    expected = parameters(made)
    rule = find("optimizer", name)
    slots = {key: oracle.optimizer_state(rule, w.shape, w.dtype) for key, w in expected.items()}
    for step, g in enumerate([gradients()] * 1, start=1):
        made.train_on_batch(x[:8], y[:8])
        for key, w in expected.items():
            defaults = find("optimizer", name).parameters
            expected[key], slots[key] = oracle.optimizer_step(name, w, g[key], slots[key], step, defaults)
    for key, w in parameters(made).items():
        np.testing.assert_allclose(w, expected[key], rtol=1e-9, atol=1e-10, err_msg=key)


def test_a_rule_of_the_user_with_sums():
    @kernels.optimizer(sums="g1", lr=0.5)
    def by_mean_size(w, g, g1, h):
        return w - h.lr * g / g1

    with pytest.raises(RuleError, match=r"has no tensor sums; add one with @by_mean_size\.tensor_sums"):
        optimizers.Optimizer(by_mean_size)

    @by_mean_size.tensor_sums
    def _(w, g, h):
        return abs(g)

    w = np.zeros(4)
    kernels.optimizer_update(by_mean_size, w, np.array([1.0, -2.0, 3.0, -4.0]), [], step=1)
    np.testing.assert_allclose(w, [-0.05, 0.1, -0.15, 0.2], rtol=1e-15)
    with pytest.raises(RuleError, match=r"expected \(w, g, \*slots, g1, h\)"):
        kernels.optimizer(sums="g1", lr=0.5)(lambda w, g, h: w)


BAD = {
    "two ways to clip": ({"clipnorm": 1.0, "clipvalue": 1.0}, "at most one of clipvalue, clipnorm, global_clipnorm"),
    "clipvalue": ({"clipvalue": 0.0}, "clipvalue must be positive or None, got 0.0"),
    "a scale of 0": ({"loss_scale": 0.0}, "loss_scale must be a positive number, 'dynamic' or None, got 0.0"),
    "a text": ({"loss_scale": "static"}, "loss_scale must be a positive number, 'dynamic' or None, got 'static'"),
    "a name": ({"clip": 1.0}, "adam has no parameter 'clip'; it has: learning_rate.*clipvalue, clipnorm"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        optimizers.Adam(**options)


def test_norms_of_a_tensor_and_rules_that_take_them_do_not_mix():
    with pytest.raises(ValueError, match="lamb scales by norms of each tensor itself; clipnorm does not go with it"):
        optimizers.Optimizer("lamb", clipnorm=1.0)
    with pytest.raises(ValueError, match="sm3 keeps state of rows and columns; clipnorm does not go with it"):
        optimizers.Optimizer("sm3", clipnorm=1.0)
