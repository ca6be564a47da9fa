"""scikit-learn's multi-layer perceptron.

One ``partial_fit`` of one mini-batch is one step of Adam; outputs are those of ``predict_proba``.
"""

from __future__ import annotations

import numpy as np
from sklearn.neural_network import MLPClassifier

from ..cases import LEARNING_RATE, Case, Missing, Predict, Step, Work


def build(case: Case, way: str) -> Work:
    """The work of ``case``; the way is always ``partial_fit``."""
    if isinstance(case, Predict):
        model, samples = _trained(case.step), case.data()
        return Work(lambda: model.predict_proba(samples))
    if not isinstance(case, Step) or case.norm:
        raise Missing("has no such layer")
    model, (x, y) = _trained(case), case.data()
    return Work(lambda: model.partial_fit(x, y))


def _trained(case: Step) -> MLPClassifier:
    """After a first step, which makes the weights."""
    model = MLPClassifier(
        case.widths[1:-1], batch_size=case.batch, alpha=0, learning_rate_init=LEARNING_RATE, random_state=0
    )
    return model.partial_fit(*case.data(), classes=np.arange(max(2, case.widths[-1])))
