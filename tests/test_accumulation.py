"""Gradient accumulation: one update of the mean gradient of several mini-batches, inside the fused step."""

import numpy as np
import pytest
from numba import cuda
from test_update import data, model, parameters
from tolerance import assert_close

import dlcore
from dlcore import kernels, optimizers, schedules
from dlcore.kernels.cpu.eager import execute

DEVICES = ["cpu", *(["cuda"] if cuda.is_available() else [])]


def plain(optimizer, device="cpu", dtype=np.float64, regularizer=None):
    """A model without batch norm and dropout, for which a mini-batch may be cut."""
    dlcore.set_seed(3)
    made = dlcore.Sequential(
        [
            dlcore.layers.Dense(7, "tanh", dtype=dtype, kernel_regularizer=regularizer),
            dlcore.layers.Dense(4, "softmax", dtype=dtype),
        ],
        device=device,
    )
    made.compile(optimizer, "sparse_categorical_crossentropy")
    made.build((6,))
    return made


OPTIMIZERS = {
    "adam": lambda **o: optimizers.Adam(0.02, weight_decay=0.1, **o),
    "nesterov": lambda **o: optimizers.SGD(0.1, momentum=0.9, nesterov=True, maximize=True, **o),
    "global norm": lambda **o: optimizers.SGD(0.1, global_clipnorm=0.1, loss_scale=8.0, **o),
    "norm of a tensor": lambda **o: optimizers.AdamW(0.02, clipnorm=0.1, **o),
    "value": lambda **o: optimizers.SGD(0.1, clipvalue=0.01, **o),
    "lamb": lambda **o: optimizers.Optimizer("lamb", learning_rate=0.02, skip_nonfinite=True, **o),
    "lookahead": lambda **o: optimizers.Lookahead(optimizers.Adam(0.02, use_ema=True, **o), k=2),
    "a schedule": lambda **o: optimizers.Adam(schedules.ExponentialDecay(0.02, 1, 0.5), **o),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_three_mini_batches_are_one_of_three_times_the_size(make, device):
    """Of a mean loss, with a penalty that every mini-batch has."""
    x, y = data()
    penalty = dlcore.regularizers.L2(0.01)
    whole = plain(make(), device, regularizer=penalty)
    parts = plain(make(gradient_accumulation_steps=3), device, regularizer=penalty)
    whole.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    history = parts.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    expected = whole._state()
    for name, value in parts._state().items():
        if name not in ("turn_of_3", "batches", "total_gradient", "uniforms", "hyper") and "scaler" not in name:
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert parts._state()["batches"] == 12
    assert history["learning_rate"][-1] == whole.optimizer.rate_at(4)


@pytest.mark.skipif(not cuda.is_available(), reason="needs the simulator or a GPU")
def test_both_engines_agree_with_dropout_and_batch_norm():
    x, y = data()
    states = []
    for device in ("cuda", "cpu"):
        made = model(optimizers.Adam(0.02, gradient_accumulation_steps=2), device, np.float64)
        made.fit(x, y, batch_size=5, epochs=3, shuffle=False, verbose=0)  # 15 mini-batches: a turn is not over
        states.append(made._state())
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    assert (theirs["step"], theirs["batches"], theirs["turn_of_2"]) == (7, 15, 1)
    for name, value in theirs.items():
        assert_close(name, ours[name].astype(float), value.astype(float), value.astype(float), terms=20.0)


def test_dropout_takes_another_mask_in_each_mini_batch():
    dlcore.set_seed(1)
    made = dlcore.Sequential([dlcore.layers.Dropout(0.5), dlcore.layers.Dense(1)], device="cpu")
    made.compile(optimizers.SGD(1e-9, gradient_accumulation_steps=50), "mse")
    x, y = np.ones((4, 30), np.float32), np.zeros((4, 1), np.float32)
    assert len({made.train_on_batch(x, y) for _ in range(20)}) == 20


def test_threads_give_the_same_bits():
    before, states = dlcore.get_num_threads(), []
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((96, 300)).astype(np.float32), rng.standard_normal((96, 5))
    try:
        for threads in (1, 3):
            dlcore.set_num_threads(threads)
            dlcore.set_seed(0)
            made = dlcore.Sequential([dlcore.layers.Dense(600, "relu"), dlcore.layers.Dense(5)], device="cpu")
            made.compile(optimizers.Adam(gradient_accumulation_steps=2), "mse")
            made.fit(x, y, batch_size=32, verbose=0, epochs=3)
            states.append(made._state())
    finally:
        dlcore.set_num_threads(before)
    for name, value in states[0].items():
        assert value.tobytes() == states[1][name].tobytes(), name


def test_a_saved_model_goes_on_within_a_turn(tmp_path):
    x, y = data()

    def run(made, batches):
        for k in batches:
            made.train_on_batch(x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4])

    whole, half = (model(optimizers.Adam(0.1, gradient_accumulation_steps=4)) for _ in range(2))
    for made in (whole, half):
        dlcore.set_seed(2)
        made.build(x.shape[1:])
    run(whole, range(5))
    run(half, range(2))
    half.save(tmp_path / "model.safetensors")
    again = dlcore.load(tmp_path / "model.safetensors", device="cpu")
    assert again.optimizer.gradient_accumulation_steps == 4
    run(again, range(2, 5))
    expected = whole._state()
    for name, value in again._state().items():
        assert value.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_mini_batch_that_is_not_finite_does_not_count(device):
    x, y = data()
    broken = x.copy()
    broken[5] = np.inf
    options = {"gradient_accumulation_steps": 2, "loss_scale": "dynamic"}
    made, whole = plain(optimizers.SGD(0.1, **options), device), plain(optimizers.SGD(0.1), device)
    with np.errstate(all="ignore"):
        for k, values in enumerate((x, broken, x)):
            made.train_on_batch(values[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4])
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    whole.train_on_batch(x[rows], y[rows])
    for name, value in parameters(whole).items():
        np.testing.assert_allclose(parameters(made)[name], value, rtol=1e-12, err_msg=name)
    state = made._state()
    assert (state["step"], state["batches"], state["turn_of_2"]) == (1, 3, 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("first", [0, 1], ids=["aligned", "not"])
def test_the_instruction(dtype, first, device):
    """The total of the gradients of a turn, each with its scale; what was there before the turn is nothing to it."""
    convert = np.array if device == "cpu" else cuda.to_device
    rng = np.random.default_rng(4)
    n = 40_003
    g = rng.standard_normal((4, n)).astype(dtype)
    total = convert(np.full(n + 1, np.nan, dtype))[first : first + n]
    turn, batches, step = (convert(np.array([0])) for _ in range(3))
    expected, seen = np.zeros(n, dtype), []
    for k, scale in enumerate((0.5, -2.0, 1.0)):
        uniforms = convert(np.array([scale, 0, 1, 0, 0], dtype))
        step = convert(np.array([k + 1]))
        kernels.ops._backend(total=total).run(
            "accumulate_gradient", [convert(g[k]), total, turn, batches, step, uniforms], None, (3,)
        )
        u, t, s = (a.copy_to_host() if hasattr(a, "copy_to_host") else a for a in (uniforms, turn, step))
        seen.append((float(u[0]), u[4], t[0], s[0]))
        expected += dtype(scale) * g[k]
    assert seen == [(0.5, 1, 1, 0), (-2.0, 1, 2, 1), (float(dtype(1 / 3)), 0, 0, 3)]
    got = total.copy_to_host() if hasattr(total, "copy_to_host") else total
    np.testing.assert_allclose(got, expected, rtol=10 * np.finfo(dtype).eps, atol=10 * np.finfo(dtype).eps)


def test_a_step_that_is_skipped_adds_nothing():
    total, turn, batches, step = np.full(5, 7.0), np.array([1]), np.array([1]), np.array([0])
    uniforms = np.array([1.0, 0, 1, 0, 1])
    execute("accumulate_gradient", [np.full(5, np.nan), total, turn, batches, step, uniforms], None, (2.0,))
    assert (total == 7).all()
    assert (turn, batches, step, uniforms[4]) == (1, 2, 0, 1)


def test_a_schedule_by_epochs_counts_mini_batches():
    """Five mini-batches an epoch, two an update: update 3 falls into the second epoch, update 6 into the third."""
    x, y = data()
    optimizer = optimizers.SGD(schedules.ExponentialDecay(1.0, 1, 0.5, per="epoch"), gradient_accumulation_steps=2)
    made = plain(optimizer)
    made.fit(x[:20], y[:20], batch_size=4, epochs=3, shuffle=False, verbose=0)
    rates = [optimizer.rate_at(t) for t in range(1, 8)]
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert made._state()["uniforms"][-1] == optimizer.rate_at(8) == 0.125  # the one that began with mini-batch 15


def test_another_number_begins_another_turn():
    x, y = data()
    made = plain(optimizers.SGD(0.1, gradient_accumulation_steps=3))
    made.train_on_batch(x, y)
    made.compile(optimizers.SGD(0.1, gradient_accumulation_steps=2), "sparse_categorical_crossentropy")
    made.train_on_batch(x, y)
    assert made._state()["turn_of_2"] == 1


def test_bad_options_and_models_that_differ():
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be an integer of at least 1, got 0"):
        optimizers.Adam(gradient_accumulation_steps=0)
    models = [plain(optimizers.SGD(0.1, gradient_accumulation_steps=n)) for n in (None, 2)]
    with pytest.raises(ValueError, match="differ: gradient_accumulation_steps 1 and 2"):
        dlcore.fit_many(models, *data())
