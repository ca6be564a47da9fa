"""Compile every CUDA kernel for five architectures without a GPU, and look at the machine code.

    python -m bench.offline [--arch 75,90] [--rules tanh,adam] [--only TEXT]

Prints registers, spilled bytes, local memory and float64 instructions of each kernel, and exits with 1 where a kernel
spills or where a float32 kernel computes in float64 that is not on the list ``DELIBERATE_FLOAT64``. Needs numba-cuda,
``ptxas``, ``cuobjdump`` and ``nvdisasm`` (of a toolkit, or of the wheels nvidia-cuda-nvcc, -cuobjdump, -nvdisasm).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

ARCHITECTURES = (75, 80, 90, 100, 120)
TOOLS = ("ptxas", "cuobjdump", "nvdisasm")
# arithmetic on float64 and conversions from and to it
_FLOAT64 = re.compile(
    r"\b(?:DADD|DMUL|DFMA|DSETP|DMNMX|MUFU\.\w+64H|F2F\.F64\.\w+|F2F\.\w+\.F64|I2F\.F64\S*|F2I\.F64\S*)"
)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", re.MULTILINE)


class Report(NamedTuple):
    """What the compiler made of one kernel for one architecture."""

    kernel: str
    arch: int
    registers: int
    spills: int  # bytes
    local: int  # bytes of local memory, spills included
    shared: int  # bytes
    float64: int  # instructions
    fma: int
    instructions: int
    wrong: str  # empty where all is well


@functools.cache
def tool(name: str) -> str | None:
    """The path of a tool: in NVIDIA's wheels beside this Python, on PATH, or under CUDA_HOME."""
    for root in map(pathlib.Path, sys.path):
        for path in sorted(root.glob(f"nvidia/*/bin/{name}")) if root.is_dir() else ():
            return str(path)
    found = shutil.which(name)
    if found is None and "CUDA_HOME" in os.environ:
        found = shutil.which(name, path=os.path.join(os.environ["CUDA_HOME"], "bin"))
    return found


def why_not() -> str | None:
    """None where kernels can be compiled here, else what is missing."""
    from dlcore.kernels.device import simulated

    if simulated():
        return "NUMBA_ENABLE_CUDASIM is set: the simulator compiles nothing"
    try:
        import numba_cuda  # noqa: F401
    except ImportError:
        return "numba-cuda is not installed"
    missing = [name for name in TOOLS if tool(name) is None]
    return f"not found: {', '.join(missing)}" if missing else None


@contextmanager
def pretended_device(arch: int) -> Iterator[None]:
    """Nested device functions ask the driver for the current device; this answers in its place."""
    from numba.cuda import dispatcher

    original = dispatcher.get_current_device
    device = types.SimpleNamespace(compute_capability=divmod(arch, 10))
    dispatcher.get_current_device = lambda: device
    try:
        yield
    finally:
        dispatcher.get_current_device = original


def _ptx(entry: Any, arch: int) -> str:
    from numba import cuda

    text, _ = cuda.compile(
        entry.function,
        entry.signature,
        cc=divmod(arch, 10),
        device=False,
        abi="numba",
        output="ptx",
        **entry.options,
    )
    return text


def _run(*command: str) -> tuple[str, str]:
    folder = os.path.dirname(tool("nvdisasm") or "")
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{os.path.basename(command[0])}: {done.stderr.strip()}")
    return done.stdout, done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def inspect_ptx(name: str, ptx: str, arch: int, float64_allowed: bool) -> Report:
    """Assemble ``ptx`` and read the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = os.path.join(folder, "kernel.ptx"), os.path.join(folder, "kernel.cubin")
        pathlib.Path(source).write_text(ptx)
        _, notes = _run(tool("ptxas") or "", "-v", "-O3", f"-arch=sm_{arch}", source, "-o", cubin)
        sass, _ = _run(tool("cuobjdump") or "", "-sass", cubin)
    instructions = _INSTRUCTION.findall(sass)
    spills = _number(r"(\d+) bytes spill stores", notes) + _number(r"(\d+) bytes spill loads", notes)
    float64 = sum(_FLOAT64.search(line) is not None for line in instructions)
    wrong = []
    if not instructions:
        wrong.append("no machine code was found")
    if spills:
        wrong.append("spills")
    if float64 and not float64_allowed:
        wrong.append("float64")
    return Report(
        name,
        arch,
        _number(r"Used (\d+) registers", notes),
        spills,
        _number(r"(\d+) bytes stack frame", notes),
        _number(r"(\d+) bytes smem", notes),
        float64,
        sum(re.search(r"\b[FD]FMA\b", line) is not None for line in instructions),
        len(instructions),
        ", ".join(wrong),
    )


def reports(
    architectures: Sequence[int] = ARCHITECTURES, only: str = "", rules: Sequence[str] = ()
) -> Iterator[Report]:
    """Every kernel of the catalogue (with the named rules, or all) for every architecture."""
    from dlcore.kernels.cuda.launch import catalogue

    for arch in architectures:
        with pretended_device(arch), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            pending = []
            for entry in catalogue(rules=rules):
                if only in entry.name:
                    pending.append(pool.submit(inspect_ptx, entry.name, _ptx(entry, arch), arch, entry.float64))
            for future in pending:
                yield future.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.offline", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(map(str, ARCHITECTURES)), help="for example 75,90")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--rules", default="", help="rules to compile kernels with, for example tanh,adam; else all")
    options = parser.parse_args(arguments)
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    print(
        f"{'kernel':64s}{'sm':>5s}{'regs':>6s}{'spill':>7s}{'local':>7s}{'shared':>8s}{'FP64':>6s}{'FMA':>6s}{'all':>7s}"
    )
    count = bad = 0
    rules = options.rules.split(",") if options.rules else ()
    for r in reports([int(a) for a in options.arch.split(",")], options.only, rules):
        count += 1
        bad += bool(r.wrong)
        numbers = f"{r.arch:5d}{r.registers:6d}{r.spills:7d}{r.local:7d}{r.shared:8d}{r.float64:6d}{r.fma:6d}"
        print(f"{r.kernel:64s}{numbers}{r.instructions:7d}  {r.wrong}", flush=True)
    print(f"{count} kernels, {bad} wrong")
    return 1 if bad or not count else 0


if __name__ == "__main__":
    sys.exit(main())
