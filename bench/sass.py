"""Compile every CUDA kernel for seven architectures without a GPU, and hold the machine code against budgets.toml."""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .kernels import WRAPPED, entries
from .machine import MEMORY, Binary, Code, assemble, codes, ptx_for, run, tool, why_not

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
BUDGETS = pathlib.Path(__file__).with_name("budgets.toml")
_ALONE = 8  # fewer kernels than this are compiled in this process: workers take seconds to start
_TOGETHER = 16  # kernels that a worker disassembles at once
_LINE = 500  # rows from one line of progress to the next
_EXAMPLES = """examples:
  python -m bench sass                           every kernel with every rule on every architecture: half an hour
  python -m bench sass --rules relu,adam         every kernel, those that take rules with these two only
  python -m bench sass product --arch 75,90      kernels whose name contains a text
  python -m bench sass --json sass.json

A row is one kernel: instruction[rule]/function/dtype; a minus sign stands for absent optional operands, = and ~ for
arrays that begin at a multiple of 16 bytes and elsewhere, batched_ for the form of many models. LDG, STG, LDS and STS
count 128-bit accesses of all such accesses; hot is the share of FMA and MMA instructions in the innermost loop with the
most of them. The exit status is 1 where a kernel breaks its budget, 2 where something is missing.
"""


# -------------------------------------------------------------------------------------------------- budgets


class Budget(NamedTuple):
    """What a kernel may cost; budgets.toml says what each figure means."""

    registers: int
    registers_float64: int
    spills: int
    local: int
    vector: tuple[str, ...]
    share: float
    share_float64: float


class BudgetError(ValueError):
    """budgets.toml says what cannot be meant."""


class Budgets:
    """The budgets in a file: defaults, and changes to them by the name of the kernel function."""

    def __init__(self, path: pathlib.Path = BUDGETS) -> None:
        text = tomllib.loads(path.read_text())
        self.changes: dict[str, dict[str, Any]] = text.get("kernels", {})
        missing = set(Budget._fields) - set(text.get("defaults", {}))
        if missing:
            raise BudgetError(f"{path.name}: defaults lacks {', '.join(sorted(missing))}")
        for place, values in [("defaults", text["defaults"]), *self.changes.items()]:
            unknown = [*sorted(set(values) - set(Budget._fields)), *sorted(set(values.get("vector", ())) - set(MEMORY))]
            if unknown:
                raise BudgetError(f"{path.name}: {place} names {', '.join(unknown)}, which is no figure of a budget")
        self.defaults = Budget(**text["defaults"])

    def of(self, kernel: str) -> Budget:
        """The budget of a kernel function: with wrapped rules, or for many models, too where no table changes it."""
        plain = kernel.removeprefix(WRAPPED)
        names = plain.removeprefix("batched_"), plain, kernel
        budget = self.defaults
        for pattern, values in self.changes.items():
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                budget = budget._replace(**values)
        return budget

    def unused(self, kernels: Sequence[str]) -> list[str]:
        """The tables that match none of ``kernels``."""
        return [pattern for pattern in self.changes if not fnmatch.filter(kernels, pattern)]


def breaches(code: Code, budget: Budget, float64_allowed: bool) -> list[str]:
    """What is beyond the budget, in words."""
    double = code.dtype == "float64"
    registers = budget.registers_float64 if double else budget.registers
    share = budget.share_float64 if double else budget.share
    found = []
    if code.registers > registers:
        found.append(f"{code.registers} registers, at most {registers}")
    if code.spills > budget.spills:
        found.append(f"spills {code.spills} bytes")
    if code.local > budget.local:
        found.append(f"{code.local} bytes of local memory")
    if code.float64 and not float64_allowed:
        found.append(f"{code.float64} float64 instructions")
    found += [f"no 128-bit {name}" for name in budget.vector if not code.wide[name]]
    if code.hot_share < share:
        found.append(f"FMA share {code.hot_share:.2f}, at least {share:.2f}")
    return found


# -------------------------------------------------------------------------------------------------- compiling


class Failure(NamedTuple):
    """A kernel that does not compile."""

    name: str
    arch: int
    message: str


_mine: list[Any] = []  # the entries of this worker


def _begin(rules: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends the workers
    _mine[:] = entries(rules)


def _failure(name: str, arch: int, error: Exception) -> Failure:
    return Failure(name, arch, str(error).strip().splitlines()[0] if str(error).strip() else repr(error))


def _assembled(entry: Any, architectures: Sequence[int]) -> Iterator[Binary | Failure]:
    """The entry for each architecture; an error of Numba, NVVM or ptxas keeps no other kernel from being looked at."""
    try:
        texts = ptx_for(entry, architectures)
    except Exception as error:
        yield from (_failure(entry.name, arch, error) for arch in architectures)
        return
    for arch, text in zip(architectures, texts, strict=True):
        try:
            yield assemble(entry.name, text, arch)
        except Exception as error:
            yield _failure(entry.name, arch, error)


def compile_all(entries: Sequence[Any], architectures: Sequence[int]) -> list[Code | Failure]:
    """The machine code of each entry for each architecture that it is for, or why there is none."""
    made = [each for entry in entries for each in _assembled(entry, _able(entry, architectures))]
    found: list[Any] = list(made)
    for arch in architectures:
        binaries = {k: each for k, each in enumerate(made) if isinstance(each, Binary) and each.arch == arch}
        try:
            read: Sequence[Code | Failure] = codes(list(binaries.values())) if binaries else ()
        except Exception as error:  # of nvdisasm: it is not known which of them it cannot read
            read = [_failure(each.name, arch, error) for each in binaries.values()]
        for k, code in zip(binaries, read, strict=True):
            found[k] = code
    return found


def _able(entry: Any, architectures: Sequence[int]) -> list[int]:
    return [arch for arch in architectures if arch >= entry.oldest]


def _job(job: tuple[Sequence[int], Sequence[int]]) -> list[Code | Failure]:
    indices, architectures = job
    return compile_all([_mine[index] for index in indices], architectures)


def compiled(
    every: Sequence[Any], chosen: Sequence[int], architectures: Sequence[int], rules: Sequence[str]
) -> Iterator[tuple[Any, Code | Failure]]:
    """Each chosen entry with its machine code for each architecture, in order; a process for each core."""
    whose = (every[index] for index in chosen for _ in _able(every[index], architectures))
    if len(chosen) < _ALONE:
        yield from zip(whose, compile_all([every[index] for index in chosen], architectures), strict=True)
        return
    jobs = [(chosen[first : first + _TOGETHER], architectures) for first in range(0, len(chosen), _TOGETHER)]
    # new interpreters rather than forks: LLVM and its threads are in use here already
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), _begin, (rules,)) as pool:
        yield from zip(whose, itertools.chain.from_iterable(pool.imap(_job, jobs)), strict=True)


