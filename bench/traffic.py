"""Bytes that every CUDA instruction moves, counted by running its kernels on the simulator, against the least possible.

An access is one element read or written by one thread, in global memory. The least is each operand read once that is
read and written once that is written. Only matrices and whole arenas are held against it; vectors of rows or columns,
hyper-parameters and sums handed from launch to launch are counted apart, as ``small``: many threads read the same few
of them, from caches. A thread that reads one element twice with nothing between reads it once: the compiler merges
that. Dropout reads only what it keeps, where it takes columns one by one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import timing

SIZE = (128, 64, 32)
RULES = {"activation": "tanh", "loss": "mean_squared_error", "optimizer": "adam"}
# SM3 reads the weights for their decay, which is coupled
FACTORED = {
    "tensor_sums": "adafactor",
    "optimizer_update_by_tensor": "adafactor",
    "factor_sums": "sm3",
    "factored_update": "sm3",
}
_EACH_ONCE = (
    "optimizer_update",
    "optimizer_update_mixed",
    "optimizer_update_by_tensor",
    "clip_by_global_norm",
    "clip_by_global_norm_mixed",
    "clip_by_norm",
    "tensor_sums",
    "factor_sums",
    "factored_update",
    "check_finite",
    "accumulate_gradient",
    "scale_loss",
    "batch_norm_inference",
    "dense_backward_z",
    "activation_forward",
    "activation_backward",
    "dropout",
    "gather_rows",
    "softmax_forward",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_cross_entropy_dense",
    "group_norm_forward",
    "group_norm_backward",
    "hadamard",
    "prelu_forward",
    "prelu_backward",
    "log_softmax_forward",
    "log_softmax_backward",
    "elementwise_loss",
    "cosine_similarity",
    "categorical_hinge",
    "hellinger_distance",
    "smooth_targets",
    "binary_accuracy",
    "weight_penalty",
    "weight_penalty_gradient",
    "constrain_non_negative",
    "restore_weights",
)
# the least an instruction can do with sums over rows that come before the result is to read its inputs twice
AT_MOST = dict.fromkeys(_EACH_ONCE, 1.0) | {
    "batch_norm_forward": 1.5,
    "batch_norm_backward": 5 / 3,
    "constrain_norm": 1.5,
    "ascend": 1.5,
}
ONCE = (
    "dense_forward",
    "dense_backward_w",
    "dense_backward_x",
    "kronecker",
    "khatri_rao",
)  # no access to results but one write of each element
_EXAMPLES = """examples:
  python -m bench bytes                          every instruction with all operands, about a minute
  python -m bench bytes batch_norm optimizer     those whose name contains a text
  python -m bench bytes --size 512,96,64         rows, columns, inner size

