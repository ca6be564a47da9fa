"""The short way through the functions on one mini-batch: what was checked for one is not checked again for the next."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import as_array, whole
from .losses import UNBOUNDED, Loss

if TYPE_CHECKING:
    from .kernels.cpu.prepared import Prepared

_MOST = 1024  # mini-batches, by function and shape, for which a model is ready; each takes some 2 KiB


def limits(loss: Loss, target: np.ndarray, outputs: int) -> tuple[int, int] | None:
    """The range in which targets must lie; None where there is none."""
    if loss.kind == "categorical":
        return (0, outputs - 1) if target.ndim == 1 else None
    return loss.bounds


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """The array as the kernels want it, as the long way makes it; None where that one tells what is wrong."""
    if array.dtype.kind == "f" != dtype.kind:
        return whole(array)
    return np.ascontiguousarray(array, dtype) if array.dtype.kind in "biuf" else None


def _resized(shape: tuple[int, ...] | None, rows: int) -> tuple[int, ...] | None:
    return None if shape is None else (rows, *shape[1:])


class _Pass:
    """A list of a model's program on the CPU, for mini-batches of the shape of ``x``, which became ``samples``.

    It holds on to the engine's memory, and does nothing once the model uses another.
    """

    run: Prepared

    def __init__(self, model: Any, x: np.ndarray, samples: np.ndarray) -> None:
        self.engine, self.memory = model._engine, model._engine.memory
        self.dtype = samples.dtype
        self.matrix = None if x.ndim == samples.ndim else samples.shape

    def resized(self, rows: int) -> _Pass | None:
        """The same for mini-batches of ``rows`` rows; None where there is no room for them."""
        if not 0 < rows <= self.engine.rows:
            return None
        other = copy.copy(self)
        other._resize(rows)
        return other

    def _resize(self, rows: int) -> None:
        self.matrix = _resized(self.matrix, rows)
        self.run = self.run.resized(rows)

    def _samples(self, x: Any) -> np.ndarray | None:
        """``x`` as the kernels want it, a copy if need be; None where that needs the long way."""
        if self.engine.memory is not self.memory:
            return None
        samples = _converted(x, self.dtype)
        return samples if samples is None or self.matrix is None else samples.reshape(self.matrix)


class Outputs(_Pass):
    """The outputs of a model for a mini-batch."""

    def __init__(self, model: Any, x: np.ndarray, samples: np.ndarray) -> None:
        super().__init__(model, x, samples)
        self.buffer = model._network.output
        self.outputs = self.engine.array(self.buffer)[: len(samples)]
        order = np.arange(self.engine.rows)
        self.run = self.engine.prepare("predict", len(samples), ("samples",), {}, order=order)

    def _resize(self, rows: int) -> None:
        super()._resize(rows)
        self.outputs = self.engine.array(self.buffer)[:rows]

    def __call__(self, x: Any, rows: int) -> np.ndarray | None:
        """A new array; None, with nothing done, where this needs the long way, as mini-batches of ``rows`` rows do.

        ``x`` has the shape of the first one: by that the model finds the pass.
        """
        samples = self._samples(x)
        if samples is None or rows < len(self.outputs):
            return None
        with self.engine.lock:
            return self.outputs.copy() if self.run(samples) else None


class Evaluation(_Pass):
    """Loss and metrics of a model for mini-batches of the shapes of ``x`` and ``y``.

    Where its program weighs samples, those without a weight weigh 1.
    """

    name = "test"

    def __init__(self, model: Any, x: np.ndarray, y: np.ndarray, data: Any) -> None:
        super().__init__(model, x, data.samples)
        self.x_shape, self.y_shape, self.target_dtype = x.shape, y.shape, data.targets.dtype
        self.target = None if y.ndim == data.targets.ndim else data.targets.shape
        self.ones = None if data.weights is None else np.ones(len(data.weights), data.weights.dtype)
        self.plain = self.matrix is None and self.target is None and self.ones is None
        bounds = limits(model._plan.loss, data.targets, model._outputs())
        ranges = {"weights": (0, UNBOUNDED)}
        if bounds is not None:
            ranges["targets"] = bounds
        given = ("samples", "targets", *(() if self.ones is None else ("weights",)))
        names = model._network.histories
        self.histories = np.zeros(len(names))
        histories = {f"history_{name}": self.histories[k : k + 1] for k, name in enumerate(names)}
        order = np.arange(self.engine.rows)
        self.run = self.engine.prepare(self.name, len(data.samples), given, ranges, order=order, **histories)

    def _resize(self, rows: int) -> None:
        super()._resize(rows)
        self.x_shape, self.y_shape = (rows, *self.x_shape[1:]), (rows, *self.y_shape[1:])
        self.target = _resized(self.target, rows)
        if self.ones is not None:
            self.ones = np.ones(rows, self.ones.dtype)

    def again(self, x: np.ndarray, y: np.ndarray) -> list[float] | None:
        """Loss and metrics of arrays that need no copy; None, with nothing done, for others.

        This is what most calls come to, with the least Python: behind a large step each line of it takes a microsecond.
        """
        if x.shape != self.x_shape or y.shape != self.y_shape or not self.plain:
            return None
        if x.dtype is not self.dtype or y.dtype is not self.target_dtype or self.engine.memory is not self.memory:
            return None
        if not (x.flags.c_contiguous and y.flags.c_contiguous and self._up_to_date()):
            return None
        with self.engine.lock:
            return self.histories.tolist() if self.run(x, y) else None

    def __call__(self, x: Any, y: Any, weights: Any) -> list[float] | None:
        """Loss and metrics; None, with nothing done, where this needs the long way."""
        if y.shape != self.y_shape:
            return None
        if weights is None:
            weights = self.ones
        elif self.ones is None:
            return None
        if self.engine.memory is not self.memory or not self._up_to_date():
            return None
        arrays = self._arrays(x, y, weights)
        with self.engine.lock:
            return self.histories.tolist() if arrays is not None and self.run(*arrays) else None

    def _arrays(self, x: np.ndarray, y: np.ndarray, weights: Any) -> list[np.ndarray] | None:
        """What the kernels are given, copies if need be."""
        samples, targets = self._samples(x), _converted(y, self.target_dtype)
        if samples is None or targets is None:
            return None
        given = [samples, targets if self.target is None else targets.reshape(self.target)]
        if weights is not None:
            given.append(np.ascontiguousarray(as_array("sample_weight", weights, "cpu"), self.dtype))
        return given

    def _up_to_date(self) -> bool:
        """Whether the program still does what is asked for."""
        return True


class Step(Evaluation):
    """A training step: loss and metrics before the update."""

    name = "train"

    def __init__(self, model: Any, x: np.ndarray, y: np.ndarray, data: Any) -> None:
        super().__init__(model, x, y, data)
        self.optimizer = model.optimizer
        self.rule, self.surroundings = self.optimizer.rule, self.optimizer.surroundings
        self.settings: tuple[Any, ...] = ()
        self.hyper, self.values = self.engine.array(model._network.hyper), b""

    def _up_to_date(self) -> bool:
        """Whether the program is the optimizer's as it is now; its values are handed over where they are others.

        A step of a large network leaves the caches without any of Python, and a microsecond of it then takes ten: what
        is made from the optimizer is compared, not made again.
        """
        settings = self.optimizer.settings
        if settings != self.settings:
            if self.optimizer.rule is not self.rule or self.optimizer.surroundings != self.surroundings:
                return False
            self.settings, self.values = settings, self.optimizer.hyper().tobytes()
        if self.hyper.tobytes() != self.values:  # somebody else may have written there
            self.hyper[:] = np.frombuffer(self.values)
        return True


class Passes(dict[tuple[str, tuple[int, ...]], Any]):
    """What a model is ready for: passes by function and shape of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.usual: dict[str, Evaluation] = {}  # by function, of the mini-batch before
        self._latest: dict[tuple[str, tuple[int, ...]], Any] = {}  # by function and shape of one sample

    def run(self, name: str, x: Any, *others: Any) -> Any:
        """What the pass for the array ``x`` gives; None where there is none, or it needs the long way."""
        shape = x.shape
        ready = self.get((name, shape))
        if ready is None:
            like = self._latest.get((name, shape[1:]))
            ready = None if like is None else like.resized(len(x))
            if ready is None:
                return None
            self._add(name, x, ready)
        if name != "predict":
            self.usual[name] = ready
        return ready(x, *others)

    def clear(self) -> None:
        """Forget all: there is another program."""
        super().clear()
        self.usual.clear()
        self._latest.clear()

    def add_outputs(self, model: Any, x: Any, samples: np.ndarray) -> None:
        """Be ready for mini-batches like ``x``."""
        if model._engine.device == "cpu":
            self._add("predict", x, Outputs(model, x, samples))

    def add(self, name: str, model: Any, data: Any, x: Any, y: Any) -> None:
        """The same for ``"train"`` and ``"test"``."""
        made = model._plan.loss.kind == "signed" or y.size != data.targets.size  # targets of other numbers than y
        if model._engine.device == "cpu" and not made:
            self._add(name, x, (Step if name == "train" else Evaluation)(model, x, y, data))

    def _add(self, name: str, x: np.ndarray, ready: Any) -> None:
        if any(other.memory is not ready.memory for other in self._latest.values()):
            self.clear()  # those do nothing any more, and would keep that memory
        if len(self) >= _MOST:
            del self[next(iter(self))]  # the one that was added first
        self[name, x.shape] = self._latest[name, x.shape[1:]] = ready
