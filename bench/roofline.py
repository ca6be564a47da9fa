"""The ceilings of this machine, measured: FMA rate and triad bandwidth, of one thread and of several.

    python -m bench.roofline [--threads 1,2]

prints them as JSON. No kernel can be faster than ``max(flops / peak, bytes / bandwidth)``.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

try:
    import threadpoolctl
except ImportError:
    threadpoolctl = None

_CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_USUAL_CACHES = (1 << 20, 32 << 20)  # bytes, where the system does not say
_CHAINS = 12  # independent accumulators: latency (4 or 5 cycles) times units (2), and they fit in 16 registers
_REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """What ``threads`` threads reach: flops a second, and bytes a second for working sets of up to so many bytes."""

    threads: int
    peak: float
    bandwidth: tuple[tuple[float, float], ...]  # (largest working set, bytes a second), the last one for any

    def seconds(self, flops: float, moved: float) -> float:
        """The least time of work with ``flops`` operations on ``moved`` bytes, which are taken as its working set."""
        rate = next((rate for limit, rate in self.bandwidth if moved <= limit), self.bandwidth[-1][1])
        return max(flops / self.peak, moved / rate)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ceilings:
        """What :meth:`to_dict` gave, through JSON or not."""
        levels = tuple((float(limit), float(rate)) for limit, rate in values["bandwidth"])
        return cls(values["threads"], values["peak"], levels)


def cache_sizes() -> tuple[int, int]:
    """Bytes of the second-level cache (of one core) and of the last level."""
    sizes = {}
    for index in _CACHES.glob("index*"):
        size = re.fullmatch(r"(\d+)([KMG])", (index / "size").read_text().strip())
        if size and (index / "type").read_text().strip() != "Instruction":
            sizes[int((index / "level").read_text())] = int(size[1]) * _UNITS[size[2]]
    if 2 not in sizes:
        return _USUAL_CACHES
    return sizes[2], sizes[max(sizes)]


def _lanes() -> int:
    features = llvmlite.binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


@functools.cache
def _fma_kernel() -> Any:
    """A compiled loop of ``n`` rounds of one FMA in each of ``_CHAINS`` vector registers, and its flops a round."""
    lanes = _lanes()
    vector = ir.VectorType(ir.FloatType(), lanes)

    def define(typing_context: Any, n: Any) -> Any:
        def codegen(context, builder, signature, arguments):
            name = f"llvm.fma.v{lanes}f32"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            # contracting factors: the accumulators stay normal numbers
            factor, addend = (ir.Constant(vector, [value] * lanes) for value in (0.5, 1.0))
            with builder.goto_entry_block():
                registers = [builder.alloca(vector) for _ in range(_CHAINS)]
            for k, register in enumerate(registers):  # not 2, which 0.5 * 2 + 1 would leave to the compiler
                builder.store(ir.Constant(vector, [k + 2.5] * lanes), register)
            with cgutils.for_range(builder, arguments[0]):
                for register in registers:
                    builder.store(builder.call(fma, [builder.load(register), factor, addend]), register)
            total = builder.load(registers[0])
            for register in registers[1:]:
                total = builder.fadd(total, builder.load(register))
            return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

        return types.float32(types.int64), codegen

    chains: Any = intrinsic(define)

    @numba.njit(types.float32(types.int64), nogil=True)
    def kernel(n):
        return chains(n)

    return kernel, 2 * _CHAINS * lanes


@functools.cache
def _triad_kernel() -> Any:
    @numba.njit(
        types.void(types.float32[::1], types.float32[::1], types.float32[::1], types.int64), nogil=True, fastmath=True
    )
    def kernel(a, b, c, repeats):
        for r in range(repeats):
            scale = np.float32(r + 2)
            for i in range(a.size):
                a[i] = b[i] + scale * c[i]

    return kernel


def _best(work: Sequence[Callable[[], Any]], times: int = _REPEATS) -> float:
    """The shortest wall time of all of ``work`` at once, each in a thread of its own."""
    best = float("inf")
    gate = threading.Barrier(len(work) + 1)

    def run(call: Callable[[], Any]) -> None:
        try:
            for _ in range(times):
                gate.wait()
                call()
                gate.wait()
        except threading.BrokenBarrierError:
            pass  # who measures was interrupted

    threads = [threading.Thread(target=run, args=(call,)) for call in work]
    for thread in threads:
        thread.start()
    try:
        for _ in range(times):
            start = time.perf_counter()
            gate.wait()
            gate.wait()
            best = min(best, time.perf_counter() - start)
    except BaseException:
        gate.abort()  # or the threads would wait, and the process for them
        raise
    for thread in threads:
        thread.join()
    return best


def fma_rate(threads: int) -> float:
    """Flops a second of float32 FMAs in registers."""
    kernel, flops = _fma_kernel()
    rounds = 2_000_000
    return threads * flops * rounds / _best([lambda: kernel(rounds)] * threads)


def blas_rate(threads: int, size: int = 1024) -> float:
    """Flops a second of NumPy's matrix product in float32; 0 where its threads cannot be limited.

    Some processors have units for matrix products beside those for FMAs.
    """
    if threadpoolctl is None:
        return 0.0
    a = np.ones((size, size), np.float32)
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        return 2 * size**3 / _best([lambda: a @ a])


class Triad:
    """``a = b + s * c``, where the arrays of all threads together have ``working_set`` bytes."""

    def __init__(self, threads: int, working_set: int) -> None:
        self._repeats = max(1, (1 << 28) // working_set)
        arrays = [np.ones((3, working_set // (12 * threads)), np.float32) for _ in range(threads)]
        self._moved = self._repeats * sum(rows.nbytes for rows in arrays)
        self._work = [functools.partial(_triad_kernel(), *rows, self._repeats) for rows in arrays]

    def rate(self, times: int = 1) -> float:
        """Bytes a second of the quickest of some goes."""
        return self._moved / _best(self._work, times)


def triad_rate(threads: int, working_set: int) -> float:
    """The triad's bytes a second."""
    return Triad(threads, working_set).rate(_REPEATS)


def measure(threads: int) -> Ceilings:
    """The ceilings of ``threads`` threads; a few seconds.

    The peak is that of FMAs in registers, or of BLAS where that is more.
    """
    second, last = cache_sizes()
    levels = [(float(second * threads), triad_rate(threads, second * threads // 2))]
    if last > second:
        levels.append((float(last), triad_rate(threads, last // 2)))
    levels.append((float("inf"), triad_rate(threads, max(4 * last, 128 << 20))))
    return Ceilings(threads, max(fma_rate(threads), blas_rate(threads)), tuple(levels))


def describe(ceilings: Ceilings) -> str:
    """One line."""
    rates = ", ".join(f"{rate / 1e9:.0f} GB/s {_up_to(limit)}" for limit, rate in ceilings.bandwidth)
    plural = "s" if ceilings.threads > 1 else ""
    return f"{ceilings.threads} thread{plural}: {ceilings.peak / 1e9:.0f} GFLOP/s; triad {rates}"


def _up_to(limit: float) -> str:
    return "beyond" if limit == float("inf") else f"up to {limit / (1 << 20):.0f} MiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ceilings as JSON, one object for each number of threads."""
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads, for example 1,2 (default)")
    options = parser.parse_args(arguments)
    print(json.dumps([measure(count).to_dict() for count in _numbers(options.threads)]))
    return 0


def _numbers(text: str) -> Iterator[int]:
    yield from map(int, text.split(","))


if __name__ == "__main__":
    raise SystemExit(main())
