"""Interleaved bursts of several peers, each in a process of its own, and how quiet the machine was meanwhile.

Peers take turns, in reverse order every other round, so that a machine that slows down slows all of them. A burst
during which other processes used the cores is repeated in a later round, and counts only where too few are quiet.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .cases import Case

ROOT = pathlib.Path(__file__).parent.parent
_STAT = pathlib.Path("/proc/stat")
_TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
_TRIES = 3  # times the number of rounds: so many more until enough of their bursts are quiet
_SHARE = 0.1  # of one core: other processes that use more than this during a burst make it noisy
_SPREAD = 1.3  # slowest part of a burst over its fastest; the sign of noise where the system does not count


class Column(NamedTuple):
    """What is measured under one label: a worker, and the way in which its peer is asked to do a row."""

    label: str
    worker: str
    way: str


class Plan(NamedTuple):
    """How long a row is measured: ``rounds`` of bursts of ``seconds``, but no new round after ``limit`` seconds.

    Before a burst the cores get ``patience`` seconds at most to become idle.
    """

    rounds: int = 7
    seconds: float = 0.08
    limit: float = 20.0
    patience: float = 1.0


def busy_seconds() -> float | None:
    """The seconds that all cores were busy since the start of the system; None where the system does not say."""
    if not _STAT.exists():
        return None
    user, nice, kernel, _, _, irq, softirq, steal = map(int, _STAT.read_text().split(maxsplit=9)[1:9])
    return (user + nice + kernel + irq + softirq + steal) * _TICK


def wait_until_quiet(limit: float) -> None:
    """Wait until the cores are idle for a moment, at most ``limit`` seconds: thread pools spin on after their work."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = busy_seconds()
        if before is None:
            time.sleep(0.05)
            return
        time.sleep(0.025)
        if (busy_seconds() or 0.0) - before <= 1.5 * _TICK:
            return


class Worker:
    """A process of ``python -m bench.worker``."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH"), environment.get("PYTHONPATH")]))
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which shows what there is and ends its workers
        )
        self.missing = self._answer().get("missing")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["without a word"])[-1]
        self.missing = f"the process ended: {last[:160]}"
        return {"missing": self.missing, "cpu": 0.0}

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to ``request``; once the peer is missing, that."""
        if self.missing:
            return {"missing": self.missing, "cpu": 0.0}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended, which _answer() reports
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process, at the latest after the burst it is in."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended before
            self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.errors.close()


class Workers:
    """Workers by name, each started when it is first needed."""

    def __init__(self, modules: Mapping[str, tuple[str, Mapping[str, str]]]) -> None:
        self._modules = modules
        self._running: dict[str, Worker] = {}

    def __getitem__(self, name: str) -> Worker:
        if name not in self._running:
            self._running[name] = Worker(*self._modules[name])
        return self._running[name]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: Any) -> None:
        for worker in self._running.values():
            worker.close()


@dataclass
class Figures:
    """The bursts of one column: seconds of one run, and those of them that were noisy."""

    quiet: list[float] = field(default_factory=list)
    noisy: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def bursts(self) -> list[float]:
        """The bursts that count: the quiet ones, or all where fewer than three (or half) were quiet."""
        enough = min(3, (len(self.quiet) + len(self.noisy) + 1) // 2)
        return self.quiet if len(self.quiet) >= enough else self.quiet + self.noisy

    @property
    def doubtful(self) -> bool:
        """Whether noisy bursts had to be counted."""
        return len(self.bursts) > len(self.quiet)

    @property
    def median(self) -> float | None:
        """Seconds of one run."""
        return statistics.median(self.bursts) if self.bursts else None

    def percentile(self, percent: float) -> float | None:
        """The burst below which ``percent`` of them lie, between neighbours linearly."""
        ordered = sorted(self.bursts)
        if not ordered:
            return None
        place = (len(ordered) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass
class Result:
    """One row with the figures of its columns, by label, and where the cores lay before each round of bursts."""

    case: Case
    figures: dict[str, Figures] = field(default_factory=dict)
    crossings: list[float] = field(default_factory=list)  # seconds, of bench.crossing


def burst(worker: Worker, request: Mapping[str, str], patience: float = 1.0) -> tuple[float | None, bool, str]:
    """One burst: the median over its parts, whether it was noisy, and what is missing if anything is."""
    if patience:
        wait_until_quiet(patience)
    before, start = busy_seconds(), time.perf_counter()
    answer = worker.ask(do="burst", **request)
    elapsed, after = time.perf_counter() - start, busy_seconds()
    if "seconds" not in answer:
        return None, False, str(answer["missing"])
    parts = answer["seconds"]
    if before is None or after is None:
        noisy = max(parts) > _SPREAD * min(parts)
    else:
        noisy = after - before - answer["cpu"] > _SHARE * elapsed + 2 * _TICK
    return statistics.median(parts), noisy, ""


def measure(result: Result, columns: Sequence[Column], workers: Workers, plan: Plan) -> None:
    """Measure the row of ``result`` in all columns, or measure on where it has been.

    Figures are added as they come, so an interrupt leaves them.
    """
    from . import crossing

    live = []
    for column in columns:
        figures = result.figures.setdefault(column.label, Figures())
        request = {"case": result.case.name, "way": column.way}
        answer = workers[column.worker].ask(do="prepare", seconds=plan.seconds, **request)
        if "missing" in answer:
            figures.missing = answer["missing"]
        else:
            live.append((workers[column.worker], request, figures, len(figures.quiet) + plan.rounds))
    end = time.monotonic() + plan.limit
    for index in range(plan.rounds * _TRIES):
        wanting = [entry for entry in live if not entry[2].missing and len(entry[2].quiet) < entry[3]]
        if not wanting or (index and time.monotonic() > end):
            break
        if (between := crossing.seconds()) is not None:
            result.crossings.append(between)
        for worker, request, figures, _ in wanting if index % 2 == 0 else wanting[::-1]:
            seconds, noisy, figures.missing = burst(worker, request, plan.patience)
            if seconds is not None:
                (figures.noisy if noisy else figures.quiet).append(seconds)
    for worker, request, *_ in live:
        worker.ask(do="forget", **request)
