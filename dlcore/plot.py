"""Pictures of a training run. Needs matplotlib: `pip install 'dlcore[plot]'`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_history"]

TRAIN, VALIDATION, RATE = "#2b6cb0", "#d9480f", "#5f6b76"
INK, FAINT, GRID = "#222b33", "#6b7680", "#e6e9ec"
#: Metrics that are best when large; of all others the smallest value is the best.
LARGER_IS_BETTER = ("accuracy", "precision", "recall", "f1", "auc", "r2")
NAMES = {"loss": "Cost", "learning_rate": "Learning rate", "r2": "R²", "f1": "F1", "auc": "AUC"}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": "#c3c9cf",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot_history(
    history: Mapping[str, Sequence[float]], path: str | Path | None = None, title: str | None = None
) -> "Figure":
    """Draw the training curves: one panel for the cost, one for each metric, one for a rate that changes.

    Training and validation curves carry their names and last values at their ends; in each panel a ring marks
    the best epoch of the validation curve (of the training curve if there is no other). A panel whose values
    span more than two decades has a logarithmic axis. An epoch whose value is not finite leaves a gap, with a
    cross at the foot of the panel.

    Args:
        history: Name to values, one per epoch: `loss`, any metrics, each with its `val_` twin if there is
            one, and `learning_rate`. Curves may be shorter than others.
        path: Where to save the picture, at 150 dots per inch; `.png`, `.pdf` or `.svg`.
        title: Above the panels.

    Returns:
        The matplotlib `Figure`. No global state of matplotlib is touched and no window opens.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: The history is empty, or a curve is not a list of numbers.

    Examples:
        >>> figure = plot_history({"loss": [1.0, 0.5, 0.3], "val_loss": [1.1, 0.7, 0.8]})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['Cost']
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'dlcore[plot]'") from error

    curves = {name: _curve(values, name) for name, values in history.items()}
    curves = {name: values for name, values in curves.items() if values.size}
    panels = _panels(curves)
    if not panels:
        raise ValueError("the history is empty: it has no epoch to draw")
    epochs = max(values.size for values in curves.values())
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.06)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns + 0.5, 3.5 * rows + (0.4 if title else 0)), layout=layout)
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        for i, name in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, i + 1), name, curves, epochs)
        if path is not None:
            figure.savefig(path, dpi=150)
    return figure


def _curve(values: Sequence[float], name: str) -> np.ndarray:
    try:
        curve = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"history[{name!r}] is {values!r}; expected one number per epoch") from error
    if curve.ndim != 1:
        raise ValueError(f"history[{name!r}] has shape {curve.shape}; expected one number per epoch")
    return curve


def _panels(curves: Mapping[str, np.ndarray]) -> list[str]:
    """The panels in order: cost, metrics, then the learning rate where it changes or stands alone."""
    bases = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    metrics = [name for name in bases if name not in ("loss", "learning_rate", "epoch")]
    panels = [name for name in ("loss",) if name in bases] + metrics
    rate = curves.get("learning_rate")
    if rate is not None and (not panels or np.unique(rate).size > 1):
        panels.append("learning_rate")
    return panels


