"""Tables of named columns from CSV, NPZ and Parquet files. What is wrong with a file is said in one line."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .data import DataError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
DELIMITERS = ",;\t|"


@dataclass
class Table:
    """Columns of one length: float64 where every value is a number, else text. ``first_line`` is that of row 0."""

    columns: dict[str, np.ndarray]
    source: str
    first_line: int = 1

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values())))

    def line(self, row: int) -> str:
        """Row ``row`` as a person finds it in the file."""
        return f"line {row + self.first_line}" if self.first_line > 1 else f"row {row + 1}"

    def is_text(self, name: str) -> bool:
        """Whether the column holds text."""
        return self.columns[name].dtype.kind not in "f"


def read_table(path: str | Path) -> Table:
    """The table in a ``.csv``, ``.npz`` or ``.parquet`` file.

    Raises :class:`~dlcore.data.DataError` for a file that is missing, empty, damaged, of another kind, or that has
    a missing or infinite value; the message names file, line and column.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".npz": _read_npz, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: unknown kind of file; expected {', '.join(readers)}")
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file")
    table = readers[path.suffix.lower()](path)
    if not table.columns or not table.rows:
        raise DataError(f"{path}: there are no rows of data")
    return table


def _read_csv(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    header_line = text.splitlines()[0]
    delimiter = max(DELIMITERS, key=header_line.count)
    if delimiter not in header_line:
        delimiter = ","
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from None
    names = [name.strip() for name in rows[0]]
    _check_names(path, names)
    body = [(number, row) for number, row in enumerate(rows[1:], 2) if row]
    for number, row in body:
        if len(row) != len(names):
            raise DataError(f"{path}: line {number} has {len(row)} values; the header has {len(names)}")
    table = Table({}, str(path), first_line=2)
    for k, name in enumerate(names):
        table.columns[name] = _column(table, name, [row[k].strip() for _, row in body])
    return table


def _check_names(path: Path, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        if not name:
            raise DataError(f"{path}: column {k + 1} has no name in the header")
        if name in names[:k]:
            raise DataError(f"{path}: two columns are called {name!r}")


def _column(table: Table, name: str, values: list[str]) -> np.ndarray:
    for row, value in enumerate(values):
        if value.lower() in MISSING:
            raise DataError(f"{table.source}: {table.line(row)}, column {name!r}: the value is missing")
    try:
        numbers = np.array([float(v) for v in values], np.float64)
    except ValueError:
        return np.array(values, object)
    return _finite(table, name, numbers)


def _finite(table: Table, name: str, numbers: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if wrong.size:
        row = int(wrong[0])
        what = "missing" if np.isnan(numbers[row]) else f"{numbers[row]}"
        raise DataError(f"{table.source}: {table.line(row)}, column {name!r}: the value is {what}")
    return numbers


def _typed(table: Table, name: str, values: Iterable[Any]) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return _finite(table, name, array.astype(np.float64))
    return _column(table, name, ["" if v is None else str(v).strip() for v in array.tolist()])


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not a readable NPZ file: {str(error).splitlines()[0]}") from None
    table = Table({}, str(path))
    for name, array in arrays.items():
        if array.ndim == 1:
            table.columns[name] = _typed(table, name, array)
        elif array.ndim == 2:
            for k in range(array.shape[1]):
                table.columns[f"{name}_{k}"] = _typed(table, f"{name}_{k}", array[:, k])
        else:
            raise DataError(f"{path}: array {name!r} has shape {array.shape}; expected one or two axes")
    lengths = {len(column) for column in table.columns.values()}
    if len(lengths) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: the arrays differ in length: {shapes}")
    return table


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet files need pyarrow; pip install 'dlcore[parquet]'") from None
    try:
        data = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    _check_names(path, data.column_names)
    table = Table({}, str(path))
    for name in data.column_names:
        table.columns[name] = _typed(table, name, data.column(name).to_pylist())
    return table
