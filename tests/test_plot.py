"""Training curves: which panels, which range, which epoch is the best one; any history gives a picture."""

import builtins
import doctest
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

matplotlib = pytest.importorskip("matplotlib")

import dlcore.plot  # noqa: E402
from dlcore.plot import plot_history  # noqa: E402

NAN, INF = float("nan"), float("inf")
FULL = {
    "loss": [1.0, 0.6, 0.4, 0.3],
    "val_loss": [1.1, 0.7, 0.65, 0.8],
    "accuracy": [0.5, 0.7, 0.8, 0.9],
    "val_accuracy": [0.5, 0.75, 0.7, 0.75],
    "learning_rate": [0.1, 0.1, 0.05, 0.05],
}


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_docstring_examples_run():
    result = doctest.testmod(dlcore.plot)
    assert result.attempted > 0
    assert result.failed == 0


def test_panels_names_and_best_epochs():
    drawn = panels(plot_history(FULL, title="digits"))
    assert list(drawn) == ["Cost", "Accuracy", "Learning rate"]
    assert words(drawn["Cost"]) == ["train 0.3", "validation 0.8", "best validation 0.65 at epoch 3"]
    # The first of two equal best epochs; the largest accuracy, the smallest cost.
    assert "best validation 0.75 at epoch 2" in words(drawn["Accuracy"])
    train, validation, ring = drawn["Cost"].lines
    assert (train.get_xdata().tolist(), train.get_ydata().tolist()) == ([1, 2, 3, 4], FULL["loss"])
    assert validation.get_ydata().tolist() == FULL["val_loss"]
    assert (ring.get_xdata(), ring.get_ydata()) == ([3], [0.65])


@pytest.mark.parametrize(
    ("history", "titles"),
    [
        pytest.param({"loss": [1, 2]}, ["Cost"], id="cost-only"),
        pytest.param({"mean_absolute_error": [2, 1]}, ["Mean absolute error"], id="metric-only"),
        pytest.param({"val_f1": [0.1], "loss": [1]}, ["Cost", "F1"], id="validation-only-metric"),
        pytest.param({"loss": [1, 2], "learning_rate": [0.1, 0.1]}, ["Cost"], id="constant-rate"),
        pytest.param({"learning_rate": [0.1, 0.1]}, ["Learning rate"], id="rate-only"),
        pytest.param({"loss": [1, 2], "accuracy": [], "epoch": [1, 2]}, ["Cost"], id="empty-metric"),
    ],
)
def test_panels(history, titles):
    assert list(panels(plot_history(history))) == titles


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        pytest.param([1.0, 0.02], "linear", id="50-fold"),
        pytest.param([1.0, 0.005], "log", id="200-fold"),
        pytest.param([1.0, 0.0], "linear", id="zero"),
        pytest.param([100.0, -1.0], "linear", id="negative"),
    ],
)
def test_logarithmic_beyond_two_decades(loss, scale):
    axes = panels(plot_history({"loss": loss}))["Cost"]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= min(loss) < max(loss) < high


def test_accuracy_axis_ends_near_one():
    axes = panels(plot_history({"accuracy": [0.9, 0.99]}))["Accuracy"]
    assert axes.get_ylim()[1] <= 1.01
    assert 0.5 < axes.get_ylim()[0] < 0.9


def test_not_finite_values_leave_gaps_and_are_counted():
    axes = panels(plot_history({"loss": [1.0, NAN, 0.5, INF], "val_loss": [2.0, 1.0, 1.5, 1.2]}))["Cost"]
    assert "best validation 1 at epoch 2   × not finite (2)" in words(axes)
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False, True]
    assert np.isfinite(axes.get_ylim()).all()
    assert words(axes)[0] == "train 0.5"


def test_names_of_close_curves_do_not_overlap(tmp_path):
    figure = plot_history({"loss": [1.0, 0.5], "val_loss": [1.1, 0.5]}, tmp_path / "t.png")
    first, second = (text.get_window_extent() for text in panels(figure)["Cost"].texts[:2])
    assert not first.overlaps(second)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(FULL, id="full"),
        pytest.param({name: values[:1] for name, values in FULL.items()}, id="one-epoch"),
        pytest.param({"loss": [1.0, 0.5]}, id="no-validation"),
        pytest.param({"loss": [NAN] * 3, "val_loss": [INF] * 3}, id="never-finite"),
        pytest.param({"loss": [0.0, 0.0]}, id="zeros"),
        pytest.param({"loss": [5, 5, 5], "val_loss": [5]}, id="constant-and-shorter"),
        pytest.param({"loss": np.float32([3, 1e-9]), "b": [1, 2], "c": [1, 2], "d": [1, 2]}, id="two-rows"),
    ],
)
def test_pictures_are_written(tmp_path, history):
    plot_history(history, tmp_path / "t.png", title="run")
    image = matplotlib.image.imread(tmp_path / "t.png")
    assert image.shape[0] > 400
    assert image[..., :3].std() > 0.01  # something is drawn


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30) | st.sampled_from([NAN, INF, -INF]), min_size=1, max_size=6))
def test_any_numbers_can_be_drawn(values):
    figure = plot_history({"loss": values, "val_loss": values[::-1]})
    figure.canvas.draw()


def test_global_state_is_left_alone():
    # To look at "backend" would choose one, and import pyplot.
    code = """if True:
        import sys, matplotlib
        from dlcore.plot import plot_history
        settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != "backend"}
        before = settings()
        plot_history({"loss": [2, 1]})
        print("matplotlib.pyplot" in sys.modules, settings() == before)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("history", "message"),
    [
        pytest.param({}, "the history is empty", id="nothing"),
        pytest.param({"loss": []}, "the history is empty", id="no-epoch"),
        pytest.param({"loss": ["a"]}, r"history\['loss'\] is \['a'\]", id="text"),
        pytest.param({"loss": 0.5}, r"history\['loss'\] has shape \(\)", id="number"),
    ],
)
def test_bad_histories(history, message):
    with pytest.raises(ValueError, match=message):
        plot_history(history)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'dlcore\[plot\]'"):
        plot_history(FULL)