# ------------------------------------------------------------------------------------------------------ table

_HEADER = (
    f"{'kernel':64s}{'sm':>4s}{'regs':>6s}{'spill':>7s}{'local':>7s}{'shared':>8s}"
    f"{''.join(f'{name:>8s}' for name in MEMORY)}{'FP64':>6s}{'FFMA':>6s}{'HMMA':>6s}{'hot':>6s}"
)


def _row(code: Code) -> str:
    access = "".join(f"{f'{code.wide[name]}/{code.accesses[name]}':>8s}" for name in MEMORY)
    sizes = f"{code.arch:4d}{code.registers:6d}{code.spills:7d}{code.local:7d}{code.shared:8d}"
    hot = f"{code.hot_share:6.2f}" if code.hot[1] else f"{'-':>6s}"
    return f"{code.name:64s}{sizes}{access}{code.float64:6d}{code.fma:6d}{code.mma:6d}{hot}"


class _Progress:
    """How far it is, on stderr: one line that changes on a terminal, else one line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.terminal = sys.stderr.isatty()

    def show(self, arch: int, name: str) -> None:
        self.done += 1
        if self.terminal:
            self._write(f"\r\x1b[K[{self.done}/{self.total}] sm_{arch} {name[:80]}")
        elif self.done % _LINE == 1:
            self._write(f"[{self.done}/{self.total}] sm_{arch} {name}\n")

    def clear(self) -> None:
        if self.terminal:
            self._write("\r\x1b[K")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _versions() -> dict[str, str]:
    notes, _ = run(tool("ptxas") or "", "--version")
    found = re.search(r"\bV([\d.]+)", notes)
    versions = {name: importlib.metadata.version(name) for name in ("numba", "numba-cuda")}
    return {**versions, "ptxas": found[1] if found else ""}


# ---------------------------------------------------------------------------------------------------- command


def _architectures(text: str) -> list[int]:
    found = [int(word.removeprefix("sm_")) for word in text.split(",")]
    unknown = [arch for arch in found if arch not in ARCHITECTURES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(map(str, ARCHITECTURES))}")
    return found


def _rules(text: str) -> list[str]:
    from dlcore.kernels.rule import REGISTRY

    names = [name for name in text.split(",") if name]
    known = {rule.name for table in REGISTRY.values() for rule in table.values()}
    unknown = sorted(set(names) - known)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no rule is called {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench sass", description=__doc__, epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("names", nargs="*", help="kernels whose name contains one of these; else all")
    everywhere = ",".join(map(str, ARCHITECTURES))
    parser.add_argument("--arch", type=_architectures, default=list(ARCHITECTURES), help=f"some of {everywhere}")
    parser.add_argument(
        "--rules", type=_rules, default=[], help="rules to compile kernels with, as tanh,adam; else all"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there as well")
    return parser


def _report(options: argparse.Namespace, budgets: Budgets) -> int:
    every = entries(options.rules)
    chosen = [i for i, entry in enumerate(every) if not options.names or any(n in entry.name for n in options.names)]
    if not chosen:
        print(f"no kernel has a name with {' or '.join(options.names)} in it", file=sys.stderr)
        return 2
    progress = _Progress(sum(arch >= every[index].oldest for arch in options.arch for index in chosen))
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    print(_HEADER)
    for entry, code in compiled(every, chosen, options.arch, options.rules):
        progress.show(code.arch, code.name)
        if isinstance(code, Failure):
            wrong, row = [code.message], f"{code.name:64s}{code.arch:4d}"
        else:
            wrong, row = breaches(code, budgets.of(code.kernel), entry.float64), _row(code)
        rows.append({**code._asdict(), "breaches": wrong})
        broken += [f"{code.name} sm_{code.arch}: {what}" for what in wrong]
        progress.clear()
        print(f"{row}  {'; '.join(wrong)}".rstrip(), flush=True)
    if not options.names:
        kernels = [entry.name.split("/")[-2] for entry in every]
        broken += [f"{BUDGETS.name}: no kernel is called {pattern}" for pattern in budgets.unused(kernels)]
    print(f"{len(rows)} kernels, {len(broken)} breaches", *broken, sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"versions": _versions(), "kernels": rows, "breaches": broken}, indent=1))
    return 1 if broken else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a budget is broken, 2 where something is missing, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    reason = why_not()
    if options.json and not options.json.absolute().parent.is_dir():
        reason = f"--json {options.json}: there is no folder {options.json.absolute().parent}"
    if reason:
        print(reason, file=sys.stderr)
        return 2
    try:
        return _report(options, Budgets())
    except (BudgetError, tomllib.TOMLDecodeError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
