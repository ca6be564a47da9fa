"""A model with the averages of its weights in place of them, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def averaged(model: Any) -> Iterator[None]:
    """See :meth:`dlcore.Sequential.averaged_weights`; the model is locked."""
    average = model.optimizer.average
    if average is None:
        raise RuntimeError("the optimizer keeps no averaged weights; use use_ema=True, SWA or Lookahead")
    model._ensure_built()
    program, engine = model._network.program, model._engine
    if not engine.read(model._network.step)[0]:  # no update yet
        yield
        return
    weights = {buffer.name: engine.read(buffer) for buffer in program.buffers["parameter"]}
    engine.write(program.parameters, engine.read(program.slots)[average])
    model._averaged = True
    try:
        yield
    finally:
        model._averaged = False
        for buffer in model._network.program.buffers["parameter"]:  # the program may be another by now
            model._engine.write(buffer, weights[buffer.name])
