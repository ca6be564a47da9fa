"""The layer API: what a user calls, and what comes back."""

import json
import signal
import sys
import threading
import time

import numpy as np
import oracle
import pytest
from small_models import blobs, compiled, small

import dlcore
from dlcore import layers, losses, metrics, optimizers
from dlcore.datasets import load_digits


@pytest.fixture(autouse=True)
def seed():
    dlcore.set_seed(0)


def test_fit_lowers_the_loss_and_reports_it():
    x, y = blobs(300)
    model = compiled()
    history = model.fit(x, y, epochs=60, batch_size=16, verbose=0, validation_split=0.2)
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert history.epoch == list(range(60))
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    assert history.history["val_accuracy"][-1] > 0.8
    loss, accuracy = model.evaluate(x, y)
    probabilities = model.predict(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert accuracy == pytest.approx((probabilities.argmax(axis=1) == y).mean())
    assert loss == pytest.approx(-np.log(probabilities[np.arange(300), y]).mean(), rel=1e-4)


def test_predict_is_the_formula():
    x, _ = blobs()
    model = small()
    w1, b1, gamma, beta, mean, var, w2, b2 = model.get_weights()
    hidden = np.tanh(x @ w1 + b1)
    hidden = gamma * (hidden - mean) / np.sqrt(var + 1e-5) + beta
    np.testing.assert_allclose(model.predict(x), oracle.softmax(hidden @ w2 + b2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(x, batch_size=7), model.predict(x))
    np.testing.assert_array_equal(model.predict_on_batch(x), model.predict(x))


def test_a_seed_repeats_a_run_bit_for_bit():
    x, y = blobs()

    def run():
        dlcore.set_seed(7)
        model = compiled()
        model.fit(x, y, epochs=3, verbose=0)
        return model.get_weights()

    first, second = run(), run()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    dlcore.set_seed(8)
    other = compiled()
    other.fit(x, y, epochs=3, verbose=0)
    assert not np.array_equal(first[0], other.get_weights()[0])


def test_train_on_batch_is_one_step_of_fit():
    x, y = blobs(16)
    models = [compiled() for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    models[1]._engine.write(models[1]._network.seed, models[0]._engine.read(models[0]._network.seed))
    loss, _ = models[0].train_on_batch(x, y)
    history = models[1].fit(x, y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    assert history.history["loss"] == [loss]
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert models[0].test_on_batch(x, y) == models[0].evaluate(x, y)


LOSS_FORMS = {
    "a name": "sparse_categorical_crossentropy",
    "another name": "categorical_crossentropy",
    "a class": losses.SparseCategoricalCrossentropy,
    "an instance": losses.CategoricalCrossentropy(),
}
OPTIMIZER_FORMS = {
    "name": "adam",
    "Name": "Adam",
    "class": optimizers.Adam,
    "instance": optimizers.Adam(0.001),
    "rule": "adam",
}


@pytest.mark.parametrize("loss", LOSS_FORMS.values(), ids=LOSS_FORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZER_FORMS.values(), ids=OPTIMIZER_FORMS)
def test_names_classes_and_instances_are_one(loss, optimizer):
    x, y = blobs()
    model = small()
    model.compile(optimizer, loss, [metrics.CategoricalAccuracy()])
    result = model.train_on_batch(x, y, return_dict=True)
    assert list(result) == ["loss", "categorical_accuracy"]
    dlcore.set_seed(0)
    other = compiled()
    assert result["loss"] == other.train_on_batch(x, y)[0]


@pytest.mark.parametrize("form", ["labels", "column", "one-hot", "float labels"])
def test_targets_of_every_form_give_the_same_loss(form):
    x, y = blobs()
    given = {"labels": y, "column": y[:, None], "one-hot": np.eye(3)[y], "float labels": y.astype(float)}[form]
    model = compiled()
    assert model.evaluate(x, given)[0] == pytest.approx(model.evaluate(x, y)[0], rel=1e-6)


def test_from_logits_equals_the_absorbed_softmax():
    x, y = blobs()
    absorbed, logits = compiled(), small(final=None)
    logits.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
    logits._ensure_built()
    absorbed._ensure_built()
    logits.set_weights(absorbed.get_weights())
    assert logits.evaluate(x, y) == absorbed.evaluate(x, y)


def test_probabilities_that_are_not_a_softmax():
    x, y = blobs()
    model = small(final="sigmoid")
    model.compile("sgd", "categorical_crossentropy")
    p = np.clip(model.predict(x), 1e-7, 1 - 1e-7)
    assert model.evaluate(x, y) == pytest.approx(-np.log(p[np.arange(60), y]).mean(), rel=1e-5)


def test_binary_classification_with_metrics():
    x, y = blobs(classes=2)
    model = small("sigmoid", 1)
    model.compile("rmsprop", "binary_crossentropy", ["accuracy", metrics.BinaryAccuracy(0.7), "mae"])
    result = model.evaluate(x, y, return_dict=True)
    p = model.predict(x)[:, 0]
    assert result["loss"] == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).mean(), rel=1e-5)
    assert result["accuracy"] == pytest.approx(((p > 0.5) == y).mean())
    assert result["binary_accuracy"] == pytest.approx(((p > 0.7) == y).mean())
    assert result["mean_absolute_error"] == pytest.approx(np.abs(p - y).mean(), rel=1e-5)


def test_regression():
    x, _ = blobs()
    y = x @ np.array([1.0, -2.0, 0.5, 3.0]) + 1
    model = dlcore.Sequential([layers.Dense(1)])
    model.compile(optimizers.SGD(0.02, momentum=0.9), "mse", ["mae"])
    model.fit(x, y, epochs=300, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0].ravel(), [1, -2, 0.5, 3], atol=1e-3)
    assert model.get_weights()[1] == pytest.approx(1, abs=1e-2)


def test_weights_of_samples_and_classes():
    x, y = blobs()
    model = compiled()
    per_sample = [model.evaluate(x[i : i + 1], y[i : i + 1])[0] for i in range(60)]
    weight = np.random.default_rng(2).random(60)
    assert model.evaluate(x, y, sample_weight=weight)[0] == pytest.approx(np.mean(weight * per_sample), rel=1e-5)
    dlcore.set_seed(3)
    model.fit(x, y, class_weight={0: 1.0, 1: 0.0, 2: 0.0}, epochs=1, batch_size=60, verbose=0)
    assert model.evaluate(x, y, return_dict=True).keys() == {"loss", "accuracy"}


def test_weights_in_training_do_not_rebuild_the_program_for_validation():
    x, y = blobs()
    model = compiled()
    model.fit(x, y, sample_weight=np.ones(60), validation_data=(x, y), epochs=1, verbose=0)
    program = model.program
    history = model.fit(x, y, sample_weight=np.ones(60), validation_data=(x, y), epochs=2, verbose=0)
    assert model.program is program
    assert history.history["val_loss"][-1] == pytest.approx(model.evaluate(x, y)[0])


def test_interrupting_a_long_fit_leaves_a_usable_model():
    x, y = blobs(2000)
    model = compiled()
    model.fit(x, y, verbose=0)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=100_000, verbose=0)
    assert time.perf_counter() - start < 30
    assert np.isfinite(model.evaluate(x, y)).all()


