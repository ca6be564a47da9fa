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
    """Sets the learning rate of every epoch to ``schedule(epoch)``, which takes the place of another schedule.

    >>> LearningRateScheduler(lambda epoch: 0.1 * 0.95**epoch).schedule(0)
    0.1
    """

    def __init__(self, schedule: Callable[[int], float]) -> None:
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int) -> None:
        """Set the rate."""
        self.model.optimizer.learning_rate = self.schedule(epoch)


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate by ``factor`` where ``monitor`` did not improve by ``min_delta`` for a while.

    That is for ``patience`` epochs, not counting ``cooldown`` epochs after a reduction; the rate stays at least
    ``min_lr``. ``mode`` is ``"min"``, ``"max"``, or ``"auto"``: the larger is the better for accuracies only.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if not 0.0 < factor < 1.0:
            raise ValueError(f"factor must lie in (0, 1), got {factor!r}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
        self.monitor, self.factor, self.patience = monitor, factor, patience
        self.min_delta, self.cooldown, self.min_lr = min_delta, cooldown, min_lr
        self.sign = -1.0 if mode == "max" or (mode == "auto" and "acc" in monitor) else 1.0
        self._begin()

    def _begin(self) -> None:
        self._best, self._waited, self._resting = math.inf, 0, 0

    def on_epoch_begin(self, epoch: int) -> None:
        """Forget an earlier fit."""
        if epoch == 0:
            self._begin()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Look whether there was progress."""
        if self.monitor not in logs:
            raise ValueError(f"monitor {self.monitor!r} is not measured; there is: {', '.join(logs)}")
        value = self.sign * logs[self.monitor]
        improved = value < self._best - self.min_delta
        self._best = value if improved else self._best
        self._waited = 0 if improved or self._resting else self._waited + 1
        self._resting = max(0, self._resting - 1)
        if self._waited >= self.patience:
            optimizer = self.model.optimizer
            optimizer.learning_rate = max(optimizer.learning_rate * self.factor, self.min_lr)
            self._waited, self._resting = 0, self.cooldown


def cosine(learning_rate: float, epochs: int) -> Callable[[int], float]:
    """``lr(e) = lr0 / 2 (1 + cos(pi e / epochs))``. Loshchilov & Hutter 2017, without restarts.

    >>> [round(cosine(1.0, 4)(e), 3) for e in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return lambda epoch: 0.5 * learning_rate * (1.0 + math.cos(math.pi * epoch / epochs))
