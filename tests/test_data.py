"""Data tools: numbers worked by hand, and properties of the splits on any input."""

import doctest
import gzip
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlcore.data
import dlcore.datasets
from dlcore.data import DataError, Scaler, one_hot, random_split, read_idx, stratified_split, train_test_split
from dlcore.datasets import load_digits, load_digits_table

X = np.array([[1.0, 10.0, 7.0], [2.0, 30.0, 7.0], [3.0, 10.0, 7.0], [6.0, 30.0, 7.0]])
# Column 0: mean 3, deviations -2 -1 0 3, variance 14/4; column 1: mean 20, standard deviation 10.
SCALED = {
    "zscore": [[-2 / 3.5**0.5, -1, 0], [-1 / 3.5**0.5, 1, 0], [0, -1, 0], [3 / 3.5**0.5, 1, 0]],
    "minmax": [[0, 0, 0], [0.2, 1, 0], [0.4, 0, 0], [1, 1, 0]],
    "symmetric": [[-1, -1, 0], [-0.6, 1, 0], [-0.2, -1, 0], [1, 1, 0]],
}


@pytest.mark.parametrize("module", [dlcore.data, dlcore.datasets], ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("kind", SCALED)
def test_scaler_gives_the_numbers_worked_by_hand(kind):
    scaler = Scaler(kind).fit(X)
    np.testing.assert_allclose(scaler.transform(X), SCALED[kind], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(X)), X, rtol=1e-14)


@pytest.mark.parametrize("kind", SCALED)
def test_scaler_takes_its_statistics_from_the_fitted_part_only(kind):
    scaler = Scaler(kind).fit(X)
    before = (scaler.center.copy(), scaler.scale.copy())
    scaler.transform(X * 100)
    assert np.array_equal(before, (scaler.center, scaler.scale))
    assert scaler.transform(np.array([[3.0, 20.0, 9.0]]))[0, 2] == 2.0  # a constant feature keeps its unit


@pytest.mark.parametrize("value", [0.1, 1e-300, 1e15 + 0.3, -7.7], ids=str)
def test_constant_feature_becomes_exactly_zero(value):
    assert Scaler("zscore").fit_transform(np.full((7, 1), value)).tolist() == [[0.0]] * 7


@pytest.mark.parametrize("kind", SCALED)
def test_scaler_config_round_trips_through_json(kind):
    scaler = Scaler(kind).fit(np.random.default_rng(0).normal(size=(50, 3)))
    again = Scaler.from_config(json.loads(json.dumps(scaler.to_config())))
    assert np.array_equal(scaler.transform(X), again.transform(X))


