"""Tables: what files give, what is refused and in which words, the way from a table to arrays and back."""

import builtins
import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlcore.preparation
import dlcore.tables
from dlcore.data import DataError
from dlcore.datasets import load_digits_table
from dlcore.encoding import TableEncoder
from dlcore.preparation import prepare
from dlcore.tables import Table, read_table


@pytest.mark.parametrize("module", [dlcore.tables, dlcore.preparation], ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def listed(table):
    return {name: table[name].tolist() for name in table.names}


# --- CSV --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("a,b\n1,x\n2.5,y\n", {"a": [1, 2.5], "b": ["x", "y"]}, id="comma"),
        pytest.param("a;b\n1;x\n2.5;y\n", {"a": [1, 2.5], "b": ["x", "y"]}, id="semicolon"),
        pytest.param("a\tb\n1\tx, z\n", {"a": [1], "b": ["x, z"]}, id="tab-with-comma-in-text"),
        pytest.param("a|b\n1|2\n", {"a": [1], "b": [2]}, id="bar"),
        pytest.param("\ufeffa,b\r\n1,2\r\n", {"a": [1], "b": [2]}, id="bom-and-windows-line-ends"),
        pytest.param("a,b\n1,2\n\n3,4", {"a": [1, 3], "b": [2, 4]}, id="empty-line-and-no-final-newline"),
        pytest.param(' a , b \n 1 , "x, y" \n', None, id="space-before-closing-comma"),
        pytest.param('a, b\n1, "x, y"\n', {"a": [1], "b": ["x, y"]}, id="quoted-after-space"),
        pytest.param('a,b\n1,"x\ny"\n', {"a": [1], "b": ["x\ny"]}, id="line-break-in-quotes"),
        pytest.param("zip,n\n1_000,-1e3\n2,+.5\n", {"zip": ["1_000", "2"], "n": [-1000, 0.5]}, id="underscore"),
        pytest.param("a\n1\n2\n", {"a": [1, 2]}, id="one-column"),
        pytest.param("größe,b\n1,ä\n", {"größe": [1], "b": ["ä"]}, id="umlauts"),
        pytest.param("country,2001,2002\nx,1,2\n", {"country": ["x"], "2001": [1], "2002": [2]}, id="years"),
        pytest.param("a,b\ninf,1\nx,2\n", {"a": ["inf", "x"], "b": [1, 2]}, id="inf-as-word"),
    ],
)
def test_csv_values(tmp_path, content, expected):
    path = write(tmp_path / "t.csv", content)
    if expected is None:
        with pytest.raises(DataError, match="line 2"):
            read_table(path)
    else:
        assert listed(read_table(path)) == expected


BAD_CSV = {
    "empty": ("", "the file is empty"),
    "blank": ("\n \n", "the file is empty"),
    "header-only": ("a,b\n", "a header and no rows"),
    "ragged-short": ("a,b\n1,2\n\n3\n", "line 4 has 1 values; the header has 2 columns"),
    "ragged-long": ("a,b\n1,2,3\n", "line 2 has 3 values; the header has 2 columns"),
    "missing-empty": ("a,b\n1,2\n3,\n", "line 3: column 'b' is missing (empty)"),
    "missing-na-in-numbers": ("a,b\n1,2\n NA ,4\nNA,1\n", "line 3: column 'a' is missing ('NA') (and 1 more"),
    "missing-in-text": ("a,b\nx,2\n?,4\n", "line 3: column 'a' is missing ('?')"),
    "missing-nan": ("a,b\nnan,2\n", "line 2: column 'a' is missing ('nan')"),
    "missing-minus-nan": ("a,b\n-NaN,2\n", "line 2: column 'a' is missing"),
    "after-quoted-line-break": ('a,b\n"x\ny",1\nz,null\n', "line 4: column 'b' is missing ('null')"),
    "infinite": ("a,b\n1,2\n-inf,4\n", "line 3: column 'a' is infinite ('-inf')"),
    "too-large": ("a,b\n1e999,2\n", "line 2: column 'a' is infinite"),
    "decimal-comma": ("a;b\n1;2,5\n1,5;3\n", "line 3: column 'a' is '1,5'; write numbers with a point"),
    "thousands": ('a,b\n1,"1,234,567"\n', "line 2: column 'b' is '1,234,567'; write numbers"),
    "duplicate": ("a,b,a\n1,2,3\n", "the column name 'a' appears 2 times"),
    "no-name": (",b\n1,2\n", "column 1 has no name"),
    "no-header": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "line 1 holds numbers ('5.1', '3.5')"),
    "no-header-integers": ("0,1\n2,3\n", "line 1 holds numbers"),
    "latin-1": ("a,b\n1,ä\n".encode("latin-1"), "not UTF-8 text (line 2 has the byte 0xe4)"),
    "utf-16": ("a,b\n1,2\n".encode("utf-16"), "UTF-16 text; save the file as UTF-8"),
    "zero-byte": (b"a,b\n1,\0\n", "line 2 has a zero byte"),
    "open-quote": ('a,b\n1,"x\n2,3\n', "a quotation mark that is not closed?"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_is_one_clear_line(tmp_path, case):
    content, message = BAD_CSV[case]
    path = write(tmp_path / "t.csv", content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "no such file"),
        ("", "is a folder"),
        ("t.xlsx", "ends in '.xlsx'"),
        ("t", "has no ending"),
    ],
    ids=["absent", "folder", "suffix", "no-suffix"],
)
def test_bad_paths(tmp_path, name, message):
    if name.startswith("t"):
        write(tmp_path / name, "a,b\n1,2\n")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.sampled_from(",;\t|"),
)
def test_csv_numbers_come_back_bit_for_bit(values, delimiter):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_text("x" + delimiter + "y\n" + "".join(f"{v!r}{delimiter}1\n" for v in values))
        assert read_table(path)["x"].tobytes() == np.array(values).tobytes()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text('ab1,;"\n\r. -', max_size=40).map(str.encode))