def _draw_panel(axes: "Axes", name: str, curves: Mapping[str, np.ndarray], epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    pairs = [(name, "train", TRAIN), (f"val_{name}", "validation", VALIDATION)]
    if name == "learning_rate":
        pairs = [(name, "", RATE)]
    drawn = [(curves[key], label, colour) for key, label, colour in pairs if key in curves]
    axes.set_title(_title(name), loc="left", fontsize=11, fontweight="bold", pad=24)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlim(*((0.5, 1.5) if epochs == 1 else (1 - 0.015 * epochs, epochs)))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    axes.spines["left"].set_visible(False)
    _set_y(axes, name, np.concatenate([values for values, _, _ in drawn]))
    for i, (values, _, colour) in enumerate(drawn):
        _draw_curve(axes, values, colour, foot=0.03 + 0.05 * i)
    _name_curves(axes, drawn)
    values, label, colour = drawn[-1]
    best = _mark_best(axes, values, label, colour, _larger_is_better(name)) if label else ""
    lost = sum(int((~np.isfinite(values)).sum()) for values, _, _ in drawn)
    remark = "   ".join(filter(None, [best, f"× not finite ({lost})" if lost else ""]))
    axes.annotate(remark, (0, 1), (0, 9), "axes fraction", textcoords="offset points", color=colour, fontsize=9)


def _title(name: str) -> str:
    return NAMES.get(name, name.replace("_", " ").capitalize())


def _larger_is_better(name: str) -> bool:
    return any(word in name.lower().split("_") for word in LARGER_IS_BETTER)


def _set_y(axes: "Axes", name: str, values: np.ndarray) -> None:
    """A range that shows the curve: logarithmic beyond two decades; from 0 where that costs little."""
    values = values[np.isfinite(values)]
    if not values.size:
        axes.set_yticks([])
        axes.set_ylim(0, 1)
        return
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 100:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        return
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom, top = low - pad, high + pad
    if low >= 0:
        bottom = 0.0 if low < 0.35 * high else max(0.0, bottom)
    if _larger_is_better(name) and high <= 1:
        top = min(top, 1.0 + 0.03 * (1.0 - bottom))
    axes.set_ylim(bottom, top)


def _draw_curve(axes: "Axes", values: np.ndarray, colour: str, foot: float) -> None:
    """The curve, and at height `foot` of the panel a cross for each epoch that is not finite."""
    epoch = np.arange(1, values.size + 1)
    finite = np.isfinite(values)
    shown = np.where(finite, values, np.nan)
    axes.plot(epoch, shown, color=colour, linewidth=1.8, solid_capstyle="round", clip_on=False)
    # A value between two gaps, or the only one, is a line of no length: draw a dot.
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    if alone.any():
        axes.plot(epoch[alone], values[alone], "o", color=colour, markersize=4.5, clip_on=False)
    if not finite.all():
        lost, height = epoch[~finite], np.full((~finite).sum(), foot)
        place = axes.get_xaxis_transform()
        axes.plot(lost, height, "x", color=colour, markersize=5, transform=place, clip_on=False)


def _name_curves(axes: "Axes", drawn: list[tuple[np.ndarray, str, str]]) -> None:
    """Write each curve's name and last value right of its end, apart from each other."""
    low, high = axes.get_ylim()
    scale = math.log10 if axes.get_yscale() == "log" else float
    ends: list[tuple[float, str, str]] = []
    for values, label, colour in drawn:
        finite = values[np.isfinite(values)]
        last = float(finite[-1]) if finite.size else math.nan
        place = (scale(last) - scale(low)) / (scale(high) - scale(low)) if finite.size else 0.5
        text = f"{last:.3g}" if finite.size else "not finite"
        ends.append((place, f"{label} {text}".strip(), colour))
    ends.sort()
    gap = 0.075
    if len(ends) == 2 and ends[1][0] - ends[0][0] < gap:
        middle = (ends[0][0] + ends[1][0]) / 2
        middle = min(max(middle, gap / 2), 1 - gap / 2)
        ends = [(middle - gap / 2, *ends[0][1:]), (middle + gap / 2, *ends[1][1:])]
    for place, text, colour in ends:
        axes.annotate(
            text,
            (1, place),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
        )


def _mark_best(axes: "Axes", values: np.ndarray, label: str, colour: str, largest: bool) -> str:
    """Ring the best epoch; returns its description, empty where there is nothing to choose from."""
    finite = values[np.isfinite(values)]
    if np.unique(finite).size < 2:
        return ""
    best = int(np.flatnonzero(values == (finite.max() if largest else finite.min()))[0])
    ring: dict[str, Any] = {
        "color": "white",
        "markeredgecolor": colour,
        "markeredgewidth": 1.8,
        "markersize": 6,
    }
    axes.plot(best + 1, values[best], "o", clip_on=False, zorder=3, **ring)
    return f"best {label} {values[best]:.3g} at epoch {best + 1}"
