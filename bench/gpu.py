"""``python -m bench gpu``: everything that only hardware can tell, into a dated file of results."""

from __future__ import annotations

import datetime
import json
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import report
from .gpu_sections import SECTIONS, Row
from .timing import ROOT

LIMITS = {"tests": 240.0, "sanitizer": 120.0}  # seconds; 60 for each of the others
_LIMIT = 60.0
RESULTS = ROOT / "bench" / "results"


def _section(name: str, limit: float) -> list[Row]:
    """The rows of one section; what went wrong is a row too."""
    command = [sys.executable, "-m", "bench.gpu_sections", name]
    rows: list[Row] = []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=limit)
        wrong = None if process.returncode == 0 else (errors.strip().splitlines() or [f"exit {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        wrong = f"stopped after {limit:.0f} s"
    except KeyboardInterrupt:
        process.kill()
        process.communicate()
        raise
    for line in output.splitlines():
        if line.startswith("{"):
            rows.append({"section": name, **json.loads(line)})
    if wrong is not None:
        rows.append({"section": name, "what": name, "wrong": wrong})
    return rows


def _rates(rows: Sequence[Row]) -> None:
    """Add bandwidth, arithmetic rate, their shares of the ceilings, and ratios."""
    best: dict[str, float] = {}
    for row in rows:
        took = row.get("seconds")
        if took and "bytes" in row:
            row["bandwidth"] = row["bytes"] / took
        if took and "flops" in row:
            row["rate"] = row["flops"] / took
        if took and "peer_seconds" in row:
            row["ratio"] = row["peer_seconds"] / took
        if row["section"] == "ceilings":
            best |= {key: row[key] for key in ("bandwidth", "rate") if key in row and key not in best}
    for row in rows:
        if row["section"] in ("kernels", "products", "tuning"):
            key = "bandwidth" if row["section"] == "kernels" else "rate"
            if key in row and key in best:
                row["share"] = row[key] / best[key]


def _cells(row: Row) -> tuple[str, ...]:
    rate = ""
    if "rate" in row:
        rate = f"{row['rate'] / 1e12:.1f} TFLOP/s"
    elif "bandwidth" in row:
        rate = f"{row['bandwidth'] / 1e9:,.0f} GB/s"
    peer = f"{row['peer']} {report.duration(row['peer_seconds'])}" if "peer_seconds" in row else ""
    return (
        row["section"],
        row["what"],
        report.duration(row["seconds"]) if "seconds" in row else "",
        rate,
        f"{row['share']:.0%}" if "share" in row else "",
        peer,
        f"{row['ratio']:.2f}x" if "ratio" in row else "",
        row.get("wrong") or row.get("note") or "",
    )


_HEAD = ("section", "what", "time", "rate", "of the ceiling", "peer", "peer / ours", "")


def markdown(rows: Sequence[Row], header: dict[str, str]) -> str:
    """The table of all rows."""
    failed = [line for row in rows for line in row.get("failed", ())]
    tail = ["", "Failed tests:", "", *(f"- {line}" for line in failed)] if failed else []
    return "\n".join([report.describe(header), "", report.table(_HEAD, map(_cells, rows)), *tail])


def _header() -> dict[str, str]:
    import cupy

    properties: dict[str, Any] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    driver, runtime = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    return report.header() | {
        "gpu": f"{properties['name'].decode()}, compute capability {properties['major']}.{properties['minor']}, "
        f"{properties['multiProcessorCount']} multiprocessors, {properties['totalGlobalMem'] / 2**30:.0f} GiB",
        "cuda": f"driver {driver // 1000}.{driver % 1000 // 10}, runtime {runtime // 1000}.{runtime % 1000 // 10}",
    }


def main(names: Sequence[str], folder: pathlib.Path = RESULTS, total: float = 600.0) -> int:
    """Run the named sections, or all; 2 where that cannot be, 1 where a section went wrong, 130 after Ctrl-C."""
    from dlcore.kernels.device import why_no_gpu

    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        print(f"unknown section {unknown[0]!r}; there are: {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if not folder.is_dir():
        print(f"--out {folder}: there is no such folder", file=sys.stderr)
        return 2
    reason = why_no_gpu()
    if reason is not None:
        print(f"python -m bench gpu needs a GPU: {reason}", file=sys.stderr)
        return 2
    header = _header()
    rows: list[Row] = []
    status = 0
    end = time.monotonic() + total
    try:
        for name in names or SECTIONS:
            left = end - time.monotonic()
            print(f"[{name}] {left:.0f} s left", file=sys.stderr, flush=True)
            rows += _section(name, max(1.0, min(LIMITS.get(name, _LIMIT), left)))
    except KeyboardInterrupt:
        print("interrupted; these are the figures so far", file=sys.stderr)
        status = 130
    _rates(rows)
    text = markdown(rows, header)
    label = re.sub(r"\W+", "-", header["gpu"].split(",")[0]).strip("-").lower()
    base = folder / f"{label}-{datetime.date.today().isoformat()}"
    base.with_suffix(".json").write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")
    base.with_suffix(".md").write_text(f"# {header['gpu'].split(',')[0]}\n\n{text}\n")
    print(text)
    print(f"\nwritten to {base}.json and .md", file=sys.stderr)
    return status or int(any("wrong" in row for row in rows))
