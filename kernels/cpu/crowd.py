"""Fewer threads while others want the cores.

Of two threads on two cores that another process keeps busy, one is nearly always off its core while the other waits
for it: together they are slower than one alone (2.9 and 1.7 times the quiet time of a step of 0.45 ms). That there is
a crowd shows in how long the calling thread of a job was off its core, and how little of the cores this process had:
after a product of NumPy, its own threads turn on the spot for 0.1 s. That it has gone shows in cores that idle.

To read the clocks before and after a job takes 3 us, and 20 us where the job has emptied the caches. So there is a
glance at a job now and then, and a close look at those that follow one during which the calling thread was kept off.
"""

from __future__ import annotations

import os
import time

_WINDOW = 0.05  # seconds of jobs that are judged together: one interruption of ten milliseconds is no crowd
_LOST = 0.25  # share of them off the core from which on it is one,
_OURS = 0.6  # unless this process had this share of the cores that its threads can take
GLANCE = 5e-3  # seconds from a job that is looked at to the next,
_CLOSELY = 2e-4  # and within such a window
_REST = 0.03  # seconds after which idle cores are counted, and taken again; the system tells them in hundredths
_STAT = "/proc/stat"


def available() -> set[int] | None:
    """The CPUs that this process may use; None where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _idle_seconds() -> float | None:
    """How long the CPUs of this process have idled, all together; None where the system does not tell."""
    cpus = available()
    if cpus is None:
        return None
    try:
        with open(_STAT, "rb") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return None
    total = 0
    for line in lines:  # cpu3 user nice system idle iowait ..., in ticks
        name, *times = line.split()
        if not name.startswith(b"cpu"):
            break
        if int(name[3:]) in cpus:
            total += int(times[3]) + int(times[4])
    return total / os.sysconf("SC_CLK_TCK")


def clocks() -> tuple[float, float, float]:
    """Seconds, of the world, of the calling thread on a core, and of this process on all cores."""
    return time.perf_counter(), time.thread_time(), time.process_time()


class Crowd:
    """What the jobs of a pool have met so far.

    Python threads may ask at once; at worst both count the same idle cores, and the next jobs find out.
    """

    def __init__(self) -> None:
        self._next = 0.0  # when a job is to be looked at again
        self._wall = self._lost = self._used = 0.0  # of the jobs of a window; there is none where they are 0
        self._most = 0  # threads; 0: there is no crowd
        self._since = 0.0
        self._idle: float | None = None

    def limit(self, threads: int) -> int:
        """How many threads a job of up to ``threads`` should take, if they wait for each other."""
        if not self._most:
            return threads
        seconds = time.perf_counter() - self._since
        if seconds > _REST:
            before = self._idle
            self._look()
            idle = threads if before is None or self._idle is None else (self._idle - before) / seconds
            self._most += round(idle)
            if self._most >= threads:
                self._most = 0
                return threads
        return min(threads, self._most)

    def _look(self) -> None:
        self._since, self._idle = time.perf_counter(), _idle_seconds()

    @property
    def watched(self) -> bool:
        """Whether jobs are looked at closely, or get fewer threads."""
        return bool(self._wall or self._most)

    def due(self) -> bool:
        """Whether the job that begins now is to be counted."""
        now = time.perf_counter()
        if now < self._next:
            return False
        self._next = now + (_CLOSELY if self._wall else GLANCE)
        return True

    def count(self, threads: int, wall: float, running: float, used: float) -> None:
        """A job of ``threads`` that was due took ``wall`` seconds.

        For ``running`` of them its calling thread had a core; this process had ``used`` seconds of all cores.
        """
        if not self._wall:
            if wall - running <= _LOST * wall:
                return
            self._next = 0.0  # a window begins with this job
        self._wall += wall
        self._lost += wall - running
        self._used += used
        if self._wall > _WINDOW:
            cores = min(threads, len(available() or ()) or threads)
            if self._lost > _LOST * self._wall and self._used < _OURS * cores * self._wall:
                self._most = threads // 2
                self._look()
            self._wall = self._lost = self._used = 0.0
