"""The report: Markdown for people, JSON for programs."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .cases import GRIDS, Case, Dense
from .peers import DISTRIBUTIONS, THREADS
from .timing import ROOT, Figures, Plan, Result

if TYPE_CHECKING:
    from .roofline import Ceilings

NARROW = 1.25  # times what a ratio shall be at least
OK, MISS, SHOWN, NOT_THERE = "ok", "MISS", "", "n/a"
_UNITS = (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3))
_TIME = "time (p20 to p80)"
_HEAD = ("row", "ours", _TIME, "peer", _TIME, "ratio", "at least", "", "of the roofline", "core to core")
_VERDICT = _HEAD.index("")


class Line(NamedTuple):
    """One comparison of one row: ``ratio`` is the time of the peer over ours, ``roofline`` the least time over ours.

    ``crossing`` is the middle time that a line of memory took between two cores, as far as that was measured.
    """

    case: Case
    ours: str
    peer: str
    ours_figures: Figures
    peer_figures: Figures
    at_least: float | None
    ratio: float | None
    verdict: str
    roofline: float | None
    crossing: float | None


class GridLine(NamedTuple):
    """All rows of a kind together."""

    kind: str
    lines: tuple[Line, ...]
    median: float | None
    worst: float | None
    where: str
    verdict: str


def verdict(ratio: float | None, at_least: float | None, doubtful: bool = False) -> str:
    """``ok`` or ``MISS``, with a question mark from noisy bursts; nothing without a target, ``n/a`` without a ratio."""
    if ratio is None:
        return NOT_THERE
    if at_least is None:
        return SHOWN
    return (OK if ratio >= at_least else MISS) + "?" * doubtful


def lines(result: Result, ceilings: Ceilings | None = None) -> list[Line]:
    """The comparisons of a row."""
    found = []
    crossing = statistics.median(result.crossings) if result.crossings else None
    for ours, peer, at_least in result.case.comparisons:
        mine, theirs = (result.figures.get(label, Figures(missing="not measured")) for label in (ours, peer))
        ratio = theirs.median / mine.median if mine.median and theirs.median else None
        share = None
        if ceilings is not None and mine.median:
            share = ceilings.seconds(result.case.flops, result.case.moved) / mine.median
        judged = verdict(ratio, at_least, mine.doubtful or theirs.doubtful)
        found.append(Line(result.case, ours, peer, mine, theirs, at_least, ratio, judged, share, crossing))
    return found


def narrow(results: Iterable[Result]) -> list[Result]:
    """The rows that miss a target, or meet it with less than a quarter to spare: they are worth a longer look.

    The bursts of a row are over in seconds, and a machine that is shared may change its pace for as long.
    """

    def near(line: Line) -> bool:
        wanted = GRIDS[line.case.kind].worst if line.case.kind in GRIDS else line.at_least
        return line.ratio is not None and wanted is not None and line.ratio < NARROW * wanted

    return [result for result in results if any(map(near, lines(result)))]


def grid(kind: str, results: Iterable[Result], ceilings: Ceilings | None = None) -> GridLine:
    """What the ratios of all rows of ``kind`` are together, and whether that is what :data:`GRIDS` asks for."""
    found = [line for result in results if result.case.kind == kind for line in lines(result, ceilings)]
    ratios = {line.case: line.ratio for line in found if line.ratio is not None}
    if not ratios:
        return GridLine(kind, tuple(found), None, None, "", NOT_THERE)
    median, worst = statistics.median(ratios.values()), min(ratios, key=lambda case: ratios[case])
    wanted = GRIDS[kind]
    good = median >= wanted.median and ratios[worst] >= wanted.worst
    doubtful = any(line.ours_figures.doubtful or line.peer_figures.doubtful for line in found if line.case == worst)
    where = worst.name.removeprefix(f"{kind}-")
    return GridLine(kind, tuple(found), median, ratios[worst], where, (OK if good else MISS) + "?" * doubtful)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, scale = next((u for u in _UNITS if seconds < 999.5 * u[1]), ("s", 1.0))
    number = seconds / scale
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with padded columns."""
    every = [tuple(head), *map(tuple, rows)]
    widths = [max(len(row[k]) for row in every) for k in range(len(head))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in every
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def _time(figures: Figures) -> str:
    low, high = figures.percentile(20), figures.percentile(80)
    if figures.median is None or low is None or high is None:
        return f"n/a ({figures.missing})" if figures.missing else "n/a"
    return f"{'~' * figures.doubtful}{duration(figures.median)} ({duration(low)} to {duration(high)})"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}x"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def _line_cells(line: Line) -> tuple[str, ...]:
    mine, theirs = _time(line.ours_figures), _time(line.peer_figures)
    crossing = "" if line.crossing is None else duration(line.crossing)
    numbers = _times(line.ratio), _times(line.at_least), line.verdict, _percent(line.roofline), crossing
    return (line.case.title, line.ours, mine, line.peer, theirs, *numbers)


