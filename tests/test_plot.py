"""Pictures: what is drawn, read back from the figure."""

import numpy as np
import pytest

from dlcore.plot import plot_history

pytest.importorskip("matplotlib")

HISTORIES = {
    "full": {"loss": [1.0, 0.1, 0.001], "val_loss": [1.1, 0.2, 0.3], "accuracy": [0.5, 0.8, 0.9], "val_accuracy": [0.4, 0.9, 0.8]},
    "one epoch": {"loss": [1.0]},
    "not a number": {"loss": [1.0, np.nan, 0.5], "val_loss": [np.nan] * 3},
    "constant": {"loss": [0.0, 0.0], "val_loss": [0.0, 0.0]},
}  # fmt: skip


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_every_history_becomes_a_picture(tmp_path, history):
    figure = plot_history(history, tmp_path / "curve.png", title="title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == len([n for n in history if not n.startswith("val_")])


def test_lines_hold_the_history_and_the_best_epoch_is_marked():
    history = HISTORIES["full"]
    loss, accuracy = plot_history({**history, "learning_rate": [1.0, 1.0, 1.0]}).axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), history["loss"])
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), history["val_loss"])
    assert loss.get_yscale() == "log"
    assert accuracy.get_yscale() == "linear"
    assert loss.lines[2].get_xdata()[0] == accuracy.lines[2].get_xdata()[0] == 2
    assert [t.get_text() for t in loss.texts] == ["train", "validation"]
    assert "best 0.2, epoch 2" in loss.get_title(loc="left")


def test_a_history_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="history has no loss; it holds: accuracy"):
        plot_history({"accuracy": [1.0]})
