"""Every optimizer rule on the CPU against the bandwidth of memory: ``python -m bench optimizers``.

An update can be no faster than memory: it reads weights, gradient and state and writes weights and state, once each,
``4 (2 w + g + 2 s)`` bytes of float32 with ``s`` arrays of state. A rule that needs sums over the tensor first must
read what they are of once more, and one with new factors of rows and columns the gradient: these readings count as
well. The limit is the triad of as many threads, taken once beside each update: memory is not equally
quick all the time, and medians of the same seconds can be compared.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import report

ELEMENTS = 10_000_000
ROUNDS = 11
AT_LEAST = 0.85  # of the limit; rows below it are marked
_LEARNING_RATE = 1e-7  # weights stay where they are: the work is the same from step to step
_EXAMPLES = """examples:
  python -m bench optimizers                          every rule, some minutes
  python -m bench optimizers adam lion --rounds 15
"""


class Row(NamedTuple):
    """The update of one rule: seconds of each round."""

    name: str
    slots: int
    again: int  # arrays that are read once more, for what the update of the first element needs
    elements: int
    seconds: tuple[float, ...]
    triads: tuple[float, ...]  # bytes a second, beside each round

    @property
    def limit(self) -> float:
        """Bytes a second of the middle triad."""
        return statistics.median(self.triads)

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    @property
    def moved(self) -> int:
        """The bytes that an update must read and write."""
        return 4 * self.elements * (3 + 2 * self.slots + self.again)

    @property
    def share(self) -> float:
        """The rate of the middle round over the limit."""
        return self.moved / self.median / self.limit


def measure(name: str, elements: int, rounds: int, triad: Callable[[], float]) -> Row:
    """Run the update inside a program, as a model does: one call is compilation, the next ``rounds`` count.

    ``triad()`` measures one triad, in bytes a second.
    """
    from dlcore.kernels import Builder
    from dlcore.kernels.compile import uniforms_of
    from dlcore.kernels.cpu.engine import Engine
    from dlcore.kernels.step_text import UNIFORM_HEADER
    from dlcore.network import Network, Plan, _emit_update
    from dlcore.optimizers import Optimizer

    optimizer = Optimizer(name)
    optimizer.learning_rate = _LEARNING_RATE
    rule = optimizer.rule
    b = Builder(np.float32)
    step, seed = b.state("step", (1,), np.int64), b.state("seed", (1,), np.int64)
    hyper = b.state("hyper", (len(rule.hyper),), np.float64)
    uniforms = b.state("uniforms", (UNIFORM_HEADER + len(uniforms_of(rule)),))
    rows = next(d for d in range(int(elements**0.5), 0, -1) if elements % d == 0)  # for what rows and columns have
    w, g = b.parameter("w", (rows, elements // rows))
    whole = b.whole(len(rule.slots))
    b.emit("optimizer_begin", hyper, step, uniforms, rule=rule)
    _emit_update(b, Plan(optimizer=optimizer), Network(b.program, step, seed, hyper), whole, uniforms)
    b.finish("update")
    engine = Engine(b.program, 1)
    engine.write(hyper, optimizer.hyper())
    rng = np.random.default_rng(0)
    for buffer in (w, g):
        engine.write(buffer, rng.standard_normal(buffer.shape, np.float32))
    seconds, triads = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        engine.run("update", 1, 1, 1, 0)
        seconds.append(time.perf_counter() - start)
        triads.append(triad())
    return Row(rule.name, len(rule.slots), _again(rule), elements, tuple(seconds[1:]), tuple(triads[1:]))


def _again(rule: Any) -> int:
    """How many arrays the sums and the factors of ``rule`` read before its update."""
    from dlcore.kernels.rule import reads

    count = int(bool(rule.factors) and not rule.after)  # those that change after the update take part in its pass
    if rule.summands is not None:
        count += sum(reads(rule.summands, position) for position in range(2 + len(rule.slots)))
    return count


def table(rows: Sequence[Row]) -> str:
    """The rows, the nearest to their limit first; those below :data:`AT_LEAST` are marked."""
    cells = []
    for row in sorted(rows, key=lambda row: (-row.share, row.name)):
        mark = "" if row.share >= AT_LEAST else f"below {AT_LEAST:.0%}"
        cells.append(
            (
                row.name, str(row.slots), str(row.again or ""), f"{row.median * 1e3:.3f}",
                f"{row.moved / row.median / 1e9:.1f}", f"{row.limit / 1e9:.1f}", f"{row.share:.0%}", mark,
            )
        )  # fmt: skip
    return report.table(("rule", "state", "again", "ms", "GB/s", "limit", "of it", ""), cells)


def _range(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    least, most = (f"{which(row.limit for row in rows) / 1e9:.1f}" for which in (min, max))
    return f"; {least} to {most} in this run, the quickest {max(max(row.triads) for row in rows) / 1e9:.1f}"


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m bench optimizers", description=__doc__, epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("rules", nargs="*", help="names of rules; else all")
    parser.add_argument("--elements", type=_positive, default=ELEMENTS, help="parameters (default %(default)s)")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, help="updates that count (default %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there as well")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 where there is no such rule, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    from dlcore.kernels import RuleError, find, get_num_threads
    from dlcore.kernels.rule import REGISTRY, builtin

    from .roofline import Triad, cache_sizes

    try:
        every = [rule.name for rule in REGISTRY["optimizer"].values() if builtin(rule)]
        names = [find("optimizer", name).name for name in options.rules] or sorted(every)
    except RuleError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json and not options.json.absolute().parent.is_dir():
        print(f"--json {options.json}: there is no folder {options.json.absolute().parent}", file=sys.stderr)
        return 2
    threads = get_num_threads()
    working_set = max(4 * cache_sizes()[1], 12 * options.elements)
    rows: list[Row] = []
    status = 0
    triad = Triad(threads, working_set)
    try:
        for number, name in enumerate(names, 1):
            print(f"[{number}/{len(names)}] {name}", file=sys.stderr, flush=True)
            rows.append(measure(name, options.elements, options.rounds, triad.rate))
    except KeyboardInterrupt:
        print("interrupted; these are the figures so far", file=sys.stderr)
        status = 130
    header = report.header() | {
        "threads": f"{threads}; float32",
        "update": f"{options.elements:,} parameters; the median of {options.rounds} rounds",
        "limit": f"the middle triad of the same seconds, in GB/s{_range(rows)}",
    }
    print(report.describe(header))
    print()
    print(table(rows))
    if options.json:
        found: list[dict[str, Any]] = [
            {**row._asdict(), "moved": row.moved, "limit": row.limit, "share": row.share} for row in rows
        ]
        options.json.write_text(json.dumps({"header": header, "rows": found}, indent=1) + "\n")
    return status
