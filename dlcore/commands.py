"""``dlcore train``, ``dlcore evaluate`` and ``dlcore predict``."""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import callbacks, checkpoint, layers, optimizers, plot, random
from ._version import __version__
from .data import shortened, stratified_split
from .datasets import load_digits_table
from .encoding import CLASSIFICATION, REGRESSION, TableEncoder
from .kernels import DeviceError, compile
from .model import Sequential
from .preparation import prepare
from .tables import read_table
from .training import describe

_RATES = {"adamw": 2e-3, "adam": 2e-3, "sgd": 0.1, "momentum": 0.05, "nesterov": 0.05}
_DECAY = {"adamw": 0.1}
_DIGITS = "digits"


class CommandError(RuntimeError):
    """What a user did wrong, in one line."""


# ------------------------------------------------------------------------------------------------------- train


@dataclass
class _Data:
    """What a network is trained on: three parts, how they were encoded, and what to tell about them."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    encoder: TableEncoder
    notes: list[str]


def _digits(seed: int) -> _Data:
    table = load_digits_table()
    pixels = table.names[:-1]
    scaling = dict.fromkeys(pixels, (0.0, 16.0))  # from 0..16 to [0, 1]
    encoder = TableEncoder("digit", CLASSIFICATION, list(range(10)), pixels, scaling)
    x, y = encoder.transform(table), encoder.encode_target(table)
    train, val, test = stratified_split(y, (0.7, 0.1, 0.2), seed)
    notes = [
        "classification of the UCI handwritten digits: 10 classes, 8 x 8 pixels scaled to [0, 1]",
        f"{len(train)} rows to train, {len(val)} to validate, {len(test)} to test",
    ]
    return _Data(x[train], y[train], x[val], y[val], x[test], y[test], encoder, notes)


def _load(arguments: argparse.Namespace) -> _Data:
    if arguments.file is None:
        for option in ("target", "task", "drop"):
            if getattr(arguments, option):
                raise CommandError(f"--{option} goes with a file; without one the digits are used")
        return _digits(arguments.seed)
    if arguments.target is None:
        table = read_table(arguments.file)
        raise CommandError(f"--target is missing; columns of {arguments.file}: {shortened(table.names, 20)}")
    table = read_table(arguments.file)
    made = prepare(table, arguments.target, task=arguments.task, drop=arguments.drop, seed=arguments.seed)
    notes = list(made.notes)
    if made.task == REGRESSION:
        deviation = made.encoder.target_scaler[1]
        notes.append(f"Loss and error are in standard deviations of {made.target!r}; one is {deviation:.4g}.")
    parts = made.x_train, made.y_train, made.x_val, made.y_val, made.x_test, made.y_test
    return _Data(*parts, made.encoder, notes)


def _network(arguments: argparse.Namespace, data: _Data) -> Sequential:
    stack: list[layers.Layer] = [layers.Input((data.x_train.shape[1],))]
    for units in arguments.layers:
        if arguments.batch_norm:
            stack += [layers.Dense(units, use_bias=False, kernel_initializer="he_normal"), layers.BatchNormalization()]
            stack.append(layers.Activation("relu"))
        else:
            stack.append(layers.Dense(units, "relu", kernel_initializer="he_normal"))
        if arguments.dropout:
            stack.append(layers.Dropout(arguments.dropout))
    classification = data.encoder.task == CLASSIFICATION
    stack.append(layers.Dense(len(data.encoder.classes), "softmax") if classification else layers.Dense(1))
    model = Sequential(stack, device=arguments.device)
    optimizer = optimizers.get(arguments.optimizer)
    optimizer.learning_rate = arguments.learning_rate or _RATES.get(optimizer.rule.name, optimizer.learning_rate)
    optimizer.weight_decay = _DECAY.get(optimizer.rule.name, optimizer.weight_decay)
    if classification:
        model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    else:
        model.compile(optimizer, "mse", ["mae"])
    return model


def _folder(wanted: str | None) -> pathlib.Path:
    """A folder for a run: the one asked for, or a new one under runs/, named after the time."""
    if wanted is not None:
        path = pathlib.Path(wanted)
        path.mkdir(parents=True, exist_ok=True)
        return path
    base = pathlib.Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        path = base if attempt == 1 else base.with_name(f"{base.name}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise CommandError(f"{base} and 998 folders beside it exist already")


@contextmanager
def _says_when_compiling() -> Iterator[None]:
    """One line before the first compilation, so that a cold start does not look like a hang."""
    said = False

    def hook(name: str) -> None:
        nonlocal said
        if not said:
            said = True
            print("compiling kernels, once for this machine ...", file=sys.stderr, flush=True)

    with compile.announcing(hook):
        yield


@_says_when_compiling()
def train(arguments: argparse.Namespace) -> None:
    """``dlcore train``"""
    data = _load(arguments)
    folder = _folder(arguments.out)
    random.set_seed(arguments.seed)
    say = (lambda *_: None) if arguments.json else print
    model = _network(arguments, data)
    for note in data.notes:
        say(note)
    model.summary(say)
    rate = callbacks.LearningRateScheduler(callbacks.cosine(model.optimizer.learning_rate, arguments.epochs))
    start = time.perf_counter()
    history = model.fit(
        data.x_train,
        data.y_train,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        validation_data=(data.x_val, data.y_val),
        verbose=0 if arguments.json else 1 if sys.stderr.isatty() else 2,
        callbacks=[rate],
    )
    seconds = time.perf_counter() - start
    test = model.evaluate(data.x_test, data.y_test, return_dict=True)
    config = {
        "dlcore": __version__,
        "data": arguments.file or _DIGITS,
        "arguments": {k: v for k, v in vars(arguments).items() if k not in ("call", "command", "json")},
        "encoder": data.encoder.to_config(),
        "notes": data.notes,
        "test": test,
        "seconds": round(seconds, 3),
    }
    files = _write(folder, model, history.history, config)
    if arguments.json:
        final = {name: values[-1] for name, values in history.history.items()}
        result = {"test": test, "final": final, "seconds": round(seconds, 3), "out": str(folder), "files": files}
        print(json.dumps(_finite({**result, "notes": data.notes, "device": model.device})))
        return
    say(f"trained in {seconds:.2f} s on {model.device}")
    say(f"test: {describe(test)}")
    say(f"written to {folder}: {', '.join(files)}")


def _finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write(
    folder: pathlib.Path, model: Sequential, history: dict[str, list[float]], config: dict[str, Any]
) -> list[str]:
    def text(value: Any) -> Any:
        return lambda path: path.write_text(json.dumps(_finite(value), indent=2) + "\n", encoding="utf-8")

    checkpoint.write_atomically(folder / "history.json", text(history))
    model.save(folder / "model.safetensors")
    checkpoint.write_atomically(folder / "config.json", text(config))
    files = ["history.json", "model.safetensors", "config.json"]
    try:
        title = f"{config['data']}: test {describe(config['test'])}"
        checkpoint.write_atomically(folder / "curve.png", lambda path: plot.plot_history(history, path, title))
    except ImportError as missing:
        print(f"no curve.png: {missing}", file=sys.stderr)
    else:
        files.insert(1, "curve.png")
    return files


# -------------------------------------------------------------------------------------------- evaluate, predict


def _read_run(folder: str, where: str) -> tuple[Sequential, TableEncoder, dict[str, Any]]:
    path = pathlib.Path(folder)
    if not (path / "config.json").is_file():
        raise CommandError(f"{folder}: is not a folder that 'dlcore train' wrote (no config.json)")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        encoder = TableEncoder.from_config(config["encoder"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CommandError(f"{path / 'config.json'}: cannot be read: {error}") from None
    return checkpoint.load(path / "model.safetensors", device=where), encoder, config


@_says_when_compiling()
def evaluate(arguments: argparse.Namespace) -> None:
    """``dlcore evaluate``"""
    model, encoder, config = _read_run(arguments.run, arguments.device)
    if arguments.file is not None:
        table = read_table(arguments.file)
        x, y = encoder.transform(table), encoder.encode_target(table)
    elif config["data"] == _DIGITS:
        data = _digits(config["arguments"]["seed"])
        x, y = data.x_test, data.y_test
    else:
        raise CommandError(f"a file is missing; {arguments.run} was trained on {config['data']}")
    result = model.evaluate(x, y, return_dict=True)
    print(json.dumps(_finite(result)) if arguments.json else describe(result))


@_says_when_compiling()
def predict(arguments: argparse.Namespace) -> None:
    """``dlcore predict``"""
    model, encoder, _ = _read_run(arguments.run, arguments.device)
    outputs = model.predict(encoder.transform(read_table(arguments.file)))
    columns = {encoder.target: encoder.decode_predictions(outputs).tolist()}
    if encoder.task == CLASSIFICATION:
        columns["probability"] = outputs.max(axis=1).tolist()

    def write(stream: Any) -> None:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])

    if arguments.out is None:
        write(sys.stdout)
        return

    def to_file(path: pathlib.Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as stream:
            write(stream)

    checkpoint.write_atomically(pathlib.Path(arguments.out), to_file)


__all__ = ["CommandError", "DeviceError", "evaluate", "predict", "train"]
