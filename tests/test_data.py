"""Tools for arrays of data: numbers worked by hand, and splits that are partitions."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcore import data
from dlcore.data import DataError, Scaler


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("zscore", [[-1.224744871391589, 0], [0, 0], [1.224744871391589, 0]]),
        ("minmax", [[0, 0], [0.5, 0], [1, 0]]),
        ("symmetric", [[-1, 0], [0, 0], [1, 0]]),
    ],
)
def test_scaler(kind, expected):
    x = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])  # the second column is constant
    scaler = Scaler(kind).fit(x)
    np.testing.assert_allclose(scaler.transform(x), expected)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(x)), x)
    again = Scaler.from_config(scaler.to_config())
    np.testing.assert_array_equal(again.transform(x + 1), scaler.transform(x + 1))


@given(st.lists(st.integers(0, 4), min_size=12, max_size=80), st.integers(0, 100))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_stratified_split_is_a_partition_with_the_same_mix(labels, seed):
    labels = np.array(labels)
    parts = data.stratified_split(labels, (0.6, 0.2, 0.2), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for c in np.unique(labels):
        total = (labels == c).sum()
        counts = [(labels[part] == c).sum() for part in parts]
        assert counts[0] >= 1
        for count, fraction in zip(counts[1:], (0.2, 0.2), strict=True):
            assert abs(count - total * fraction) <= 1
    again = data.stratified_split(labels, (0.6, 0.2, 0.2), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@given(st.integers(3, 60), st.integers(0, 9))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_random_split_is_a_partition(rows, seed):
    parts = data.random_split(rows, (0.5, 0.25, 0.25), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert all(len(part) for part in parts)


def test_one_hot():
    np.testing.assert_array_equal(data.one_hot([2, 0]), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(data.one_hot([0], 2), [[1, 0]])
    with pytest.raises(ValueError, match="3"):
        data.one_hot([3], 2)


def test_idx_files(tmp_path):
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    raw = b"\0\0\x08\x03" + struct.pack(">III", 2, 3, 4) + image.tobytes()
    (tmp_path / "a").write_bytes(raw)
    (tmp_path / "b.gz").write_bytes(gzip.compress(raw))
    for name in ("a", "b.gz"):
        np.testing.assert_array_equal(data.read_idx(tmp_path / name), image)
    (tmp_path / "short").write_bytes(raw[:-1])
    with pytest.raises(DataError, match="23 bytes of data; its header states 24"):
        data.read_idx(tmp_path / "short")
    (tmp_path / "other").write_bytes(b"hello")
    with pytest.raises(DataError, match="not an IDX file"):
        data.read_idx(tmp_path / "other")


ERRORS = {
    "a kind": (lambda: Scaler("z"), "z"),
    "before fit": (lambda: Scaler().transform(np.ones((2, 2))), "fit"),
    "another width": (lambda: Scaler().fit(np.ones((2, 2))).transform(np.ones((2, 3))), "3"),
    "NaN": (lambda: Scaler().fit(np.array([[np.nan]])), "(?i)nan|finite"),
    "fractions": (lambda: data.random_split(10, (0.5, 0.2)), "sum 1"),
    "too few": (lambda: data.random_split(2, (0.4, 0.3, 0.3)), "2 rows are too few"),
    "lengths": (lambda: data.train_test_split(np.ones(3), np.ones(4)), "3, 4 rows"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
