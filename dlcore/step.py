"""The short way through ``train_on_batch``: what was checked for one mini-batch is not checked again for the next."""

from __future__ import annotations

from typing import Any

import numpy as np

from .losses import UNBOUNDED, Loss


def limits(loss: Loss, target: np.ndarray, outputs: int) -> tuple[int, int] | None:
    """The range in which targets must lie; None where there is none."""
    if loss.kind == "categorical":
        return (0, outputs - 1) if target.ndim == 1 else None
    return loss.bounds


def _converts(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether the array can become one of ``dtype`` without a look at its numbers: class numbers may be fractions."""
    return array.dtype.kind in "biu" or array.dtype.kind == dtype.kind == "f"


class Step:
    """A training step of a model on the CPU, for mini-batches of the shapes of ``x`` and ``y``, weighted or not.

    It holds on to the engine's memory, and does nothing once the model uses another.
    """

    def __init__(self, model: Any, x: np.ndarray, y: np.ndarray, data: Any) -> None:
        self.engine, self.memory, self.optimizer = model._engine, model._engine.memory, model.optimizer
        self.rule, self.surroundings = self.optimizer.rule, self.optimizer.surroundings
        self.settings: tuple[Any, ...] = ()
        self.hyper, self.values = self.engine.array(model._network.hyper), b""
        self.y_shape = y.shape
        self.dtypes = data.samples.dtype, data.targets.dtype
        self.weighted = data.weights is not None
        self.matrix = None if x.ndim == data.samples.ndim else data.samples.shape
        self.target = None if y.ndim == data.targets.ndim else data.targets.shape
        bounds = limits(model._plan.loss, data.targets, model._outputs())
        ranges = {"weights": (0, UNBOUNDED)}
        if bounds is not None:
            ranges["targets"] = bounds
        given = ("samples", "targets", "weights") if self.weighted else ("samples", "targets")
        names = model._network.histories
        self.histories = np.zeros(len(names))
        histories = {f"history_{name}": self.histories[k : k + 1] for k, name in enumerate(names)}
        order = np.arange(len(data.samples))
        self.run = self.engine.prepare("train", len(order), given, ranges, order=order, **histories)

    @staticmethod
    def suits(x: Any, y: Any, weights: Any, data: Any, loss: Any) -> bool:
        """Whether the arrays can be handed to the kernels, as they are or copied."""
        return (
            loss.kind != "signed"
            and type(x) is type(y) is np.ndarray
            and (weights is None or type(weights) is np.ndarray)
            and _converts(x, data.samples.dtype)
            and _converts(y, data.targets.dtype)
            and y.size == data.targets.size
        )

    def __call__(self, x: Any, y: Any, weights: Any) -> list[float] | None:
        """Loss and metrics before the update; None, with nothing done, where this needs the long way.

        ``x`` has the shape of the first one: by that the model finds the step.
        """
        if (
            type(x) is not np.ndarray
            or type(y) is not np.ndarray
            or y.shape != self.y_shape
            or (weights is not None) is not self.weighted
            or self.engine.memory is not self.memory
            or not self._same_optimizer()
        ):
            return None
        dtype, target_dtype = self.dtypes
        as_before = x.dtype is dtype and y.dtype is target_dtype
        if not as_before and not (_converts(x, dtype) and _converts(y, target_dtype)):
            return None
        x, y = np.ascontiguousarray(x, dtype), np.ascontiguousarray(y, target_dtype)  # as the long way does
        if self.matrix is not None:
            x = x.reshape(self.matrix)
        if self.target is not None:
            y = y.reshape(self.target)
        arrays = [x, y]
        if self.weighted:
            if type(weights) is not np.ndarray or not _converts(weights, dtype):
                return None
            arrays.append(np.ascontiguousarray(weights, dtype))
        with self.engine.lock:
            return self.histories.tolist() if self.run(*arrays) else None

    def _same_optimizer(self) -> bool:
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
