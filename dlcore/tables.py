"""Tables of named columns, and reading them from CSV, NPZ and Parquet files.

A table that comes back is complete: every value is a finite number or a non-empty text. Whatever else a file
holds is refused with a `DataError` of one line that says where it is.
"""

import csv
import difflib
import io
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .data import DataError, shortened

__all__ = ["MISSING", "SUFFIXES", "Table", "read_table"]

#: Spellings of a missing value, after white space around them is removed.
MISSING = frozenset(["", "NA", "N/A", "n/a", "na", "#N/A", "<NA>", "NaN", "nan", "NAN", "null", "NULL", "None", "?"])
SUFFIXES = (".csv", ".npz", ".parquet")
DELIMITERS = ",;\t|"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length by name: float64 arrays for numbers, object arrays of `str` for text.

    Build one with `Table.from_columns`, which checks the values, or with `read_table`.

    Attributes:
        columns: Name to array `(rows,)`, in the order of the file.
        source: What messages call it: the path as it was given.
        lines: For a text file the line each row starts on, counted as an editor does (the header is line 1).

    Examples:
        >>> table = Table.from_columns({"height": [1.62, 1.8], "name": ["Ada", "Bo"]})
        >>> table.names, len(table), table["height"].dtype, table.is_text("name")
        (['height', 'name'], 2, dtype('float64'), True)
    """

    columns: dict[str, np.ndarray]
    source: str = "table"
    lines: np.ndarray | None = None

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Any], source: str = "table", lines: np.ndarray | None = None
    ) -> "Table":
        """A table from lists or arrays: numbers, booleans (as 0 and 1) or text.

        A column of text in which every value is a number becomes numeric, as it does from a file.

        Raises:
            DataError: A column that is not a vector of numbers or text, columns of different lengths, a
                missing or infinite value, no columns, no rows.
        """
        table = cls({}, source, lines)
        for name, values in columns.items():
            if not isinstance(name, str) or not name:
                raise DataError(f"{source}: a column is called {name!r}; expected a text of at least one letter")
            table.columns[name] = _column(values, name, table)
        lengths = {name: len(column) for name, column in table.columns.items()}
        if len(set(lengths.values())) > 1:
            (first, rows), *others = lengths.items()
            name, other = next((n, r) for n, r in others if r != rows)
            raise DataError(f"{source}: {first!r} has {rows} rows and {name!r} has {other}; expected the same")
        if not lengths or not len(table):
            raise DataError(f"{source}: no rows of data")
        return table

    @property
    def names(self) -> list[str]:
        """The column names in order."""
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> np.ndarray:
        """The column called `name`; a `DataError` lists the columns there are, the nearest name first."""
        if name not in self.columns:
            raise DataError(f"{self.source}: {no_such_column(name, self.columns)}")
        return self.columns[name]

    def __repr__(self) -> str:
        return f"Table({len(self)} rows, {len(self.columns)} columns from {self.source})"

    def is_text(self, name: str) -> bool:
        """Whether the column holds text."""
        return self[name].dtype == object

    def where(self, row: int) -> str:
        """The place of a row (counted from 0) in words: `line 7` of a text file, else `row 6` from 1."""
        return f"line {self.lines[row]}" if self.lines is not None else f"row {row + 1}"


def read_table(path: str | Path) -> Table:
    """Read a table from a file; the suffix says which kind.

    - `.csv`: UTF-8 text, the first line names the columns. The delimiter (comma, semicolon, tab or bar) is
      found out. White space around values is removed; empty lines are skipped.
    - `.npz`: arrays by name, their first axis is the rows. A vector is a column; an array of more axes
      becomes columns `name_0`, `name_1`, ... in C order (`x` of shape `(rows, 28, 28)` and `y` of `(rows,)`
      work).
    - `.parquet`: columns of numbers, booleans or text (`pip install 'dlcore[parquet]'`). The unnamed index
      that a data frame leaves in the file (`__index_level_0__`) is not a column.

    A column is numeric if every value in it reads as a number, else it is text.

    Args:
        path: Of the file.

    Returns:
        The table; every value in it is there and finite.

    Raises:
        DataError: No such file, a folder, an unknown suffix, a damaged or empty file, no header, a column
            name twice, a row of the wrong length, a missing value (`MISSING` lists the spellings), infinity.
            One line each, with the place in the file and the column it is about.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "flowers.csv")
        >>> _ = path.write_text("length;kind\\n1.5;rose\\n2;tulip\\n")
        >>> table = read_table(path)
        >>> table["length"].tolist(), table["kind"].tolist()
        ([1.5, 2.0], ['rose', 'tulip'])
    """
    file, source = Path(path), str(path)
    if file.is_dir():
        raise DataError(f"{source}: is a folder; expected a file ending in {', '.join(SUFFIXES)}")
    readers = dict(zip(SUFFIXES, (_read_csv, _read_npz, _read_parquet), strict=True))
    suffix = file.suffix.lower()
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{source}: the file is empty")
        if suffix not in readers:
            ending = f"ends in {suffix!r}" if suffix else "has no ending"
            raise DataError(f"{source}: {ending}; expected one of {', '.join(SUFFIXES)}")
        return readers[suffix](file, source)
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such file") from error
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}".splitlines()[0]) from error


def no_such_column(name: str, names: Iterable[str]) -> str:
    """What to say about a column that is not there: the nearest names, and those there are."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    hint = f"did you mean {near[0]!r}? The" if near else "the"
    return f"no column {show(name)}; {hint} columns are {shortened(names, 20)}"


