"""One file for a model: weights and optimizer state as safetensors, the architecture as JSON in its header."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np

from . import layers, losses, metrics, optimizers
from ._version import __version__

_FORMAT = 1


class CheckpointError(ValueError):
    """A file that is not a model of this library."""


def describe(model: Any) -> dict[str, Any]:
    """The architecture, loss, metrics and optimizer as JSON."""
    plan = model._plan
    return {
        "format": _FORMAT,
        "version": __version__,
        "name": model.name,
        "input_shape": list(model.input_shape),
        "layers": [{"class": type(layer).__name__, "config": layer.config()} for layer in model.layers],
        "loss": None if plan.loss is None else plan.loss.config(),
        "metrics": [metric.name for metric in plan.metrics],
        "optimizer": None if plan.optimizer is None else plan.optimizer.config(),
    }


def write_atomically(path: pathlib.Path, write: Any) -> None:
    """``write(temporary)`` and then a rename: a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(model: Any, path: Any) -> None:
    """Write ``model`` to ``path``."""
    from safetensors.numpy import save_file

    model._ensure_built()
    state = model._state()
    for transient in ("hyper", "uniforms", "tensor_blocks"):
        state.pop(transient, None)
    if "slots" in state:  # without what an engine keeps behind the last parameter
        state["slots"] = state["slots"][:, : model._network.program.trained()]
    tensors = {name: np.ascontiguousarray(value) for name, value in state.items() if value.size}
    metadata = {"dlcore": json.dumps(describe(model))}
    write_atomically(pathlib.Path(path), lambda temporary: save_file(tensors, temporary, metadata))


def load(path: Any, *, device: str = "auto") -> Any:
    """The model in ``path``. Raises :class:`CheckpointError` for a file that is something else."""
    from safetensors import SafetensorError, safe_open

    from .model import Sequential

    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("dlcore")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a model file: {error}") from None
    if header is None:
        raise CheckpointError(f"{path} holds tensors, but not a model of dlcore")
    config = json.loads(header)
    if config["format"] > _FORMAT:
        raise CheckpointError(f"{path} was written by dlcore {config['version']}; this is {__version__}")
    stack = [layers.from_config(entry["class"], entry["config"]) for entry in config["layers"]]
    model = Sequential(stack, name=config["name"], device=device)
    model.build(config["input_shape"])
    if config["loss"] is not None:
        loss = losses.from_config(config["loss"])
        found = [metrics.get(name, loss) for name in config["metrics"]]
        model.compile(optimizers.from_config(config["optimizer"]), loss, found)
    assert model._network is not None
    program = model._network.program
    if program.slots is not None and "slots" in tensors:
        behind = program.slots.shape[1] - program.trained()
        tensors["slots"] = np.pad(tensors["slots"], ((0, 0), (0, behind)))
    for buffer in program.all_buffers():
        if buffer.name in tensors:
            model._engine.write(buffer, tensors[buffer.name])
    return model
