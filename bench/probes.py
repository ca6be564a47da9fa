"""What ``python -m bench conditions`` measures in a fresh process: ``python -m bench.probes NAME``.

Each probe prints one line of JSON when it is done. Nothing is imported before a probe needs it: the time from the
start of the process to that line is a figure itself.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable
from math import sqrt
from typing import Any

RECOVERED = 1.1  # a step is as fast as in a quiet process again if it takes at most so many times as long
_WINDOW = 10  # steps; the median over them leaves out single interruptions
_MATMULS = 200
_SIZE = 512  # of the matrices
_MEMORY_STEPS = 32
_OVERHEAD_STEPS, _OVERHEAD_ROUNDS = 2000, 9


def first_step() -> dict[str, Any]:
    """One step of the digits network, from nothing."""
    from . import cases
    from .peers import ours

    step = cases.step("digits")
    ours.network(step).train_on_batch(*ours.data(step))
    return {}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def new_rule() -> dict[str, Any]:
    """What a new activation adds to building a network and its first step, all else being compiled and loaded."""
    import dlcore
    from dlcore import layers

    from . import cases
    from .peers import ours

    x, y = ours.data(cases.step("digits"))

    def first(activation: str) -> None:
        model = dlcore.Sequential([layers.Input((64,)), layers.Dense(128, activation), layers.Dense(10, "softmax")])
        model.compile("adam", "sparse_categorical_crossentropy")
        model.train_on_batch(x, y)

    def with_rule() -> None:
        @dlcore.activation
        def bench_squareplus(z):
            return 0.5 * (z + sqrt(z * z + 4.0))

        @bench_squareplus.derivative
        def _(z, y):
            return 0.5 * (1.0 + z / sqrt(z * z + 4.0))

        first("bench_squareplus")

    first("relu")
    usual = _seconds(lambda: first("relu"))
    return {"seconds": _seconds(with_rule) - usual}


def overhead() -> dict[str, Any]:
    """Seconds of ``train_on_batch`` of one sample on the smallest network, and of such a step inside ``fit``."""
    from dataclasses import replace

    from . import cases
    from .peers import ours

    case = replace(cases.step("tiny"), batch=1)
    model, (x, y), (many_x, many_y) = ours.network(case), ours.data(case), ours.data(case, _OVERHEAD_STEPS)

    def calls() -> None:
        for _ in range(_OVERHEAD_STEPS):
            model.train_on_batch(x, y)

    def epoch() -> None:
        model.fit(many_x, many_y, case.batch, verbose=0)

    pairs = [(_seconds(calls), _seconds(epoch)) for _ in range(_OVERHEAD_ROUNDS + 1)][1:]  # the first one compiles
    called, inside = (statistics.median(times) / _OVERHEAD_STEPS for times in zip(*pairs, strict=True))
    return {"called": called, "inside": inside}


def scaling() -> dict[str, Any]:
    """Seconds of a step of the wide network on one thread and on two, in turns."""
    import dlcore

    from . import cases
    from .peers import ours

    if not hasattr(dlcore, "set_num_threads"):
        return {"missing": "dlcore has no set_num_threads"}
    step = cases.step("wide")
    model, (x, y) = ours.network(step), ours.data(step)
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(8):
        for threads, found in times.items():
            dlcore.set_num_threads(threads)
            model.train_on_batch(x, y)
            found += [_seconds(lambda: model.train_on_batch(x, y)) for _ in range(4)]
    return {"one": statistics.median(times[1]), "two": statistics.median(times[2])}


def neighbours() -> dict[str, Any]:
    """Our step and torch's matrix product in one process: before, after and between one another."""
    try:
        import torch
    except ImportError:
        return {"missing": "torch is not installed"}
    import numpy as np

    from . import cases
    from .peers import THREADS, ours

    torch.set_num_threads(THREADS)
    case = cases.step("mnist-64")
    model, (x, y) = ours.network(case), ours.data(case)
    a, b = np.ones((_SIZE, _SIZE), np.float32), torch.ones(_SIZE, _SIZE)

    def step() -> float:
        return _seconds(lambda: model.train_on_batch(x, y))

    def product() -> float:
        return _seconds(lambda: b @ b)

    def median(measure: Callable[[], float], count: int) -> float:
        return statistics.median(measure() for _ in range(count))

    median(step, 20)
    quiet = median(step, 200)
    median(product, 20)
    before = median(product, _MATMULS)
    for _ in range(_MATMULS):
        a @ a
    steps = [step() for _ in range(300)]
    interleaved = [(product(), step()) for _ in range(100)]
    return {
        "steps": steps_until(steps, RECOVERED * quiet),
        "measured": len(steps),
        "quiet": quiet,
        "afterwards": statistics.median(steps[-100:]),
        "between": statistics.median(time for _, time in interleaved),
        "product_before": before,
        "product_between": statistics.median(time for time, _ in interleaved),
        "product_after": median(product, _MATMULS),
    }


def steps_until(times: list[float], limit: float) -> int | None:
    """The number of steps before ten steps in a row have a median of at most ``limit``; None: never."""
    for start in range(len(times) - _WINDOW + 1):
        if statistics.median(itertools.islice(times, start, start + _WINDOW)) <= limit:
            return start
    return None


def _peak_memory() -> int | None:
    """The largest number of bytes that were resident at once; None where the system does not say."""
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def memory_of(name: str) -> dict[str, Any]:
    """The peak of a process that trains the network called ``name``, and what the training itself needs."""
    from . import cases
    from .peers import ours

    case = cases.step(name)
    model, (x, y) = ours.network(case), ours.data(case, case.batch * _MEMORY_STEPS)
    model.fit(x, y, case.batch, verbose=0)
    state = 16 * case.parameters  # weights, gradients, two moments, 4 bytes each
    activations = 4 * case.batch * sum(case.widths[1:])
    return {"peak": _peak_memory(), "need": state + activations + x.nbytes + y.nbytes}


def memory_tiny() -> dict[str, Any]:
    """The peak of the libraries and a tiny network."""
    return memory_of("tiny")


def memory_wide() -> dict[str, Any]:
    """The peak of the wide network."""
    return memory_of("wide")


_ALL = (first_step, new_rule, overhead, scaling, neighbours, memory_tiny, memory_wide)
PROBES = {probe.__name__: probe for probe in _ALL}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]]()), flush=True)
