"""The loops: epochs of mini-batches, evaluation, prediction; with history and progress."""

from __future__ import annotations

import operator
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from . import random
from .callbacks import Callback
from .kernels.exchange import module_of
from .network import Network
from .optimizers import Optimizer

SLICE = 0.05  # seconds in native code at a time: Ctrl-C and the progress bar wait no longer than this


def positive(name: str, value: Any) -> int:
    """``value`` as an integer of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return number


@dataclass
class History:
    """What ``fit`` returns: ``history["loss"][e]`` is the mean loss of epoch ``e``; likewise metrics, ``val_...``."""

    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: list[int] = field(default_factory=list)

    def append(self, epoch: int, values: dict[str, float]) -> None:
        """Add an epoch."""
        self.epoch.append(epoch)
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


@dataclass
class Data:
    """Samples ``(n, features)``, targets ``(n,)`` or ``(n, outputs)``, weights ``(n,)`` or None."""

    samples: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        """Those that are there."""
        return [array for array in (self.samples, self.targets, self.weights) if array is not None]

    def split(self, count: int) -> tuple[Data, Data]:
        """The first ``count`` samples and the others."""
        if not 0 < count < len(self.samples):
            raise ValueError(f"a validation split of {len(self.samples)} samples leaves one side empty")
        weights = self.weights
        return (
            Data(self.samples[:count], self.targets[:count], None if weights is None else weights[:count]),
            Data(self.samples[count:], self.targets[count:], None if weights is None else weights[count:]),
        )


class Slices:
    """Cuts a pass over mini-batches into native calls of at most about 50 ms; it learns how many that are.

    ``expected`` is what a mini-batch may take, in seconds, good to a factor of 4; where nobody knows, the first call is
    for one mini-batch.
    """

    def __init__(self, expected: float = SLICE) -> None:
        self.steps = max(1, int(SLICE / expected / 4))

    def run(
        self, batches: int, call: Callable[[int, int], None], after: Callable[[int, int], None] | None = None
    ) -> None:
        """``call(steps, done)`` until ``batches`` are done, and ``after(steps, done)`` behind each."""
        done = 0
        while done < batches:
            steps = min(self.steps, batches - done)
            start = time.perf_counter()
            call(steps, done)
            seconds = max(time.perf_counter() - start, 1e-6)
            done += steps
            if after is not None:
                after(steps, done)
            self.steps = max(1, min(10 * self.steps, int(steps * SLICE / seconds)))


class Runner:
    """Binds data to an engine and runs lists of its program over it."""

    def __init__(self, engine: Any, network: Network, optimizer: Optimizer, data: Data) -> None:
        self.engine, self.network, self.optimizer, self.data = engine, network, optimizer, data
        self.count = len(data.samples)

    def bind(self, order: np.ndarray, batches: int) -> None:
        """Bind data, order and empty histories of ``batches`` mini-batches."""
        bindings = {"samples": self.data.samples, "targets": self.data.targets, "order": order}
        if self.data.weights is not None:
            bindings["weights"] = self.data.weights
        self.engine.bind(**bindings)
        self.engine.bind_histories([f"history_{name}" for name in self.network.histories], batches)

    def begin(self, name: str, batch: int, order: np.ndarray) -> int:
        """Make the engine ready for a pass of list ``name`` over all samples; the number of its mini-batches."""
        batches = -(-self.count // batch)
        self.bind(order, batches)
        if name == "train":
            self.optimizer.count_epochs(batches)
            self.engine.write(self.network.hyper, self.optimizer.hyper())
        return batches

    def run(self, name: str, batch: int, order: np.ndarray, after: Callable[[int, int], None] | None = None) -> None:
        """Run all samples in mini-batches, in slices; ``after(steps, done)`` is called after each slice."""

        def call(steps: int, done: int) -> None:
            self.engine.run(name, steps, batch, self.count, done)

        Slices().run(self.begin(name, batch, order), call, after)

    def histories(self) -> dict[str, np.ndarray]:
        """Loss and metrics of each mini-batch so far, by name: one transfer from a GPU."""
        found = self.engine.fetch_histories()
        return {name: found[f"history_{name}"] for name in self.network.histories}

    def means(self, batch: int, done: int) -> dict[str, float]:
        """The mean over the samples of the first ``done`` mini-batches of each history."""
        return mean_values(self.histories(), shares(batch, self.count, done))

    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        if self.optimizer.schedule is None:
            return self.optimizer.learning_rate
        return self.optimizer.rate_at(max(1, int(self.engine.read(self.network.step)[0])))

    def skipped_steps(self) -> float:
        """How many steps were skipped so far because a gradient was not finite."""
        assert self.network.scaler is not None
        return float(self.engine.read(self.network.scaler)[3])

    def whole(self, name: str) -> dict[str, float]:
        """Run all samples as one mini-batch."""
        self.run(name, self.count, np.arange(self.count))
        return self.means(self.count, 1)


def first_not_finite(losses: np.ndarray) -> int | None:
    """The number of the first mini-batch whose loss is NaN or infinite; None if there is none."""
    wrong = np.flatnonzero(~np.isfinite(losses))
    return int(wrong[0]) if wrong.size else None


def shares(batch: int, count: int, done: int) -> np.ndarray:
    """The share of each of the first ``done`` mini-batches of ``count`` samples in the samples of all of them."""
    rows = np.full(done, batch, np.float64)
    rows[-1] = min(batch, count - (done - 1) * batch)
    return rows / rows.sum()


def mean_values(histories: dict[str, np.ndarray], share: np.ndarray) -> dict[str, float]:
    """The mean over the samples of the first mini-batches of each history, as many as have a ``share``."""
    return {name: float(share @ history[: len(share)]) for name, history in histories.items()}


def answer(values: list[float], names: list[str], return_dict: bool) -> Any:
    """Loss and metrics as they are returned: a number, a list, or a dict."""
    if return_dict:
        return dict(zip(names, values, strict=True))
    return values[0] if len(values) == 1 else values


def describe(values: dict[str, float]) -> str:
    """``loss 0.1234  accuracy 0.9876``"""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


def next_order(count: int, shuffler: np.random.Generator | None) -> np.ndarray:
    """The order of the samples in the next epoch: shuffled, or as they are where there is no ``shuffler``."""
    return np.arange(count) if shuffler is None else shuffler.permutation(count)


def _epoch(runner: Runner, batch: int, order: np.ndarray, bar: Any) -> dict[str, np.ndarray]:
    def after(steps: int, done: int) -> None:
        bar.update(steps)
        bar.set_postfix_str(describe(runner.means(batch, done)), refresh=False)

    runner.run("train", batch, order, None if bar is None else after)
    return runner.histories()


def fit(
    model: Any,
    data: Data,
    validation: Data | None,
    batch: int,
    epochs: range,
    shuffle: bool,
    verbose: int,
    callbacks: Sequence[Callback],
) -> History:
    """Train for ``epochs``; see :meth:`dlcore.Sequential.fit`."""
    history = History()
    model.stop_training = False
    for callback in callbacks:
        callback.model = model
    batch = min(batch, len(data.samples))
    warned = False
    shuffler = random.child() if shuffle else None
    for epoch in epochs:
        for callback in callbacks:
            callback.on_epoch_begin(epoch)
        order = next_order(len(data.samples), shuffler)
        bar = None
        if verbose == 1:
            label = f"epoch {epoch + 1}/{epochs.stop}"
            bar = tqdm(
                total=-(-len(order) // batch), desc=label, unit="batch", disable=None, leave=epoch + 1 == epochs.stop
            )
        try:
            with model._lock:
                runner = model._runner(data, batch)
                model._engine.hold(*data.arrays, *([] if validation is None else validation.arrays))
                histories = _epoch(runner, batch, order, bar)
                values = mean_values(histories, shares(batch, runner.count, -(-runner.count // batch)))
                bad = first_not_finite(histories["loss"])
                if validation is not None:
                    held_out = evaluate(model, validation, max(batch, model._engine.rows))
                    values |= {f"val_{name}": value for name, value in held_out.items()}
            if bar is not None:
                bar.set_postfix_str(describe(values))
        finally:
            if bar is not None:
                bar.close()
        values["learning_rate"] = runner.learning_rate()
        if runner.network.scaler is not None:
            values["skipped_steps"] = runner.skipped_steps()
        history.append(epoch, values)
        if verbose == 2:
            print(f"epoch {epoch + 1}/{epochs.stop}: {describe(values)}")
        if bad is not None and not warned:
            warned = True
            warnings.warn(
                f"the loss became {values['loss']} in mini-batch {bad + 1} of epoch {epoch + 1}; a smaller learning "
                "rate or global_clipnorm may help",
                RuntimeWarning,
                stacklevel=3,
            )
        for callback in callbacks:
            callback.on_epoch_end(epoch, values)
        if model.stop_training:
            break
    return history


@contextmanager
def where_they_are(engine: Any, *arrays: Any) -> Iterator[None]:
    """Arrays on a GPU are read where they are meanwhile; others are bound as ever."""
    there = [array for array in arrays if module_of(array) is not np and not engine.holds(array)]
    engine.hold(*there)
    try:
        yield
    finally:
        if there:
            engine.release(*there)


def evaluate(model: Any, data: Data, batch: int) -> dict[str, float]:
    """Mean loss and metrics over ``data``."""
    batch = min(batch, len(data.samples))
    runner = model._runner(data, batch)
    with where_they_are(runner.engine, *data.arrays):
        runner.run("test", batch, np.arange(runner.count))
        return runner.means(batch, -(-runner.count // batch))


def predict(engine: Any, network: Network, samples: np.ndarray, batch: int) -> np.ndarray:
    """The outputs for ``samples``."""
    assert network.output is not None
    count = len(samples)
    if not count:
        return np.empty((count, network.output.shape[1]), network.program.dtype)
    batch = min(batch, count)
    engine.reserve(batch)
    with where_they_are(engine, samples):
        engine.bind(samples=samples, order=np.arange(count))
        return engine.outputs("predict", network.output, batch, count)
