"""Matrix products on tensor cores: float32 in memory, operands of TF32, bfloat16 or float16, float32 sums.

Memory contract: the result is overwritten; arrays are C-contiguous. A block computes a tile of the result. Its threads
read the next slice of both factors from memory, 128 bits at once where rows allow, while its warps multiply the last
one, which lies in shared memory as words (see tensor.py). The inner index ascends: a result repeats bit for bit.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from . import choices
from .launch import Launch, ceil_div, generated
from .tensor import rounding
from .vector import access

WORDS = 16  # of the inner index, in shared memory at a time
PAD = 8  # words behind each row of shared memory: lanes that read together then meet 32 banks


class Tile(NamedTuple):
    """Rows and columns of the result that a block computes, and that each of its warps does."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.rows // self.warp_rows) * (self.columns // self.warp_columns)


TILES = LARGE, SMALL = Tile(128, 128, 64, 32), Tile(64, 64, 32, 32)


def choose(rows: int, columns: int) -> Tile:
    """The large tile, unless it would stand over the edges of a small result."""
    return LARGE if min(rows, columns) > SMALL.rows else SMALL


_TEXT = """
def {name}(a, b, bias, z, out, rows, columns, inner):
    left = cuda.shared.array({left_size}, uint32)
    right = cuda.shared.array({right_size}, uint32)
    thread = cuda.threadIdx.x
    lane = thread % 32
    warp = thread // 32
    group = lane // 4
    place = lane % 4
    row0 = cuda.blockIdx.x * {rows}
    column0 = cuda.blockIdx.y * {columns}
    left0 = warp % {warps} * {warp_rows} + group
    right0 = warp // {warps} * {warp_columns} + group
{clear}
{places}
    base = 0
{stage}
    page = 0
{write}
    cuda.syncthreads()
    for now in range(0, inner, {slice}):
        base = now + {slice}
        if base < inner:
{stage_next}
        first = (page + place) * {left_row} + left0
        second = (page + place) * {right_row} + right0
{multiply}
        page = {words} - page
        if base < inner:
{write_next}
        cuda.syncthreads()
{store}
"""


