"""Mini-batches of many sizes, one by one: what was prepared for one size serves the others."""

import numpy as np
import pytest
from test_step import BATCH, CLASSES, FEATURES, data, network, the_long_way

import dlcore
from dlcore import layers


def test_a_larger_mini_batch_moves_the_memory(rng):
    x, y = data(rng, 1000)
    model, other = network(), network()
    other._engine.reserve(len(x))  # room from the start
    for m in (model, other):
        m.train_on_batch(x[:BATCH], y[:BATCH])
        m.train_on_batch(x[:BATCH], y[:BATCH])
        m.train_on_batch(x, y)
        m.train_on_batch(x[:BATCH], y[:BATCH])
    assert model._engine.rows == 1000
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_predictions_in_smaller_mini_batches_than_before(rng, monkeypatch):
    x, _ = data(rng, BATCH)
    model = network()
    expected = model.predict(x)
    monkeypatch.setattr(model._passes["predict", x.shape], "run", lambda *arrays: pytest.fail("all rows at once"))
    np.testing.assert_array_equal(model.predict(x, 3), expected)
    with pytest.raises(pytest.fail.Exception, match="all rows at once"):
        model.predict(x, BATCH)


def test_more_sizes_of_mini_batches_than_are_kept(rng, monkeypatch):
    monkeypatch.setattr("dlcore.step._MOST", 15)
    x, _ = data(rng, 40)
    model = network()
    for _ in range(2):
        for rows in range(1, 41):
            np.testing.assert_array_equal(model.predict(x[:rows]), the_long_way(model.predict, x[:rows]))
    assert [*model._passes] == [("predict", (rows, FEATURES)) for rows in range(26, 41)]


def flattened():
    dlcore.set_seed(3)
    stack = [layers.Input((2, 3)), layers.Flatten(), layers.Dense(5, "tanh"), layers.Dense(1, "sigmoid")]
    model = dlcore.Sequential(stack, device="cpu")
    model.compile("adam", "binary_crossentropy", ["accuracy"])
    model.build((2, 3))
    return model


@pytest.mark.parametrize("kind", ["labels", "weighted", "labels that are gathered", "targets of one axis"])
def test_mini_batches_of_all_sizes_take_the_same_tables(rng, monkeypatch, kind):
    x, y = data(rng, 70)
    weight = rng.random(70).astype(np.float32)
    make = network
    if kind == "targets of one axis":
        make, x, y = flattened, x.reshape(70, 2, 3), (y % 2).astype(np.float32)
    short, long = make(), make()
    if kind == "labels that are gathered":
        for model in (short, long):
            model.compile(dlcore.optimizers.SAM("adam"), "sparse_categorical_crossentropy")

    def results(model, rows):
        given = weight[:rows] if kind == "weighted" and rows % 3 else None
        trained = np.ravel(model.train_on_batch(x[:rows], y[:rows], given))
        evaluated = np.ravel(model.test_on_batch(x[:rows], y[:rows], given))
        return [*trained, *evaluated, *model.predict(x[:rows]).ravel()]

    expected = [results(short, BATCH)]
    assert len(short._passes) == 3
    tables = {id(one.run._tables) for one in short._passes.values()}
    sizes = [*rng.permutation(70) + 1, *rng.permutation(70) + 1]
    with monkeypatch.context() as patched:
        patched.setattr(type(short), "_data", lambda *_: pytest.fail("the long way"))
        expected += [results(short, rows) for rows in sizes]
    found = [one.run._tables for one in short._passes.values()]
    assert len(found) == 210
    assert {*map(id, found)} == tables
    assert len({id(each.workspaces) for each in found}) == 1
    assert max(len(each.made) for each in found) <= 3  # as many as there are ways to cut products
    other = []
    for rows in [BATCH, *sizes]:
        long._passes.clear()
        other.append(results(long, rows))
    assert other == expected
    for a, b in zip(short.get_weights(), long.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("optimizer", ["adam", "SAM"])
def test_a_size_that_comes_back_after_the_memory_has_moved(rng, optimizer):
    """With SAM labels are gathered, by an order as long as there is room."""
    x, y = data(rng, 600)
    short, long = network(), network()
    for model in (short, long):
        model.compile(
            "adam" if optimizer == "adam" else dlcore.optimizers.SAM("adam"), "sparse_categorical_crossentropy"
        )
    for rows in (BATCH, 9, 600, BATCH, 9, 600, 599):
        np.testing.assert_array_equal(short.predict(x[:rows], 600), the_long_way(short.predict, x[:rows], 600))
        assert short.train_on_batch(x[:rows], y[:rows]) == the_long_way(long.train_on_batch, x[:rows], y[:rows])
        assert {id(one.memory) for one in short._passes.values()} == {id(short._engine.memory)}
    assert short._engine.rows == 600
    assert len(short._passes) == 8


def test_bad_data_of_another_size_than_before(rng):
    x, y = data(rng, 2 * BATCH)
    model = network()
    model.train_on_batch(x[:BATCH], y[:BATCH])
    before = model.get_weights()
    for rows, labels, message in ((9, y[:9] + CLASSES, "classes are 0 to 3"), (10, y[:9], r"y has shape \(9,\)")):
        with pytest.raises(ValueError, match=message):
            model.train_on_batch(x[:rows], labels)
    with pytest.raises(ValueError, match="x has no samples"):
        model.train_on_batch(x[:0], y[:0])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_metrics_than_before(rng):
    x, y = data(rng, BATCH)
    model = network()
    model.train_on_batch(x, y)
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    assert model.test_on_batch(x, y) == model.test_on_batch(x, y) == model.evaluate(x, y)


def test_samples_with_a_shape_of_their_own(rng):
    class Samples:
        shape = None

        def __array__(self, dtype=None, copy=None):
            return x

    x, _ = data(rng, BATCH)
    model = network()
    np.testing.assert_array_equal(model.predict(x), model.predict(Samples()))
