"""``fit_many``: many models of one architecture trained at once.

On the CPU whole models are shared out among the threads; on CUDA each kernel is launched once for all models.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from tqdm import tqdm

from . import random, training
from .kernels import get_num_threads
from .kernels.device import ordinal
from .model import Sequential
from .training import Data, History, Runner, Slices

_OWN = ("name", "dtype", "kernel_initializer", "bias_initializer")  # of a layer's config: no part of the architecture


def fit_many(
    models: Sequence[Sequential],
    x: Any,
    y: Any,
    *,
    batch_size: int = 32,
    epochs: int = 1,
    shuffle: bool = True,
    verbose: int = 0,
) -> list[History]:
    """Train models of one architecture on the same data, and return the history of each.

    The models have the same layers (kinds, sizes, activations, rates), loss, metrics and rule of the optimizer; each
    has weights, values of the optimizer (learning rate, betas, decay, clipping), dropout masks and an order of the
    samples of its own. Small models gain most: on the CPU a thread trains a whole model, and threads need not wait for
    each other; on CUDA all models are in one launch of each kernel, and one graph is a mini-batch of all of them.

    The result is, bit for bit on the same device and for every number of threads, that of
    ``[m.fit(x, y, ...) for m in models]`` from the same :func:`dlcore.set_seed`: a fit draws one number, the seed of
    its shuffling, and those are drawn here model by model. On CUDA there is one exception: a model by itself takes
    cuBLASLt for the products that ``dlcore tune`` found it to be faster at, which many at once do not. Data is checked
    once and shared; each model holds the order of an epoch, 8 bytes a sample. On CUDA the models lie in one piece of
    memory from then on, which is free again when none of them is left.

    ``verbose`` is 0 for silence, 1 for a progress bar (on a terminal only), 2 for a line an epoch; they show the range
    over the models. Ctrl-C stops within about 50 ms (on CUDA, what is in the GPU's queue is still done), and all models
    stay usable. Validation data, weights of samples and callbacks are not supported yet.

    Raises ValueError where ``models`` is empty, holds a model twice, or models that differ (the first difference is
    named) or lie on different devices; RuntimeError where a model is not compiled; DeviceError where the memory of the
    GPU is too small for all of them.

    >>> import dlcore
    >>> x, y = np.eye(6, dtype=np.float32), np.arange(6) % 3
    >>> models = [dlcore.Sequential([dlcore.layers.Dense(3, "softmax")], device="cpu") for _ in range(2)]
    >>> for model, rate in zip(models, (0.1, 1.0)):
    ...     model.compile(dlcore.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    >>> slow, fast = dlcore.fit_many(models, x, y, batch_size=2, epochs=20)
    >>> slow.history["loss"][-1] > fast.history["loss"][-1]
    True
    """
    models = _checked(models)
    batch_size, epochs = training.positive("batch_size", batch_size), training.positive("epochs", epochs)
    shufflers: list[np.random.Generator | None] = []
    for model in models:  # what a fit draws: weights where there are none yet, then the seed of the shuffling
        model._ensure_built(x)
        shufflers.append(random.child() if shuffle else None)
    _compare_shapes(models)
    data = models[0]._data(x, y)
    batch = min(batch_size, len(data.samples))
    device = models[0].device
    fleet = _OnThreads(data, batch) if device == "cpu" else _OnCuda(data, batch, ordinal(device))
    histories = [History() for _ in models]
    reported: set[int] = set()
    for epoch in range(epochs):
        label = f"epoch {epoch + 1}/{epochs}"
        orders = [training.next_order(len(data.samples), shuffler) for shuffler in shufflers]
        with contextlib.ExitStack() as stack:
            for model in sorted(models, key=id):  # taken in one order, two calls cannot wait for each other
                stack.enter_context(model._lock)
            stack.enter_context(fleet.taking([model._runner(data, batch) for model in models]))
            values = fleet.epoch(orders, label if verbose == 1 else None, epoch + 1 == epochs)
            bad = [k for k in fleet.not_finite() if k not in reported]
        for runner, history, value in zip(fleet.runners, histories, values, strict=True):
            history.append(epoch, {**value, "learning_rate": runner.learning_rate()})
        if verbose == 2:
            print(f"{label}: {_describe(values)}")
        reported.update(bad)
        if bad:
            warnings.warn(
                f"the loss of model {', '.join(map(str, bad))} became NaN or infinite in epoch {epoch + 1}; a smaller "
                "learning rate or global_clipnorm may help",
                RuntimeWarning,
                stacklevel=2,
            )
    return histories


class _Fleet:
    """The models' runners, and an epoch of all of them; how they run is the matter of a device."""

    def __init__(self, data: Data, batch: int) -> None:
        self.data, self.batch, self.count = data, batch, len(data.samples)
        self.runners: list[Runner] = []
        self.slices: Slices | None = None  # of the first epoch on

    def taking(self, runners: list[Runner]) -> AbstractContextManager[Any]:
        """The models' runners are the fleet's meanwhile."""
        raise NotImplementedError

    def cut(self) -> Slices:
        """How passes are cut into calls at first."""
        return Slices()

    def begin(self, batches: int, orders: list[np.ndarray]) -> None:
        """Make all engines ready for an epoch."""
        raise NotImplementedError

    def call(self, steps: int, done: int) -> None:
        """Train with ``steps`` mini-batches after the first ``done``."""
        raise NotImplementedError

    def fetch(self, name: str) -> Sequence[np.ndarray]:
        """The extern ``name`` of each model."""
        raise NotImplementedError

    def epoch(self, orders: list[np.ndarray], label: str | None, last: bool) -> list[dict[str, float]]:
        """Train for an epoch, with a progress bar where there is a ``label``; loss and metrics of each model."""
        batches = -(-self.count // self.batch)
        slices = self.slices = self.slices or self.cut()
        self.begin(batches, orders)
        if label is None:
            slices.run(batches, self.call)
            return self.means(batches)
        with tqdm(total=batches, desc=label, unit="batch", disable=None, leave=last) as bar:

            def after(steps: int, done: int) -> None:
                bar.update(steps)
                bar.set_postfix_str(_describe(self.means(done)), refresh=False)

            slices.run(batches, self.call, after)
        return self.means(batches)

    def means(self, done: int) -> list[dict[str, float]]:
        """Mean loss and metrics of each model over the first ``done`` mini-batches."""
        names = self.runners[0].network.histories
        columns = [self.fetch(f"history_{name}") for name in names]
        share = training.shares(self.batch, self.count, done)
        return [training.mean_values(dict(zip(names, row, strict=True)), share) for row in zip(*columns, strict=True)]

    def not_finite(self) -> list[int]:
        """The numbers of the models whose loss was NaN or infinite in the last epoch."""
        return [k for k, losses in enumerate(self.fetch("history_loss")) if not np.isfinite(losses).all()]


class _OnThreads(_Fleet):
    """Each model is trained by one thread of the CPU."""

    @contextlib.contextmanager
    def taking(self, runners: list[Runner]) -> Iterator[None]:
        self.runners = runners
        engines = [runner.engine for runner in runners]
        # where one mini-batch of all models would take longer than a slice may, only some are in a call
        most = int(training.SLICE / engines[0].seconds("train", self.batch))
        size = get_num_threads() * max(1, most)
        self.groups = [engines[k : k + size] for k in range(0, len(engines), size)]
        yield

    def cut(self) -> Slices:
        turns = -(-len(self.runners) // get_num_threads())
        return Slices(turns * self.runners[0].engine.seconds("train", self.batch))

    def begin(self, batches: int, orders: list[np.ndarray]) -> None:
        for runner, order in zip(self.runners, orders, strict=True):
            runner.begin("train", self.batch, order)

    def call(self, steps: int, done: int) -> None:
        from .kernels.cpu.engine import run_many

        for group in self.groups:
            run_many(group, "train", steps, self.batch, self.count, done)

    def fetch(self, name: str) -> Sequence[np.ndarray]:
        return [runner.engine.fetch(name) for runner in self.runners]


class _OnCuda(_Fleet):
    """All models are in each launch of a kernel."""

    def __init__(self, data: Data, batch: int, ordinal: int = 0) -> None:
        from .kernels.cuda.fleet import Fleet

        super().__init__(data, batch)
        self.fleet = Fleet(ordinal, samples=data.samples, targets=data.targets)

    def taking(self, runners: list[Runner]) -> AbstractContextManager[Any]:
        self.runners = runners
        return self.fleet.taking([runner.engine for runner in runners])

    def begin(self, batches: int, orders: list[np.ndarray]) -> None:
        network = self.runners[0].network
        empty = np.zeros((len(orders), batches))
        self.fleet.bind(order=np.stack(orders), **{f"history_{name}": empty for name in network.histories})
        for runner in self.runners:
            runner.optimizer.count_epochs(batches)
        self.fleet.write(network.hyper, [runner.optimizer.hyper() for runner in self.runners])

    def call(self, steps: int, done: int) -> None:
        self.fleet.run("train", steps, self.batch, self.count, done)

    def fetch(self, name: str) -> Sequence[np.ndarray]:
        return list(self.fleet.fetch(name))


def _describe(values: list[dict[str, float]]) -> str:
    """``loss 0.1234 to 0.5678  accuracy 0.8765 to 0.9876``"""
    ranges = {name: [value[name] for value in values] for name in values[0]}
    return "  ".join(f"{name} {min(range_):.4f} to {max(range_):.4f}" for name, range_ in ranges.items())


# ---------------------------------------------------------------------------------------------------------- checks


def _checked(models: Any) -> list[Sequential]:
    """``models`` as a list, if they can be trained at once."""
    if isinstance(models, Sequential):
        raise TypeError("models is one model; fit_many takes a list of models")
    models = list(models)
    for k, model in enumerate(models):
        if not isinstance(model, Sequential):
            raise TypeError(f"model {k} is {type(model).__name__}; expected Sequential")
        with model._lock:
            model._trainable()
        if model._plan.loss is None:
            raise RuntimeError(f"model {k} has no loss yet; call compile(optimizer, loss)")
    if not models:
        raise ValueError("models is empty; fit_many takes at least one model")
    owner: dict[int, int] = {}
    for k, model in enumerate(models):
        if owner.setdefault(id(model), k) != k:
            raise ValueError(f"models {owner[id(model)]} and {k} are one model; each must be a model of its own")
    traits = _traits(models[0])
    for k, model in enumerate(models):
        for layer in model.layers:
            if owner.setdefault(id(layer), k) != k:
                raise ValueError(f"models {owner[id(layer)]} and {k} share layer {layer.name!r}; make one for each")
        difference = _difference(traits, _traits(model))
        if difference:
            raise ValueError(f"fit_many takes models of one architecture; model 0 and model {k} differ: {difference}")
    return models


def _traits(model: Sequential) -> dict[str, Any]:
    """What models that are trained at once have in common, by what it is, in words."""
    found = {"device": model.device, "dtype": model.dtype, "number of layers": len(model.layers)}
    for k, layer in enumerate(model.layers):
        found[f"layer {k}"] = type(layer).__name__
        found |= {f"{name} of layer {k}": value for name, value in layer.config().items() if name not in _OWN}
    return found | {
        "loss": model._plan.loss,
        "metrics": model._plan.metrics,
        "rule of the optimizer": model.optimizer.rule,
        "clipnorm": model.optimizer.clipnorm is not None,
        "loss_scale": model.optimizer.loss_scale,
        "skip_nonfinite": model.optimizer.skip_nonfinite,
        "SAM": model._plan.sharpness,
        "gradient_accumulation_steps": model._plan.turns,
    }


def _difference(here: dict[str, Any], there: dict[str, Any]) -> str | None:
    """The first difference between two models that keeps them from being trained at once, in words."""
    name = next((name for name in {**here, **there} if here.get(name) != there.get(name)), None)
    return None if name is None else f"{name} {_name(here.get(name))} and {_name(there.get(name))}"


def _name(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_name, value))}]"
    name = getattr(value, "name", value)
    return f"{name} from logits" if getattr(value, "from_logits", False) else str(name)


def _compare_shapes(models: list[Sequential]) -> None:
    for k, model in enumerate(models):
        if model.input_shape != models[0].input_shape:
            raise ValueError(
                f"fit_many takes models of one architecture; model 0 and model {k} differ: input shape "
                f"{models[0].input_shape} and {model.input_shape}"
            )
