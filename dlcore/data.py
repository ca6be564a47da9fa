"""Tools for arrays of data: rescale, encode, split; the IDX files of MNIST.

Tables of named columns (CSV, NPZ, Parquet) are in `dlcore.tables`; from a table to arrays ready for training
leads `dlcore.preparation.prepare`.
"""

import gzip
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "DataError",
    "Scaler",
    "one_hot",
    "random_split",
    "read_idx",
    "stratified_split",
    "train_test_split",
]


class DataError(ValueError):
    """The data given cannot be used; the message says in one line what is wrong, where, and what to do."""


class Scaler:
    r"""Rescale each feature (column) linearly, with statistics from the training part only.

    $$ z = \frac{x - \mathrm{center}}{\mathrm{scale}} $$

    | kind          | center            | scale             | training part becomes  |
    |---------------|-------------------|-------------------|------------------------|
    | `"zscore"`    | mean              | standard deviation (divisor: rows) | mean 0, variance 1 |
    | `"minmax"`    | min               | max - min         | `[0, 1]`               |
    | `"symmetric"` | (min + max) / 2   | (max - min) / 2   | `[-1, 1]`              |

    A constant feature has scale 1: it becomes 0 and nothing is divided by zero. Other data than the training
    part may leave the range. Statistics are computed and kept in float64.

    Args:
        kind: `"zscore"`, `"minmax"` or `"symmetric"`.

    Attributes:
        center, scale: float64, the shape of one row; `None` before `fit`.

    Raises:
        ValueError: Unknown kind; `transform` before `fit`; another number of features than fitted.
        DataError: Nothing to fit (no rows), or NaN or infinity in the data to fit.

    Examples:
        >>> X_train, X_test = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]]), np.array([[6.0, 7.0]])
        >>> scaler = Scaler("symmetric").fit(X_train)
        >>> scaler.transform(X_train).tolist()
        [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
        >>> scaler.transform(X_test).tolist()
        [[2.0, 2.0]]
        >>> scaler.inverse_transform(scaler.transform(X_test)).tolist()
        [[6.0, 7.0]]
    """

    KINDS = ("zscore", "minmax", "symmetric")

    def __init__(self, kind: str = "zscore") -> None:
        if kind not in self.KINDS:
            raise ValueError(f"kind is {kind!r}; expected one of {', '.join(map(repr, self.KINDS))}")
        self.kind = kind
        self.center: np.ndarray | None = None
        self.scale: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Scaler({self.kind!r})"

    def fit(self, X: Any) -> "Scaler":
        """Take the statistics of `X`, shape `(rows, ...)`, the training part. Returns the scaler."""
        X = _numbers(X, "X").astype(np.float64)
        if X.ndim == 0 or len(X) == 0:
            raise DataError(f"X has shape {X.shape}; a Scaler needs at least one row to fit")
        if not np.isfinite(X).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(X))[0])
            raise DataError(f"X holds {X[where]} at {list(where)}; a Scaler needs finite numbers to fit")
        low, high = X.min(axis=0), X.max(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.kind == "zscore":
                center, scale = X.mean(axis=0), X.std(axis=0)
            elif self.kind == "minmax":
                center, scale = low, high - low
            else:
                center, scale = low / 2 + high / 2, high / 2 - low / 2
        if not (np.isfinite(center).all() and np.isfinite(scale).all()):
            raise DataError(f"X reaches from {X.min():g} to {X.max():g}: its statistics overflow float64")
        # The mean of equal floats may miss them by a rounding and leave a tiny std: compare min and max.
        constant = (low == high) | (scale == 0)
        self.center, self.scale = np.where(constant, low, center), np.where(constant, 1.0, scale)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """`(X - center) / scale`; float32 stays float32, everything else becomes float64."""
        X, center, scale = self._checked(X)
        return ((X.astype(np.float64) - center) / scale).astype(_float_type(X), copy=False)

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """`Z * scale + center`: what `transform` was given."""
        Z, center, scale = self._checked(Z)
        return (Z.astype(np.float64) * scale + center).astype(_float_type(Z), copy=False)

    def fit_transform(self, X: Any) -> np.ndarray:
        """`fit(X).transform(X)`."""
        return self.fit(X).transform(X)

    def _checked(self, X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.center is None or self.scale is None:
            raise ValueError("this Scaler has no statistics yet: call fit on the training part first")
        X = _numbers(X, "X")
        if X.ndim == 0 or X.shape[1:] != self.center.shape:
            expected = ", ".join(["rows", *map(str, self.center.shape)])
            raise ValueError(f"X has shape {X.shape}; this Scaler was fitted on ({expected})")
        return X, self.center, self.scale

    def to_config(self) -> dict[str, Any]:
        """Kind and statistics as JSON types; `from_config` gives the same scaler, bit for bit."""
        if self.center is None or self.scale is None:
            return {"kind": self.kind, "center": None, "scale": None}
        return {"kind": self.kind, "center": self.center.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Scaler":
        """The scaler that `to_config` described."""
        scaler = cls(config["kind"])
        if config["center"] is not None:
            scaler.center = np.asarray(config["center"], dtype=np.float64)
            scaler.scale = np.asarray(config["scale"], dtype=np.float64)
        return scaler


def one_hot(y: Any, num_classes: int | None = None, dtype: Any = np.float32) -> np.ndarray:
    """Class ids as rows with a single 1: `out[i, y[i]] = 1`.

    Args:
        y: Integers `(rows,)` in `0 .. num_classes - 1`.
        num_classes: Length of a row; by default `max(y) + 1`.
        dtype: Of the result.

    Returns:
        `(rows, num_classes)`.

    Raises:
        ValueError: `y` is not a vector of integers, or a value is outside the range (its place is named).

    Examples:
        >>> one_hot([2, 0], num_classes=3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    y = np.asarray(y)
    if y.ndim != 1 or (y.size and y.dtype.kind not in "iub"):
        raise ValueError(f"y has shape {y.shape} and dtype {y.dtype}; one_hot expects integers of shape (rows,)")
    y = y.astype(np.int64)
    if num_classes is None:
        num_classes = int(y.max()) + 1 if y.size else 0
    outside = np.flatnonzero((y < 0) | (y >= num_classes))
    if outside.size:
        raise ValueError(f"y[{outside[0]}] is {y[outside[0]]}; expected 0 .. {num_classes - 1}")
    out = np.zeros((len(y), num_classes), dtype=dtype)
    out[np.arange(len(y)), y] = 1
    return out


def random_split(rows: int, fractions: Sequence[float], seed: Any = None) -> tuple[np.ndarray, ...]:
    """Divide `0 .. rows - 1` at random into parts of the given fractions.

    Args:
        rows: How many rows there are.
        fractions: One per part, not negative, of sum 1. The first part (training) takes what rounding
            leaves; each other part with a fraction above 0 gets `max(1, round(rows * fraction))` rows.
        seed: Anything `numpy.random.default_rng` takes; the same integer gives the same split.

    Returns:
        One int64 index array per part, in shuffled order; together every row exactly once.

    Raises:
        ValueError: Fractions that are negative or do not sum to 1.
        DataError: Too few rows to leave one for the first part.

    Examples:
        >>> train, validation, test = random_split(10, (0.7, 0.1, 0.2), seed=1)
        >>> len(train), len(validation), len(test)
        (7, 1, 2)
        >>> sorted([*train.tolist(), *validation.tolist(), *test.tolist()]) == list(range(10))
        True
    """
    sizes = _part_sizes(rows, fractions)
    order = np.random.default_rng(seed).permutation(rows)
    return tuple(np.split(order, np.cumsum(sizes)[:-1]))


def stratified_split(labels: Any, fractions: Sequence[float], seed: Any = None) -> tuple[np.ndarray, ...]:
    """Divide rows at random so that every part has the same mix of classes.

    With `n_c` rows of class `c`, each part after the first gets `n_c * fraction` of them rounded down or up
    (up for the largest remainders, until the part has its `round(rows * fraction)` rows), but never the last
    row of a class: every class appears in the first part (training), a class of a single row only there.

    Args:
        labels: `(rows,)`, the class of each row: integers or text.
        fractions: As in `random_split`.
        seed: As in `random_split`.

    Returns:
        One int64 index array per part, in shuffled order; together every row exactly once.

    Raises:
        ValueError: Labels that are not one-dimensional; fractions that are negative or do not sum to 1.
        DataError: Too few rows to leave one for the first part.

    Examples:
        >>> labels = np.array(["no"] * 8 + ["yes"] * 4)
        >>> train, test = stratified_split(labels, (0.75, 0.25), seed=0)
        >>> labels[train].tolist().count("yes"), labels[test].tolist().count("yes")
        (3, 1)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; expected (rows,)")
    sizes = _part_sizes(len(labels), fractions)
    rng = np.random.default_rng(seed)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    free = counts.copy()
    taken = [np.zeros_like(counts)]
    for fraction, size in zip(fractions[1:], sizes[1:], strict=True):
        quota = counts * fraction
        # 0.29 * 100 is 28.999999999999996: without the guard a whole row would be lost to the rounding.
        take = np.minimum(np.floor(quota + 1e-9).astype(np.int64), free - 1)
        wanting = np.lexsort((rng.random(len(counts)), take - quota))
        wanting = wanting[(take < free - 1)[wanting]]
        if fraction > 0:
            take[wanting[: max(0, size - int(take.sum()))]] += 1
        free -= take
        taken.append(take)
    taken[0] = free
    ends = np.cumsum(taken, axis=0)
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    by_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    for c, members in enumerate(by_class):
        for part, piece in zip(parts, np.split(rng.permutation(members), ends[:-1, c]), strict=True):
            part.append(piece)
    return tuple(rng.permutation(np.concatenate(pieces)) for pieces in parts)


def train_test_split(
    *arrays: Any, test_fraction: float = 0.2, stratify: Any = None, seed: Any = None
) -> tuple[np.ndarray, ...]:
    """Shuffle arrays together and divide them into a training and a test part.

    Args:
        arrays: Arrays of the same length, `(rows, ...)`.
        test_fraction: Share of the rows in the test part, above 0 and below 1.
        stratify: Labels `(rows,)`: both parts then have the same mix of classes, as in `stratified_split`.
        seed: As in `random_split`.

    Returns:
        `(first_train, first_test, second_train, second_test, ...)`.

    Raises:
        ValueError: No arrays, arrays of different lengths, or a fraction out of range.
        DataError: Too few rows to leave one for each part.

    Examples:
        >>> X, y = np.arange(10.0).reshape(5, 2), np.arange(5)
        >>> X_train, X_test, y_train, y_test = train_test_split(X, y, test_fraction=0.4, seed=0)
        >>> X_train.shape, X_test.shape, bool((X_test[:, 0] == 2 * y_test).all())
        ((3, 2), (2, 2), True)
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; expected a number above 0 and below 1")
    given = [np.asarray(array) for array in arrays]
    if not given or any(array.ndim == 0 for array in given):
        raise ValueError("train_test_split needs at least one array of shape (rows, ...)")
    lengths = [len(array) for array in given] + ([len(stratify)] if stratify is not None else [])
    if len(set(lengths)) > 1:
        raise ValueError(f"the arrays have {', '.join(map(str, lengths))} rows; expected the same number in all")
    fractions = (1 - test_fraction, test_fraction)
    if stratify is None:
        train, test = random_split(lengths[0], fractions, seed)
    else:
        train, test = stratified_split(stratify, fractions, seed)
    return tuple(part for array in given for part in (array[train], array[test]))


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file, the format of MNIST, plain or gzipped (`.gz`).

    Args:
        path: For example `train-images-idx3-ubyte.gz` or `train-labels-idx1-ubyte`.

    Returns:
        The array with the shape and dtype the file states (MNIST: uint8 `(60000, 28, 28)` and `(60000,)`).

    Raises:
        DataError: No such file, not an IDX file, or shorter or longer than its header states.

    References:
        Y. LeCun, C. Cortes, C. Burges, The MNIST database: "The IDX file format".
    """
    try:
        raw = Path(path).read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    types = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in types or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path}: not an IDX file (it starts with {raw[:4].hex(' ') or 'nothing'})")
    dtype = np.dtype(types[raw[2]])
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", raw[3], offset=4))
    start, stated = 4 + 4 * raw[3], math.prod(shape) * dtype.itemsize
    if len(raw) - start != stated:
        raise DataError(f"{path}: {len(raw) - start} bytes of data; its header states {stated}")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _part_sizes(rows: int, fractions: Sequence[float]) -> list[int]:
    if not fractions or any(not 0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions are {tuple(fractions)}; expected numbers between 0 and 1 of sum 1")
    others = [max(1, round(rows * fraction)) if fraction > 0 else 0 for fraction in fractions[1:]]
    if rows - sum(others) < 1:
        raise DataError(f"{rows} rows are too few for {len(fractions)} parts of fractions {tuple(fractions)}")
    return [rows - sum(others), *others]


def _numbers(X: Any, name: str) -> np.ndarray:
    array = np.asarray(X)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has dtype {array.dtype}; expected numbers")
    return array


def _float_type(X: np.ndarray) -> type:
    return np.float32 if X.dtype == np.float32 else np.float64


def shortened(values: Iterable[Any], limit: int = 8) -> str:
    """At most `limit` values for an error message, quoted, and how many more there are."""
    quoted = [repr(value) for value in values]
    more = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {more} more" if more > 0 else "")
