"""Training without gradients: baselines that every optimizer should beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from . import random, training
from .model import Sequential

_Draw = Callable[[np.random.Generator, list[np.ndarray]], list[np.ndarray]]


def random_search(
    model: Sequential,
    x: Any,
    y: Any,
    budget: int = 100,
    *,
    batch_size: int = 256,
    sample_weight: Any = None,
    seed: int | None = None,
    verbose: int = 1,
) -> training.History:
    """Draw the parameters anew from their initialisers ``budget`` times; keep the best by the loss on ``x, y``.

    The loss is that of :meth:`~dlcore.Sequential.evaluate`, penalties included; constraints of kernels are not applied
    to what is drawn. The parameters that the model has count as drawn first, so it never ends up worse. Without a
    ``seed`` the draws follow :func:`dlcore.set_seed`. Returns a history with the ``"loss"`` of each draw and the
    ``"best_loss"`` so far. Ctrl-C leaves the best parameters so far in the model.

    >>> import dlcore
    >>> dlcore.set_seed(1)
    >>> model = dlcore.Sequential([dlcore.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> history = random_search(model, np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), budget=20, seed=0, verbose=0)
    >>> history.history["best_loss"][-1] == min(history.history["loss"])
    True
    """

    def draw(rng: np.random.Generator, best: list[np.ndarray]) -> list[np.ndarray]:
        chosen = [v for layer in model.layers for v in layer.variables.values() if v[1] is not None]
        return [np.asarray(initializer(buffer.shape, rng), model.dtype) for buffer, _, initializer in chosen]

    return _search(model, x, y, budget, batch_size, sample_weight, seed, verbose, draw)


def random_local_search(
    model: Sequential,
    x: Any,
    y: Any,
    budget: int = 100,
    *,
    step_size: float = 0.1,
    batch_size: int = 256,
    sample_weight: Any = None,
    seed: int | None = None,
    verbose: int = 1,
) -> training.History:
    """Perturb the parameters ``budget`` times, ``w + step_size * normal``; keep what lowers the loss on ``x, y``.

    Otherwise as :func:`random_search`.
    """
    if isinstance(step_size, bool) or not isinstance(step_size, (int, float)) or not 0.0 < step_size < np.inf:
        raise ValueError(f"step_size must be a positive number, got {step_size!r}")

    def draw(rng: np.random.Generator, best: list[np.ndarray]) -> list[np.ndarray]:
        return [w + (step_size * rng.standard_normal(w.shape)).astype(w.dtype) for w in best]

    return _search(model, x, y, budget, batch_size, sample_weight, seed, verbose, draw)


def _search(
    model: Sequential,
    x: Any,
    y: Any,
    budget: int,
    batch_size: int,
    sample_weight: Any,
    seed: int | None,
    verbose: int,
    draw: _Draw,
) -> training.History:
    budget, batch_size = training.positive("budget", budget), training.positive("batch_size", batch_size)
    rng = random.child() if seed is None else np.random.default_rng(seed)
    history = training.History()
    with model._lock:
        data = model._data(x, y, sample_weight)
        least = training.evaluate(model, data, batch_size)["loss"]
        buffers = [v[0] for layer in model.layers for v in layer.variables.values() if v[1] is not None]
        best = [model._engine.read(buffer) for buffer in buffers]
        bar = tqdm(total=budget, unit="draw", disable=None if verbose == 1 else True)
        try:
            for number in range(budget):
                drawn = draw(rng, best)
                _write(model, buffers, drawn)
                loss = training.evaluate(model, data, batch_size)["loss"]
                if loss < least or (np.isnan(least) and not np.isnan(loss)):
                    best, least = drawn, loss
                history.append(number, {"loss": loss, "best_loss": least})
                bar.update()
                bar.set_postfix_str(f"loss {least:.4f}", refresh=False)
        finally:
            _write(model, buffers, best)
            bar.close()
            model._engine.release()
    return history


def _write(model: Sequential, buffers: list[Any], values: list[np.ndarray]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        model._engine.write(buffer, value)