def test_any_bytes_give_a_table_or_a_data_error(content):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".csv", ".npz"):
            path = Path(folder, "t" + suffix)
            path.write_bytes(content)
            try:
                told = len(read_table(path))
            except DataError as error:
                told = len(str(error).splitlines()) == 1
            assert told


# --- NPZ and Parquet --------------------------------------------------------------------------------


def test_npz_matrix_and_target(tmp_path):
    x = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    np.savez(tmp_path / "t.npz", X=x, y=np.array(["a", "b"]))
    table = read_table(tmp_path / "t.npz")
    assert table.names == ["X_0", "X_1", "X_2", "X_3", "X_4", "X_5", "y"]
    assert table["X_3"].tolist() == [3.0, 9.0]
    assert table["y"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param({"a": [1, 2], "b": [1]}, "'a' has 2 rows and 'b' has 1", id="lengths"),
        pytest.param({"a": 1.0}, "'a' is a single value", id="scalar"),
        pytest.param({"a": [1, np.nan]}, "row 2: column 'a' is missing (NaN)", id="nan"),
        pytest.param({"a": [np.inf, 1]}, "row 1: column 'a' is infinite (inf)", id="inf"),
        pytest.param({"a": ["x", ""]}, "row 2: column 'a' is missing (empty)", id="text"),
        pytest.param({"a": [1j]}, "type complex128; expected numbers or text", id="complex"),
        pytest.param({"a": np.array([None, 1])}, "holds Python objects", id="objects"),
        pytest.param({"a_0": [1], "a": [[2]]}, "two arrays give a column 'a_0'", id="clash"),
        pytest.param({"a": np.zeros((0, 2))}, "no rows of data", id="no-rows"),
        pytest.param({}, "no rows of data", id="nothing"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "t.npz")
    assert message in str(caught.value)


def test_broken_npz(tmp_path):
    np.savez_compressed(tmp_path / "t.npz", a=np.arange(1000.0))
    raw = (tmp_path / "t.npz").read_bytes()
    write(tmp_path / "cut.npz", raw[: len(raw) // 2])
    write(tmp_path / "flipped.npz", raw[:80] + bytes(b ^ 255 for b in raw[80:120]) + raw[120:])
    with pytest.raises(DataError, match="not an NPZ file"):
        read_table(tmp_path / "cut.npz")
    with pytest.raises(DataError, match="damaged NPZ file"):
        read_table(tmp_path / "flipped.npz")


@pytest.fixture
def parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write_columns(columns):
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write_columns


def test_parquet_types(parquet):
    import decimal

    import pyarrow as pa

    path = parquet({
        "i": pa.array([1, 2], pa.int16()),
        "f": [0.5, 1.5],
        "flag": [True, False],
        "word": ["a", "b"],
        "category": pa.array(["u", "v"]).dictionary_encode(),
        "money": [decimal.Decimal("1.25"), decimal.Decimal("2.50")],
        "__index_level_0__": [7, 8],
    })  # fmt: skip
    assert listed(read_table(path)) == {
        "i": [1, 2], "f": [0.5, 1.5], "flag": [1, 0], "word": ["a", "b"], "category": ["u", "v"],
        "money": [1.25, 2.5],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"a": [1, None, None]}, "row 2: column 'a' is missing (null) (and 1 more", id="null"),
        pytest.param({"a": [1.0, float("nan")]}, "row 2: column 'a' is missing (NaN)", id="nan"),
        pytest.param({"a": ["x", None]}, "row 2: column 'a' is missing (null)", id="null-text"),
        pytest.param({"a": [[1], [2]]}, "column 'a' has type list", id="nested"),
        pytest.param({"a": np.array([], float)}, "no rows of data", id="no-rows"),
    ],
)
def test_bad_parquet(parquet, columns, message):
    with pytest.raises(DataError) as caught:
        read_table(parquet(columns))
    assert message in str(caught.value)


def test_broken_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="not a Parquet file") as caught:
        read_table(write(tmp_path / "t.parquet", b"PAR1 and then nothing"))
    assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'dlcore\[parquet\]'"):
        read_table(write(tmp_path / "t.parquet", b"PAR1"))


def test_importing_tables_imports_nothing_heavy():
    modules = "dlcore.encoding, dlcore.preparation, dlcore.plot, dlcore.datasets"
    code = f"import sys, {modules}; print({{'matplotlib', 'pyarrow'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


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


def test_tables_can_be_built_by_hand():
    table = Table.from_columns({"a": [1, True, 2.5], "b": np.array([b"x", b"y", b"z"]), "c": ["1", " 2", "3"]})
    assert listed(table) == {"a": [1, 1, 2.5], "b": ["x", "y", "z"], "c": [1, 2, 3]}
    assert ("a" in table, "q" in table) == (True, False)
    with pytest.raises(DataError, match="row 2: column 'a' holds 1; expected numbers only or text only"):
        Table.from_columns({"a": ["x", 1]})
    with pytest.raises(DataError, match="row 2: column 'a' is missing"):
        Table.from_columns({"a": ["x", None]})
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        Table.from_columns({"a": np.zeros((1, 2))})
