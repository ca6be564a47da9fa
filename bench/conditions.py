"""``python -m bench conditions``: what a user meets beside the speed of a warm step in a quiet process."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import peers, report, timing
from .probes import RECOVERED

_REPEATS = 3
_PROCESSES = 5  # of the probe that other users of the machine disturb most
_COLD, _WARM, _RULE = 6.0, 0.7, 0.5  # seconds
_OVERHEAD = 10e-6
_SCALING = 1.8
_LOADED = 2.5
_STEPS = 100
_MEMORY = 1.25
_LOADED_ROWS = ("digits", "mnist-64")
_LOADED_COLUMNS = ("dlcore", "dlcore fit", "torch", "jax")
_BURSTS, _LOADED_BURST = 7, 0.2
# Keeps so many cores busy, without holding the GIL, until standard input ends: it does not outlive whoever started it.
_SPIN = """
import hashlib, os, sys, threading
def compute():
    while True:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
for _ in range(int(sys.argv[1])):
    threading.Thread(target=compute, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""


class Outcome(NamedTuple):
    """One line: what was measured, what shall hold, and whether it does (``n/a``: not measured)."""

    what: str
    figure: str
    target: str = ""
    verdict: str = ""


def _judge(what: str, figure: str, target: str, good: bool) -> Outcome:
    return Outcome(what, figure, target, report.OK if good else report.MISS)


def _missing(what: str, why: str) -> Outcome:
    return Outcome(what, f"n/a ({why})", "", report.NOT_THERE)


def _probe(name: str, **environment: str) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of a fresh process to its answer, and the answer."""
    path = os.pathsep.join(filter(None, [str(timing.ROOT), os.environ.get("PYTHONPATH")]))
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.probes", name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **peers.ENVIRONMENT, "PYTHONPATH": path, **environment},
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"probe {name} ended with {process.returncode}; its error stands above")
    return seconds, json.loads(line)


def cold() -> Iterator[Outcome]:
    """First step of the digits network in a fresh process, without and with compiled code on the disk."""
    with tempfile.TemporaryDirectory(prefix="dlcore-bench-") as folder:
        cache = pathlib.Path(folder, "cache")
        seconds, _ = _probe("first_step", DLCORE_CACHE_DIR=str(cache))
        what = "first step of 64-128-10, fresh process, imports included"
        yield _judge(f"{what}, empty cache", f"{seconds:.2f} s", f"< {_COLD} s", seconds < _COLD)
        warm = statistics.median(_probe("first_step", DLCORE_CACHE_DIR=str(cache))[0] for _ in range(_REPEATS))
        yield _judge(f"{what}, warm cache", f"{warm:.2f} s", f"< {_WARM} s", warm < _WARM)
        added = []
        for index in range(_REPEATS):
            copy = pathlib.Path(folder, f"copy-{index}")  # one that does not know the rule yet
            shutil.copytree(cache, copy)
            added.append(_probe("new_rule", DLCORE_CACHE_DIR=str(copy))[1]["seconds"])
        rule = statistics.median(added)
        yield _judge("a new activation adds to its first step", f"{rule:.2f} s", f"< {_RULE} s", rule < _RULE)


def overhead() -> Iterator[Outcome]:
    """What a call from Python adds to a step."""
    _, answer = _probe("overhead")
    called, inside = answer["called"], answer["inside"]
    figure = f"{report.duration(called - inside)} ({report.duration(called)} less {report.duration(inside)})"
    what = "train_on_batch of 2-8-8-1, b1, less such a step inside fit"
    yield _judge(what, figure, f"< {report.duration(_OVERHEAD)}", called - inside < _OVERHEAD)


def scaling() -> Iterator[Outcome]:
    """One thread against two."""
    what = "784-1024-1024-10, b256, from 1 to 2 threads"
    _, answer = _probe("scaling")
    if "missing" in answer:
        yield _missing(what, answer["missing"])
        return
    ratio = answer["one"] / answer["two"]
    figure = f"{ratio:.2f}x ({report.duration(answer['one'])} to {report.duration(answer['two'])})"
    yield _judge(what, figure, f">= {_SCALING}x", ratio >= _SCALING)


@contextmanager
def _busy_cores(processes: int) -> Iterator[None]:
    """``processes`` processes that compute without end, together on every core."""
    started: list[subprocess.Popen[bytes]] = []
    threads = -(-(os.cpu_count() or 2) // processes)
    try:
        for _ in range(processes):
            # a session of its own, as a worker has: Linux shares the cores out among sessions first
            command = [sys.executable, "-c", _SPIN, str(threads)]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
        time.sleep(0.3)
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _bursts(worker: timing.Worker, column: timing.Column, row: str, quiet: bool) -> timing.Figures:
    """So many bursts; in quiet as many more where others disturb them, under load whatever others do."""
    figures = timing.Figures()
    for _ in range(_BURSTS * (3 if quiet else 1)):
        request = {"case": row, "way": column.way}
        seconds, noisy, figures.missing = timing.burst(worker, request, patience=1.0 if quiet else 0.0)
        if seconds is None:
            break
        (figures.noisy if noisy and quiet else figures.quiet).append(seconds)
        if len(figures.quiet) == _BURSTS:
            break
    return figures


def loaded() -> Iterator[Outcome]:
    """A step while another process wants every core, over a step in quiet; and while there is such a one for each core.

    The second is not judged: of ``n`` cores, ``n`` others leave such a process ``n / (n + 1)`` of one core.
    """
    columns = [peers.COLUMNS[label] for label in _LOADED_COLUMNS]
    with timing.Workers(peers.MODULES) as workers:
        for row in _LOADED_ROWS:
            quiet: dict[timing.Column, timing.Figures] = {}
            for column in columns:
                worker = workers[column.worker]
                answer = worker.ask(do="prepare", case=row, way=column.way, seconds=_LOADED_BURST)
                if "missing" in answer:
                    quiet[column] = timing.Figures(missing=answer["missing"])
                else:
                    quiet[column] = _bursts(worker, column, row, True)
            for processes, others in ((1, "another process"), (os.cpu_count() or 2, "a process for each")):
                with _busy_cores(processes):
                    slow = {c: q if q.missing else _bursts(workers[c.worker], c, row, False) for c, q in quiet.items()}
                for column in columns:
                    what = f"{row}, cores loaded by {others} / quiet: {column.label}"
                    yield _loaded(what, column.worker == "dlcore" and processes == 1, quiet[column], slow[column])


def _loaded(what: str, judged: bool, quiet: timing.Figures, slow: timing.Figures) -> Outcome:
    before, after = quiet.median, slow.median
    if before is None or after is None:
        return _missing(what, quiet.missing or slow.missing)
    ratio = after / before
    figure = f"{ratio:.2f}x ({'~' * quiet.doubtful}{report.duration(before)} to {report.duration(after)})"
    if not judged:
        return Outcome(what, figure)
    outcome = _judge(what, figure, f"<= {_LOADED}x", ratio <= _LOADED)
    return outcome._replace(verdict=outcome.verdict + "?" * quiet.doubtful)


def neighbours() -> Iterator[Outcome]:
    """Our threads and those of torch and OpenBLAS in one process."""
    what = f"steps of 784-256-128-10, b64, after 200 products of torch and of NumPy, until within {RECOVERED}x of quiet"
    answers = [_probe("neighbours")[1]]
    if "missing" in answers[0]:
        yield _missing(what, answers[0]["missing"])
        return
    answers += [_probe("neighbours")[1] for _ in range(1, _PROCESSES)]
    yield recovery(what, [answer["steps"] for answer in answers], answers[0]["measured"])

    def figures(*names: str) -> str:
        return ", ".join(report.duration(statistics.median(answer[name] for answer in answers)) for name in names)

    yield Outcome("a step: before, after, between products of torch", figures("quiet", "afterwards", "between"))
    times = figures("product_before", "product_between", "product_after")
    yield Outcome("torch's product 512^3: before, between, after our steps", times)


def recovery(what: str, steps: Sequence[int | None], measured: int) -> Outcome:
    """How many steps it took in several processes, None where ``measured`` were not enough; judged by their median.

    A machine whose cores are not its own is at half speed for all steps of a process now and then, whoever runs.
    """

    def text(count: float) -> str:
        return f"more than {measured}" if count == math.inf else str(count)

    found = sorted(math.inf if count is None else count for count in steps)
    middle = statistics.median_low(found)
    return _judge(what, f"{text(middle)} ({', '.join(map(text, found))})", f"<= {_STEPS}", middle <= _STEPS)


def memory() -> Iterator[Outcome]:
    """Peak of a training run above that of the libraries, against what it needs."""
    what = "peak memory of training 784-1024-1024-10, b256, above a tiny network's / what it needs"
    # twice, as compiling takes memory: the second time finds compiled code on the disk
    base, wide = [_probe(name)[1] for name in ("memory_tiny", "memory_wide") * 2][2:]
    if base["peak"] is None:
        yield _missing(what, "the system does not say")
        return
    added = wide["peak"] - base["peak"]
    ratio = added / wide["need"]
    figure = (
        f"{ratio:.2f}x ({added / 1e6:.0f} MB of {wide['need'] / 1e6:.0f} MB; libraries {base['peak'] / 1e6:.0f} MB)"
    )
    yield _judge(what, figure, f"<= {_MEMORY}x", ratio <= _MEMORY)


PARTS: dict[str, Callable[[], Iterator[Outcome]]] = {
    part.__name__: part for part in (cold, overhead, scaling, loaded, neighbours, memory)
}


def main(names: Sequence[str] = ()) -> int:
    """Measure the named parts, or all; 2 where there is no such part, 130 after Ctrl-C."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"unknown condition {unknown[0]!r}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    status = 0
    try:
        for name in names or PARTS:
            print(f"[{name}]", file=sys.stderr, flush=True)
            for outcome in PARTS[name]():
                outcomes.append(outcome)
    except KeyboardInterrupt:
        print("interrupted; these are the figures so far", file=sys.stderr)
        status = 130
    print(report.describe(report.header()))
    print()
    print(report.table(("condition", "measured", "target", ""), outcomes))
    return status
