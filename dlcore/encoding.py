"""From a table to arrays for training: task, split, one-hot, z-scores; and the same again for new tables."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .data import DataError, random_split, shortened, stratified_split
from .tables import Table

MAX_CLASSES = 20  # an integer column with at most this many distinct values is taken for classes
MAX_CATEGORIES = 1000
MIN_ROWS = 10
TASKS = ("classification", "regression")


def infer_task(table: Table, target: str) -> tuple[str, str]:
    """The task for a target column, and the reason in words.

    Text is classes. Whole numbers with at most :data:`MAX_CLASSES` distinct values, each seen twice on average at
    least, are classes. Anything else is a regression.
    """
    values = table.columns[target]
    distinct = np.unique(values.astype(str) if table.is_text(target) else values)
    if table.is_text(target):
        return "classification", f"{target!r} holds text with {len(distinct)} distinct values"
    whole = bool(np.all(values == np.round(values)))
    if whole and len(distinct) <= MAX_CLASSES and len(distinct) * 2 <= len(values):
        return "classification", f"{target!r} holds whole numbers with {len(distinct)} distinct values"
    kind = "whole numbers" if whole else "numbers"
    return "regression", f"{target!r} holds {kind} with {len(distinct)} distinct values"


@dataclass
class TableEncoder:
    """How the columns of a table become inputs: z-scores of numbers, one-hot of text."""

    target: str
    task: str
    numeric: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> mean, deviation in training
    categories: dict[str, list[str]] = field(default_factory=dict)
    classes: list[Any] = field(default_factory=list)
    target_mean: float = 0.0
    target_deviation: float = 1.0

    @property
    def width(self) -> int:
        """The number of inputs."""
        return len(self.numeric) + sum(len(c) for c in self.categories.values())

    def to_config(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {**vars(self), "numeric": {name: list(pair) for name, pair in self.numeric.items()}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TableEncoder:
        """The encoder that :meth:`to_config` described."""
        return cls(**{**config, "numeric": {name: tuple(pair) for name, pair in config["numeric"].items()}})

    def transform(self, table: Table) -> np.ndarray:
        """The inputs ``(rows, width)`` float32 of a table; the target column need not be there."""
        missing = [name for name in (*self.numeric, *self.categories) if name not in table.columns]
        if missing:
            raise DataError(f"{table.source}: column {missing[0]!r} is missing; the model was trained with it")
        parts = []
        for name, (mean, deviation) in self.numeric.items():
            if table.is_text(name):
                row, value = next((r, v) for r, v in enumerate(table.columns[name]) if not _is_number(v))
                raise DataError(f"{table.source}: {table.line(row)}, column {name!r}: {value!r} is not a number")
            parts.append(((table.columns[name] - mean) / deviation)[:, None])
        for name, known in self.categories.items():
            parts.append(self._one_hot(table, name, known))
        return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)

    def _one_hot(self, table: Table, name: str, known: list[str]) -> np.ndarray:
        index = {value: k for k, value in enumerate(known)}
        result = np.zeros((table.rows, len(known)))
        for row, value in enumerate(_text(table, name)):
            if value not in index:
                raise DataError(
                    f"{table.source}: {table.line(row)}, column {name!r}: {value!r} did not occur in training; "
                    f"known: {shortened(known)}"
                )
            result[row, index[value]] = 1.0
        return result

    def targets(self, table: Table) -> np.ndarray:
        """Class numbers ``(rows,)``, or z-scored values ``(rows, 1)``."""
        if self.target not in table.columns:
            raise DataError(f"{table.source}: the target column {self.target!r} is missing")
        if self.task == "regression":
            values = (table.columns[self.target] - self.target_mean) / self.target_deviation
            return values.astype(np.float32)[:, None]
        index = {value: k for k, value in enumerate(self.classes)}
        numbers = np.empty(table.rows, np.int64)
        for row, value in enumerate(_labels(table, self.target)):
            if value not in index:
                raise DataError(
                    f"{table.source}: {table.line(row)}, column {self.target!r}: {value!r} did not occur in training"
                )
            numbers[row] = index[value]
        return numbers

    def decode(self, outputs: np.ndarray) -> dict[str, list[Any]]:
        """Columns of predictions: class and probability, or value in the units of the target."""
        if self.task == "regression":
            return {self.target: (outputs[:, 0] * self.target_deviation + self.target_mean).tolist()}
        best = outputs.argmax(axis=1)
        probability = outputs[np.arange(len(best)), best]
        return {self.target: [self.classes[k] for k in best], "probability": probability.tolist()}


@dataclass
class Prepared:
    """Arrays for training, and how they came about."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    encoder: TableEncoder
    notes: list[str]


