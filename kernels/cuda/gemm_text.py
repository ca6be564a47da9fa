"""The text of the kernels of gemm.py: sums, fragments and what is read ahead as tuples, every index a constant.

It is generated because the NVVM of sm_75 to sm_90 neither unrolls loops over a local array of sums nor keeps it in
registers; tuples stay there, and compile faster than as many variables (2.7 s rather than 7 s for the largest tile).

A slice of a factor lies in shared memory as ``[k, i]``, ``i`` along the side of the tile, so that a thread reads its
fragment of one ``k`` with 128-bit loads. Rows are padded by one such load: a factor whose rows run along ``k`` is
written there a column at a time, and the lanes of a warp then meet different banks. There are two buffers, one read
while the other is filled: global loads of the next slice are issued first, kept in registers during the
multiplications, and stored before the last of them; one barrier a slice separates the two uses of a buffer. The
fragments of the next ``k`` are read before the sums of this one are added to, across that barrier too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Tile(NamedTuple):
    """What a block computes: ``rows`` x ``columns`` of the result, ``line`` x ``across`` sums a thread.

    ``slice`` is how much of the inner index lies in shared memory at a time, ``blocks`` how many blocks a
    multiprocessor is to hold, which bounds the registers of a thread.
    """

    rows: int
    columns: int
    line: int
    across: int
    slice: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows // self.line * (self.columns // self.across)


class Factor(NamedTuple):
    """One factor of a product, as a block reads it."""

    name: str  # left or right
    array: str  # the parameter
    side: int  # of the tile
    each: int  # sums a thread holds along the side
    along: bool  # whether its rows run along the inner index
    width: int  # elements of one load of global memory


def _tuple(parts: Sequence[str]) -> str:
    return f"({', '.join(parts)},)"


class _Reader:
    """The lines that bring slices of one factor into shared memory and fragments of it into registers."""

    def __init__(self, factor: Factor, tile: Tile, lanes: int) -> None:
        self.factor, self.tile, self.lanes = factor, tile, lanes
        self.row = factor.side + lanes  # of a slice in shared memory, padded
        self.buffer = tile.slice * self.row
        groups = (tile.slice if factor.along else factor.side) // factor.width  # loads along a row of the factor
        assert tile.threads % groups == 0, (tile, factor)
        self.groups, self.step = groups, tile.threads // groups  # rows of the factor from one load to the next
        self.loads = factor.side * tile.slice // factor.width // tile.threads
        assert self.loads * factor.width * tile.threads == factor.side * tile.slice, (tile, factor)

    def places(self) -> list[str]:
        """Where this thread loads from: element ``at`` of the factor, ``k`` of the inner index, ``i`` of the side.

        ``end`` is where it stops along ``k``: 0 for what lies beyond the side.
        """
        n, f = self.factor.name, self.factor
        size, i0 = ("rows", "row0") if n == "left" else ("columns", "column0")
        inside, outside = f"t % {self.groups} * {f.width}", f"t // {self.groups}"
        k, i = (inside, outside) if f.along else (outside, inside)
        at = f"{n}_i * inner + {n}_k" if f.along else f"{n}_k * {size} + {n}_i"
        lines = [
            f"{n}_slot = ({k}) * {self.row} + {i}",
            f"{n}_k = index(first + {k})",
            f"{n}_i = index({i0} + {i})",
            f"{n}_at = index({at})",
            f"{n}_slice = index({self.tile.slice}{'' if f.along else f' * {size}'})",
            f"{n}_step = index({self.step} * {'inner' if f.along else size})",
        ]
        if not f.along:
            return [*lines, f"{n}_end = last if {n}_i < {size} else zero_index"]
        ends = [(load, load * self.step) for load in range(self.loads)]
        return [*lines, *(f"{n}_end{load} = last if {n}_i + {i} < {size} else zero_index" for load, i in ends)]

    def load(self) -> list[str]:
        """Read a slice of global memory into registers; 0 beyond the edges."""
        n, f, lines = self.factor.name, self.factor, []
        for load in range(self.loads):
            k, at = f"{n}_k", f"{n}_at"
            if load:
                k, at = (k if f.along else f"index({k} + {load * self.step})"), f"index({at} + {load} * {n}_step)"
            lines += [f"{n}{load} = zeros{f.width}", f"if {k} < {n}_end{load if f.along else ''}:"]
            lines += [f"    {n}{load} = load{f.width}({f.array}, {at})"]
        return lines

    def advance(self) -> list[str]:
        """Go on to the next slice."""
        n = self.factor.name
        return [f"{n}_k = index({n}_k + {self.tile.slice})", f"{n}_at = index({n}_at + {n}_slice)"]

    def store(self) -> list[str]:
        """Write what was read ahead into the buffer that is not in use."""
        n, f, lines = self.factor.name, self.factor, []
        for load in range(self.loads):
            if f.along:
                for q in range(f.width):
                    lines.append(f"store1(shared, {n}_fill + {q * self.row + load * self.step}, ({n}{load}[{q}],))")
            else:
                lines.append(f"store{f.width}(shared, {n}_fill + {load * self.step * self.row}, {n}{load})")
        return lines

    def fragment(self, which: int, k: int) -> list[str]:
        """Read row ``k`` of the buffer in use into fragment ``which``."""
        n, parts = self.factor.name, self.factor.each // self.lanes
        offsets = [k * self.row + part * self.factor.side // parts for part in range(parts)]
        loads = [f"load{self.lanes}(shared, {n}_use + {offset})" for offset in offsets]
        return [f"{self.factor.array}{which} = {' + '.join(loads)}"]


def _finish(sums: Sequence[str], bias: Sequence[str], save_z: bool, activated: bool, at: str) -> list[str]:
    """The epilogue of neighbouring sums: add the bias, store ``z``, store the activation of it."""
    width = len(sums)
    added = [f"{v} + {b}" for v, b in zip(sums, bias, strict=True)] if bias else sums
    lines = [f"v{q} = {v}" for q, v in enumerate(added)]
    if save_z:
        lines.append(f"store{width}(z, {at}, {_tuple([f'v{q}' for q in range(width)])})")
    values = [f"value(v{q})" if activated else f"v{q}" for q in range(width)]
    return [*lines, f"store{width}(out, {at}, {_tuple(values)})"]


def _epilogue(tile: Tile, lanes: int, wide: bool, has_bias: bool, save_z: bool, activated: bool) -> list[str]:
    """Finish the sums of a thread, ``lanes`` neighbouring ones at a time; ``out`` may be one of several parts."""
    lines = ["part = cuda.blockIdx.y * rows * columns"]
    groups = tile.across // lanes
    for group in range(groups):
        lines.append(f"place{group} = column0 + across + {group * tile.columns // groups}")
        for q in range(lanes) if has_bias else ():
            name = f"bias{group * lanes + q}"
            lines.append(f"{name} = load1(bias, place{group} + {q})[0] if place{group} + {q} < columns else zero")
    for i in range(tile.line):
        offset = i // lanes * tile.rows * lanes // tile.line + i % lanes
        lines += [f"r = row0 + line + {offset}", "if r < rows:", "    at = part + r * columns"]
        for j in range(0, tile.across, lanes):
            sums = [f"sums[{i * tile.across + j + q}]" for q in range(lanes)]
            bias = [f"bias{j + q}" for q in range(lanes)] if has_bias else []
            c = f"place{j // lanes}"
            if wide:
                finish = _finish(sums, bias, save_z, activated, f"at + {c}")
                lines += [f"    if {c} < columns:", *("        " + line for line in finish)]
            for q in () if wide else range(lanes):
                finish = _finish(sums[q : q + 1], bias[q : q + 1], save_z, activated, f"at + {c} + {q}")
                lines += [f"    if {c} + {q} < columns:", *("        " + line for line in finish)]
    return lines


def _indented(depth: int, lines: Sequence[str]) -> list[str]:
    return [" " * 4 * depth + line for line in lines]


def product_text(
    name: str, factors: Sequence[Factor], tile: Tile, lanes: int, wide: bool, alignment: str, **epilogue: bool
) -> str:
    """The kernel of one tile: ``out[s] = value(sum over the inner indices of share s of left * right + bias)``."""
    left, right = readers = [_Reader(factor, tile, lanes) for factor in factors]
    warps = tile.columns // tile.across // 8  # of 4 x 8 threads, that lie side by side
    assert warps * 8 * tile.across == tile.columns, tile
    assert tile.rows % (4 * tile.line) == 0, tile
    buffer = left.buffer + right.buffer
    assert tile.slice % 2 == 0, "fragments take turns, and a slice begins with the first"

    def each(part: str, *arguments: int) -> list[str]:
        return [line for reader in readers for line in getattr(reader, part)(*arguments)]

    head = [
        f"shared = cuda.shared.array({2 * buffer}, element{alignment})",
        "t = cuda.threadIdx.x",
        f"line = (t // 32 // {warps} * 4 + t % 32 // 8) * {lanes}",
        f"across = (t // 32 % {warps} * 8 + t % 8) * {lanes}",
        f"tiles = (rows + {tile.rows - 1}) // {tile.rows}",
        f"row0 = index(cuda.blockIdx.x % tiles * {tile.rows})",
        f"column0 = index(cuda.blockIdx.x // tiles * {tile.columns})",
        "first = index(cuda.blockIdx.y * share)",
        "last = index(min(inner, first + share))",
        *each("places"),
        f"sums = zeros{tile.line * tile.across}",
        "left_use, left_fill = index(line), index(left_slot)",
        f"right_use, right_fill = index({left.buffer} + across), index({left.buffer} + right_slot)",
        *each("load"),
        *each("store"),
        *(f"{n}_fill = index({n}_fill + {buffer})" for n in ("left", "right")),
        f"turn = index({buffer})",
        "cuda.syncthreads()",
        *each("fragment", 0, 0),
    ]
    # a sign that changes rather than a choice: what is carried from turn to turn is not computed anew in each
    turn = [
        *(f"{n}_use, {n}_fill = index({n}_use + turn), index({n}_fill - turn)" for n in ("left", "right")),
        "turn = index(-turn)",
    ]
    loop = [*each("advance"), *each("load")]
    for k in range(tile.slice):
        if k == tile.slice - 1:
            loop += [*each("store"), "cuda.syncthreads()", *turn]
        loop += each("fragment", (k + 1) % 2, (k + 1) % tile.slice)
        loop.append(f"sums = outer_sum(sums, a{k % 2}, b{k % 2})")
    lines = [
        f"def {name}(a, b, bias, z, out, rows, columns, inner, share):",
        *_indented(1, head),
        f"    for _ in range(index((last - first + {tile.slice - 1}) // {tile.slice})):",
        *_indented(2, loop),
        *_indented(1, _epilogue(tile, lanes, wide, **epilogue)),
    ]
    return "\n".join(lines) + "\n"


def merge_text(name: str, lanes: int, has_bias: bool, save_z: bool, activated: bool) -> str:
    """The kernel that adds the parts of a product in order and finishes the sums: ``lanes`` elements a turn."""
    bias = [f"load1(bias, column + {q})[0]" for q in range(lanes)] if has_bias else []
    sums = [f"sums[{q}]" for q in range(lanes)]
    lines = [
        f"def {name}(partial, bias, z, out, columns, parts):",
        f"    at = cuda.grid(1) * {lanes}",
        "    while at < out.size:",  # a range of unknown step would begin with a division
        f"        sums = load{lanes}(partial, at)",
        "        for part in range(1, parts):",
        f"            addends = load{lanes}(partial, at + part * out.size)",
        f"            sums = {_tuple([f'sums[{q}] + addends[{q}]' for q in range(lanes)])}",
        *(["        column = at % columns"] if has_bias else []),
        *_indented(2, _finish(sums, bias, save_z, activated, "at")),
        f"        at += cuda.gridsize(1) * {lanes}",
    ]
    return "\n".join(lines) + "\n"