def _grid_cells(found: GridLine) -> tuple[str, ...]:
    shares = [line.roofline for line in found.lines if line.roofline is not None]
    share = _percent(statistics.median(shares)) + " (median)" if shares else ""
    if found.median is None:
        ratio = ""
    else:
        ratio = f"median {found.median:.2f}x, worst {found.worst:.2f}x at {found.where}"
    first = found.lines[0]
    wanted = GRIDS[found.kind]
    target = f"median {wanted.median}x, worst {wanted.worst}x"
    title = f"relu(x W + b), {len(found.lines)} shapes"
    crossings = [line.crossing for line in found.lines if line.crossing is not None]
    crossing = duration(statistics.median(crossings)) + " (median)" if crossings else ""
    return (title, first.ours, "below", first.peer, "below", ratio, target, found.verdict, share, crossing)


def _shapes(found: GridLine) -> str:
    """The ratios of the dense shapes, one column for each number of rows."""
    ratios: dict[tuple[int, int], dict[int, str]] = {}
    for line in found.lines:
        case = line.case
        assert isinstance(case, Dense)
        ratios.setdefault((case.k, case.n), {})[case.m] = NOT_THERE if line.ratio is None else f"{line.ratio:.2f}"
    rows = sorted({m for row in ratios.values() for m in row})
    body = [(f"{k} x {n}", *(row.get(m, "") for m in rows)) for (k, n), row in ratios.items()]
    return table(("K x N", *(f"M = {m}" for m in rows)), body)


def markdown(results: Sequence[Result], header: dict[str, str], ceilings: Ceilings | None = None) -> str:
    """The whole report."""
    body, after = [], []
    for kind in dict.fromkeys(result.case.kind for result in results):
        if kind in GRIDS:
            found = grid(kind, results, ceilings)
            body.append(_grid_cells(found))
            after.append(f"relu(x W + b): time of {found.lines[0].peer} / ours\n\n{_shapes(found)}")
        else:
            of_kind = (result for result in results if result.case.kind == kind)
            body += [_line_cells(line) for result in of_kind for line in lines(result, ceilings)]
    count = {word: sum(row[_VERDICT] == word for row in body) for word in (OK, MISS)}
    doubtful = sum(row[_VERDICT].endswith("?") for row in body)
    summary = (
        f"Targets: {count[OK]} met, {count[MISS]} missed, {doubtful} doubtful "
        "(`~` and `?`: other processes used the cores meanwhile)."
    )
    return "\n\n".join([describe(header), table(_HEAD, body), summary, *after])


def describe(header: dict[str, str]) -> str:
    """The header as a Markdown list."""
    return "\n".join(f"- {name}: {text}" for name, text in header.items())


def _number(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def as_json(results: Sequence[Result], header: dict[str, str], ceilings: Ceilings | None = None) -> dict[str, Any]:
    """The same, all figures in seconds."""
    rows = []
    for result in results:
        columns = {
            label: {
                "median": _number(figures.median),
                "p20": _number(figures.percentile(20)),
                "p80": _number(figures.percentile(80)),
                "quiet": [_number(s) for s in figures.quiet],
                "noisy": [_number(s) for s in figures.noisy],
                "missing": figures.missing,
            }
            for label, figures in result.figures.items()
        }
        comparisons = [
            {
                "ours": line.ours,
                "peer": line.peer,
                "ratio": _number(line.ratio),
                "at_least": line.at_least,
                "verdict": line.verdict,
                "roofline": _number(line.roofline),
            }
            for line in lines(result, ceilings)
        ]
        case = result.case
        sizes = {"flops": case.flops, "bytes": case.moved}
        crossings = [_number(s) for s in result.crossings]
        named = {"name": case.name, "title": case.title, **sizes, "crossings": crossings}
        rows.append(named | {"columns": columns, "comparisons": comparisons})
    return {"header": header, "ceilings": ceilings.to_dict() if ceilings else None, "rows": rows}


# ----------------------------------------------------------------------------------------------------- header


def _version(distribution: str) -> str:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} n/a"


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> str:
    name = _git("rev-parse", "--short", "HEAD")
    if name is None:
        return "n/a"
    return f"{name} with changes" if _git("status", "--porcelain") else name


def header(plan: Plan | None = None, ceilings: Sequence[str] = (), again: int = 0) -> dict[str, str]:
    """What the figures belong to; ``again`` rows were looked at longer."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = (f"Python {platform.python_version()}", *map(_version, DISTRIBUTIONS))
    fields = {
        "date": now,
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": ", ".join(versions),
        "threads": f"{THREADS} for every peer; float32",
    }
    if plan is not None:
        fields["bursts"] = f"{plan.rounds} rounds of {plan.seconds} s, interleaved; medians over bursts"
    if again:
        fields["bursts"] += f"; {again} rows below {NARROW} times their target measured on, all their bursts count"
    return fields | {f"ceilings {k}": text for k, text in enumerate(ceilings, 1)}
