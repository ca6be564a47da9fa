"""``fit_many``: the same bits as one model after the other, and what it refuses."""

import signal
import threading
import time

import numpy as np
import pytest

import dlcore
from dlcore import layers, optimizers, training
from dlcore.kernels.cpu import engine

LOSS = "sparse_categorical_crossentropy"


def blobs(rows=103, features=9, classes=3):
    rng = np.random.default_rng(1)
    y = rng.integers(0, classes, rows)
    return rng.standard_normal((classes, features))[y] + rng.standard_normal((rows, features)), y


def stack(hidden="relu", units=17, dtype=None, given=True):
    return dlcore.Sequential(
        [
            *([layers.Input((9,))] if given else []),
            layers.Dense(units, use_bias=False, dtype=dtype),
            layers.BatchNormalization(),
            layers.Activation(hidden),
            layers.Dropout(0.3),
            layers.Dense(3, "softmax"),
        ],
        device="cpu",
    )


VALUES = {
    "sgd": [optimizers.SGD(0.1 * k, weight_decay=0.01 * k) for k in range(1, 6)],
    "momentum": [optimizers.SGD(0.1, momentum=0.1 * k) for k in range(1, 6)],
    "adam": [optimizers.Adam(1e-3 * k, beta_1=1 - 0.5**k, beta_2=1 - 0.2**k) for k in range(1, 6)],
    "adamw": [optimizers.AdamW(1e-3 * k, epsilon=10.0**-k) for k in range(1, 6)],
    "adafactor": [optimizers.Optimizer("adafactor", learning_rate=1e-2 * k, decay=0.1 + 0.2 * k) for k in range(1, 6)],
    "sm3": [optimizers.Optimizer("sm3", learning_rate=1e-2 * k, weight_decay=1e-3 * k) for k in range(1, 6)],
    "clipping": [optimizers.Adam(0.01, global_clipnorm=norm) for norm in (None, 0.1, 0.5, None, 2.0)],
}


def models(values=VALUES["adam"], metrics=("accuracy",), **options):
    result = [stack(**options) for _ in values]
    for model, optimizer in zip(result, values, strict=True):
        model.compile(optimizer, LOSS, metrics)
    return result


def outcome(fitted, histories):
    """Everything a fit leaves behind: weights, optimizer state, statistics, step; histories; the random numbers."""
    state = [{name: value.tobytes() for name, value in model._state().items()} for model in fitted]
    return state, [(h.history, h.epoch) for h in histories], dlcore.random.draw_seed()


def one_after_the_other(fitted, x, y, **options):
    return [model.fit(x, y, verbose=0, **options) for model in fitted]


def compare(make, times=1, **options):
    x, y = blobs()
    results = []
    for fit in (one_after_the_other, dlcore.fit_many):
        dlcore.set_seed(5)
        fitted = make()
        for _ in range(times):
            histories = fit(fitted, x, y, **options)
        results.append(outcome(fitted, histories))
    assert results[0] == results[1]
    return results[0]


@pytest.fixture(params=[1, 2, 3])
def _threads(request, monkeypatch):
    monkeypatch.setattr("dlcore.kernels.cpu.threads._num_threads", request.param)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("values", VALUES.values(), ids=list(VALUES))
def test_the_bits_are_those_of_one_after_the_other(values):
    states, histories, _ = compare(lambda: models(values), batch_size=16, epochs=3)
    assert len({state["dense/kernel"] for state in states}) == 5  # models of their own
    assert len({tuple(history["loss"]) for history, _ in histories}) == 5
    assert [history["learning_rate"] for history, _ in histories] == [[v.learning_rate] * 3 for v in values]
    assert set(histories[0][0]) == {"loss", "accuracy", "learning_rate"}
    assert histories[0][1] == [0, 1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"batch_size": 1000},  # more than there are
        {"batch_size": 1, "epochs": 1},
        {"times": 2, "batch_size": 50, "epochs": 2},
    ],
    ids=str,
)
def test_whatever_the_mini_batches(options):
    compare(models, **options)


@pytest.mark.parametrize("given", [True, False], ids=["input", "shape of x"])
def test_of_float64_and_built_or_not(given):
    def make():
        fitted = models(dtype="float64", given=given)
        fitted[1]._ensure_built(np.zeros((1, 9)))
        return fitted

    compare(make, epochs=2)