def show(value: Any) -> str:
    """A value for a message: quoted, on one line, and short."""
    text = repr(value)
    return text if len(text) <= 40 else text[:36] + "..." + text[-1]


def number(text: str) -> float | None:
    """The finite number that `text` spells, else None. `1_000` is Python's spelling, not a table's: text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


# --- columns --------------------------------------------------------------------------------


def _column(values: Any, name: str, table: Table) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{table.source}: column {name!r} holds bytes that are not UTF-8 text") from error
    if not isinstance(values, np.ndarray):
        values = list(values)
        if any(isinstance(value, str) for value in values):
            values = np.array(values, dtype=object)
        else:
            values = np.array(values)
    if values.ndim != 1:
        raise DataError(f"{table.source}: column {name!r} has shape {values.shape}; expected (rows,)")
    if values.dtype.kind in "fiub":
        return _finite(values.astype(np.float64), name, table)
    if values.dtype.kind in "UO":
        if values.dtype == object:
            _only_text(values, name, table)
        return _parsed(values.tolist(), name, table)
    raise DataError(f"{table.source}: column {name!r} has type {values.dtype}; expected numbers or text")


def _finite(values: np.ndarray, name: str, table: Table) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        missing = np.isnan(values[bad[0]])
        _refuse(bad, "is missing (NaN)" if missing else f"is infinite ({values[bad[0]]})", name, table)
    return values


def _only_text(values: np.ndarray, name: str, table: Table) -> None:
    missing = [i for i, value in enumerate(values) if value is None or value != value]
    if missing:
        _refuse(missing, f"is missing ({values[missing[0]]})", name, table)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            place = f"{table.source}: {table.where(i)}: column {name!r}"
            raise DataError(f"{place} holds {show(value)}; expected numbers only or text only")


def _parsed(texts: Sequence[str], name: str, table: Table) -> np.ndarray:
    """Text values as numbers where all of them are numbers, else without the white space around them."""
    try:
        values = np.array([float(text) for text in texts])
        if np.isfinite(values).all() and not any("_" in text for text in texts):
            return values
    except ValueError:
        pass
    texts = [text.strip() for text in texts]
    missing = [i for i, text in enumerate(texts) if text in MISSING or text.lower() in ("-nan", "+nan")]
    if missing:
        what = show(texts[missing[0]]) if texts[missing[0]] else "empty"
        _refuse(missing, f"is missing ({what})", name, table)
    infinite = [i for i, text in enumerate(texts) if _is_infinite(text)]
    if infinite and all(number(text) is not None or _is_infinite(text) for text in texts):
        _refuse(infinite, f"is infinite ({show(texts[infinite[0]])})", name, table)
    if all(number(text.replace(",", "")) is not None for text in texts):
        i = next((i for i, text in enumerate(texts) if "," in text), 0)
        _refuse([i], f"is {show(texts[i])}; write numbers with a point and no commas", name, table)
    column = np.empty(len(texts), dtype=object)
    column[:] = texts
    return column


def _is_infinite(text: str) -> bool:
    try:
        return "_" not in text and math.isinf(float(text))
    except ValueError:
        return False


def _refuse(rows: Sequence[int] | np.ndarray, what: str, name: str, table: Table) -> None:
    more = f" (and {len(rows) - 1} more in this column)" if len(rows) > 1 else ""
    todo = "" if ";" in what else "; fill it in or remove the row"
    raise DataError(f"{table.source}: {table.where(int(rows[0]))}: column {name!r} {what}{more}{todo}")


# --- files --------------------------------------------------------------------------------


def _read_csv(file: Path, source: str) -> Table:
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        line = raw.count(b"\n", 0, error.start) + 1
        what = "UTF-16 text" if utf16 else f"not UTF-8 text (line {line} has the byte 0x{raw[error.start]:02x})"
        raise DataError(f"{source}: {what}; save the file as UTF-8") from error
    del raw
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{source}: line {line} has a zero byte: this is not a text file")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True, skipinitialspace=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    names: list[str] | None = None
    start = 1
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                if names is None:
                    names = _header(row, source, start)
                elif len(row) != len(names):
                    raise DataError(
                        f"{source}: line {start} has {len(row)} values; the header has {len(names)} columns"
                    )
                else:
                    rows.append(row)
                    lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source}: line {start}: {error} (a quotation mark that is not closed?)") from error
    if names is None:
        raise DataError(f"{source}: the file is empty")
    if not rows:
        raise DataError(f"{source}: a header and no rows of data")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    del rows
    return Table.from_columns(columns, source, np.array(lines))


def _header(row: list[str], source: str, line: int) -> list[str]:
    names = [name.strip() for name in row]
    for i, name in enumerate(names):
        if not name:
            hint = " (the index of a data frame? write the file without it)" if i == 0 else ""
            raise DataError(f"{source}: line {line}: column {i + 1} has no name in the header{hint}")
    # Years and pixel numbers are fair names; a decimal fraction or numbers alone are a first row of data.
    numbers = [name for name in names if number(name) is not None]
    if len(numbers) == len(names) or any("." in name for name in numbers):
        found = shortened(numbers, 3)
        raise DataError(f"{source}: line {line} holds numbers ({found}); expected a header of column names")
    for name, times in Counter(names).items():
        if times > 1:
            raise DataError(f"{source}: line {line}: the column name {name!r} appears {times} times")
    return names


def _delimiter(text: str) -> str:
    """The delimiter that makes the first rows equally long, and the header longest."""
    sample = text[:65536]
    if len(sample) < len(text):
        sample = sample[: sample.rfind("\n") + 1] or sample
    best, best_score = ",", (False, 1)
    for delimiter in DELIMITERS:
        try:
            reader = csv.reader(io.StringIO(sample), delimiter=delimiter, skipinitialspace=True)
            rows = [row for row in islice(reader, 20) if row]
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1:
            score = (all(len(row) == len(rows[0]) for row in rows), len(rows[0]))
            if score > best_score:
                best, best_score = delimiter, score
    return best


def _read_npz(file: Path, source: str) -> Table:
    if not zipfile.is_zipfile(file):
        raise DataError(f"{source}: not an NPZ file; write one with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises what its parts raise: zlib, struct, tokenizer errors
        if "allow_pickle" in str(error):
            raise DataError(f"{source}: holds Python objects; expected arrays of numbers or text") from error
        raise DataError(f"{source}: damaged NPZ file ({_first_line(error)})") from error
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{source}: {name!r} is not an array; write the file with numpy.savez")
        if array.ndim == 0:
            raise DataError(f"{source}: array {name!r} is a single value; expected (rows,) or (rows, columns)")
        if array.ndim == 1:
            parts = {name: array}
        else:
            by_column = np.ascontiguousarray(array.reshape(len(array), math.prod(array.shape[1:])).T)
            parts = {f"{name}_{i}": part for i, part in enumerate(by_column)}
        for part_name in parts:
            if part_name in columns:
                raise DataError(f"{source}: two arrays give a column {part_name!r}")
        columns.update(parts)
    return Table.from_columns(columns, source)


def _read_parquet(file: Path, source: str) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{source}: reading Parquet needs pyarrow: pip install 'dlcore[parquet]'") from error
    try:
        data = pa.parquet.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: damaged or not a Parquet file ({_first_line(error)})") from error
    table = Table({}, source)
    columns: dict[str, Any] = {}
    for name, column in zip(data.column_names, data.columns, strict=True):
        if name in columns:
            raise DataError(f"{source}: the column name {name!r} appears twice")
        if re.fullmatch(r"__index_level_\d+__", name):
            continue
        kind = column.type
        if column.null_count:
            nulls = np.flatnonzero(column.is_null().to_numpy())
            _refuse(nulls, "is missing (null)", name, table)
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
            kind = kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            columns[name] = np.array(column.to_pylist(), dtype=object)
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            columns[name] = column.to_numpy()
        elif pa.types.is_decimal(kind):
            columns[name] = column.cast(pa.float64()).to_numpy()
        else:
            raise DataError(f"{source}: column {name!r} has type {kind}; expected numbers, booleans or text")
    return Table.from_columns(columns, source)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
