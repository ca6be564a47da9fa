"""Compile every CUDA kernel for seven architectures without a GPU, and hold the machine code against budgets.toml."""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
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

from .machine import MEMORY, Code, assemble, ptx_of, run, tool, why_not

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
BUDGETS = pathlib.Path(__file__).with_name("budgets.toml")
_ALONE = 8  # fewer kernels than this are compiled in this process: workers take seconds to start
_EXAMPLES = """examples:
  python -m bench sass                           every kernel with every rule on every architecture: hours
  python -m bench sass --rules relu,adam         every kernel, those that take rules with these two only
  python -m bench sass product --arch 75,90      kernels whose name contains a text
  python -m bench sass --json sass.json

A row is one kernel: instruction[rule]/function/dtype; a minus sign stands for absent optional operands, = and ~ for
arrays that begin at a multiple of 16 bytes and elsewhere. LDG, STG, LDS and STS count 128-bit accesses of all such
accesses; hot is the share of FMA and MMA instructions in the innermost loop with the most of them. The exit status is
1 where a kernel breaks its budget, 2 where something is missing.
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
        """The budget of a kernel function."""
        budget = self.defaults
        for pattern, values in self.changes.items():
            if fnmatch.fnmatchcase(kernel, pattern):
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


def entries(rules: Sequence[str] = ()) -> list[Any]:
    """Every kernel with the named rules, or with all; the catalogue's arrays are small and never all aligned."""
    from dlcore.kernels.cuda.launch import catalogue

    return [*catalogue(rules=rules), *_placed(rules), *_products()]


def place(dtype: Any, offset: int, *shape: int) -> Any:
    """An array that begins ``offset`` elements after a multiple of 16 bytes."""
    import numpy as np

    memory = np.ones(int(np.prod(shape)) + 64, dtype)
    first = -memory.ctypes.data % 16 // memory.itemsize + offset
    return memory[first : first + int(np.prod(shape))].reshape(shape)


def _entry(label: str, launch: Any, dtype: Any, oldest: int = 0) -> Any:
    from dlcore.kernels.cuda.launch import Entry
    from dlcore.kernels.cuda.machine_code import argument_types

    function, kinds = launch.kernel.py_func, argument_types(launch.arguments)
    name = f"{label}/{function.__name__}/{dtype}"
    return Entry(name, function, kinds, launch.kernel.options, str(dtype) == "float64", oldest)


def _products() -> Iterator[Any]:
    """Matrix products with every tile, aligned and not, with the whole epilogue; on tensor cores too."""
    import numpy as np

    from dlcore.kernels import find
    from dlcore.kernels.cuda import gemm, gemm_tensor
    from dlcore.kernels.cuda.launch import device_function
    from dlcore.kernels.device import TENSOR_CORES
    from dlcore.kernels.precision import PRECISIONS

    relu = find("activation", "relu")
    for dtype, tiles in gemm.TILES.items():
        value = device_function(relu, "value", dtype)
        for offset, size in ((0, 8), (1, 9)):
            a, b, z, y = (place(dtype, offset, size, size) for _ in range(4))
            mark = "~" if offset else "="
            for tile in tiles:
                plan = gemm.Plan(tile, 1, tile.slice)
                (launch,) = gemm.multiply(a, b, y, "ab^T", value, y[0], z, plan)
                yield _entry(f"product{mark}", launch, dtype)
            *_, launch = gemm.multiply(a, b, y, "ab", value, y[0], z, gemm.Plan(tiles[-1], 2, tiles[-1].slice))
            yield _entry(f"product{mark}", launch, dtype)
    value = device_function(relu, "value", np.float32)
    for precision in PRECISIONS[1:]:
        for block in (gemm_tensor.LARGE, gemm_tensor.SMALL):
            a, b, z, y = (place("float32", 0, 8, 8) for _ in range(4))
            (launch,) = gemm_tensor.multiply(precision, a, b, y, "ab", value, y[0], z, block)
            yield _entry("product=", launch, "float32", TENSOR_CORES)


def _placed(rules: Sequence[str]) -> Iterator[Any]:
    """The kernels that take whole arenas, with arrays that begin at a multiple of 16 bytes and with others."""
    import numpy as np

    from dlcore.kernels.cuda.launch import plan
    from dlcore.kernels.instructions import Instruction
    from dlcore.kernels.rule import REGISTRY

    chosen = [rule for rule in REGISTRY["optimizer"].values() if not rules or rule.name in rules]
    for offset, dtype in [(offset, dtype) for offset in (0, 1) for dtype in ("float32", "float64")]:
        w, hyper, uniforms = place(dtype, offset, 8), np.ones(3), np.ones(16, dtype)
        planned = [("clip_by_global_norm", plan(Instruction("clip_by_global_norm", o := [w, hyper, uniforms]), o)[:1])]
        for rule in chosen:
            o = [w, w, place(dtype, offset, len(rule.slots), 8), uniforms]
            planned.append((f"optimizer_update[{rule.name}]", plan(Instruction("optimizer_update", o, rule), o)))
        for label, (launch,) in planned:
            yield _entry(f"{label}{'~' if offset else '='}", launch, dtype)


_mine: list[Any] = []  # the entries of this worker


def _begin(rules: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends the workers
    _mine[:] = entries(rules)


def _compile(entry: Any, arch: int) -> Code | Failure:
    try:
        return assemble(entry.name, ptx_of(entry, arch), arch)
    except Exception as error:  # of Numba, NVVM or ptxas; the other kernels are looked at all the same
        return Failure(entry.name, arch, str(error).strip().splitlines()[0] if str(error).strip() else repr(error))


def _job(job: tuple[int, int]) -> Code | Failure:
    arch, index = job
    return _compile(_mine[index], arch)


def compiled(
    every: Sequence[Any], chosen: Sequence[int], architectures: Sequence[int], rules: Sequence[str]
) -> Iterator[tuple[Any, Code | Failure]]:
    """Each chosen entry with its machine code for each architecture, in order; a process for each core."""
    jobs = [(arch, index) for arch in architectures for index in chosen if arch >= every[index].oldest]
    if len(jobs) < _ALONE:
        for arch, index in jobs:
            yield every[index], _compile(every[index], arch)
        return
    # new interpreters rather than forks: LLVM and its threads are in use here already
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), _begin, (rules,)) as pool:
        for (_, index), result in zip(jobs, pool.imap(_job, jobs), strict=True):
            yield every[index], result


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
    """How far it is, on stderr: one line that changes on a terminal, else one line for each architecture."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.arch = total, 0, 0
        self.terminal = sys.stderr.isatty()

    def show(self, arch: int, name: str) -> None:
        self.done += 1
        if self.terminal:
            self._write(f"\r\x1b[K[{self.done}/{self.total}] sm_{arch} {name[:80]}")
        elif arch != self.arch:
            self._write(f"[{self.done}/{self.total}] sm_{arch}\n")
        self.arch = arch

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