def test_scaler_keeps_float32_and_accepts_vectors_and_integers():
    assert Scaler().fit_transform(X.astype(np.float32)).dtype == np.float32
    assert Scaler("minmax").fit_transform([2, 4, 3]).tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: Scaler("z"), ValueError, "kind is 'z'; expected one of 'zscore'", id="kind"),
        pytest.param(lambda: Scaler().transform(X), ValueError, "call fit on the training part", id="unfitted"),
        pytest.param(lambda: Scaler().fit(X).transform(X[:, :2]), ValueError, r"\(4, 2\).*\(rows, 3\)", id="features"),
        pytest.param(lambda: Scaler().fit(X[:0]), DataError, "at least one row", id="no-rows"),
        pytest.param(lambda: Scaler().fit([[1.0], [np.nan]]), DataError, r"holds nan at \[1, 0\]", id="nan"),
        pytest.param(lambda: Scaler().fit([-1e308, 1e308]), DataError, "overflow", id="overflow"),
        pytest.param(lambda: Scaler().fit(["a"]), DataError, "expected numbers", id="text"),
        pytest.param(lambda: one_hot([0, 3], 3), ValueError, r"y\[1\] is 3; expected 0 .. 2", id="class-high"),
        pytest.param(lambda: one_hot([-1]), ValueError, r"y\[0\] is -1", id="class-negative"),
        pytest.param(lambda: one_hot([0.5]), ValueError, "dtype float64", id="class-fraction"),
        pytest.param(lambda: random_split(10, (0.5, 0.4)), ValueError, "of sum 1", id="sum"),
        pytest.param(lambda: random_split(2, (0.2, 0.4, 0.4)), DataError, "2 rows are too few", id="too-few"),
        pytest.param(lambda: stratified_split([[1]], (1,)), ValueError, r"\(1, 1\)", id="labels-shape"),
        pytest.param(lambda: train_test_split(), ValueError, "at least one array", id="no-arrays"),
        pytest.param(lambda: train_test_split([1, 2], [1]), ValueError, "have 2, 1 rows", id="lengths"),
        pytest.param(lambda: train_test_split([1, 2], test_fraction=1.0), ValueError, "is 1.0", id="fraction"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_one_hot_known_rows():
    assert one_hot([1, 0, 1]).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert one_hot([], 3).shape == (0, 3)
    assert one_hot(np.array([True, False])).tolist() == [[0, 1], [1, 0]]


FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.8, 0.2), (1.0,), (0.34, 0.33, 0.33), (0.6, 0.0, 0.4)])


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(6, 200), fractions=FRACTIONS, seed=st.integers(0, 99))
def test_random_split_is_a_partition_of_the_asked_sizes(rows, fractions, seed):
    parts = random_split(rows, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    for part, fraction in list(zip(parts, fractions, strict=True))[1:]:
        assert abs(len(part) - rows * fraction) <= 1
    assert all(map(np.array_equal, parts, random_split(rows, fractions, seed)))


@settings(max_examples=100, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=8, max_size=150), fractions=FRACTIONS, seed=st.integers(0, 99))
def test_stratified_split_is_a_partition_with_counts_within_one(labels, fractions, seed):
    labels = np.array(labels)
    parts = stratified_split(labels, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert set(labels[parts[0]].tolist()) == set(labels.tolist())  # training sees every class
    for part, fraction in list(zip(parts, fractions, strict=True))[1:]:
        for c in set(labels.tolist()):
            assert abs(np.sum(labels[part] == c) - fraction * np.sum(labels == c)) < 1 + 1e-9
        if fraction == 0:
            assert len(part) == 0


def test_stratified_split_known_counts():
    labels = np.repeat(["a", "b", "c"], [50, 30, 20])
    train, validation, test = stratified_split(labels, (0.7, 0.1, 0.2), seed=3)
    counts = [[int(np.sum(labels[part] == c)) for c in "abc"] for part in (train, validation, test)]
    assert counts == [[35, 21, 14], [5, 3, 2], [10, 6, 4]]
    assert not np.array_equal(train, np.sort(train))  # shuffled
    assert not np.array_equal(train, stratified_split(labels, (0.7, 0.1, 0.2), seed=4)[0])


def test_rare_classes_stay_in_the_training_part():
    labels = np.array([0] * 8 + [1])
    for seed in range(20):
        train, test = stratified_split(labels, (0.5, 0.5), seed=seed)
        assert 8 in train
        assert np.sum(labels[test] == 0) == 4


def test_train_test_split_keeps_rows_together():
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_fraction=0.25, stratify=y % 2, seed=1)
    assert (x_train.shape, x_test.shape) == ((15, 2), (5, 2))
    assert np.array_equal(x_train[:, 0], 2.0 * y_train)
    assert np.array_equal(x_test[:, 0], 2.0 * y_test)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_idx_files(tmp_path, packed):
    raw = bytes([0, 0, 8, 2]) + struct.pack(">II", 2, 3) + bytes([1, 2, 3, 4, 5, 255])
    path = tmp_path / "images-idx2-ubyte"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    images = read_idx(path)
    assert images.dtype == np.uint8
    assert images.tolist() == [[1, 2, 3], [4, 5, 255]]


def test_idx_numbers_are_big_endian(tmp_path):
    path = tmp_path / "floats"
    path.write_bytes(bytes([0, 0, 0x0D, 1]) + struct.pack(">I", 2) + struct.pack(">ff", 1.5, -2.0))
    assert read_idx(path).tolist() == [1.5, -2.0]
    assert read_idx(path).dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "No such file", id="absent"),
        pytest.param(b"", "not an IDX file", id="empty"),
        pytest.param(b"PNG....", "not an IDX file", id="other"),
        pytest.param(bytes([0, 0, 8, 3, 0, 0]), "not an IDX file", id="short-header"),
        pytest.param(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1]), "1 bytes of data; its header states 9", id="short"),
        pytest.param(b"\x1f\x8bxx", "idx", id="bad-gzip"),
        pytest.param(gzip.compress(bytes(99))[:-9], "idx", id="cut-gzip"),
        pytest.param(gzip.compress(bytes(99))[:10] + b"\xff" * 20, "idx", id="damaged-gzip"),
    ],
)
def test_bad_idx_files_give_one_line(tmp_path, content, message):
    path = tmp_path / "file.idx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert "\n" not in str(caught.value)


def test_digits_are_the_uci_test_part():
    x, y = load_digits()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 64), np.float32, (1797,), np.int64)
    assert (x.min(), x.max()) == (0, 16)
    assert np.array_equal(x, np.round(x))
    # Class counts of the UCI description ("testing" column), and the sum scikit-learn's copy has.
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert x.sum(dtype=np.float64) == 561718
    table = load_digits_table()
    assert np.array_equal(table["digit"], y)
    assert np.array_equal(table["pixel_2_3"], x.reshape(-1, 8, 8)[:, 2, 3])
