"""What ``fit`` calls between epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


class Callback:
    """Override what you need; ``self.model`` is set by ``fit``. Set ``self.model.stop_training = True`` to stop."""

    model: Any = None

    def on_epoch_begin(self, epoch: int) -> None:
        """Before the first mini-batch of epoch ``epoch`` (from 0)."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch; ``logs`` holds its loss, metrics and ``val_`` values."""


class LearningRateScheduler(Callback):
    """Sets the learning rate of every epoch to ``schedule(epoch)``.

    >>> LearningRateScheduler(lambda epoch: 0.1 * 0.95**epoch).schedule(0)
    0.1
    """

    def __init__(self, schedule: Callable[[int], float]) -> None:
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int) -> None:
        """Set the rate."""
        self.model.optimizer.learning_rate = self.schedule(epoch)


def cosine(learning_rate: float, epochs: int) -> Callable[[int], float]:
    """``lr(e) = lr0 / 2 (1 + cos(pi e / epochs))``. Loshchilov & Hutter 2017, without restarts.

    >>> [round(cosine(1.0, 4)(e), 3) for e in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return lambda epoch: 0.5 * learning_rate * (1.0 + math.cos(math.pi * epoch / epochs))
