"""Small curves as SVG, by a few lines of text: the same bytes on every machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 160, 100
_JUMP = 0.1  # of the window's height, between neighbouring points: a line would say what is not so


class Curve(NamedTuple):
    """A function of one number, and how its line is drawn."""

    function: Callable[[float], float]
    style: str


class Window(NamedTuple):
    """What is seen: ``x`` from ``left`` to ``right``, ``y`` from ``low`` to ``high``; ``points`` of each curve."""

    left: float
    right: float
    low: float
    high: float
    points: int

    def place(self, x: float, y: float) -> str:
        """The pixel of a point, to a tenth."""
        across = (x - self.left) / (self.right - self.left) * WIDTH
        down = (self.high - y) / (self.high - self.low) * HEIGHT
        return f"{_tenth(across)} {_tenth(down)}"


def _tenth(value: float) -> str:
    return f"{round(value, 1) + 0.0:g}"  # no -0


def _path(curve: Curve, window: Window) -> str:
    parts: list[str] = []
    before: float | None = None
    span = window.high - window.low
    for k in range(window.points):
        x = window.left + (window.right - window.left) * k / (window.points - 1)
        y = float(curve.function(x))
        if not window.low <= y <= window.high:
            before = None
            continue
        joined = before is not None and abs(y - before) <= _JUMP * span
        parts.append(f"{'L' if joined else 'M'}{window.place(x, y)}")
        before = y
    return f'<path d="{"".join(parts)}" {curve.style}/>'


def picture(title: str, window: Window, curves: Sequence[Curve]) -> str:
    """The text of an SVG file: the axes where they are in sight, and the curves."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'fill="none" stroke-width="1.5">',
        f"<title>{title}</title>",
    ]
    axes = []
    if window.low <= 0.0 <= window.high:
        axes.append(f"M{window.place(window.left, 0.0)}L{window.place(window.right, 0.0)}")
    if window.left <= 0.0 <= window.right:
        axes.append(f"M{window.place(0.0, window.low)}L{window.place(0.0, window.high)}")
    lines.append(f'<path d="{"".join(axes)}" stroke="#999" stroke-width="0.5"/>')
    lines += [_path(curve, window) for curve in curves]
    return "\n".join([*lines, "</svg>", ""])
