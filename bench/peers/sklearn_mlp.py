"""scikit-learn's multi-layer perceptron; one ``partial_fit`` of one mini-batch is one step of Adam."""

from __future__ import annotations

import numpy as np
from sklearn.neural_network import MLPClassifier

from ..cases import LEARNING_RATE, Case, Missing, Step, Work


def build(case: Case, way: str) -> Work:
    """The work of ``case``; the way is always ``partial_fit``."""
    if not isinstance(case, Step) or case.norm:
        raise Missing("has no such layer")
    x, y = case.data()
    model = MLPClassifier(
        case.widths[1:-1], batch_size=case.batch, alpha=0, learning_rate_init=LEARNING_RATE, random_state=0
    )
    model.partial_fit(x, y, classes=np.arange(max(2, case.widths[-1])))
    return Work(lambda: model.partial_fit(x, y))
