"""One seed for everything: initial weights, the order of the samples, dropout masks."""

from __future__ import annotations

import operator

import numpy as np

_generator = np.random.default_rng()


def set_seed(seed: int) -> None:
    """Seed every random choice made from now on, so that a run repeats bit for bit on one machine.

    >>> import dlcore
    >>> dlcore.set_seed(7)
    """
    global _generator
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer, got {seed!r}") from None
    if value < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    _generator = np.random.default_rng(value)


def generator() -> np.random.Generator:
    """The generator that all random choices are drawn from."""
    return _generator


def draw_seed() -> int:
    """A fresh 63-bit seed."""
    return int(_generator.integers(0, 2**63))


def child() -> np.random.Generator:
    """A generator of its own for one purpose, seeded by a single draw.

    What comes after does not depend on how much the purpose needs: ``fit`` shuffles with one, and so models that are
    fitted at once see the orders that they would see one after the other.
    """
    return np.random.default_rng(draw_seed())
