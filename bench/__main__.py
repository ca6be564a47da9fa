"""The command ``python -m bench``."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import cases, gpu, gpu_sections, peers, report, timing

if TYPE_CHECKING:
    from .roofline import Ceilings

_PEERS_EXAMPLES = """examples:
  python -m bench peers                      every row, about ten minutes
  python -m bench peers --quick              fewer rounds and fewer dense shapes, about a minute
  python -m bench peers digits adam          one row, and all rows of a kind
  python -m bench peers wide --rounds 15 --json wide.json
"""
_CONDITIONS_EXAMPLES = """examples:
  python -m bench conditions                 all of them, about two minutes
  python -m bench conditions cold memory     two of them
"""
_GPU_EXAMPLES = """examples:
  python -m bench gpu                        all of them, ten minutes at most
  python -m bench gpu kernels products       two of them
"""
_QUICK = timing.Plan(rounds=3, seconds=0.04, limit=5.0, patience=0.25)
_GRID_SHARE = 0.5  # of rounds and seconds, for a row of a grid: there are many


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measurements of dlcore.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "dlcore against torch, jax and scikit-learn on the CPU, interleaved in one run"
    command = commands.add_parser(
        "peers", help=text, description=f"{text}.", epilog=_PEERS_EXAMPLES, formatter_class=raw
    )
    plan = timing.Plan()
    command.add_argument("rows", nargs="*", help=f"names of rows, or kinds: {', '.join(cases.KINDS)}; else all")
    command.add_argument("--rounds", type=_positive(int), help=f"bursts of each column (default {plan.rounds})")
    command.add_argument("--burst", type=_positive(float), metavar="S", help=f"seconds (default {plan.seconds})")
    command.add_argument("--quick", action="store_true", help="a minute instead of ten")
    command.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there as well")
    command.add_argument("--list", action="store_true", help="print the rows and their targets, and measure nothing")
    text = "cold start, overhead of a call, scaling, loaded cores, neighbours in the process, memory"
    command = commands.add_parser(
        "conditions", help=text, description=f"{text}.", epilog=_CONDITIONS_EXAMPLES, formatter_class=raw
    )
    command.add_argument(
        "parts", nargs="*", help="some of cold, overhead, scaling, loaded, neighbours, memory; else all"
    )
    text = "everything that only a GPU can tell, into a dated file under bench/results"
    command = commands.add_parser("gpu", help=text, description=f"{text}.", epilog=_GPU_EXAMPLES, formatter_class=raw)
    command.add_argument("sections", nargs="*", help=f"some of {', '.join(gpu_sections.SECTIONS)}; else all")
    command.add_argument("--out", type=pathlib.Path, default=gpu.RESULTS, metavar="FOLDER", help="default: %(default)s")
    commands.add_parser(
        "sass", help="the machine code of every CUDA kernel, without a GPU (python -m bench sass --help)"
    )
    commands.add_parser(
        "bytes", help="bytes every CUDA instruction moves, against the least (python -m bench bytes --help)"
    )
    commands.add_parser(
        "optimizers", help="every optimizer on the CPU against the bandwidth of memory (... optimizers --help)"
    )
    commands.add_parser("catalogue", help="write docs/catalogue.md and its pictures, from what is registered")
    return parser


def _positive(kind: Any) -> Any:
    def convert(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    convert.__name__ = f"{kind.__name__} above 0"
    return convert


def _list(chosen: Sequence[cases.Case]) -> str:
    rows = []
    for case in chosen:
        targets = (f"{c.ours} {c.at_least:g}x {c.peer}" for c in case.comparisons if c.at_least is not None)
        wanted = cases.GRIDS.get(case.kind)
        grid = f"all: median {wanted.median}x, worst {wanted.worst}x" if wanted else ""
        rows.append((case.name, case.kind, case.title, ", ".join(targets) or grid))
    return report.table(("row", "kind", "what", "at least"), rows)


def _ceilings() -> list[Ceilings]:
    """Those of one thread and of all, measured in a process of its own."""
    from .roofline import Ceilings

    command = [sys.executable, "-m", "bench.roofline", "--threads", f"1,{peers.THREADS}"]
    environment = {**os.environ, **peers.ENVIRONMENT}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=timing.ROOT, env=environment)
    return [Ceilings.from_dict(values) for values in json.loads(done.stdout)]


def _peers(options: argparse.Namespace) -> int:
    try:
        chosen = cases.select(options.rows, options.quick)
    except cases.UnknownRow as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        print(_list(chosen))
        return 0
    if options.json and not options.json.absolute().parent.is_dir():
        print(f"--json {options.json}: there is no folder {options.json.absolute().parent}", file=sys.stderr)
        return 2
    usual = _QUICK if options.quick else timing.Plan()
    plan = usual._replace(rounds=options.rounds or usual.rounds, seconds=options.burst or usual.seconds)
    fewer = max(2, round(plan.rounds * _GRID_SHARE))
    short = plan._replace(rounds=fewer, seconds=plan.seconds * _GRID_SHARE, limit=plan.limit / 4)
    longer = plan._replace(rounds=2 * plan.rounds, limit=2 * plan.limit)  # for rows near their targets
    results: list[timing.Result] = []
    measured: list[Ceilings] = []
    again = status = 0

    def measure(number: str, result: timing.Result, plan: timing.Plan) -> None:
        print(f"[{number}] {result.case.title}", file=sys.stderr, flush=True)
        timing.measure(result, [peers.COLUMNS[label] for label in result.case.columns], workers, plan)

    try:
        measured = _ceilings()
        with timing.Workers(peers.MODULES) as workers:
            for index, case in enumerate(chosen, 1):
                results.append(timing.Result(case))
                measure(f"{index}/{len(chosen)}", results[-1], short if case.kind in cases.GRIDS else plan)
            narrow = report.narrow(results)
            for again, result in enumerate(narrow, 1):
                measure(f"again {again}/{len(narrow)}", result, longer)
    except KeyboardInterrupt:
        print("interrupted; these are the figures so far", file=sys.stderr)
        status = 130
    described = []
    if measured:
        from .roofline import describe

        described = [describe(each) for each in measured]
    header = report.header(plan, described, again)
    limits = measured[-1] if measured else None
    print(report.markdown(results, header, limits))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results, header, limits), indent=1) + "\n")
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 2 where the command line is wrong, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["sass"]:
        from . import sass

        return sass.main(given[1:])
    if given[:1] == ["bytes"]:
        from . import traffic

        return traffic.main(given[1:])
    if given[:1] == ["optimizers"]:
        from . import optimizers

        return optimizers.main(given[1:])
    options = _parser().parse_args(given)
    if options.command == "gpu":
        return gpu.main(options.sections, options.out)
    if options.command == "catalogue":
        from . import catalogue

        return catalogue.main()
    if options.command == "conditions":
        from . import conditions

        return conditions.main(options.parts)
    return _peers(options)


if __name__ == "__main__":
    sys.exit(main())
