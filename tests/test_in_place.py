"""Instructions that overwrite what nobody reads again: the same bits, in less memory, and nothing of the caller's."""

import numpy as np
import pytest

import dlcore
from dlcore import kernels, layers
from dlcore.kernels import Builder, compile, program

FEATURES, CLASSES, BATCH = 6, 4, 8


def normed(activation, *more):
    return [layers.Dense(7, use_bias=False), layers.BatchNormalization(), layers.Activation(activation), *more]


# The layers, how many buffers "train" does without, and how many "predict".
NETWORKS = {
    "relu": (lambda: normed("relu", layers.Dense(CLASSES)), 1, 1),
    "gelu, whose derivative reads z": (lambda: normed("gelu", layers.Dense(CLASSES)), 0, 1),
    "relu and dropout, which the derivative must not read": (
        lambda: normed("relu", layers.Dropout(0.3), layers.Dense(CLASSES)),
        1,
        1,
    ),
    "dropout behind batch norm": (
        lambda: [layers.Dense(7), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(CLASSES)],
        1,
        0,
    ),
    "dropout and relu": (
        lambda: [*normed("linear")[:2], layers.Dropout(0.3), layers.Activation("relu"), layers.Dense(CLASSES)],
        2,
        1,
    ),
    "relu and tanh, which both read what they wrote": (
        lambda: normed("relu", layers.Activation("tanh"), layers.Dense(CLASSES)),
        1,
        2,
    ),
    "behind an activation that reads what it wrote": (
        lambda: [layers.Dense(7, "tanh"), layers.Activation("relu"), layers.Dense(CLASSES)],
        0,
        1,
    ),
    "samples": (lambda: [layers.Dropout(0.3), layers.Dense(CLASSES)], 0, 0),
    "what samples became": (lambda: [layers.Activation("tanh"), layers.Dropout(0.3), layers.Dense(CLASSES)], 1, 0),
    "the output, behind two": (
        lambda: [layers.Dense(CLASSES), layers.BatchNormalization(), *map(layers.Activation, ("relu", "tanh"))],
        1,
        2,
    ),
    "the output": (lambda: [layers.Dense(CLASSES), layers.BatchNormalization(), layers.Activation("sigmoid")], 1, 1),
}


def model_of(make, optimizer="adam", loss="mse", metrics=()):
    dlcore.set_seed(3)
    model = dlcore.Sequential([layers.Input((FEATURES,)), *make()], device="cpu")
    model.compile(optimizer, loss, list(metrics))
    model.build((FEATURES,))
    return model


def data():
    rng = np.random.default_rng(0)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, 3 * BATCH)]
    return rng.standard_normal((3 * BATCH, FEATURES)).astype(np.float32), y


def buffers(model, name):
    found = {o for one in model._network.program.lists[name] for o in one.operands if o is not None}
    assert all(o in model._engine._views or o.region == "extern" for o in found)
    return sum(o.region == "work" for o in found)