def test_one_model_and_more_models_than_threads():
    compare(lambda: models(VALUES["adam"][:1]))
    compare(lambda: models([optimizers.SGD(0.01 * k) for k in range(1, 40)]))


def test_models_with_equal_seeds_see_their_own_orders():
    x, y = blobs()
    dlcore.set_seed(0)
    pair = models([optimizers.SGD(0.1), optimizers.SGD(0.1)], metrics=())
    for model in pair:
        model._ensure_built()
    pair[1].set_weights(pair[0].get_weights())
    pair[1]._engine.write(pair[1]._network.seed, pair[0]._engine.read(pair[0]._network.seed))
    unshuffled = dlcore.fit_many(pair, x, y, shuffle=False)
    assert unshuffled[0].history == unshuffled[1].history
    shuffled = dlcore.fit_many(pair, x, y)
    assert shuffled[0].history != shuffled[1].history


def test_data_is_converted_once_and_shared():
    x, y = blobs()  # float64, for models of float32
    fitted = models()
    dlcore.fit_many(fitted, x, y)
    for name in ("samples", "targets"):
        assert len({model._engine.fetch(name).ctypes.data for model in fitted}) == 1


def test_slices_take_at_most_50_ms(monkeypatch):
    now, pace, calls = [0.0], [2.0**-10], []
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])

    def call(steps, done):
        assert done == sum(calls)
        calls.append(steps)
        now[0] += pace[0] * steps

    slices = training.Slices()
    slices.run(500, call)
    assert calls == [1, 10, *[51] * 9, 30]  # 51 * 2**-10 s < 50 ms
    calls.clear()
    pace[0] *= 8  # slower from then on
    slices.run(500, call)
    assert calls == [51, *[6] * 74, 5]  # what was learnt before is kept
    assert training.Slices(0.001).steps == 12  # a quarter of 50: estimates are good to a factor of 4


def test_a_call_takes_as_many_models_as_a_slice_has_time_for(monkeypatch):
    x, y = blobs(1000)
    calls = []

    def run_many(engines, name, steps, batch, samples, first):
        calls.append((len(engines), steps))
        original(engines, name, steps, batch, samples, first)

    original = engine.run_many
    monkeypatch.setattr(engine, "run_many", run_many)
    monkeypatch.setattr("dlcore.kernels.cpu.threads._num_threads", 2)
    fitted = models()
    dlcore.fit_many(fitted, x, y, batch_size=10)
    assert {count for count, _ in calls} == {5}
    # three models a thread; how long that takes is an estimate yet
    expected = training.Slices(3 * fitted[0]._engine.seconds("train", 10)).steps
    assert expected > 1
    assert calls[0] == (5, min(100, expected))
    assert sum(steps for _, steps in calls) == 100
    calls.clear()
    monkeypatch.setattr(training, "SLICE", 1e-9)  # nothing is that quick: one mini-batch, of a model a thread
    dlcore.fit_many(fitted, x, y, batch_size=250)
    assert calls == [(2, 1), (2, 1), (1, 1)] * 4


def test_an_interrupt_leaves_all_models_usable():
    x, y = blobs(2000)
    fitted = models()
    dlcore.fit_many(fitted, x, y)
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        dlcore.fit_many(fitted, x, y, epochs=100_000)
    assert time.perf_counter() - start < 30  # not after 100,000 epochs
    steps = {int(model._engine.read(model._network.step)[0]) for model in fitted}
    assert len(steps) == 1
    assert all(np.isfinite(model.evaluate(x, y)).all() for model in fitted)
    histories = dlcore.fit_many(fitted, x, y)
    assert [len(history.epoch) for history in histories] == [1] * 5


