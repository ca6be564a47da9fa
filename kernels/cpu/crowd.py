"""Whether other processes want the cores too, as jobs on several threads find out."""

from __future__ import annotations

import time


class Crowd:
    """What the last jobs on several threads tell about the cores.

    Where other processes want them, each thread has a core half of the time, but not at the same times: a job of many
    short waits takes 3.4 times as long on two threads, 2.5 times on one. Brief jobs then run alone for a while, and now
    and then try again.
    """

    _SHORTEST, _LONGEST, _TOGETHER = 0.02, 0.32, 0.05  # seconds

    def __init__(self) -> None:
        self.until = self.last = 0.0
        self.patience = self._SHORTEST

    def note(self, slow: bool) -> None:
        """What a job found: two that waited long, one soon after the other, are a crowd."""
        if not slow and not self.last:
            return
        now = time.monotonic()
        if slow:
            if now - self.last < self._TOGETHER + self.patience:
                self.until = now + self.patience
                self.patience = min(2 * self.patience, self._LONGEST)
            self.last = now
        elif now - self.last > 2 * self._LONGEST:
            self.last, self.patience = 0.0, self._SHORTEST

    def here(self) -> bool:
        """Whether brief jobs had better run alone."""
        return self.until > 0.0 and time.monotonic() < self.until


crowd = Crowd()
