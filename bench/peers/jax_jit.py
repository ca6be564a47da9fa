"""JAX: one jitted function a step, with donated parameters and optimizer state, Adam written out by torch's formula."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import LEARNING_RATE, Case, Missing, Models, Predict, Step, Work

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_NORM_MOMENTUM, _NORM_EPSILON = 0.9, 1e-5


def build(case: Case, way: str) -> Work:
    """The work of ``case``; the way is always ``jit``."""
    match case:
        case Step():
            return Work(_loop(case, jax.jit(_step_of(case), donate_argnums=0), _state(case, 0), *_data(case)))
        case Predict():
            parameters, samples = _state(case.step, 0)["parameters"], jnp.asarray(case.data())
            outputs = jax.jit(_outputs)
            return Work(lambda: outputs(parameters, samples).block_until_ready())
        case Models():
            states = [_state(case.step, seed) for seed in range(case.count)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            x, y = (jnp.stack([a] * case.count) for a in _data(case.step))
            step = jax.jit(jax.vmap(_step_of(case.step)), donate_argnums=0)
            return Work(_loop(case.step, step, stacked, x, y), case.count)
    raise Missing(f"no row of kind {case.kind}")


def _data(case: Step) -> tuple[Any, Any]:
    x, y = case.data()
    return jnp.asarray(x), jnp.asarray(y)


def _loop(case: Step, step: Callable[..., Any], state: Any, x: Any, y: Any) -> Callable[[], None]:
    """A step of a training loop that reads the loss, so each is waited for."""

    def call() -> None:
        nonlocal state
        state, loss = step(state, x, y)
        loss.block_until_ready()

    return call


def _state(case: Step, seed: int) -> dict[str, Any]:
    """Parameters, both moments, the number of the step, running statistics and the key of dropout."""
    rng = np.random.default_rng(seed)
    layers, running = [], []
    for index, (k, n) in enumerate(zip(case.widths, case.widths[1:], strict=False)):
        layer = {"w": jnp.asarray(rng.standard_normal((k, n), np.float32) * np.float32((2 / k) ** 0.5))}
        if case.norm and index < len(case.widths) - 2:
            layer |= {"gamma": jnp.ones(n), "beta": jnp.zeros(n)}
            running.append((jnp.zeros(n), jnp.ones(n)))
        else:
            layer["b"] = jnp.zeros(n)
        layers.append(layer)
    first, second = (jax.tree.map(jnp.zeros_like, layers) for _ in range(2))  # donated, so they share no buffer
    return {
        "parameters": layers,
        "first": first,
        "second": second,
        "count": jnp.zeros((), jnp.int32),
        "running": running,
        "key": jax.random.key(seed),
    }


def _normalise(x: Any, layer: dict[str, Any], running: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
    mean, variance = x.mean(0), x.var(0)
    y = (x - mean) * jax.lax.rsqrt(variance + _NORM_EPSILON) * layer["gamma"] + layer["beta"]
    unbiased = variance * (x.shape[0] / (x.shape[0] - 1))
    batch = zip(running, (mean, unbiased), strict=True)
    kept = [_NORM_MOMENTUM * old + (1 - _NORM_MOMENTUM) * new for old, new in batch]
    return y, (kept[0], kept[1])


def _loss(case: Step, parameters: Any, running: Any, key: Any, x: Any, y: Any) -> tuple[Any, list[Any]]:
    updated = []
    *hidden, last = parameters
    for index, layer in enumerate(hidden):
        x = x @ layer["w"]
        if case.norm:
            x, statistics = _normalise(x, layer, running[index])
            updated.append(statistics)
        else:
            x = x + layer["b"]
        x = jax.nn.relu(x)
        if case.dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - case.dropout, x.shape)
            x = jnp.where(keep, x / (1 - case.dropout), 0)
    logits = x @ last["w"] + last["b"]
    if case.binary:
        z = logits[:, 0]
        return jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))), updated
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)), updated


def _outputs(parameters: Any, x: Any) -> Any:
    *hidden, last = parameters
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return jax.nn.softmax(x @ last["w"] + last["b"])


def _adam(w: Any, g: Any, m: Any, v: Any, t: Any) -> tuple[Any, Any, Any]:
    m = _BETA_1 * m + (1 - _BETA_1) * g
    v = _BETA_2 * v + (1 - _BETA_2) * g * g
    denominator = jnp.sqrt(v) / jnp.sqrt(1 - _BETA_2**t) + _EPSILON
    return w - LEARNING_RATE / (1 - _BETA_1**t) * m / denominator, m, v


def _step_of(case: Step) -> Callable[..., Any]:
    def step(state: dict[str, Any], x: Any, y: Any) -> tuple[dict[str, Any], Any]:
        count = state["count"] + 1
        key = jax.random.fold_in(state["key"], count) if case.dropout else state["key"]
        gradient_of = jax.value_and_grad(functools.partial(_loss, case), has_aux=True)
        (loss, running), gradient = gradient_of(state["parameters"], state["running"], key, x, y)
        leaves, structure = jax.tree.flatten(state["parameters"])
        gradients, first, second = (jax.tree.leaves(tree) for tree in (gradient, state["first"], state["second"]))
        time = count.astype(jnp.float32)
        new = [_adam(*operands, time) for operands in zip(leaves, gradients, first, second, strict=True)]
        parameters, first, second = (jax.tree.unflatten(structure, part) for part in zip(*new, strict=True))
        named = {"parameters": parameters, "first": first, "second": second}
        return {**named, "count": count, "running": running, "key": state["key"]}, loss

    return step
