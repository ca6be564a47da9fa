"""From a table to arrays and back: the task, the split, the encoding, what is refused and in which words."""

import json

import numpy as np
import pytest
from test_tables import write

from dlcore.data import DataError
from dlcore.datasets import load_digits_table
from dlcore.encoding import TableEncoder
from dlcore.preparation import prepare
from dlcore.tables import Table, read_table

# --- preparing --------------------------------------------------------------------------------


def columns(rows=40, **more):
    rng = np.random.default_rng(5)
    return {"u": rng.normal(3, 2, rows), "colour": ["red", "blue", "green", "blue"] * (rows // 4), **more}


@pytest.mark.parametrize(
    ("target", "task", "words"),
    [
        pytest.param(["yes", "no"] * 20, "classification", "holds text: 2 classes", id="text"),
        pytest.param([0, 1] * 20, "classification", "2 different values (at most 8 for 40 rows)", id="binary"),
        pytest.param(list(range(8)) * 5, "classification", "8 different values", id="eight-in-forty"),
        pytest.param(list(range(10)) * 4, "regression", "(more than 8 for 40 rows)", id="ten-in-forty"),
        pytest.param([0.5, 1.0] * 20, "regression", "not whole", id="fractions"),
    ],
)
def test_task_is_inferred_and_explained(target, task, words):
    data = prepare(Table.from_columns(columns(y=target)), "y")
    assert data.task == task
    assert data.notes[0].lower().startswith(task)
    assert words in data.notes[0]


def test_twenty_classes_at_most_are_inferred():
    for classes, task in ((20, "classification"), (21, "regression")):
        table = Table.from_columns(columns(420, y=(np.arange(420) % classes)))
        assert prepare(table, "y").task == task


def test_classification_end_to_end():
    table = Table.from_columns(columns(y=["yes", "no", "no", "no"] * 10))
    data = prepare(table, "y", seed=3)
    assert data.classes == ["no", "yes"]
    assert data.feature_names == ["u", "colour=blue", "colour=green", "colour=red"]
    assert [len(x) for x in (data.x_train, data.x_val, data.x_test)] == [28, 4, 8]
    assert [int(y.sum()) for y in (data.y_train, data.y_val, data.y_test)] == [7, 1, 2]  # a quarter are "yes"
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int64)
    train = data.rows[0]
    u = table["u"]
    np.testing.assert_allclose(data.x_test[:, 0], (u[data.rows[2]] - u[train].mean()) / u[train].std(), rtol=1e-6)
    np.testing.assert_allclose([data.x_train[:, 0].mean(), data.x_train[:, 0].std()], [0, 1], atol=1e-6)
    red = [float(colour == "red") for colour in table["colour"][train]]
    assert data.x_train[:, 3].tolist() == red
    assert data.encoder.decode_predictions(data.y_test).tolist() == table["y"][data.rows[2]].tolist()


def test_regression_end_to_end():
    y = np.linspace(100, 200, 40) ** 1.5
    data = prepare(Table.from_columns(columns(y=y)), "y", seed=1)
    assert (data.y_train.shape, data.y_train.dtype) == ((28, 1), np.float32)
    train = y[data.rows[0]]
    np.testing.assert_allclose(data.encoder.target_scaler, [train.mean(), train.std()], rtol=1e-12)
    np.testing.assert_allclose(data.encoder.decode_predictions(data.y_test), y[data.rows[2]], rtol=1e-6)
    assert data.classes == []


def test_constant_columns_are_dropped_with_a_note():
    table = Table.from_columns(columns(one=[1] * 40, word=["x"] * 40, y=[0, 1] * 20))
    data = prepare(table, "y")
    assert data.encoder.columns == ["u", "colour"]
    assert data.notes[-1] == "2 columns are dropped, constant in the training part: 'one', 'word'."


def test_single_row_classes_are_trained_on_and_noted():
    data = prepare(Table.from_columns(columns(y=["a", "b"] * 19 + ["rare", "a"])), "y")
    assert 38 in data.rows[0]
    assert "1 class has a single row, used for training only: 'rare'." in data.notes


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param({"id": np.arange(40) + 7}, "'id' just counts the rows", id="row-number"),
        pytest.param({"name": [f"n{i}x" for i in range(40)]}, "'name' is text with 40 different", id="names"),
        pytest.param({"age": ["31"] * 20 + ["x"] + ["40"] * 19}, "taken as text, because 'x' in row 21", id="one-word"),
    ],
)
def test_odd_columns_are_noted(more, words):
    data = prepare(Table.from_columns(columns(**more, y=[0, 1] * 20)), "y")
    assert words in data.notes[-1]
    dropped = prepare(Table.from_columns(columns(**more, y=[0, 1] * 20)), "y", drop=list(more))
    assert dropped.encoder.columns == ["u", "colour"]


