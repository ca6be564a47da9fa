"""How a table becomes inputs of a network, and its outputs values of the target column again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .data import DataError, shortened
from .tables import Table, no_such_column, number, show

CLASSIFICATION, REGRESSION = "classification", "regression"


@dataclass(frozen=True, eq=False)
class TableEncoder:
    """The encoding that `prepare` chose: table columns to network inputs, network outputs to target values.

    Numeric columns become z-scores with the statistics of the training part, text columns one 0/1 input per
    category. Columns are found by name, so their order is free and further columns do not matter.

    Attributes:
        target: Name of the target column.
        task: `"classification"` or `"regression"`.
        classes: The classes by id; empty for regression.
        numeric: Column name to `(mean, standard deviation)`.
        categories: Text column name to its sorted categories.
        target_scaler: `(mean, standard deviation)` of a regression target, else `(0, 1)`.
        columns: The feature columns in their order.
    """

    target: str
    task: str
    classes: list[Any] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    numeric: dict[str, tuple[float, float]] = field(default_factory=dict)
    categories: dict[str, list[str]] = field(default_factory=dict)
    target_scaler: tuple[float, float] = (0.0, 1.0)

    @property
    def feature_names(self) -> list[str]:
        """One name per column of `transform`'s result."""
        names: list[str] = []
        for column in self.columns:
            values = self.categories.get(column)
            names += [column] if values is None else [f"{column}={value}" for value in values]
        return names

    def transform(self, table: Table) -> np.ndarray:
        """Encode a table, which may lack the target column.

        Returns:
            float32 `(rows, features)`.

        Raises:
            DataError: Missing columns (all are named), text where numbers were, a category that was not in
                the data the encoder was made from (with its line and column).
        """
        missing = [name for name in self.columns if name not in table]
        if missing:
            what = no_such_column(missing[0], table.names)
            if len(missing) > 1:
                what = f"no columns {shortened(missing)}; the columns are {shortened(table.names, 20)}"
            raise DataError(f"{table.source}: {what}")
        X = np.zeros((len(table), len(self.feature_names)), dtype=np.float32)
        at = 0
        for name in self.columns:
            if name in self.numeric:
                X[:, at] = _zscores(table, name, *self.numeric[name])
                at += 1
            else:
                ids = _lookup(table, name, self.categories[name], "category")
                X[np.arange(len(table)), at + ids] = 1
                at += len(self.categories[name])
        return X

    def encode_target(self, table: Table) -> np.ndarray:
        """The target column as in training: int64 ids `(rows,)`, or float32 z-scores `(rows, 1)`.

        Raises:
            DataError: No target column, a class that was not in the data the encoder was made from, text
                where numbers were.
        """
        if self.task == CLASSIFICATION:
            return _lookup(table, self.target, self.classes, "class")
        return _zscores(table, self.target, *self.target_scaler)[:, None]

    def decode_predictions(self, outputs: Any) -> np.ndarray:
        """Network outputs in the terms of the target column.

        Args:
            outputs: For classification, scores (logits or probabilities) `(rows, classes)`, of which the
                largest counts, or integer class ids `(rows,)`; for regression, z-scores `(rows, 1)` or
                `(rows,)`.

        Returns:
            `(rows,)`: classes (object array of text, or numbers), or `z * std + mean` in float64.

        Raises:
            ValueError: Another shape, or ids out of range.
        """
        outputs = np.asarray(outputs)
        if self.task == REGRESSION:
            if outputs.ndim not in (1, 2) or outputs.shape[1:] not in ((), (1,)):
                raise ValueError(f"outputs have shape {outputs.shape}; expected (rows, 1) or (rows,)")
            mean, std = self.target_scaler
            return outputs.reshape(-1).astype(np.float64) * std + mean
        k = len(self.classes)
        if outputs.ndim == 2 and outputs.shape[1] == k:
            outputs = outputs.argmax(axis=1)
        elif outputs.ndim != 1 or outputs.dtype.kind not in "iu":
            raise ValueError(
                f"outputs have shape {outputs.shape} and dtype {outputs.dtype}; "
                f"expected scores (rows, {k}) or integer class ids (rows,)"
            )
        if outputs.size and not 0 <= outputs.min() <= outputs.max() < k:
            raise ValueError(f"class ids reach from {outputs.min()} to {outputs.max()}; expected 0 .. {k - 1}")
        text = isinstance(self.classes[0], str)
        return np.array(self.classes, dtype=object if text else None)[outputs]

    def to_config(self) -> dict[str, Any]:
        """Everything as JSON types; `from_config` gives an encoder with the same outputs, bit for bit."""
        return {
            "version": 1,
            "target": self.target,
            "task": self.task,
            "classes": list(self.classes),
            "target_mean": self.target_scaler[0],
            "target_std": self.target_scaler[1],
            "columns": [
                {"name": name, "mean": self.numeric[name][0], "std": self.numeric[name][1]}
                if name in self.numeric
                else {"name": name, "categories": list(self.categories[name])}
                for name in self.columns
            ],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TableEncoder":
        """The encoder that `to_config` described.

        Raises:
            DataError: Something is missing from the description or it has another version.
        """
        try:
            if config["version"] != 1:
                raise DataError(f"table encoder of version {config['version']!r}; this release reads version 1")
            columns = config["columns"]
            return cls(
                target=config["target"],
                task=config["task"],
                classes=list(config["classes"]),
                columns=[c["name"] for c in columns],
                numeric={c["name"]: (float(c["mean"]), float(c["std"])) for c in columns if "mean" in c},
                categories={c["name"]: list(c["categories"]) for c in columns if "mean" not in c},
                target_scaler=(float(config["target_mean"]), float(config["target_std"])),
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"damaged description of a table encoder ({error!r})") from error


def _zscores(table: Table, name: str, mean: float, std: float) -> np.ndarray:
    column = table[name]
    if table.is_text(name):
        i = next((i for i, value in enumerate(column) if number(value) is None), 0)
        place = f"{table.source}: {table.where(i)}: column {name!r}"
        raise DataError(f"{place} is {show(column[i])}; expected a number")
    with np.errstate(over="ignore"):
        z = ((column - mean) / std).astype(np.float32)
    if not np.isfinite(z).all():
        i = int(np.flatnonzero(~np.isfinite(z))[0])
        place = f"{table.source}: {table.where(i)}: column {name!r}"
        raise DataError(f"{place} is {column[i]:g}, too far from the training data (mean {mean:g}, std {std:g})")
    return z


def _lookup(table: Table, name: str, known: Sequence[Any], what: str) -> np.ndarray:
    """The place of each value in `known`; int64 `(rows,)`.

    Whether a column reads as text or as numbers depends on all its values: "12" among "12a" is text, alone it
    is a number. Where the kinds differ between the two tables, values are compared as numbers.
    """
    column = table[name]
    text = isinstance(known[0], str)
    places: dict[Any, int] = {}
    if text == table.is_text(name):
        places = {value: i for i, value in enumerate(known)}
    elif text:
        for i, value in enumerate(known):
            as_number = number(value)
            if as_number is not None and as_number in places:
                other = known[places[as_number]]
                raise DataError(f"{table.source}: column {name!r}: {other!r} and {value!r} are the same number")
            if as_number is not None:
                places[as_number] = i
    else:
        places = {value: i for i, value in enumerate(known)}
        column = np.array([number(value) if number(value) is not None else value for value in column], object)
    ids = np.array([places.get(value, -1) for value in column.tolist()], dtype=np.int64)
    unknown = np.flatnonzero(ids < 0)
    if unknown.size:
        i = int(unknown[0])
        value = table[name][i]
        raise DataError(
            f"{table.source}: {table.where(i)}: column {name!r} has the unknown {what} {shown(value)}; "
            f"known are {shortened(known)}"
        )
    return ids


def shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else show(value)


def not_a_number(table: Table, name: str) -> str:
    """Which value keeps a column of mostly numbers from being numeric; empty if it is no such column."""
    if not table.is_text(name):
        return ""
    others = [i for i, value in enumerate(table[name]) if number(value) is None]
    if not others or len(others) > len(table) / 2:
        return ""
    return f"{show(table[name][others[0]])} in {table.where(others[0])} is not a number"