def prepare(
    table: Table,
    target: str,
    *,
    task: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Prepared:
    """Split a table, stratified by class, and encode it with the statistics of the training part.

    Raises :class:`~dlcore.data.DataError` where the table cannot be used.
    """
    if target not in table.columns:
        close = difflib.get_close_matches(target, table.columns, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; columns: {shortened(table.columns)}"
        raise DataError(f"{table.source}: there is no column {target!r}{hint}")
    if table.rows < MIN_ROWS:
        raise DataError(
            f"{table.source}: has {table.rows} rows; training, validation and test need at least {MIN_ROWS}"
        )
    inferred, reason = infer_task(table, target)
    task = task or inferred
    if task not in TASKS:
        raise DataError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if task == "regression" and table.is_text(target):
        raise DataError(f"{table.source}: column {target!r} holds text; a regression needs numbers")
    notes = [f"{task}: {reason}"]
    encoder = TableEncoder(target, task)
    fractions = (1.0 - validation_fraction - test_fraction, validation_fraction, test_fraction)
    if task == "classification":
        labels = _labels(table, target)
        encoder.classes = sorted(set(labels), key=lambda v: (isinstance(v, str), v))
        if len(encoder.classes) < 2:
            raise DataError(f"{table.source}: column {target!r} has one class only, {encoder.classes[0]!r}")
        parts = stratified_split(encoder.targets(table), fractions, seed)
    else:
        parts = random_split(table.rows, fractions, seed)
        values = table.columns[target][parts[0]]
        if values.std() == 0:
            raise DataError(f"{table.source}: column {target!r} is constant, {values[0]:g}; there is nothing to learn")
        encoder.target_mean, encoder.target_deviation = float(values.mean()), float(values.std())
    _fit_inputs(encoder, table, parts[0], notes)
    x, y = encoder.transform(table), encoder.targets(table)
    notes.append(
        "rows: " + ", ".join(f"{len(p)} {n}" for p, n in zip(parts, ("train", "validation", "test"), strict=True))
    )
    train, val, test = parts
    return Prepared(x[train], y[train], x[val], y[val], x[test], y[test], encoder, notes)


def _fit_inputs(encoder: TableEncoder, table: Table, train: np.ndarray, notes: list[str]) -> None:
    constant = []
    for name in table.columns:
        if name == encoder.target:
            continue
        if table.is_text(name):
            known = sorted(set(_text(table, name)))
            if len(known) > MAX_CATEGORIES:
                raise DataError(
                    f"{table.source}: column {name!r} has {len(known)} distinct texts, more than {MAX_CATEGORIES}; "
                    "an identifier? Leave it out"
                )
            if len(known) > 1:
                encoder.categories[name] = known
            else:
                constant.append(name)
            continue
        values = table.columns[name][train]
        deviation = float(values.std())
        if deviation > 0.0:
            encoder.numeric[name] = (float(values.mean()), deviation)
        else:
            constant.append(name)
    if constant:
        notes.append(f"left out, constant: {shortened(constant)}")
    if not encoder.width:
        raise DataError(f"{table.source}: no column beside {encoder.target!r} varies; there is nothing to learn from")
    text = f", {len(encoder.categories)} of text one-hot" if encoder.categories else ""
    notes.append(f"inputs: {encoder.width} from {len(encoder.numeric)} columns of numbers, z-scored{text}")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _text(table: Table, name: str) -> list[str]:
    if table.is_text(name):
        return [str(v) for v in table.columns[name]]
    return [f"{v:g}" for v in table.columns[name]]


def _labels(table: Table, name: str) -> list[Any]:
    if table.is_text(name):
        return [str(v) for v in table.columns[name]]
    return [int(v) if v == round(v) else float(v) for v in table.columns[name]]
