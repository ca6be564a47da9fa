"""The optimizers, each the update of one element: ``(w, g, *slots, h) -> (w, *slots)``.

What depends on ``h`` alone is computed once a step in float64; weight decay and clipping belong to the skeleton. Slots
start at zero: where a method starts elsewhere, its first step (``h.t == 1``) says so. A convention of a method that
takes other slots or other arithmetic is a rule of its own, so that no kernel reads, writes or computes what it does
not need. ``docs/optimizers.csv`` lists the methods of Schmidt, Schneider & Hennig 2021: the rule of each, or why none.
"""

from . import adagrad, adam, adaptive, layerwise, momentum, rmsprop, signs

__all__ = ["adagrad", "adam", "adaptive", "layerwise", "momentum", "rmsprop", "signs"]
