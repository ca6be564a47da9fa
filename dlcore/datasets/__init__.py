"""Data that comes with the package."""

from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..tables import Table

__all__ = ["load_digits", "load_digits_table"]


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits: 1,797 pictures of 8 x 8 pixels in 10 classes.

    Data: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0; the test part of the set.
    `DIGITS.md` beside the file says what was changed.

    Returns:
        `X`, float32 `(1797, 64)`, the pixels row by row with values 0..16, and
        `y`, int64 `(1797,)`, the digit.

    Examples:
        >>> X, y = load_digits()
        >>> X.shape, y.shape, float(X.max())
        ((1797, 64), (1797,), 16.0)
        >>> np.bincount(y).tolist()
        [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        >>> for row in X[0].reshape(8, 8):
        ...     print("".join("--:oO#"[int(v) // 3] for v in row))
        ---Oo---
        --O#o#--
        --#--o:-
        --O--::-
        --:--o:-
        --o--O:-
        --O-oO--
        --:Oo---
    """
    _, values = _read_digits()
    return values[:, :-1].astype(np.float32), values[:, -1].astype(np.int64)


def load_digits_table() -> "Table":
    """The same data as a table with the columns `pixel_0_0` ... `pixel_7_7` and `digit`.

    Examples:
        >>> table = load_digits_table()
        >>> len(table), table.names[0], table.names[-1]
        (1797, 'pixel_0_0', 'digit')
    """
    from ..tables import Table

    names, values = _read_digits()
    by_column = np.ascontiguousarray(values.T, dtype=np.float64)
    return Table.from_columns(dict(zip(names, by_column, strict=True)), source="digits")


def _read_digits() -> tuple[list[str], np.ndarray]:
    import gzip

    packed = resources.files(__name__).joinpath("digits.csv.gz").read_bytes()
    header, body = gzip.decompress(packed).decode("ascii").split("\n", 1)
    names = header.split(",")
    values = np.array(body.replace("\n", ",").rstrip(",").split(","), dtype=np.int64)
    return names, values.reshape(-1, len(names))