def both(monkeypatch, make, **compiled):
    """A model that overwrites what it can, and one that does not."""
    short = model_of(make, **compiled)
    with monkeypatch.context() as patch:
        patch.setattr(program, "overwriting", lambda instructions: (instructions, {}))
        return short, model_of(make, **compiled)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_the_same_bits_in_fewer_buffers(monkeypatch, name, optimizer):
    make, trained, predicted = NETWORKS[name]
    compiled = {"optimizer": dlcore.optimizers.SAM("adam")} if optimizer == "sam" else {}
    short, long = both(monkeypatch, make, **compiled)
    x, y = data()
    given = x.copy()
    for model in (short, long):
        model.fit(x, y, BATCH, epochs=2, shuffle=False, verbose=0)
    for _ in range(3):
        assert short.train_on_batch(x[:BATCH], y[:BATCH]) == long.train_on_batch(x[:BATCH], y[:BATCH])
    assert short.evaluate(x, y, verbose=0) == long.evaluate(x, y, verbose=0)
    assert short.test_on_batch(x[:BATCH], y[:BATCH]) == long.test_on_batch(x[:BATCH], y[:BATCH])
    np.testing.assert_array_equal(short.predict(x, BATCH), long.predict(x, BATCH))
    np.testing.assert_array_equal(short.predict(x[:BATCH]), long.predict(x[:BATCH]))
    for a, b in zip(short.get_weights(), long.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(x, given)
    passes = 2 if optimizer == "sam" else 1  # over the layers, in a step
    for part, fewer in (("train", passes * trained), ("test", predicted), ("predict", predicted)):
        assert buffers(long, part) - buffers(short, part) == fewer, part
    assert (short._engine.nbytes < long._engine.nbytes) == bool(trained or predicted)


def test_logits_that_metrics_read_again(monkeypatch):
    """Probabilities are those of the logits, which the next metric reads, too."""
    metrics = ["mse", "mae", "binary_accuracy"]
    make = lambda: [layers.Dense(CLASSES, "sigmoid")]  # noqa: E731
    short, long = both(monkeypatch, make, loss="binary_crossentropy", metrics=metrics)
    x, y = data()
    np.testing.assert_array_equal(short.evaluate(x, y, verbose=0), long.evaluate(x, y, verbose=0))
    np.testing.assert_array_equal(
        [short.train_on_batch(x, y) for _ in range(3)], [long.train_on_batch(x, y) for _ in range(3)]
    )


TANH = dlcore.kernels.find("activation", "tanh")


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_kept_from_step_to_step_stays(kept):
    b = Builder()
    given, y = b.rows("given", 3), b.rows("y", 3)
    z = b.state("z", given.shape) if kept else b.rows("z", 3)
    b.emit("hadamard", given, given, z)
    b.emit("activation_forward", z, y, rule=TANH)
    assert b.finish("list") == ({} if kept else {y: z})
    assert (y in b.program.buffers["work"]) == kept


def test_what_the_list_does_not_write_stays():
    b = Builder()
    b.emit("activation_forward", b.rows("given", 3), b.rows("y", 3), rule=TANH)
    assert b.finish("list") == {}


def test_a_result_that_held_something_else_before_stays():
    b = Builder()
    given, z, y = (b.rows(name, 3) for name in ("given", "z", "y"))
    b.emit("hadamard", given, given, y)
    b.emit("hadamard", given, y, z)
    b.emit("activation_forward", z, y, rule=TANH)
    assert b.finish("list") == {}


def compiled_parts(rule):
    """The parts of a rule that have been compiled, or loaded from the disk, and whether they overwrite."""
    of_rule = ((key, strip) for key, strip in compile._compiled.items() if key[:-3] == compile.form_of(rule))
    return {key[-3:-1] for key, strip in of_rule if "address" in vars(strip)}


@pytest.mark.parametrize("reads_z", [False, True])
def test_a_new_activation_is_compiled_as_training_takes_it(reads_z):
    @dlcore.activation
    def tripled(z):
        return 3.0 * z

    def of_z(z, y):
        return 3.0 + 0.0 * z

    def of_y(z, y):
        return 3.0 + 0.0 * y

    rule = tripled.derivative(of_z if reads_z else of_y)
    assert rule.uses_input == reads_z
    trained = {("value", not reads_z), ("slope", True)}
    assert compiled_parts(rule) == trained
    stack = [layers.Dense(5, "tripled"), layers.BatchNormalization(), layers.Activation("tripled"), layers.Dense(1)]
    model = dlcore.Sequential(stack, device="cpu")
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model.train_on_batch(x, x[:, :1])
    assert compiled_parts(rule) == trained
    model.predict(x)
    assert compiled_parts(rule) == trained | {("value", True)}
    np.testing.assert_array_equal(kernels.activation_forward(x, "tripled"), 3 * x)
    np.testing.assert_array_equal(kernels.activation_backward(x, x, "tripled"), 3 * x)
    assert compiled_parts(rule) == {("value", True), ("value", False), ("slope", True), ("slope", False)}