BAD_TARGETS = {
    "absent": ({}, "Y_", {}, "no column 'Y_'; the columns are 'u', 'colour', 'y'"),
    "near": ({}, "color", {}, "no column 'color'; did you mean 'colour'?"),
    "one-class": ({"y": [3] * 40}, "y", {}, "the target 'y' is 3 in every row"),
    "one-word": ({"y": ["a"] * 40}, "y", {}, "the target 'y' is 'a' in every row"),
    "one-number": ({"y": [2.5] * 40}, "y", {}, "the target 'y' is 2.5 in every row"),
    "text-regression": ({"y": ["a", "b"] * 20}, "y", {"task": "regression"}, "needs numbers in the target"),
    "price-with-word": (
        {"y": [f"{i}.5" for i in range(39)] + ["call us"]},
        "y", {}, "has 40 different values in 40 rows; 'call us' in row 40 is not a number",
    ),
    "too-many-classes": (
        {"y": np.arange(40) / 3}, "y", {"task": "classification"}, "40 different values in 40 rows; that is",
    ),
    "drop-absent": ({}, "y", {"drop": ["q"]}, "no column 'q'"),
    "drop-target": ({}, "y", {"drop": ["y"]}, "the target 'y' cannot be dropped"),
    "nothing-left": ({}, "y", {"drop": ["u", "colour"]}, "no input column is left"),
    "huge-values": ({"u": [1e308, -1e308] * 20}, "y", {}, "column 'u': X reaches from -1e+308 to 1e+308"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_targets_are_one_clear_line(case):
    more, target, options, message = BAD_TARGETS[case]
    table = Table.from_columns({**columns(y=[0, 1] * 20), **more}, source="t.csv")
    with pytest.raises(DataError) as caught:
        prepare(table, target, **options)
    assert message in str(caught.value)
    assert str(caught.value).startswith("t.csv: ")
    assert "\n" not in str(caught.value)


def test_two_rows_are_refused(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "a,b\n1,2\n3,4\n"))
    with pytest.raises(DataError, match="2 rows of data; training needs at least 10"):
        prepare(table, "b")


def test_ten_rows_are_enough():
    data = prepare(Table.from_columns({"a": range(10), "b": ["x", "y", "z", "u", "v"] * 2}), "b")
    assert [len(rows) for rows in data.rows] == [7, 1, 2]
    assert sorted(set(data.y_train.tolist())) == [0, 1, 2, 3, 4]


def test_a_thousand_categories_at_most():
    words = [f"w{i % 1001}" for i in range(1100)]
    table = Table.from_columns({"a": words, "b": np.arange(1100) % 2})
    with pytest.raises(DataError, match="'a' has 1001 different values"):
        prepare(table, "b")


@pytest.mark.parametrize("options", [{"task": "ranking"}, {"test_fraction": 0.9}, {"validation_fraction": -0.1}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="expected") as caught:
        prepare(Table.from_columns(columns(y=[0, 1] * 20)), "y", **options)
    assert not isinstance(caught.value, DataError)


def test_parts_of_fraction_zero_are_empty():
    table = Table.from_columns(columns(y=[0, 1] * 20))
    data = prepare(table, "y", test_fraction=0, validation_fraction=0)
    assert (data.x_train.shape, data.x_val.shape, data.y_test.shape) == ((40, 4), (0, 4), (0,))


def test_digits():
    data = prepare(load_digits_table(), "digit")
    assert (data.task, data.classes) == ("classification", list(range(10)))
    assert [len(x) for x in (data.x_train, data.x_val, data.x_test)] == [1258, 180, 359]
    assert np.isfinite(data.x_test).all()


# --- encoding new tables --------------------------------------------------------------------------------


@pytest.fixture
def encoder():
    table = Table.from_columns(columns(house=["12", "12a", "7", "9"] * 10, y=["yes", "no"] * 20))
    made = prepare(table, "y").encoder
    return TableEncoder.from_config(json.loads(json.dumps(made.to_config())))


def test_encoder_from_json_repeats_the_encoding():
    table = Table.from_columns(columns(y=np.linspace(0, 1, 40)))
    data = prepare(table, "y")
    again = TableEncoder.from_config(json.loads(json.dumps(data.encoder.to_config())))
    assert np.array_equal(again.transform(table)[data.rows[2]], data.x_test)
    assert np.array_equal(again.encode_target(table)[data.rows[0]], data.y_train)
    assert again.feature_names == data.feature_names


def test_encoder_needs_no_target_and_no_order(encoder):
    new = Table.from_columns({"house": ["9", "12a"], "colour": ["red", "red"], "more": [1, 2], "u": [3, 5]})
    x = encoder.transform(new)
    mean, std = encoder.numeric["u"]
    assert encoder.feature_names[4:] == ["house=12", "house=12a", "house=7", "house=9"]
    np.testing.assert_allclose(x[:, 0], [(3 - mean) / std, (5 - mean) / std], rtol=1e-6)
    assert x[:, 1:].tolist() == [[0, 0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0, 0]]


def test_text_categories_are_found_in_a_column_that_reads_as_numbers(encoder):
    new = Table.from_columns({"u": [1, 1], "colour": ["red", "red"], "house": ["9", "12"]})
    assert not new.is_text("house")
    assert encoder.transform(new)[:, 4:].tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]


def test_number_classes_are_found_in_a_column_that_reads_as_text():
    encoder = TableEncoder("y", "classification", classes=[3, 5])
    assert encoder.encode_target(Table.from_columns({"y": ["5", "3", "3"]})).tolist() == [1, 0, 0]
    with pytest.raises(DataError, match="row 2: column 'y' has the unknown class 'x'; known are 3, 5"):
        encoder.encode_target(Table.from_columns({"y": ["5", "x"]}))


GOOD = {"u": [1.0, 2.0], "colour": ["red", "blue"], "house": ["9", "9"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"colour": ["red", "pink"]},
            "line 9: column 'colour' has the unknown category 'pink'; known are 'blue', 'green', 'red'",
            id="category",
        ),
        pytest.param({"colour": [1, 2]}, "line 4: column 'colour' has the unknown category 1", id="number"),
        pytest.param({"u": ["1", "two"]}, "line 9: column 'u' is 'two'; expected a number", id="text"),
        pytest.param({"u": [1, 1e300]}, "line 9: column 'u' is 1e+300, too far", id="float32-overflow"),
        pytest.param({"u": None}, "no column 'u'", id="one-absent"),
        pytest.param({"u": None, "house": None}, "no columns 'u', 'house'; the columns are 'colour'", id="two-absent"),
    ],
)
def test_bad_new_tables(encoder, change, message):
    new = {name: values for name, values in {**GOOD, **change}.items() if values is not None}
    with pytest.raises(DataError) as caught:
        encoder.transform(Table.from_columns(new, "new.csv", lines=np.array([4, 9])))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        pytest.param([[0.2, 0.8], [3, -1]], ["yes", "no"], id="scores"),
        pytest.param([1, 0, 0], ["yes", "no", "no"], id="ids"),
        pytest.param([[0.1, 0.2, 0.3]], "scores (rows, 2)", id="too-many-scores"),
        pytest.param([0.3, 0.4], "integer class ids", id="fractions"),
        pytest.param([2], "from 2 to 2; expected 0 .. 1", id="out-of-range"),
    ],
)
def test_decode_predictions(encoder, outputs, expected):
    if isinstance(expected, list):
        assert encoder.decode_predictions(outputs).tolist() == expected
    else:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            encoder.decode_predictions(outputs)
        assert expected in str(caught.value)


def test_decoded_regression_is_in_units_of_the_target():
    encoder = TableEncoder("y", "regression", target_scaler=(10.0, 4.0))
    assert encoder.decode_predictions([[0.5], [-1.0]]).tolist() == [12.0, 6.0]
    with pytest.raises(ValueError, match=r"\(1, 2\); expected \(rows, 1\)"):
        encoder.decode_predictions([[1.0, 2.0]])


@pytest.mark.parametrize("config", [{}, {"version": 2}, {"version": 1, "columns": 3}], ids=str)
def test_damaged_configs(config):
    with pytest.raises(DataError, match="table encoder"):
        TableEncoder.from_config(config)
