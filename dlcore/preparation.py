"""From a table to arrays ready for training: the task, the split, the encoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data import DataError, Scaler, random_split, shortened, stratified_split
from .encoding import CLASSIFICATION, REGRESSION, TableEncoder, not_a_number, shown
from .tables import Table, show

MINIMUM_ROWS = 10
MAXIMUM_CATEGORIES = 1000
MAXIMUM_INFERRED_CLASSES = 20
ROWS_PER_INFERRED_CLASS = 5


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `prepare` gives: three parts of the data, and how they were made.

    Attributes:
        x_train, x_val, x_test: float32 `(rows, features)`; a part of fraction 0 has no rows.
        y_train, y_val, y_test: int64 class ids `(rows,)`, or for regression float32 z-scores `(rows, 1)`.
        task: `"classification"` or `"regression"`.
        target: Name of the target column.
        classes: The classes by id, text or numbers; empty for regression.
        feature_names: One name per column of x; `colour=red` for a category of a text column.
        encoder: Repeats the encoding on new tables and turns outputs back into classes or target values.
        notes: Sentences for the user: why this task, what was dropped, what looks odd.
        rows: The row numbers of the table in the three parts, int64.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    task: str
    target: str
    classes: list[Any]
    feature_names: list[str]
    encoder: "TableEncoder"
    notes: list[str]
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]


def prepare(
    table: Table,
    target: str,
    *,
    task: str | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    drop: Sequence[str] = (),
    seed: Any = 0,
) -> Prepared:
    """Split a table into training, validation and test part and encode it for a network.

    - **Task**, where none is given: classification if the target is text, or holds only whole numbers with at
      most 2 different values or at most `min(20, rows / 5)`; else regression. A note says why.
    - **Split**: fractions are of all rows; stratified by class for classification, so that every class is in
      the training part (a class of one row only there).
    - **Numeric columns** become z-scores, the mean and standard deviation taken from the training part only;
      so does a regression target.
    - **Text columns** become one 0/1 input per category; the categories are those of the whole table, sorted.
    - **Dropped**, with a note: columns that are constant in the training part.

    Args:
        table: From `read_table`, or `Table.from_columns`.
        target: Name of the column to predict; all others are inputs.
        task: `"classification"`, `"regression"`, or `None` to infer it.
        test_fraction, validation_fraction: Shares of all rows, each from 0 and in sum below 1.
        drop: Names of columns to leave out.
        seed: Of the split; anything `numpy.random.default_rng` takes.

    Raises:
        DataError: The target or a dropped column does not exist; the target has one value only, is text for
            regression, or has more classes than half the rows; fewer than 10 rows; more than 1000 categories
            in a text column; no input column left; a column whose statistics overflow.
        ValueError: A task or fractions that are none.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> size = rng.normal(size=100)
        >>> table = Table.from_columns({
        ...     "size": size, "colour": ["red", "blue"] * 50, "kind": np.where(size > 0, "big", "small"),
        ... })
        >>> data = prepare(table, "kind")
        >>> data.task, data.classes, data.feature_names
        ('classification', ['big', 'small'], ['size', 'colour=blue', 'colour=red'])
        >>> data.x_train.shape, data.x_val.shape, data.y_test.shape
        ((70, 3), (10, 3), (20,))
        >>> print(data.notes[0])
        Classification, because the target 'kind' holds text: 2 classes.
        >>> data.encoder.decode_predictions([[2.0, -1.0], [0.1, 0.3]]).tolist()
        ['big', 'small']
    """
    if task not in (None, CLASSIFICATION, REGRESSION):
        raise ValueError(f"task is {task!r}; expected {CLASSIFICATION!r}, {REGRESSION!r} or None")
    fractions = (1 - validation_fraction - test_fraction, validation_fraction, test_fraction)
    if validation_fraction < 0 or test_fraction < 0 or not fractions[0] > 1e-9:
        raise ValueError(
            f"validation_fraction is {validation_fraction} and test_fraction {test_fraction}; "
            "expected numbers from 0 with a sum below 1"
        )
    table[target]
    for name in drop:
        table[name]
        if name == target:
            raise DataError(f"{table.source}: the target {target!r} cannot be dropped")
    rows = len(table)
    if rows < MINIMUM_ROWS:
        found = f"{rows} row{'s' if rows > 1 else ''} of data"
        raise DataError(f"{table.source}: {found}; training needs at least {MINIMUM_ROWS}")
    notes: list[str] = []
    if task is None:
        task, why = _infer_task(table, target)
        notes.append(why)
    encoder = TableEncoder(target, task, classes=_classes(table, target) if task == CLASSIFICATION else [])
    if task == CLASSIFICATION:
        ids = encoder.encode_target(table)
        counts = np.bincount(ids)
        single = [encoder.classes[i] for i in np.flatnonzero(counts == 1)]
        if single:
            what = "class has" if len(single) == 1 else "classes have"
            notes.append(f"{len(single)} {what} a single row, used for training only: {shortened(single)}.")
        split = stratified_split(ids, fractions, seed)
    else:
        _regression_target(table, target)
        split = random_split(rows, fractions, seed)
    train = split[0]
    if task == REGRESSION:
        if _is_constant(table[target][train]):
            raise DataError(f"{table.source}: the target {target!r} is constant in the training part")
        encoder = TableEncoder(target, task, target_scaler=_statistics(table, target, train))
    inputs = [name for name in table.names if name != target and name not in drop]
    constant = [name for name in inputs if _is_constant(table[name][train])]
    if constant:
        what = "column is" if len(constant) == 1 else "columns are"
        notes.append(f"{len(constant)} {what} dropped, constant in the training part: {shortened(constant)}.")
    for name in inputs:
        if name not in constant:
            _choose_encoding(encoder, table, name, train, notes)
    if not encoder.columns:
        raise DataError(f"{table.source}: no input column is left beside the target {target!r}")
    X, y = encoder.transform(table), encoder.encode_target(table)
    train, val, test = split
    return Prepared(
        x_train=X[train],
        y_train=y[train],
        x_val=X[val],
        y_val=y[val],
        x_test=X[test],
        y_test=y[test],
        task=task,
        target=target,
        classes=encoder.classes,
        feature_names=encoder.feature_names,
        encoder=encoder,
        notes=notes,
        rows=(train, val, test),
    )


def _infer_task(table: Table, target: str) -> tuple[str, str]:
    column, rows = table[target], len(table)
    distinct = len(np.unique(column))
    if table.is_text(target):
        return (
            CLASSIFICATION,
            f"Classification, because the target {target!r} holds text: {distinct} classes.",
        )
    limit = max(2, min(MAXIMUM_INFERRED_CLASSES, rows // ROWS_PER_INFERRED_CLASS))
    if not (column == np.floor(column)).all():
        return REGRESSION, f"Regression, because the target {target!r} holds numbers that are not whole."
    found = f"the target {target!r} holds whole numbers with {distinct} different values"
    if distinct <= limit:
        return CLASSIFICATION, f"Classification, because {found} (at most {limit} for {rows} rows)."
    return REGRESSION, f"Regression, because {found} (more than {limit} for {rows} rows)."


def _classes(table: Table, target: str) -> list[Any]:
    distinct: list[Any] = np.unique(table[target]).tolist()
    if len(distinct) == 1:
        raise DataError(f"{table.source}: the target {target!r} is {shown(distinct[0])} in every row")
    if len(distinct) > len(table) / 2:
        what = f"the target {target!r} has {len(distinct)} different values in {len(table)} rows"
        hint = not_a_number(table, target) or "that is too many for classes"
        raise DataError(f"{table.source}: {what}; {hint}")
    if not table.is_text(target) and all(value.is_integer() for value in distinct):
        return [int(value) for value in distinct]
    return distinct


def _regression_target(table: Table, target: str) -> None:
    if table.is_text(target):
        hint = not_a_number(table, target) or f"{show(table[target][0])} in {table.where(0)} is not a number"
        raise DataError(f"{table.source}: regression needs numbers in the target {target!r}; {hint}")
    if _is_constant(table[target]):
        raise DataError(f"{table.source}: the target {target!r} is {shown(table[target][0])} in every row")


def _choose_encoding(encoder: TableEncoder, table: Table, name: str, train: np.ndarray, notes: list[str]) -> None:
    """Add the column to the encoder, with a note where it looks odd."""
    column = table[name]
    if table.is_text(name):
        categories = np.unique(column).tolist()
        hint = not_a_number(table, name)
        if len(categories) > MAXIMUM_CATEGORIES:
            raise DataError(
                f"{table.source}: text column {name!r} has {len(categories)} different values "
                f"(at most {MAXIMUM_CATEGORIES}); " + (hint or "drop the column")
            )
        if hint:
            notes.append(f"Column {name!r} is taken as text, because {hint}.")
        elif len(categories) > len(table) / 2:
            notes.append(f"Column {name!r} is text with {len(categories)} different values; consider dropping it.")
        encoder.categories[name] = categories
    else:
        if np.array_equal(column, column[0] + np.arange(len(column))):
            notes.append(f"Column {name!r} just counts the rows; consider dropping it.")
        encoder.numeric[name] = _statistics(table, name, train)
    encoder.columns.append(name)


def _statistics(table: Table, name: str, train: np.ndarray) -> tuple[float, float]:
    try:
        scaler = Scaler("zscore").fit(table[name][train])
    except DataError as error:
        raise DataError(f"{table.source}: column {name!r}: {error}") from error
    assert scaler.center is not None
    assert scaler.scale is not None
    return float(scaler.center), float(scaler.scale)


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())
