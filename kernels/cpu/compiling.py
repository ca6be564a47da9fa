"""Compiling what steps need on two cores: in this process and in a second one.

Numba compiles one function at a time in a process, and the first step of a network needs about twenty, each a tenth to
half a second. Where several are missing, a second process compiles from the other end of the list, into the cache on
the disk. Before each function it asks, and goes without those that are taken; this process waits for one that the other
has under way, and loads it. Whatever ends the other process, this one compiles what is left.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from .. import cache
from ..compile import form_of
from ..instructions import Instruction
from ..rule import REGISTRY, builtin
from . import entries
from .entries import Functions
from .interpreter import entry_point, work
from .threads import get_num_threads

_WORTH = 4  # missing functions from which on a second process pays: it takes as long as two of them to start
_PATIENCE = 30.0  # seconds to wait for a function, a hundred times what it should take

_START = f"import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import serve; serve()"


def why_alone() -> str | None:
    """Why no second process compiles; None where one does."""
    if get_num_threads() == 1:
        return "1 thread"
    if getattr(sys, "frozen", False) or not pathlib.Path(sys.executable or "").name.lower().startswith("python"):
        return "not run by a python"
    return None


def compiled(steps: Sequence[Instruction], threads: int) -> list[Functions]:
    """What each step of a table needs, compiled, and what runs the table."""
    needed = [entries.functions(step, threads) for step in steps]
    each = dict.fromkeys(function for functions in needed for function in functions.all())
    missing = [function for function in [*each, entry_point(work)] if function.missing]
    if len(missing) < _WORTH or why_alone() is not None:
        for function in missing:
            function.compile()
        return needed
    second = _Second(steps, threads)
    try:
        for function in missing:
            function.compile(fresh=second.has_compiled(function.fingerprint))
    finally:
        second.stop()
    return needed


_HERE, _THERE, _DONE = "here", "there", "done"  # who has taken a function; or that the other process has ended it


class _Second:
    """The second process, as this one sees it. A thread answers what it asks."""

    def __init__(self, steps: Sequence[Instruction], threads: int) -> None:
        self._taken: dict[str, str] = {}  # by fingerprint
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        request = pickle.dumps((str(cache.cache_directory()), threads, [*dict.fromkeys(map(_sketch, steps))]))
        command = [sys.executable, "-I", "-c", _START, json.dumps([path for path in sys.path if isinstance(path, str)])]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        with contextlib.suppress(OSError):  # of a system that grants no more processes
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
            threading.Thread(target=self._answer, args=(self._process, request), daemon=True).start()

    def has_compiled(self, fingerprint: str) -> bool:
        """Whether the other process has compiled it, or does so now: waits for that. If not, it is this one's."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._taken.get(fingerprint) != _THERE, _PATIENCE):
                self._taken[fingerprint] = _HERE
            return self._taken.setdefault(fingerprint, _HERE) == _DONE

    def stop(self) -> None:
        """End the process; nothing is left to do, or nobody waits for it."""
        if self._process is not None:
            self._process.kill()

    def _answer(self, process: Any, request: bytes) -> None:
        try:
            with contextlib.suppress(OSError), process:  # it may end at any time
                process.stdin.write(request)
                process.stdin.flush()
                for line in process.stdout:
                    word, _, fingerprint = line.decode().strip().partition(" ")
                    with self._changed:
                        if word == "may":
                            free = self._taken.setdefault(fingerprint, _THERE) == _THERE
                            process.stdin.write(b"yes\n" if free else b"no\n")
                            process.stdin.flush()
                        elif word == "done":
                            self._taken[fingerprint] = _DONE
                            self._changed.notify_all()
        finally:
            with self._changed:
                self._taken = {key: who for key, who in self._taken.items() if who != _THERE}
                self._changed.notify_all()


# ------------------------------------------------------------------------------------------ the second process


def _sketch(step: Instruction) -> tuple[Any, ...]:
    """What a second process has to know of a step; of rules the name, where it has the same one under that name."""
    rule = step.rule
    known = None if rule is None else REGISTRY[rule.kind].get(rule.name)
    same = known is not None and builtin(known) and form_of(known) == form_of(rule)
    first: dict[int, int] = {}  # the same operand may stand in several places
    numbers = [None if one is None else first.setdefault(id(one), k) for k, one in enumerate(step.operands)]
    shapes = tuple(None if one is None else tuple(one.shape) for one in step.operands)
    return step.op, step.dtype, (rule.kind, rule.name) if same else None, tuple(zip(numbers, shapes, strict=True))


def _step(sketch: tuple[Any, ...]) -> Any:
    """What stands for the step in another process; without its rule where that is unknown."""
    op, dtype, name, places = sketch
    made = {number: None if number is None else SimpleNamespace(shape=shape) for number, shape in places}
    operands = [made[number] for number, _ in places]
    return SimpleNamespace(op=op, dtype=dtype, rule=name and REGISTRY[name[0]][name[1]], operands=operands)


def serve() -> None:
    """The second process: compiles from the end of the list what it may, and asks for that and tells it by lines."""
    folder, threads, sketches = pickle.load(sys.stdin.buffer)
    if folder != str(cache.cache_directory()):  # files were edited meanwhile, or the folder is only that process's
        return
    steps = [_step(sketch) for sketch in reversed(sketches)]
    known = [step for step in steps if step.rule is not None or step.op.name != "optimizer_begin"]
    for functions in ([entry_point(work)], *(entries.functions(step, threads).all() for step in known)):
        for function in reversed(functions):
            if not function.missing:
                continue
            print("may", function.fingerprint, flush=True)
            if sys.stdin.buffer.readline() == b"yes\n":
                function.compile()
                print("done", function.fingerprint, flush=True)
