"""The scale of the loss, and how it moves: one function for both engines and for plain Python.

Numbers in float16 vanish below 6e-8. A loss that is ``scale`` times as large has gradients ``scale`` times as large,
which the optimizer divides again. Where one of them overflows, the step is skipped and the scale halved; after
:data:`INTERVAL` steps without, it doubles. Micikevicius et al. 2018.
"""

from __future__ import annotations

import numpy as np

INITIAL, INTERVAL = 2.0**15, 2000


def scaler(scale: float = INITIAL, interval: int = INTERVAL) -> np.ndarray:
    """The state: scale, steps since it moved or one was skipped, steps until it doubles (0: never), steps skipped."""
    return np.array([scale, 0.0, interval, 0.0])


def move(wrong, scaler, step, uniforms):
    """After a step with ``wrong`` elements of the gradient that are not finite; where there are some, it is skipped."""
    if wrong > 0:
        uniforms[4] = 1
        step[0] -= 1
        scaler[1] = 0
        scaler[3] += 1
        if scaler[2] > 0:
            scaler[0] *= 0.5
    else:
        scaler[1] += 1
        if scaler[2] > 0 and scaler[1] >= scaler[2]:
            scaler[0] *= 2
            scaler[1] = 0
