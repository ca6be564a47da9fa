"""Mini-batches in all forms: arrays that need a copy or none, lists, class numbers as floats or in a column."""

import numpy as np
import pytest
from test_step import BATCH, CLASSES, FEATURES, data, network, the_long_way


class Subclass(np.ndarray):
    """Like ``np.memmap``."""


SAMPLES = {
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "Fortran": np.asfortranarray,
    "float64": lambda x: x.astype(np.float64),
    "integers": lambda x: x.astype(np.int8),
    "list": np.ndarray.tolist,
    "subclass": lambda x: x.view(Subclass),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
}
LABELS = {
    "list": np.ndarray.tolist,
    "int32 labels": lambda y: y.astype(np.int32),
    "bytes of labels": lambda y: y.astype(np.uint8),
    "float labels": lambda y: y.astype(np.float32),
    "strided float labels": lambda y: np.repeat(y, 2).astype(np.float64)[::2],
    "list of floats": lambda y: y.astype(np.float64).tolist(),
    "strided labels": lambda y: np.repeat(y, 2)[::2],
}
FORMS = list(dict.fromkeys([*SAMPLES, *LABELS]))


def as_it_is(array):
    return array


@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_need_a_copy_or_none(rng, form):
    x, y = data(rng, BATCH)
    if form == "integers":
        x = np.rint(9 * x)
    given = SAMPLES.get(form, as_it_is)(x), LABELS.get(form, as_it_is)(y)
    plain, other, always = network(), network(), network()
    first = the_long_way(plain.train_on_batch, x, y)
    assert other.train_on_batch(x, y) == first  # what other is given next is not like the first
    assert always.train_on_batch(*given) == first
    steps = [*other._passes.values(), *always._passes.values()]
    assert len(steps) == 2
    for _ in range(3):
        loss = the_long_way(plain.train_on_batch, x, y)
        assert other.train_on_batch(*given) == loss
        assert always.train_on_batch(*given) == loss
    assert [*other._passes.values(), *always._passes.values()] == steps  # made once


@pytest.mark.parametrize("kind", ["int64", "float32"])
def test_labels_in_a_column(rng, monkeypatch, kind):
    x, y = data(rng, BATCH)
    plain, other = network(), network()
    expected = [the_long_way(plain.train_on_batch, x, y) for _ in range(3)]
    column = np.repeat(y, 2).astype(kind)[::2, None]
    losses = [other.train_on_batch(x, column)]
    with monkeypatch.context() as patched:
        patched.setattr(type(other), "_data", lambda *_: pytest.fail("the long way"))
        assert losses + [other.train_on_batch(x, column) for _ in range(2)] == expected
    with pytest.raises(ValueError, match="y holds fractions"):
        other.train_on_batch(x, column + 0.5)


@pytest.mark.parametrize(
    ("loss", "outputs", "last"),
    [("hinge", 1, "tanh"), ("perceptron", 1, "linear"), ("sparse_categorical_crossentropy", CLASSES, "sigmoid")],
)
def test_targets_that_become_others(rng, loss, outputs, last):
    """Of 0 and 1, numbers of -1 and 1; of class numbers, probabilities: models that want them take the long way."""
    x, y = data(rng, BATCH)
    y %= 2
    long, other = network(loss, outputs, last), network(loss, outputs, last)
    for _ in range(3):
        assert other.train_on_batch(x, y) == the_long_way(long.train_on_batch, x, y)
    assert not other._passes


def test_fractions_as_labels_after_good_ones(rng):
    x, y = data(rng, BATCH)
    model = network()
    with pytest.raises(ValueError, match="y holds fractions"):  # of a model that is ready for nothing
        model.train_on_batch(x, np.full(BATCH, np.nan))
    for kind in (np.int16, np.float32):
        model.train_on_batch(x, y.astype(kind))
    before = model.get_weights()
    for wrong, message in (
        (y + 0.5, "y holds fractions"),
        (np.where(y == y[3], np.nan, y), "y holds fractions"),
        (np.where(y == y[3], 1e30, y), "y holds fractions"),
        (y + float(CLASSES), "classes are 0 to 3"),
        (y + 0j, "y has dtype complex128; expected numbers"),
        (["one"] * BATCH, "y has dtype <U3; expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            model.train_on_batch(x, wrong)
    with pytest.raises(ValueError, match="x has dtype complex64; expected numbers"):
        model.train_on_batch(x + 1j, y)
    with pytest.raises(ValueError, match="x is not an array: "):
        model.train_on_batch([[1.0], []], y)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", SAMPLES)
def test_predictions_from_arrays_that_need_a_copy_or_none(rng, form):
    x = np.rint(9 * rng.standard_normal((BATCH, FEATURES))).astype(np.float32)
    plain, always = network(), network()
    expected = the_long_way(plain.predict, x)
    assert not plain._passes
    given = SAMPLES[form](x)
    results = [*(plain.predict(x) for _ in range(2)), *(always.predict(given) for _ in range(3)), plain.predict(given)]
    for result in results:
        np.testing.assert_array_equal(result, expected)
    made = [*plain._passes.values(), *always._passes.values()]
    assert len(made) == 2
    plain.predict(-x)
    np.testing.assert_array_equal(results[0], expected)  # a result is nobody else's memory
    np.testing.assert_array_equal(results[1], expected)
    assert results[1].flags.writeable