def test_lines_and_a_bar(capsys, monkeypatch):
    x, y = blobs()
    histories = dlcore.fit_many(models(), x, y, epochs=2, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    losses = [h.history["loss"][1] for h in histories]
    assert len(lines) == 2
    assert lines[1].startswith(f"epoch 2/2: loss {min(losses):.4f} to {max(losses):.4f}  accuracy ")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    dlcore.fit_many(models(), x, y, batch_size=10, epochs=2, verbose=1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 2/2: 100%" in shown.err
    assert "11/11" in shown.err


def test_losses_that_are_not_finite_are_reported_once():
    x, y = blobs()
    values = [optimizers.SGD(rate) for rate in (0.1, 1e30, 0.1, 1e35)]
    fitted = [dlcore.Sequential([layers.Dense(3, "relu"), layers.Dense(3)], device="cpu") for _ in values]
    for model, optimizer in zip(fitted, values, strict=True):
        model.compile(optimizer, "mse")
    with pytest.warns(RuntimeWarning, match=r"the loss of model 1, 3 became NaN or infinite in epoch 1") as record:
        dlcore.fit_many(fitted, x, np.eye(3)[y], epochs=3)
    assert len(record) == 1
    assert record[0].filename == __file__


# ------------------------------------------------------------------------------------------------------- refusals


def _pair(second=None, compile=True, **changed):
    """Two compiled models, the second with other options."""
    pair = [stack(), second or stack(**changed)]
    for model in pair[: 2 if compile else 1]:
        model.compile("adam", LOSS, ["accuracy"])
    return pair


def _recompiled(*arguments):
    pair = _pair()
    pair[1].compile(*arguments)
    return pair


def _sharing():
    layer = layers.Dense(3, name="shared")
    pair = [dlcore.Sequential([layer], device="cpu") for _ in range(2)]
    for model in pair:
        model.compile("adam", "mse")
    return pair


def _twice():
    pair = _pair()
    return [*pair, pair[0]]


def _shapes():
    pair = _pair(stack(given=False))
    pair[0].layers.pop(0)
    pair[1].build((8,))
    return pair


REFUSED = {
    "no model": (list, ValueError, "models is empty; fit_many takes at least one model"),
    "a model alone": (stack, TypeError, "models is one model; fit_many takes a list of models"),
    "something else": (lambda: [3], TypeError, "model 0 is int; expected Sequential"),
    "not compiled": (lambda: _pair(compile=False), RuntimeError, r"model 1 has no loss yet; call compile\(optimizer, loss\)"),
    "twice": (_twice, ValueError, "models 0 and 2 are one model"),
    "shared layer": (_sharing, ValueError, "models 0 and 1 share layer 'shared'; make one for each"),
    "device": (lambda: _pair(dlcore.Sequential([layers.Dense(3)], device="cuda")), ValueError, "model 1 differ: device cpu and cuda"),
    "dtype": (lambda: _pair(dtype="float64"), ValueError, "model 0 and model 1 differ: dtype float32 and float64"),
    "depth": (lambda: _pair(given=False), ValueError, "number of layers 6 and 5"),
    "kind": (lambda: _pair(dlcore.Sequential([layers.Dense(3)] + [layers.Dense(3, name=str(k)) for k in range(5)], device="cpu")), ValueError, "layer 0 Input and Dense"),
    "size": (lambda: _pair(units=18), ValueError, "units of layer 1 17 and 18"),
    "activation": (lambda: _pair(hidden="tanh"), ValueError, "activation of layer 3 relu and tanh"),
    "shape": (_shapes, ValueError, r"input shape \(9,\) and \(8,\)"),
    "loss": (lambda: _recompiled("adam", "mse"), ValueError, f"loss {LOSS} and mean_squared_error"),
    "logits": (lambda: _recompiled("adam", dlcore.losses.SparseCategoricalCrossentropy(True), ["accuracy"]), ValueError, f"loss {LOSS} and {LOSS} from logits"),
    "metrics": (lambda: _recompiled("adam", LOSS), ValueError, r"metrics \[accuracy\] and \[\]"),
    "optimizer": (lambda: _recompiled("sgd", LOSS, ["accuracy"]), ValueError, "rule of the optimizer adam and sgd"),
    "clipnorm": (lambda: _recompiled(optimizers.Adam(clipnorm=1.0), LOSS, ["accuracy"]), ValueError, "clipnorm False and True"),
    "loss scale": (
        lambda: _recompiled(optimizers.Adam(loss_scale=8.0), LOSS, ["accuracy"]), ValueError, "loss_scale None and 8.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, error, message = REFUSED[case]
    x, y = blobs()
    with pytest.raises(error, match=message):
        dlcore.fit_many(make(), x, y)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"batch_size": 0}, ValueError), ({"epochs": 0}, ValueError), ({"epochs": 1.5}, TypeError)],
    ids=str,
)
def test_bad_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        dlcore.fit_many(models(), *blobs(), **options)


def test_bad_data_is_refused_as_in_fit():
    x, y = blobs()
    with pytest.raises(ValueError, match="y holds class 3; the model has 3 outputs"):
        dlcore.fit_many(models(), x, y + 1)
