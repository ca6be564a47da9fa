"""The short way through the functions on one mini-batch: the bits of the long way, and no check lost."""

import numpy as np
import pytest

import dlcore
from dlcore import layers
from dlcore.kernels.cpu.prepared import Prepared
from dlcore.step import Evaluation, Passes

FEATURES, CLASSES, BATCH = 6, 4, 8


def network(loss="sparse_categorical_crossentropy", outputs=CLASSES, last="softmax", **optimizer):
    dlcore.set_seed(3)
    model = dlcore.Sequential(
        [layers.Input((FEATURES,)), layers.Dense(9, "tanh"), layers.Dropout(0.2), layers.Dense(outputs, last)],
        device="cpu",
    )
    model.compile(dlcore.optimizers.Adam(**optimizer), loss)
    model.build((FEATURES,))
    return model


def data(rng, count=3 * BATCH):
    return rng.standard_normal((count, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, count)


def the_long_way(function, *arguments):
    """What ``function`` of a model gives without anything that the model is ready for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Passes, "run", lambda *_: None)
        patched.setattr(Passes, "_add", lambda *_: None)
        patched.setattr(Evaluation, "again", lambda *_: None)
        return function(*arguments)


def test_mini_batches_one_by_one_are_an_epoch(rng):
    x, y = data(rng, 3 * BATCH - 3)  # the last has another size
    whole, single = network(), network()
    whole.fit(x, y, BATCH, epochs=3, shuffle=False, verbose=0)
    losses = []
    for _ in range(3):
        for at in range(0, len(x), BATCH):
            losses.append(single.train_on_batch(x[at : at + BATCH], y[at : at + BATCH]))
    assert len(single._passes) == 2  # one for each size
    assert all(type(value) is float for value in losses)
    for a, b in zip(whole.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("optimizer", "gathered"), [("adam", []), (dlcore.optimizers.SAM("adam"), ["gather_labels"] * 2)]
)
def test_a_mini_batch_is_read_where_it_is(rng, optimizer, gathered):
    """Unless it is read twice: labels are, where gradients are taken at two places."""
    x, y = data(rng)
    whole, single = network(), network()
    for model in (whole, single):
        model.compile(optimizer, "sparse_categorical_crossentropy")
    whole.fit(x, y, BATCH, shuffle=False, verbose=0)
    for at in range(0, len(x), BATCH):
        single.train_on_batch(x[at : at + BATCH], y[at : at + BATCH])
    (step,) = single._passes.values()
    assert [one.op.name for one in step.run._tables.steps if one.op.name.startswith("gather")] == gathered
    for a, b in zip(whole.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_targets_of_one_axis_and_samples_of_two(rng):
    stack = [layers.Input((2, 3)), layers.Flatten(), layers.Dense(1, "sigmoid")]
    model = dlcore.Sequential(stack, device="cpu")
    model.compile("sgd", "binary_crossentropy", ["accuracy"])
    x, y = rng.standard_normal((BATCH, 2, 3)).astype(np.float32), rng.integers(0, 2, BATCH).astype(np.float32)
    first = model.train_on_batch(x, y, return_dict=True)
    expected = model.test_on_batch(x, y, return_dict=True)
    assert model.train_on_batch(x, y, return_dict=True) == pytest.approx(expected)
    assert first["loss"] > expected["loss"]
    outputs = model.predict(x)
    np.testing.assert_array_equal(the_long_way(model.predict, x), outputs)
    np.testing.assert_array_equal(model._passes["predict", x.shape](x, BATCH), outputs)  # None would be the long way
    loss, accuracy = model._passes["test", x.shape](x, y, None)
    assert [loss, accuracy] == the_long_way(model.test_on_batch, x, y)
    assert model._passes["train", x.shape](x, y, None) == [loss, accuracy]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + CLASSES), "classes are 0 to 3"),
        (lambda x, y: (x, -1 - y), "classes are 0 to 3"),
        (lambda x, y: (x[:, :-1], y), r"x has shape \(8, 5\)"),
        (lambda x, y: (x, y[:-1]), r"y has shape \(7,\)"),
    ],
)
def test_bad_data_after_good(rng, change, message):
    x, y = data(rng, BATCH)
    model = network()
    model.train_on_batch(x, y)
    model.train_on_batch(x, y)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(*change(x, y))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_labels_after_good_ones_where_they_are_gathered(rng):
    x, y = data(rng, BATCH)
    model = network()
    model.compile(dlcore.optimizers.SAM("adam"), "sparse_categorical_crossentropy")
    model.train_on_batch(x, y)
    with pytest.raises(ValueError, match="classes are 0 to 3"):
        model.train_on_batch(x, y + CLASSES)


def test_probabilities_outside_of_0_to_1_after_good_ones(rng):
    x = rng.standard_normal((BATCH, FEATURES)).astype(np.float32)
    y = rng.random((BATCH, 1)).astype(np.float32)
    model = network("binary_crossentropy", 1, "sigmoid")
    model.train_on_batch(x, y)
    for wrong in (1.5, -0.1, np.nan):
        y[3] = wrong
        with pytest.raises(ValueError, match="expects 0 to 1"):
            model.train_on_batch(x, y)


@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "mse"])
def test_weighted_mini_batches_one_by_one_are_an_epoch(rng, kind, loss):
    x, y = data(rng)
    if loss == "mse":
        y = np.eye(CLASSES, dtype=np.float32)[y]
    weight = rng.integers(0, 2, len(x)).astype(kind)
    if kind.startswith("float"):
        weight *= 0.75
    whole, single = network(loss), network(loss)
    whole.fit(x, y, BATCH, shuffle=False, verbose=0, sample_weight=weight)
    used = []
    for at in range(0, len(x), BATCH):
        single.train_on_batch(x[at : at + BATCH], y[at : at + BATCH], weight[at : at + BATCH])
        used += single._passes.values()
    assert len(set(used)) == 1
    for a, b in zip(whole.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "mse"])
def test_weights_that_come_and_go(rng, loss):
    """A model is another program with weights, and stays that one; where all of them are 1, it gives the same."""
    x, y = data(rng, BATCH)
    if loss == "mse":
        y = np.eye(CLASSES, dtype=np.float32)[y]
    plain, other = network(loss), network(loss)
    programs = []
    for weight in (None, np.ones(BATCH, np.float32), [1.0] * BATCH, np.ones(BATCH), None, np.ones(BATCH)):
        for rows in (BATCH, BATCH - 1):
            given = None if weight is None else weight[:rows]
            assert other.train_on_batch(x[:rows], y[:rows], given) == plain.train_on_batch(x[:rows], y[:rows])
            assert other.test_on_batch(x[:rows], y[:rows]) == plain.evaluate(x[:rows], y[:rows])
            assert other.evaluate(x[:rows], y[:rows]) == plain.test_on_batch(x[:rows], y[:rows])
            programs.append(other._network)
    for model in (plain, other):
        model.fit(x, y, BATCH, verbose=0, shuffle=False)
    for a, b in zip(plain.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({*map(id, programs)}) == 2
    assert other._network is programs[-1] is not programs[0]
    before = other.get_weights()
    for weight, message in (
        (np.full(BATCH, -1.0), "sample_weight must not be negative, got -1"),
        (np.full(BATCH, np.nan), "sample_weight must not be negative, got nan"),
        (np.ones(BATCH - 1), r"sample_weight has shape \(7,\); expected \(8,\)"),
        (np.ones((BATCH, 1)), r"sample_weight has shape \(8, 1\); expected \(8,\)"),
        (np.ones(BATCH, np.complex64), "sample_weight has dtype complex64; expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            other.train_on_batch(x, y, weight)
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_optimizer_may_change_between_steps(rng):
    x, y = data(rng, BATCH)
    short, long = network(), network()
    for model, use in (
        (short, lambda m: m.train_on_batch(x, y)),
        (long, lambda m: m.fit(x, y, BATCH, shuffle=False, verbose=0)),
    ):
        use(model)
        use(model)
        model.optimizer.learning_rate = 0.3
        use(model)
        model.optimizer.global_clipnorm = 1e-3
        use(model)
        model.optimizer.weight_decay = 0.5
        use(model)
        model.optimizer.gradient_accumulation_steps = 2
        use(model)
        use(model)
        model.optimizer.loss_scale = 8.0
        use(model)
        assert model._network.scaler is not None
        model.optimizer.global_clipnorm, model.optimizer.clipvalue = None, 1e-3
        use(model)
        use(model)
    for a, b in zip(short.get_weights(), long.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    short.compile("sgd", "sparse_categorical_crossentropy")
    assert not short._passes


def test_too_many_targets_after_good_ones(rng):
    """Of one axis, where the model has two: they would be given another shape first."""
    x, _ = data(rng, BATCH)
    model = network("binary_crossentropy", 1, "sigmoid")
    model.train_on_batch(x, np.ones(BATCH, np.float32))
    assert model._passes["train", x.shape].target == (BATCH, 1)
    with pytest.raises(ValueError, match=r"y has shape \(9,\); expected 8 samples, as many as x has"):
        model.train_on_batch(x, np.ones(BATCH + 1, np.float32))


def test_values_that_are_changed_in_place_are_seen(rng):
    """Of the optimizer, of its schedule, and those that fit hands over in between."""
    x, y = data(rng, BATCH)
    rate = dlcore.schedules.LearningRateSchedule("inverse_time", 0.1, decay=0.5)
    short, long = (network(learning_rate=rate) for _ in range(2))

    def use():
        short.train_on_batch(x, y)
        long.fit(x, y, BATCH, shuffle=False, verbose=0)

    def fit():
        for model in (short, long):
            model.fit(x, y, BATCH, shuffle=False, verbose=0)

    use()
    use()
    for model in (short, long):
        model.optimizer.values["beta_1"] = 0.5
    use()
    rate.values["decay"] = 3.0  # of both
    use()
    for model in (short, long):
        model.optimizer.learning_rate = 0.02
    use()
    for model in (short, long):
        model.optimizer.learning_rate = 0.7
    fit()
    for model in (short, long):
        model.optimizer.learning_rate = 0.02  # as train_on_batch last saw it
    use()
    assert len(short._passes) == 1
    for a, b in zip(short.get_weights(), long.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_predictions_are_those_of_the_model_as_it_is(rng):
    x, y = data(rng, 300)
    model = network(use_ema=True, ema_momentum=0.5)
    seen = []

    def check(rows=BATCH):
        for _ in range(2):
            result = model.predict(x[:rows])
            np.testing.assert_array_equal(result, the_long_way(model.predict, x[:rows]))
        seen.append(result[:BATCH])

    check()
    for _ in range(2):
        model.train_on_batch(x[:BATCH], y[:BATCH])
    check()
    with model.averaged_weights():
        check()
    model.fit(x[:BATCH], y[:BATCH], verbose=0)
    check()
    model.set_weights([2 * w for w in model.get_weights()])
    check()
    check(256)  # more rows than there was room for
    check()
    model.compile("sgd", "mse")
    check()
    assert len({result.tobytes() for result in seen[:5]}) == 5
    assert sum(name == "predict" for name, _ in model._passes) == 1


def test_bad_samples_after_good_ones(rng):
    x, _ = data(rng, BATCH)
    model = network()
    for _ in range(2):
        model.predict(x)
    with pytest.raises(ValueError, match="x has dtype complex64; expected numbers"):
        model.predict(x + 1j)
    with pytest.raises(ValueError, match=r"x has shape \(8, 5\)"):
        model.predict(x[:, :-1])
    with pytest.raises(ValueError, match=r"x has shape \(\); expected \(samples, features\)"):
        model.predict(1.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mini_batch_is_evaluated_as_evaluate_does(rng, weighted):
    x, y = data(rng, BATCH)
    weight = rng.random(BATCH).astype(np.float32) if weighted else None
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    for _ in range(3):
        before = model.get_weights()
        expected = model.evaluate(x, y, sample_weight=weight, return_dict=True)
        for _ in range(3):
            assert model.test_on_batch(x, y, weight, return_dict=True) == expected
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        model.optimizer.learning_rate *= 2  # nothing to an evaluation, and much to the step
        model.train_on_batch(x, y, weight)
    assert {name for name, _ in model._passes} == {"train", "test"}
    with pytest.raises(ValueError, match="classes are 0 to 3"):
        model.test_on_batch(x, y + CLASSES, weight)
    with pytest.raises(ValueError, match="x has dtype complex64"):
        model.test_on_batch(x + 1j, y, weight)


@pytest.mark.parametrize("function", ["train_on_batch", "test_on_batch"])
def test_a_mini_batch_like_the_one_before_takes_the_least_python(rng, monkeypatch, function):
    x, y = data(rng, BATCH)
    model = network()
    for rows in (BATCH, BATCH - 1):  # the smaller one is ready since there is the larger one
        for _ in range(2):
            first = getattr(model, function)(x[:rows], y[:rows])
        monkeypatch.setattr(Evaluation, "__call__", lambda *_: pytest.fail("there is a shorter way"))
        loss = getattr(model, function)(x[:rows], y[:rows])
        assert (loss < first) if function == "train_on_batch" else (loss == first)
        assert [*getattr(model, function)(x[:rows], y[:rows], return_dict=True)] == ["loss"]
        monkeypatch.undo()


@pytest.mark.parametrize("strided", ["samples", "targets"])
def test_arrays_with_strides_are_copied_first(rng, monkeypatch, strided):
    """A launcher refuses them, and a refusal takes longer than a step."""
    x, y = data(rng, BATCH)
    short, long = network(), network()
    far = (np.repeat(x, 2, axis=1)[:, ::2], y) if strided == "samples" else (x, np.repeat(y, 2)[::2])
    run, given = Prepared.__call__, []
    monkeypatch.setattr(Prepared, "__call__", lambda self, *arrays: given.extend(arrays) or run(self, *arrays))
    for arrays in ((x, y), (x, y), far, far, (x, y), far):
        assert short.train_on_batch(*arrays) == the_long_way(long.train_on_batch, *arrays)
    assert given
    assert all(array.flags.c_contiguous for array in given)


def test_weights_after_mini_batches_without(rng):
    x, y = data(rng, BATCH)
    weight = rng.random(BATCH)
    short, long = network(), network()
    for given in (None, None, None, weight, weight, None, None, 3 * weight):
        assert short.train_on_batch(x, y, given) == the_long_way(long.train_on_batch, x, y, given)
    for a, b in zip(short.get_weights(), long.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_memory_may_move_between_steps(rng):
    """Larger mini-batches need more of it."""
    x, y = data(rng, 40 * BATCH)
    short, long = network(), network()
    for _ in range(3):
        assert short.train_on_batch(x[:4], y[:4]) == the_long_way(long.train_on_batch, x[:4], y[:4])
    before = short._engine.memory
    for model in (short, long):
        model.fit(x, y, len(x), epochs=2, shuffle=False, verbose=0)
    assert short._engine.memory is not before
    for _ in range(3):
        assert short.train_on_batch(x[:4], y[:4]) == the_long_way(long.train_on_batch, x[:4], y[:4])
