"""A small classifier and data for it, as tests of the layer API take them."""

import numpy as np

import dlcore
from dlcore import layers


def blobs(rows=60, features=4, classes=3):
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((classes, features)) * 3
    y = rng.integers(0, classes, rows)
    return (centres[y] + rng.standard_normal((rows, features))).astype(np.float32), y


def small(final="softmax", outputs=3, dtype=None):
    return dlcore.Sequential(
        [
            layers.Input((4,), dtype=dtype),
            layers.Dense(8, "tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.25),
            layers.Dense(outputs, final),
        ]
    )


def compiled(**options):
    model = small(**options)
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    return model
