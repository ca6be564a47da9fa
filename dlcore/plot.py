"""Pictures. Needs matplotlib: ``pip install 'dlcore[plot]'``; drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_TRAIN, _VALIDATION, _INK, _FAINT = "#1f5fa8", "#d1622b", "#333333", "#c9c9c9"


class PlotUnavailable(ImportError):
    """matplotlib is not installed."""


def _figure(columns: int) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotUnavailable("pictures need matplotlib; pip install 'dlcore[plot]'") from None
    figure = Figure(figsize=(5.2 * columns, 3.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_history(history: dict[str, list[float]], path: str | Path | None = None, title: str | None = None) -> Any:
    """The cost, and each metric, against the epoch, for training and validation; the best validation epoch marked.

    ``history`` is ``History.history``. Returns the figure, and writes it to ``path`` where that is given. Raises
    :class:`PlotUnavailable` without matplotlib, ``ValueError`` for a history without a loss.
    """
    if not history.get("loss"):
        raise ValueError("history has no loss; it holds: " + (", ".join(history) or "nothing"))
    names = [n for n in history if not n.startswith("val_") and n != "learning_rate"]
    figure = _figure(len(names))
    for k, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), k + 1)
        _panel(axes, name, history[name], history.get(f"val_{name}"))
    if title:
        figure.suptitle(title, fontsize=11, color=_INK)
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def _panel(axes: Any, name: str, train: list[float], validation: list[float] | None) -> None:
    lines = [("train", np.asarray(train, float), _TRAIN)]
    if validation:
        lines.append(("validation", np.asarray(validation, float), _VALIDATION))
    every = np.concatenate([values for _, values, _ in lines])
    finite = every[np.isfinite(every)]
    if finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
        axes.set_yscale("log")
    epochs = np.arange(1, len(train) + 1)
    ends = []
    for label, values, colour in lines:
        axes.plot(epochs, values, color=colour, linewidth=1.6, marker="o" if len(values) == 1 else None)
        seen = np.flatnonzero(np.isfinite(values))
        if seen.size:
            ends.append([label, epochs[seen[-1]], values[seen[-1]], colour])
    _label_ends(axes, ends)
    if len(lines) == 2 and np.isfinite(lines[1][1]).any():
        values = lines[1][1]
        smaller_is_better = "accuracy" not in name
        best = int(np.nanargmin(values) if smaller_is_better else np.nanargmax(values))
        axes.plot(epochs[best], values[best], "o", color=_VALIDATION, markersize=5)
        note = f"best {values[best]:.4g}, epoch {epochs[best]}"
        axes.set_title(f"{name.replace('_', ' ')}   ({note})", loc="left", fontsize=9.5, color=_INK)
    else:
        axes.set_title(name.replace("_", " "), loc="left", fontsize=9.5, color=_INK)
    axes.set_xlabel("epoch", color=_INK, fontsize=9)
    axes.margins(x=0.02)
    axes.grid(axis="y", color=_FAINT, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=8, color=_FAINT)
    if len(train) == 1:
        axes.set_xticks([1])


def _label_ends(axes: Any, ends: list[list[Any]]) -> None:
    """Name each line at its end; two that end close together are moved apart."""
    if not ends:
        return
    shift = [0.0] * len(ends)
    if len(ends) == 2:
        low, high = axes.get_ylim()
        scale = np.log if axes.get_yscale() == "log" else np.asarray
        a, b = (float(scale(end[2])) for end in ends)
        span = abs(float(scale(high)) - float(scale(low))) or 1.0
        if abs(a - b) / span < 0.06:
            shift = [7.0, -7.0] if a >= b else [-7.0, 7.0]
    for (label, x, y, colour), offset in zip(ends, shift, strict=True):
        axes.annotate(
            label, (x, y), xytext=(5, offset), textcoords="offset points", color=colour, fontsize=9, va="center"
        )
