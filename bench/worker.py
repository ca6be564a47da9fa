"""The process of one peer: idle, until a line on standard input asks for something.

A peer is a module with ``build(case, way)`` that returns a :class:`~bench.cases.Work`. Each line in and each line out
is a JSON object; the first line out says ``ready``, or what is ``missing``.

    {"do": "prepare", "case": "digits", "way": "step", "seconds": 0.08}   ->  {"cpu": 0.9}
    {"do": "burst", "case": "digits", "way": "step"}                      ->  {"cpu": 0.16, "seconds": [2.1e-5, ...]}
    {"do": "forget", "case": "digits", "way": "step"}                     ->  {"cpu": 0.0}

``seconds`` are those of one run, in each part of the burst; ``cpu`` is what all threads of the process used meanwhile.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from . import cases
from .cases import Missing, Work

PARTS = 4  # of a burst; the median over them leaves out an interruption


class _Prepared:
    """Work with the number of calls that fills a part of a burst."""

    def __init__(self, work: Work, seconds: float) -> None:
        self.work, self.seconds = work, seconds
        # the first two calls compile, fault pages in and start threads
        for _ in range(2):
            once = self._part(1)
        self._calibrate(self._part(max(1, min(100, int(0.01 / once)))))

    def _calibrate(self, once: float) -> None:
        self.calls = max(1, int(self.seconds / PARTS / once))
        self.parts = max(1, min(PARTS, round(self.seconds / once)))

    def _part(self, calls: int) -> float:
        call = self.work.call
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return max(time.perf_counter() - start, 1e-9) / calls

    def burst(self) -> list[float]:
        """The seconds of one run in each part; the call before them wakes the threads and fills the caches."""
        if self.parts > 1:
            self.work.call()
        calls = [self._part(self.calls) for _ in range(self.parts)]
        self._calibrate(min(calls))  # a neighbour may have slowed down the calls that came before
        return [once / self.work.runs for once in calls]


def answer(peer: Any, prepared: dict[tuple[str, str], _Prepared], request: dict[str, Any]) -> dict[str, Any]:
    """Do what ``request`` asks for."""
    key = request["case"], request["way"]
    if request["do"] == "forget":
        prepared.pop(key, None)
        gc.collect()
        return {}
    if request["do"] == "prepare":
        find = getattr(peer, "find", cases.find)
        prepared[key] = _Prepared(peer.build(find(key[0]), key[1]), request["seconds"])
        return {}
    return {"seconds": prepared[key].burst()}


def serve(module: str) -> None:
    """Answer requests for the peer in ``module`` until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers

    def reply(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        peer = importlib.import_module(module)
    except ImportError as error:
        reply(missing=f"{error.name or error} is not installed")
        return
    reply(ready=True)
    prepared: dict[tuple[str, str], _Prepared] = {}
    for line in sys.stdin:
        before = time.process_time()
        try:
            result = answer(peer, prepared, json.loads(line))
        except Missing as error:
            result = {"missing": str(error)}
        except Exception as error:  # one row of one peer fails; the report says so, and the others go on
            traceback.print_exc()
            result = {"missing": f"failed: {type(error).__name__}: {error}"[:200]}
        reply(**result, cpu=time.process_time() - before)


if __name__ == "__main__":
    serve(sys.argv[1])