def _lines(indent: int, lines: list[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)


class _Factor(NamedTuple):
    """One factor of the product, as text: its array, its place in shared memory, and how it lies in memory."""

    array: str
    shared: str
    extent: int  # of the tile
    origin: str  # of the tile in the outer index
    outer: str  # length of the outer index
    along: bool  # whether neighbours in memory are neighbours of the inner index
    numbers: int  # in a word
    threads: int
    wide: bool

    @property
    def pieces(self) -> int:
        """Groups of words that a thread brings."""
        pieces, rest = divmod(self.extent * WORDS * (self.numbers if self.along else 1), 4 * self.threads)
        assert not rest, "a slice of the tile is not made of whole groups"
        return pieces

    @property
    def _per_row(self) -> int:
        """Groups of four numbers in a row of a slice, as it lies in memory."""
        per_row = WORDS * self.numbers // 4 if self.along else self.extent // 4
        assert self.threads % per_row == 0, "the pieces of a thread lie in different columns"
        return per_row

    def places(self) -> list[str]:
        """What does not change from slice to slice: where the first piece of a thread lies, here and there."""
        n, row = self.array, self.extent + PAD
        lines = [f"q{n} = thread % {self._per_row} * 4", f"r{n} = thread // {self._per_row}"]
        if self.along:
            lines.append(f"from_{n} = ({self.origin} + r{n}) * inner + q{n}")
            lines.append(f"to_{n} = q{n} // {self.numbers} * {row} + r{n}")
        else:
            lines.append(f"from_{n} = r{n} * {self.numbers} * {self.outer} + {self.origin} + q{n}")
            lines.append(f"to_{n} = r{n} * {row} + q{n}")
        return lines

    def stage(self) -> list[str]:
        """Numbers ``{array}{piece}_{k}`` from memory, 0 beyond the edges."""
        lines, n = [], self.array
        for piece in range(self.pieces):
            down = piece * (self.threads // self._per_row)  # rows below the first piece
            for s in range(1 if self.along else self.numbers):
                names = [f"{n}{piece}_{4 * s + i}" for i in range(4)]
                if self.along:
                    start = f"from_{n} + base + {down} * inner"
                    inside = f"{self.origin} + r{n} + {down} < {self.outer}"
                    steps = [f"base + q{n} + {i} < inner" for i in range(4)]
                else:
                    start = f"from_{n} + (base + {down * self.numbers + s}) * {self.outer}"
                    inside = f"base + r{n} * {self.numbers} + {down * self.numbers + s} < inner"
                    steps = [f"{self.origin} + q{n} + {i} < {self.outer}" for i in range(4)]
                if self.wide:
                    lines.append(f"{', '.join(names)} = load({n}, {start}) if {inside} and {steps[0]} else zeros")
                else:
                    lines += [
                        f"{name} = {n}[{start} + {i}] if {inside} and {step} else zero"
                        for i, (name, step) in enumerate(zip(names, steps, strict=True))
                    ]
        return lines

    def write(self) -> list[str]:
        """The staged numbers as words into shared memory."""
        lines, n, row = [], self.array, self.extent + PAD
        for piece in range(self.pieces):
            down = piece * (self.threads // self._per_row)
            for i in range(4 // self.numbers if self.along else 4):
                if self.along:
                    numbers = [f"{n}{piece}_{self.numbers * i + s}" for s in range(self.numbers)]
                    offset = i * row + down
                else:
                    numbers = [f"{n}{piece}_{4 * s + i}" for s in range(self.numbers)]
                    offset = down * row + i
                place = f"page * {row} + to_{n} + {offset}"
                lines.append(f"put_word({self.shared}, {place}, (pack({', '.join(numbers)}),))")
        return lines


def _multiply(tile: Tile) -> list[str]:
    lines = []
    left_row, right_row = tile.rows + PAD, tile.columns + PAD
    across, down = range(tile.warp_columns // 8), range(tile.warp_rows // 16)
    for step in range(0, WORDS, 8):
        for i in down:
            for k, (half, lower) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
                place = f"first + {(step + 4 * half) * left_row + 16 * i + 8 * lower}"
                lines.append(f"x{i}{k} = take_word(left, {place})[0]")
        for j in across:
            for half in range(2):
                lines.append(f"y{j}{half} = take_word(right, second + {(step + 4 * half) * right_row + 8 * j})[0]")
        for i in down:
            for j in across:
                sums = ", ".join(f"c{i}_{j}_{k}" for k in range(4))
                words = ", ".join([*(f"x{i}{k}" for k in range(4)), f"y{j}0, y{j}1"])
                lines.append(f"{sums} = multiply({words}, {sums})")
    return lines


def _store(tile: Tile, has_bias: bool, save_z: bool, activated: bool) -> list[str]:
    lines = []
    for i in range(tile.warp_rows // 16):
        for lower in range(2):
            lines += [f"r = row0 + left0 + {16 * i + 8 * lower}", "if r < rows:"]
            for j in range(tile.warp_columns // 8):
                for odd in range(2):
                    lines.append(f"    c = column0 + right0 - group + 2 * place + {8 * j + odd}")
                    lines.append("    if c < columns:")
                    lines.append(f"        v = c{i}_{j}_{2 * lower + odd}{' + bias[c]' if has_bias else ''}")
                    if save_z:
                        lines.append("        put(z, r * columns + c, (v,))")
                    lines.append(f"        put(out, r * columns + c, ({'value(v)' if activated else 'v'},))")
    return lines


@functools.cache
def product(
    precision: str,
    form: str,
    tile: Tile,
    wide: tuple[bool, bool],
    value: Any = None,
    has_bias: bool = False,
    save_z: bool = False,
) -> Any:
    """The kernel of ``out = value(a b + bias)``; ``wide`` says whether ``a`` and ``b`` allow 128-bit access."""
    numbers, pack, multiply = rounding(precision)
    left = _Factor("a", "left", tile.rows, "row0", "rows", form != "a^Tb", numbers, tile.threads, wide[0])
    right = _Factor("b", "right", tile.columns, "column0", "columns", form == "ab^T", numbers, tile.threads, wide[1])
    sums = [
        f"c{i}_{j}_{k}" for i in range(tile.warp_rows // 16) for j in range(tile.warp_columns // 8) for k in range(4)
    ]
    name = f"tensor_{precision}_{form.replace('^T', 't')}_{tile.rows}x{tile.columns}{'' if all(wide) else '_scalar'}"
    text = _TEXT.format(
        name=name,
        rows=tile.rows,
        columns=tile.columns,
        warps=tile.rows // tile.warp_rows,
        warp_rows=tile.warp_rows,
        warp_columns=tile.warp_columns,
        left_row=tile.rows + PAD,
        right_row=tile.columns + PAD,
        left_size=2 * WORDS * (tile.rows + PAD),
        right_size=2 * WORDS * (tile.columns + PAD),
        words=WORDS,
        slice=WORDS * numbers,
        clear=_lines(4, [f"{c} = zero" for c in sums]),
        places=_lines(4, left.places() + right.places()),
        stage=_lines(4, left.stage() + right.stage()),
        write=_lines(4, left.write() + right.write()),
        stage_next=_lines(12, left.stage() + right.stage()),
        write_next=_lines(12, left.write() + right.write()),
        multiply=_lines(8, _multiply(tile)),
        store=_lines(4, _store(tile, has_bias, save_z, value is not None)),
    )
    zero = np.float32(0)
    scope = {
        "cuda": cuda,
        "uint32": np.uint32,
        "zero": zero,
        "zeros": (zero,) * 4,
        "load": access(np.float32).load,
        "put": access(np.float32, 1).store,
        "take_word": access(np.uint32, 1).load,
        "put_word": access(np.uint32, 1).store,
        "pack": pack,
        "multiply": multiply,
        "value": value,
    }
    bounds = tile.threads, 1  # left to itself, the compiler spills on sm_100 to make room for a seventh block
    return generated(text, name, scope, value, launch_bounds=bounds)


def multiply(
    precision: str, a: Any, b: Any, out: Any, form: str = "ab", value: Any = None, bias: Any = None, z: Any = None,
    tile: Tile | None = None,
) -> list[Launch]:  # fmt: skip
    """The launch of ``z = a b + bias``, ``out = value(z)``; ``form`` is ``"ab"``, ``"a^Tb"`` or ``"ab^T"``."""
    if not out.size:
        return []
    wanted = choices.product(precision, form, a, b, out)
    wide, rows, columns, inner = wanted[2:]
    if tile is None:
        tile = choices.measured(wanted, lambda: TILES) or choose(rows, columns)
    made = product(precision, form, tile, wide, value, bias is not None, z is not None)
    grid = ceil_div(rows, tile.rows), ceil_div(columns, tile.columns)
    flat = [x.reshape(-1) for x in (a, b, out if bias is None else bias, out if z is None else z, out)]
    return [Launch(made, grid, (tile.threads,), (*flat, *map(np.int64, (rows, columns, inner))))]
