"""The strips that the CPU compiles of an optimizer rule with state of rows and columns: each does a panel of a tensor.

Rows that pass by would push the state and the sums of a panel's columns out of the nearest cache, and rows taken in
pieces come from memory slowly. So a strip goes over bands of ``BAND`` rows in tiles of ``TILE`` columns, and while it
works at a band it fetches the next one into the second cache, in the order it lies in memory: a piece of each array
beside each piece it works at, for more at once makes the memory wait.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from .optimizer_rule import Optimizer
from .rule import reads
from .step_text import UNIFORM_HEADER, loops_text, sum_loops, uniform_lines, update_text

BAND, TILE = 4, 256  # rows, columns
_LINE = 64  # bytes that a fetch brings

_PANEL = """
def {name}(w_, g_, s_, stride, u_, n, rows, step, whole_, along_, f_, below_, out_):
    u = view(u_, {count})
    along = view(along_, rows)
    whole = number(whole_)
    size = u.itemsize
    if u[4] != 0:
        return
{load}
{begin}
    tiles = (n + {TILE} - 1) // {TILE}
    fetched = rows + {BAND} if step == n * size else rows
    for top in range(0, rows, {BAND}):
        bottom = min(rows, top + {BAND})
        next_row = bottom
        next_tile = 0
        for tile in range(tiles):
            here = tile * {TILE} * size
            m = min({TILE}, n - tile * {TILE})
            column = view(f_ + here, m)
{tile}
            for j in range(top, bottom):
                if tiles > 1 and next_row < fetched:
                    there = next_row * step + next_tile * {TILE} * size
                    for line in range(there, there + {TILE} * size, {LINE}):
{fetch}
                    next_tile += 1
                    if next_tile == tiles:
                        next_tile = 0
                        next_row += 1
                at = j * step + here
                w = view(w_ + at, m)
                g = view(g_ + at, m)
                row = along[j]
{views}
{loops}
{end}
"""

_SHARE = "share = row / whole if whole != 0 else row"  # before the first step the rows' mean is 0
_GIVEN = ("share", "column[i]")  # the factors of an element

_EACH = ("for i in range(w.size):", "    x = w[i]")
_ALONG = "across, down = terms({gradient}, row, column[i]{arguments})"
# For means, it is terms less the factors there are that add up: these would be rounded once for each element.
_ADD = "total += across - row; below[i] += down - column[i]"
# the largest of whole numbers in the order of the numbers: LLVM makes no vectors of one of numbers that may be NaN
_LARGEST = "total = max(total, ordered(across)); below[i] = down if down > below[i] else below[i]"


class _Lines(NamedTuple):
    """What a part adds to the frame of all."""

    loops: str
    begin: Sequence[str] = ()  # before all
    tile: Sequence[str] = ()  # for each tile of a band
    row: Sequence[str] = ()  # for each row of that, before the loops
    end: Sequence[str] = ()  # behind the loops; and behind all, where it is indented less


def panel_text(rule: Optimizer, part: str, uniforms: list[str], name: str) -> str:
    """The strip of a rule with factors over ``rows`` x ``n`` elements, ``step`` bytes from row to row.

    Part ``terms`` leaves sums of the rule's terms over each row in ``out_``, and over each column in ``below_``;
    ``step`` is that and the update; ``summands`` leaves the sums over the panel in ``out_``, in float64.
    """
    count, sums = len(uniforms), len(rule.sums) if part == "update" else 0
    slots = {"terms": (), "summands": rule.own_slots}.get(part, rule.slots)
    given = [f"s{k}[i]" for k in range(len(slots))]
    views = [f"s{k} = view(s_ + at + {k} * stride, m)" for k in range(len(slots))]
    if part == "summands":
        lines = _of_sums(rule, count, given)
    elif part == "terms":
        lines = _of_terms(rule, count, "")
    else:
        update = f"{', '.join(['w[i]', *given])} = {update_text(rule, count, 'x', 'g[i]', given, _GIVEN)}"
        lines = _of_terms(rule, count, update) if part == "step" else _Lines(_indented([*_EACH, f"    {update}"], 4))
    return _PANEL.format(
        name=name, count=UNIFORM_HEADER + count + sums, load="\n".join(uniform_lines(count, sums)),
        begin=_indented(lines.begin, 1), tile=_indented(lines.tile, 3),
        fetch=_indented([f"prefetch({place})" for place in _fetched(rule, part, len(slots))], 6),
        views=_indented([*views, *([] if part == "terms" else [_SHARE]), *lines.row], 4), loops=lines.loops,
        end="\n".join(lines.end), TILE=TILE, BAND=BAND, LINE=_LINE,
    )  # fmt: skip


def _of_terms(rule: Optimizer, uniforms: int, update: str) -> _Lines:
    least, kept, total = "number(0)", "sums[j]", "total"
    if rule.largest:
        least, kept, total = "number(-math.inf)", "ordered(sums[j])", "number_of(total)"
    inner = [_ALONG, _LARGEST if rule.largest else _ADD, *([update] if update else [])]
    loop = "\n".join([*_EACH, *(f"    {line}" for line in inner)])
    return _Lines(
        loops_text(rule, bool(update), 4, loop, arguments="".join(f", u{k}" for k in range(uniforms))),
        ["sums = view(out_, rows)", "sums[:] = " + least, "all_below = view(below_, n)", "all_below[:] = " + least],
        ["below = view(below_ + here, m)"],
        [f"total = {kept}"],
        [f"                sums[j] = {total}"],
    )


def _of_sums(rule: Optimizer, uniforms: int, given: Sequence[str]) -> _Lines:
    sums = range(len(rule.sums))
    add = [f"                total{k} += float(part{k})" for k in sums]
    return _Lines(
        sum_loops(rule, uniforms, [*given, *_GIVEN], 4),
        [f"{' = '.join(f'total{k}' for k in sums)} = 0.0"],
        (),
        [f"{' = '.join(f'part{k}' for k in sums)} = number(0)"],
        [*add, f"    out = view_double(out_, {len(sums)})", *(f"    out[{k}] = total{k}" for k in sums)],
    )


def _fetched(rule: Optimizer, part: str, slots: int) -> list[str]:
    """The addresses of what an element of a part is made of, at byte ``line``; weights that only decay are left out."""
    weights, read = part != "terms", list(range(slots))
    if part == "summands" and rule.summands is not None:
        weights, read = reads(rule.summands, 0), [k for k in read if reads(rule.summands, 2 + k)]
    return ["g_ + line", *(["w_ + line"] if weights else []), *(f"s_ + line + {k} * stride" for k in read)]


def _indented(lines: Sequence[str], depth: int) -> str:
    return textwrap.indent("\n".join(lines), depth * "    ")
