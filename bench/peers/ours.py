"""dlcore itself, through its public functions."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

import dlcore
from dlcore import kernels, layers

from ..cases import LEARNING_RATE, Adam, Case, Dense, Missing, Models, Norm, Predict, Step, Work
from . import THREADS

if hasattr(dlcore, "set_num_threads"):
    dlcore.set_num_threads(THREADS)


def build(case: Case, way: str) -> Work:
    """The work of ``case``; ``way`` is ``step``, ``fit``, ``sequential`` or ``together``."""
    match case:
        case Step():
            return _fit(case) if way == "fit" else _step(case)
        case Predict():
            model, samples = network(case.step), case.data()
            return Work(lambda: model.predict(samples))
        case Models():
            return _together(case) if way == "together" else _sequential(case)
        case Adam():
            return _adam(case)
        case Norm():
            return _norm(case)
        case Dense():
            x, w, b = case.data()
            return Work(lambda: kernels.dense_forward(x, w, b, "relu"))
    raise Missing(f"no row of kind {case.kind}")


def network(case: Step, seed: int = 0) -> dlcore.Sequential:
    """The model of ``case``, compiled with Adam and its loss."""
    stack: list[layers.Layer] = [layers.Input(case.widths[:1])]
    for width in case.widths[1:-1]:
        if case.norm:
            stack += [layers.Dense(width, use_bias=False), layers.BatchNormalization(), layers.Activation("relu")]
        else:
            stack.append(layers.Dense(width, "relu"))
        if case.dropout:
            stack.append(layers.Dropout(case.dropout))
    stack.append(layers.Dense(case.widths[-1], "sigmoid" if case.binary else "softmax"))
    dlcore.set_seed(seed)
    model = dlcore.Sequential(stack, device="cpu")
    loss = "binary_crossentropy" if case.binary else "sparse_categorical_crossentropy"
    model.compile(dlcore.optimizers.Adam(LEARNING_RATE), loss)
    return model


def data(case: Step, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Samples and targets as the model takes them."""
    x, y = case.data(rows)
    return (x, y.astype(np.float32)[:, None]) if case.binary else (x, y)


def _step(case: Step) -> Work:
    model, (x, y) = network(case), data(case)
    return Work(lambda: model.train_on_batch(x, y))


def _fit(case: Step) -> Work:
    model, steps = network(case), case.fit_steps
    x, y = data(case, steps * case.batch)
    return Work(lambda: model.fit(x, y, case.batch, verbose=0), steps)


def _sequential(case: Models) -> Work:
    """The models one after another, each trained as fast as one model is: an epoch inside ``fit``."""
    models = itertools.cycle([network(case.step, k) for k in range(case.count)])
    x, y = data(case.step, case.fit_steps * case.step.batch)
    return Work(lambda: next(models).fit(x, y, case.step.batch, verbose=0), case.fit_steps)


def _together(case: Models) -> Work:
    """All models in one call, an epoch of each."""
    if not hasattr(dlcore, "fit_many"):
        raise Missing("not there")
    models = [network(case.step, k) for k in range(case.count)]
    x, y = data(case.step, case.fit_steps * case.step.batch)
    call = functools.partial(dlcore.fit_many, models, x, y, epochs=1, batch_size=case.step.batch, shuffle=True)
    return Work(call, case.fit_steps * case.count)


def _adam(case: Adam) -> Work:
    """The tensors are parts of one array, as the parameters of a model are: one call updates them all."""
    rng = np.random.default_rng(1)
    w, g = rng.standard_normal((2, sum(case.sizes)), np.float32)
    slots = kernels.optimizer_slots("adam", w)
    count = itertools.count(1)
    rate = _rate()
    return Work(lambda: kernels.optimizer_update("adam", w, g, slots, step=next(count), **rate))


def _rate() -> dict[str, Any]:
    return {kernels.find("optimizer", "adam").rate: LEARNING_RATE}


def _norm(case: Norm) -> Work:
    x, dy = case.data()
    gamma, beta = np.ones(case.features, np.float32), np.zeros(case.features, np.float32)
    running_mean, running_var = np.zeros_like(gamma), np.ones_like(gamma)

    def call() -> None:
        _, mean, rstd = kernels.batch_norm_forward(x, gamma, beta, running_mean, running_var)
        kernels.batch_norm_backward(dy, x, gamma, mean, rstd)

    return Work(call)
