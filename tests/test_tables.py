"""Tables: what files give, what is refused and in which words."""

import builtins
import doctest
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlcore.preparation
import dlcore.tables
from dlcore.data import DataError
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
