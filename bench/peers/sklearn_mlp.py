"""scikit-learn's multi-layer perceptron.

One ``partial_fit`` of one mini-batch is one step of Adam; outputs are those of ``predict_proba``.
"""

from __future__ import annotations

import numpy as np
from sklearn.neural_network import MLPClassifier

from ..cases import LEARNING_RATE, Case, Missing, Predict, Step, Work


def build(case: Case, way: str) -> Work:
    """The work of ``case``; the way is always ``partial_fit``."""
    step = case.step if isinstance(case, Predict) else case
    if not isinstance(step, Step) or step.norm:
        raise Missing("has no such layer")
    x, y = step.data()
    model = MLPClassifier(
        step.widths[1:-1], batch_size=step.batch, alpha=0, learning_rate_init=LEARNING_RATE, random_state=0
    )
    model.partial_fit(x, y, classes=np.arange(max(2, step.widths[-1])))
    if isinstance(case, Predict):
        samples = case.data()
        return Work(lambda: model.predict_proba(samples))
    return Work(lambda: model.partial_fit(x, y))