def test_the_learning_rate_may_change_between_steps():
    x, y = blobs()
    model = dlcore.Sequential([layers.Dense(3, "softmax")])
    model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.train_on_batch(x, y)
    before = model.get_weights()
    model.optimizer.learning_rate = 0.0
    model.train_on_batch(x, y)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])


def test_a_larger_batch_keeps_weights_and_optimizer_state():
    x, y = blobs(600)
    models = [compiled(), compiled()]
    models[1]._ensure_built()
    models[0]._ensure_built()
    models[1].set_weights(models[0].get_weights())
    models[1]._engine.write(models[1]._network.seed, models[0]._engine.read(models[0]._network.seed))
    models[1]._engine.reserve(600)  # room from the start
    for model in models:
        model.train_on_batch(x[:20], y[:20])
        model.train_on_batch(x, y)
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_save_and_load_go_on_bit_for_bit(tmp_path):
    x, y = blobs()
    model = compiled()
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]  # no temporary file is left
    loaded = dlcore.load(tmp_path / "model.safetensors")
    assert loaded.evaluate(x, y) == model.evaluate(x, y)
    for _ in range(3):
        assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_layer_normalization_in_a_model(tmp_path):
    """What is predicted is the formula; the optimizer is fused into its gradients; a saved model goes on bit for bit."""
    x, y = blobs()
    stack = [
        layers.Input((4,)),
        layers.LayerNormalization(),
        layers.Dense(8, "tanh"),
        layers.LayerNormalization(epsilon=0.01),
    ]
    model = dlcore.Sequential([*stack, layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    loss = [model.train_on_batch(x, y) for _ in range(30)]
    assert loss[-1] < loss[0]
    gamma_1, beta_1, w_1, b_1, gamma_2, beta_2, w_2, b_2 = model.get_weights()
    h = np.tanh(oracle.layer_norm_forward(x, gamma_1, beta_1, 1e-3)[0] @ w_1 + b_1)
    expected = oracle.softmax(oracle.layer_norm_forward(h, gamma_2, beta_2, 0.01)[0] @ w_2 + b_2)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-4)
    steps = [s.op.name for s in model._engine._steps_of("train")]
    assert steps.count("sum_chunks_update") == 6
    assert "optimizer_update" not in steps
    model.save(tmp_path / "model.safetensors")
    loaded = dlcore.load(tmp_path / "model.safetensors")
    assert [layer.config() for layer in loaded.layers] == [layer.config() for layer in model.layers]
    assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameter_counts_of_the_textbook():
    """A 3-4-2 network has 26 parameters, 3-4-4-1 has 41; a fully connected 4-5-5-2 has 55 weights."""

    def network(*units, use_bias=True):
        return dlcore.Sequential([layers.Input((units[0],)), *[layers.Dense(n, use_bias=use_bias) for n in units[1:]]])

    assert network(3, 4, 2).count_params() == 26
    assert network(3, 4, 4, 1).count_params() == 41
    assert network(4, 5, 5, 2, use_bias=False).count_params() == 55


def test_two_products_and_two_sigmoids_as_in_numpy():
    x = np.array([[3, 5], [5, 1], [10, 2]], np.float64)
    model = dlcore.Sequential(
        [layers.Dense(3, "sigmoid", use_bias=False, dtype="float64"), layers.Dense(1, "sigmoid", use_bias=False)]
    )
    model.build((2,))
    w1, w2 = model.get_weights()
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    np.testing.assert_allclose(model.predict(x), sigmoid(sigmoid(x @ w1) @ w2), rtol=1e-14)


def test_summary_and_program(capsys):
    model = small()
    model.summary()
    text = capsys.readouterr().out
    assert "dense (Dense)" in text
    assert "(batch, 8)" in text
    assert "parameters: 99, of which trained: 83" in text
    model = compiled()
    assert "batch_norm_forward" in str(model.program)
    assert "optimizer_update[adam]" in str(model.program)


def test_flatten_and_images():
    rng = np.random.default_rng(0)
    model = dlcore.Sequential([layers.Flatten(), layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    x = rng.random((10, 4, 5))
    model.fit(x, rng.integers(0, 3, 10), verbose=0)
    w, b = model.get_weights()
    np.testing.assert_allclose(model.predict(x), oracle.softmax(x.reshape(10, 20) @ w + b), rtol=1e-4)


def test_a_progress_bar_and_lines(capsys, monkeypatch):
    x, y = blobs()
    model = compiled()
    model.fit(x, y, epochs=2, verbose=2)
    assert capsys.readouterr().out.count("loss") == 2
    model.fit(x, y, epochs=1, verbose=1)
    assert capsys.readouterr() == ("", "")  # not a terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    model.fit(x, y, epochs=1, verbose=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "accuracy" in captured.err


def test_float64_all_the_way():
    x, y = blobs()
    model = compiled(dtype="float64")
    model.fit(x, y, epochs=1, verbose=0)
    assert {w.dtype for w in model.get_weights()} == {np.dtype(np.float64)}
    assert model.predict(x).dtype == np.float64


def test_digits_are_what_the_licence_file_says():
    x, y = load_digits()
    assert x.shape == (1797, 64)
    assert (x.min(), x.max()) == (0, 16)
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_config_is_json():
    from dlcore import checkpoint

    model = compiled()
    model._ensure_built()
    assert json.loads(json.dumps(checkpoint.describe(model)))["layers"][1]["config"]["activation"] == "tanh"