times is all bytes over the least; results is accesses of the results over their elements. Factors of matrix products
are read once for each tile of the result. The exit status is 1 where an instruction misses its target.
"""


class Traffic(NamedTuple):
    """Bytes of one launch, or of all launches of an instruction."""

    name: str
    read: int
    written: int
    results: int  # of read and written, those of operands that the instruction writes only
    small: int


class Moved(NamedTuple):
    """What one instruction moves."""

    op: str
    launches: tuple[Traffic, ...]
    least: int
    least_results: int

    @property
    def total(self) -> Traffic:
        """Of all launches."""
        return Traffic(self.op, *(sum(getattr(t, name) for t in self.launches) for name in Traffic._fields[1:]))

    @property
    def times(self) -> float:
        """Bytes over the least possible; 0 for an instruction of small operands only."""
        return (self.total.read + self.total.written) / self.least if self.least else 0.0

    @property
    def results(self) -> float:
        """Accesses of the results over their elements."""
        return self.total.results / self.least_results if self.least_results else 0.0

    @property
    def wrong(self) -> str:
        """The target that is missed, in words."""
        limit = AT_MOST.get(self.op)
        if limit is not None and self.times > limit + 1e-9:
            return f"{self.times:.3f} times the least, at most {limit:.3f}"
        if self.op in ONCE and self.results != 1.0:
            return f"{self.results:.3f} accesses of each result, not one"
        return ""


# --------------------------------------------------------------------------------------------------- counting


class _Tally:
    """Bytes read and written of one operand in one launch."""

    last: Any = None  # thread and address of the access before, of any operand

    def __init__(self) -> None:
        self.read = self.written = 0


class _Counting:
    """An array as a kernel sees it, which counts what passes."""

    def __init__(self, array: np.ndarray, tally: _Tally) -> None:
        self.array, self.tally = array, tally
        self.dtype, self.ndim, self.shape, self.size = array.dtype, array.ndim, array.shape, array.size
        self.first = array.ctypes.data

    def _access(self, index: Any) -> tuple[Any, int]:
        import greenlet

        place = index if isinstance(index, tuple) else (index,)
        return greenlet.getcurrent(), self.first + sum(
            int(i) * step for i, step in zip(place, self.array.strides, strict=True)
        )

    def __getitem__(self, index: Any) -> Any:
        value = self.array[index]
        if isinstance(value, np.ndarray):
            return _Counting(value, self.tally)
        access = self._access(index)
        if access != _Tally.last:
            self.tally.read += self.array.itemsize
        _Tally.last = access
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[index] = value
        self.tally.written += self.array.itemsize
        _Tally.last = None

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
        return np.asarray(self.array, *arguments, **keywords)


def _operands(op: Any, size: Sequence[int], rule: Any) -> list[np.ndarray]:
    from dlcore.kernels.program import factors_of, tensor_blocks

    m, n, k = size
    if op.multiples:
        k = n  # a channel for each column
    half = m * n // 32 * 16  # tensors begin at multiples of 64 bytes
    blocks = tensor_blocks([half, m * n - half], [0, half])
    factors = factors_of([(half // 16, 16), (m * n - half,)], [0, half])
    tables = {"blocks": blocks, "tensors": factors.tensors, "panels": factors.panels}
    letters = {"m": m, "n": n, "k": k, "g": 1, "N": 2 * m, "O": 2 * m, "P": m * n, "Q": 1, "H": 1, "S": 1, "K": 3}
    letters |= {"A": m, "E": 1, "q": k * n, "L": 4, "U": 16, "V": 16, "T": 2, "B": len(blocks), "t": 3}
    letters |= {"F": factors.size, "X": factors.sums, "f": 5, "D": len(factors.panels), "p": 7}
    if op.rule == "optimizer":
        letters |= {"S": len(rule.slots), "K": len(rule.hyper), "V": 16 + len(rule.sums)}
    kinds = {"f": np.float32, "i": np.int64, "d": np.float64, "h": np.float16}
    rng = np.random.default_rng(0)
    result = []
    for spec in op.operands:
        values: np.ndarray = rng.uniform(0.1, 0.9, [letters[d] for d in spec.dims])
        if spec.name in ("uniforms", "rows"):
            values[..., 4] = 0  # no step is skipped
        elif spec.name == "turn":
            values[:] = 1  # not the first of its gradients
        elif spec.name in tables:
            values = tables[spec.name]
        elif spec.name == "order":
            values = rng.permutation(values.size)
        placed = np.empty(values.size + 8, kinds[spec.dtype])  # at a multiple of 16 bytes, as memory of a GPU
        first = -placed.ctypes.data % 16 // placed.itemsize
        view = placed[first : first + values.size].reshape(values.shape)
        view[...] = values
        result.append(view)
    return result


def _large(spec: Any) -> bool:
    if "P" in spec.dims:
        return True
    small = {"g", "T", "B", "D"}  # figures of groups, of tensors and of their parts
    return len(spec.dims) > 1 and not small & set(spec.dims)


def count(op: Any, size: Sequence[int] = SIZE) -> Moved:
    """Run instruction ``op`` once on the simulator, with all of its operands; ``size`` is rows, columns, inner size."""
    from dlcore.kernels.cuda.arrays import memory
    from dlcore.kernels.cuda.launch import plan
    from dlcore.kernels.instructions import Instruction
    from dlcore.kernels.rule import find

    rule = find(op.rule, FACTORED.get(op.name, RULES[op.rule])) if op.rule else None
    operands = _operands(op, size, rule)
    launches = []
    instruction = Instruction(op, operands, rule, [0.5] * len(op.scalars))
    for launch in plan(instruction, operands, np.zeros(2, np.int64)):
        tallies = [_Tally() for _ in operands]
        rest = _Tally()
        arguments = []
        for argument in launch.arguments:
            if isinstance(argument, np.ndarray):
                owner = [k for k, operand in enumerate(operands) if np.may_share_memory(argument, operand)]
                argument = _Counting(argument, tallies[owner[0]] if owner else rest)
            arguments.append(argument)
        memory.run([launch._replace(arguments=tuple(arguments))])
        pairs = list(zip(op.operands, tallies, strict=True))
        large = [tally for spec, tally in pairs if _large(spec)]
        small = [rest, *(tally for spec, tally in pairs if not _large(spec))]
        results = [tally for spec, tally in pairs if _large(spec) and spec.access == "write"]
        launches.append(
            Traffic(
                launch.kernel.py_func.__name__,
                sum(tally.read for tally in large),
                sum(tally.written for tally in large),
                sum(tally.read + tally.written for tally in results),
                sum(tally.read + tally.written for tally in small),
            )
        )
    least = least_results = 0
    for spec, operand in zip(op.operands, operands, strict=True):
        if _large(spec):
            needed = operand.nbytes // len(operand) * size[0] if "N" in spec.dims else operand.nbytes
            least += needed * (2 if spec.access == "update" else 1)
            least_results += operand.nbytes if spec.access == "write" else 0
    return Moved(op.name, tuple(launches), least, least_results)


def counted(names: Sequence[str] = (), size: Sequence[int] = SIZE) -> Iterator[Moved]:
    """Every instruction, or those whose name contains one of ``names``."""
    from dlcore.kernels.instructions import MIXED, OPS

    for op in (*OPS.values(), *MIXED.values()):
        if not names or any(name in op.name for name in names):
            yield count(op, size)


# ---------------------------------------------------------------------------------------------------- command


def table(moved: Sequence[Moved]) -> str:
    """The figures: a line for each instruction, and one for each of its launches."""
    lines = [f"{'bytes':34s}{'read':>10s}{'written':>10s}{'least':>10s}{'times':>8s}{'results':>9s}{'small':>10s}"]
    for each in moved:
        total = each.total
        figures = f"{each.least:10d}{each.times:8.2f}" if each.least else f"{'-':>10s}{'-':>8s}"
        figures += f"{each.results:9.2f}" if each.least_results else f"{'-':>9s}"
        lines.append(
            f"{each.op:34s}{total.read:10d}{total.written:10d}{figures}{total.small:10d}  {each.wrong}".rstrip()
        )
        for part in each.launches:
            lines.append(f"{'  ' + part.name:34s}{part.read:10d}{part.written:10d}{'':27s}{part.small:10d}")
    return "\n".join(lines)


def _size(text: str) -> tuple[int, ...]:
    size = tuple(int(word) for word in text.split(","))
    if len(size) != 3 or min(size) < 1:
        raise argparse.ArgumentTypeError(f"expected rows,columns,inner, each at least 1, got {text!r}")
    return size


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a target is missed, 2 where something is missing, 130 after Ctrl-C."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m bench bytes", description=__doc__, epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("names", nargs="*", help="instructions whose name contains one of these; else all")
    parser.add_argument("--size", type=_size, default=SIZE, help="rows,columns,inner (default 128,64,32)")
    options = parser.parse_args(arguments)
    from dlcore.kernels.device import simulated

    if not simulated():  # it is chosen when Numba is imported, so in another process
        given = [*options.names, "--size", ",".join(map(str, options.size))]
        command = [sys.executable, "-m", "bench.traffic", *given]
        try:
            return subprocess.run(command, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, cwd=timing.ROOT).returncode
        except KeyboardInterrupt:
            return 130
    sys.path.append(str(timing.ROOT / "tests"))  # the simulator's core
    try:
        import simulator
    except ImportError as error:
        print(f"{error}; pip install '.[test]' adds what the simulator needs", file=sys.stderr)
        return 2
    simulator.install()
    moved = []
    try:
        for each in counted(options.names, options.size):
            print(each.op, file=sys.stderr, flush=True)
            moved.append(each)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if not moved:
        print(f"no instruction has a name with {' or '.join(options.names)} in it", file=sys.stderr)
        return 2
    print(f"float32, rows {options.size[0]}, columns {options.size[1]}, inner size {options.size[2]}")
    print(table(moved))
    return 1 if any(each.wrong for each in moved) else 0


if __name__ == "__main__":
    sys.exit(main())
