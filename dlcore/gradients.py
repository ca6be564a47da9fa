"""Gradient checking: what a training step computes against differences of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import layers, random
from .model import Sequential
from .optimizers import SGD
from .training import positive

_STEP = 1e-6  # times max(1, |w|): the error of differences is about 1e-12, that of rounding 1e-10
_TOLERANCE = 1e-5
_SMALL = 1e-3  # a tensor whose gradients are smaller than this part of the largest of all is held against that


@dataclass(frozen=True)
class TensorCheck:
    """One parameter tensor: ``error`` is the largest ``|gradient - difference|`` over the largest gradient.

    ``where`` is the index of that element, ``gradient`` and ``difference`` are its values. ``kinks`` counts elements
    beside which the loss is not smooth, which say nothing.
    """

    name: str
    shape: tuple[int, ...]
    checked: int
    kinks: int
    error: float
    where: tuple[int, ...]
    gradient: float
    difference: float


@dataclass(frozen=True)
class GradientCheck:
    """What :func:`check_gradients` found, tensor by tensor; ``print`` shows it."""

    tensors: tuple[TensorCheck, ...]
    tolerance: float

    @property
    def worst(self) -> TensorCheck:
        """The tensor with the largest error; NaN counts as the largest."""
        return max(self.tensors, key=lambda tensor: np.inf if np.isnan(tensor.error) else tensor.error)

    @property
    def ok(self) -> bool:
        """Whether every error is within the tolerance, and every tensor has an element that was checked."""
        return all(tensor.checked and tensor.error <= self.tolerance for tensor in self.tensors)

    def __str__(self) -> str:
        header = ("tensor", "shape", "checked", "error", "at", "gradient", "difference")
        rows = [
            (
                t.name, str(t.shape), f"{t.checked}" + (f" + {t.kinks} kinks" if t.kinks else ""), f"{t.error:.1e}",
                str(t.where), f"{t.gradient:.9g}", f"{t.difference:.9g}",
            )
            for t in self.tensors
        ]  # fmt: skip
        widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
        lines = [
            "  ".join(f"{word:<{w}}" for word, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
        ]
        verdict = "ok" if self.ok else f"WRONG, most of all {self.worst.name}"
        return "\n".join([*lines, f"{verdict}: errors of at most {self.tolerance:g} are expected"])


def check_gradients(
    model: Sequential,
    x: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    elements: int | None = 20,
    tolerance: float = _TOLERANCE,
    seed: int = 0,
) -> GradientCheck:
    """Compare the gradients of one training step on ``x, y`` with central differences of its loss, in float64.

    ``(J(w + h) - J(w - h)) / 2h`` for up to ``elements`` elements of each parameter tensor, drawn by ``seed``; all of
    them with None, which takes two passes for each. A copy of the model in float64 is checked, on the same device, with
    the same weights, loss and penalties, as one mini-batch: the model itself stays as it is. Dropout drops the same
    units in every pass, and batch norm takes the statistics of the mini-batch. The model must have been compiled.

    A wrong gradient raises nothing: see :attr:`GradientCheck.ok`.

    >>> import dlcore
    >>> model = dlcore.Sequential([dlcore.layers.Dense(4, "tanh"), dlcore.layers.Dense(3, "softmax")])
    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> check_gradients(model, np.eye(6, 5), np.array([0, 1, 2, 0, 1, 2])).ok
    True
    """
    if elements is not None:
        elements = positive("elements", elements)
    if not isinstance(tolerance, (int, float)) or not 0.0 < tolerance < np.inf:
        raise ValueError(f"tolerance must be a positive number, got {tolerance!r}")
    twin = _Twin(model, x, y, sample_weight)
    chosen = np.random.default_rng(seed)
    gradients = twin.gradients()
    largest = max((float(np.abs(g).max()) for g in gradients.values()), default=0.0)
    return GradientCheck(
        tuple(_tensor(twin, name, gradients[name], elements, tolerance, largest, chosen) for name in gradients),
        float(tolerance),
    )


def _tensor(
    twin: _Twin, name: str, gradient: np.ndarray, elements: int | None, tolerance: float, largest: float, rng: Any
) -> TensorCheck:
    count = gradient.size if elements is None else min(elements, gradient.size)
    places = np.sort(rng.choice(gradient.size, count, replace=False))
    scale = max(float(np.abs(gradient).max()), _SMALL * largest) or 1.0
    checked = kinks = 0
    worst: tuple[float, int, float] = (-1.0, 0, np.nan)
    for place in places.tolist():
        difference, jump = twin.difference(name, place)
        if jump > tolerance * max(scale, abs(difference)):
            kinks += 1
            continue
        checked += 1
        error = abs(float(gradient.flat[place]) - difference) / max(scale, abs(difference))
        if not error <= worst[0]:
            worst = (error, place, difference)
    error, place, difference = worst if checked else (np.nan, 0, np.nan)
    where = tuple(int(i) for i in np.unravel_index(place, gradient.shape))
    return TensorCheck(
        name, gradient.shape, checked, kinks, float(error), where, float(gradient.flat[place]), float(difference)
    )


class _Twin:
    """A copy of a model in float64 that takes the same step again and again."""

    def __init__(self, model: Sequential, x: Any, y: Any, sample_weight: Any) -> None:
        loss = model._plan.loss
        if loss is None:
            raise RuntimeError("the model has no loss yet; call compile(optimizer, loss)")
        model._data(x, y, sample_weight)  # builds it, and refuses data that do not fit
        assert model.input_shape is not None
        copies = []
        for layer in model.layers:
            config = {**layer.config(), "dtype": "float64"}
            if config.get("kernel_constraint") is not None:  # it acts after the update, and is no part of the gradient
                config["kernel_constraint"] = None
            copies.append(layers.from_config(type(layer).__name__, config))
        self.model = Sequential(copies, device=model.device)
        state = random.generator().bit_generator.state
        try:
            self.model.build(model.input_shape)
        finally:
            random.generator().bit_generator.state = state  # the weights it drew are not kept
        self.model.set_weights(model.get_weights())
        self.model.compile(SGD(learning_rate=0.0), loss)
        self.data = x, y, sample_weight
        self.start = self.model.get_weights()
        self.loss(0.0)  # from here on the program is the one for these data
        self.buffers = {
            value.name: value
            for layer in copies
            for value, gradient, _ in layer.variables.values()
            if gradient is not None
        }
        self.values = {name: self.model._engine.read(buffer) for name, buffer in self.buffers.items()}

    def loss(self, rate: float) -> float:
        """The loss of a step of gradient descent, always the first of all: dropout drops the same units."""
        assert self.model._network is not None
        self.model.optimizer.learning_rate = rate
        self.model._engine.write(self.model._network.step, 0)
        return float(self.model.train_on_batch(*self.data))

    def gradients(self) -> dict[str, np.ndarray]:
        """What a step with the rate 1 takes from the parameters."""
        self.loss(1.0)
        engine = self.model._engine
        taken = {name: self.values[name] - engine.read(buffer) for name, buffer in self.buffers.items()}
        for name, buffer in self.buffers.items():
            engine.write(buffer, self.values[name])
        return taken

    def difference(self, name: str, place: int) -> tuple[float, float]:
        """The central difference of the loss in one element, and by how much those of both sides differ."""
        value, buffer, engine = self.values[name], self.buffers[name], self.model._engine
        step = _STEP * max(1.0, abs(float(value.flat[place])))
        losses = []
        for offset in (-step, 0.0, step):
            moved = value.copy()
            moved.flat[place] += offset
            engine.write(buffer, moved)
            losses.append(self.loss(0.0))
        engine.write(buffer, value)
        below, here, above = losses
        return (above - below) / (2.0 * step), abs(above - 2.0 * here + below) / step
