"""The rows of ``python -m bench peers``: what is computed, its flops and bytes, and how fast it shall be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

# The labels of the columns; ``bench.peers`` says which module measures each.
OURS, FIT, SEQUENTIAL, TOGETHER = "dlcore", "dlcore fit", "dlcore one by one", "dlcore together"
TORCH, COMPILED, JAX, SKLEARN = "torch", "torch.compile", "jax", "scikit-learn"

LEARNING_RATE = 1e-7  # weights stay where they are, however long a run is: the work is the same from step to step
DROPOUT = 0.2

_FIT_FLOPS = 20e9  # an epoch inside `fit` has 1000 mini-batches, or as many as make this much work, at least 8


class Missing(Exception):
    """The peer cannot do this row, or something it needs is not there; the text says why."""


class Work(NamedTuple):
    """A call and the number of runs it makes: an epoch of 1000 steps counts as 1000."""

    call: Callable[[], Any]
    runs: int = 1


class Comparison(NamedTuple):
    """One line of the report: the time of ``peer`` over ours, and what it shall be at least (None: shown only)."""

    ours: str
    peer: str
    at_least: float | None = None


@dataclass(frozen=True)
class Case:
    """One row: a computation that every column performs on the same data."""

    name: str
    comparisons: tuple[Comparison, ...]
    kind: ClassVar[str]

    @property
    def title(self) -> str:
        """What the report calls the row."""
        raise NotImplementedError

    @property
    def flops(self) -> float:
        """Floating-point operations of one run; 0 where memory is the only limit."""
        return 0.0

    @property
    def moved(self) -> float:
        """Bytes that one run must read and write if nothing stays in registers between passes."""
        raise NotImplementedError

    @property
    def columns(self) -> tuple[str, ...]:
        """The labels of what is measured, in order, each once."""
        labels = [c.ours for c in self.comparisons] + [c.peer for c in self.comparisons]
        return tuple(dict.fromkeys(labels))


@dataclass(frozen=True)
class Step(Case):
    """One step of training: forward, loss, backward, Adam. ``norm``: batch norm before each hidden ReLU."""

    widths: tuple[int, ...]
    batch: int
    norm: bool = False
    dropout: float = 0.0
    kind: ClassVar[str] = "step"

    @property
    def title(self) -> str:
        extra = ["batch norm"] * self.norm + ["dropout"] * bool(self.dropout)
        return f"step {self.chain}{' (' + ', '.join(extra) + ')' if extra else ''}, b{self.batch}"

    @property
    def chain(self) -> str:
        """The widths, as 64-128-10."""
        return "-".join(map(str, self.widths))

    @property
    def binary(self) -> bool:
        """Whether the loss is binary cross-entropy of one sigmoid, and not softmax cross-entropy of class numbers."""
        return self.widths[-1] == 1

    @property
    def weights(self) -> int:
        """The number of elements of the weight matrices."""
        return sum(k * n for k, n in zip(self.widths, self.widths[1:], strict=False))

    @property
    def parameters(self) -> int:
        """The number of trained parameters: a dense layer has a bias, or scale and shift of batch norm after it."""
        hidden, out = self.widths[1:-1], self.widths[-1]
        return self.weights + (2 if self.norm else 1) * sum(hidden) + out

    @property
    def flops(self) -> float:
        # forward, and the gradients of weights and of inputs; nobody needs the gradient of the samples
        return 2.0 * self.batch * (3 * self.weights - self.widths[0] * self.widths[1])

    @property
    def moved(self) -> float:
        # Adam reads and writes weights and two moments; the gradient and the activations may stay in cache
        return 24.0 * self.parameters + 4.0 * self.batch * self.widths[0]

    @property
    def fit_steps(self) -> int:
        """The mini-batches of an epoch where the row is measured inside ``fit``."""
        return int(min(1000, max(8, _FIT_FLOPS / self.flops)))

    def data(self, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Samples (rows, inputs) of float32 and class numbers (rows,) of int64; the same in every process."""
        rng = np.random.default_rng(1)
        count = rows or self.batch
        x = rng.standard_normal((count, self.widths[0]), np.float32)
        return x, rng.integers(0, max(2, self.widths[-1]), count)


@dataclass(frozen=True)
class Predict(Case):
    """The outputs (probabilities) of the network of ``step`` for ``rows`` samples; nothing is trained."""

    step: Step
    rows: int
    kind: ClassVar[str] = "predict"

    @property
    def title(self) -> str:
        plural = "s" if self.rows > 1 else ""
        return f"outputs of {self.step.chain}, {self.rows} sample{plural}"

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.step.weights

    @property
    def moved(self) -> float:
        return 4.0 * (self.step.parameters + self.rows * (self.step.widths[0] + self.step.widths[-1]))

    def data(self) -> np.ndarray:
        """Samples (rows, inputs)."""
        return self.step.data(self.rows)[0]


@dataclass(frozen=True)
class Models(Case):
    """``count`` models of one architecture, one step of each; a run is one step of one model."""

    count: int
    step: Step
    kind: ClassVar[str] = "models"

    @property
    def title(self) -> str:
        return f"{self.count} models of {self.step.chain}, b{self.step.batch}, a model-step"

    @property
    def fit_steps(self) -> int:
        """The mini-batches of an epoch, of each model: few, as there are many models."""
        return max(8, self.step.fit_steps // 5)

    @property
    def flops(self) -> float:
        return self.step.flops

    @property
    def moved(self) -> float:
        return self.step.moved


@dataclass(frozen=True)
class Adam(Case):
    """One update of parameters by Adam, from gradients that are there; ``sizes``: elements of each tensor."""

    sizes: tuple[int, ...]
    kind: ClassVar[str] = "adam"

    @property
    def title(self) -> str:
        many = f"{len(self.sizes)} tensors of " if len(self.sizes) > 1 else ""
        return f"Adam, {many}{self.sizes[0]:,} elements"

    @property
    def moved(self) -> float:
        return 28.0 * sum(self.sizes)


@dataclass(frozen=True)
class Norm(Case):
    """Batch norm forward and backward, of training."""

    rows: int
    features: int
    kind: ClassVar[str] = "norm"

    @property
    def title(self) -> str:
        return f"batch norm, forward + backward, {self.rows}x{self.features}"

    @property
    def moved(self) -> float:
        return 20.0 * self.rows * self.features  # x and dy read, x again in the backward pass, y and dx written

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """``x`` and ``dy``, each (rows, features)."""
        rng = np.random.default_rng(1)
        x, dy = rng.standard_normal((2, self.rows, self.features), np.float32)
        return x, dy


@dataclass(frozen=True)
class Dense(Case):
    """One dense layer forward: ``relu(x W + b)``."""

    m: int
    k: int
    n: int
    kind: ClassVar[str] = "dense"

    @property
    def title(self) -> str:
        return f"relu(x W + b), {self.m}x{self.k}x{self.n}"

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n

    @property
    def moved(self) -> float:
        return 4.0 * (self.m * self.k + self.k * self.n + self.n + self.m * self.n)

    def data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``x (m, k)``, ``W (k, n)``, ``b (n,)``."""
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.m, self.k), np.float32)
        w = rng.standard_normal((self.k, self.n), np.float32) / np.float32(self.k**0.5)
        return x, w, rng.standard_normal(self.n, np.float32)


class Grid(NamedTuple):
    """What the ratios of all rows of a kind shall be together."""

    median: float
    worst: float


GRIDS = {"dense": Grid(median=1.0, worst=0.8)}  # such a kind is one line of the report and a table of its own
GRID_ROWS = (1, 8, 32, 128, 512, 2048)
GRID_FEATURES = (64, 256, 784, 1024, 4096)
_QUICK_ROWS = (1, 32, 512)
_QUICK_FEATURES = (64, 784, 4096)


def _against(ours: str = OURS, **at_least: float | None) -> tuple[Comparison, ...]:
    labels = {"torch": TORCH, "compiled": COMPILED, "jax": JAX, "sklearn": SKLEARN}
    return tuple(Comparison(ours, labels[key], value) for key, value in at_least.items())


_FIT_SHOWN = _against(FIT, torch=None)
_DIGITS = Step("digits", (*_against(torch=7, jax=2.8, sklearn=35), *_FIT_SHOWN), (64, 128, 10), 32)


def _predict(rows: int) -> Predict:
    return Predict(f"predict-{rows}", _against(torch=None, jax=None, sklearn=None), _DIGITS, rows)


def _models(count: int) -> Models:
    targets = {SEQUENTIAL: 1.8, JAX: 2.0, TORCH: 15.0}
    comparisons = tuple(Comparison(TOGETHER, peer, value) for peer, value in targets.items())
    return Models(f"models-{count}", comparisons, count, _DIGITS)


_TORCH_ALONE = {"adam-1e4": 5, "adam-1e6": 1.25, "adam-1e7": 1.15, "adam-200x2k": 10}
_ADAM_SIZES = {"adam-1e4": (10**4,), "adam-1e6": (10**6,), "adam-1e7": (10**7,), "adam-200x2k": (2000,) * 200}

CASES: tuple[Case, ...] = (
    Step("tiny", (*_against(torch=20, jax=5, sklearn=80), *_against(FIT, torch=40)), (2, 8, 8, 1), 32),
    _DIGITS,
    Step("digits-norm", (*_against(torch=6, jax=4), *_FIT_SHOWN), (64, 128, 128, 10), 32, norm=True, dropout=DROPOUT),
    Step("mnist-norm", (*_against(torch=1.35, jax=1.6), *_FIT_SHOWN), (784, 512, 256, 10), 128, norm=True),
    Step("mnist-64", (*_against(torch=1.8, jax=1.8, sklearn=6), *_FIT_SHOWN), (784, 256, 128, 10), 64),
    Step("mnist-512", (*_against(torch=1.2, jax=1.3, sklearn=3), *_FIT_SHOWN), (784, 256, 128, 10), 512),
    Step("wide", (*_against(torch=1.05, compiled=1.05, jax=1.05), *_FIT_SHOWN), (784, 1024, 1024, 10), 256),
    _predict(1),
    _predict(32),
    *(Adam(name, _against(torch=value), _ADAM_SIZES[name]) for name, value in _TORCH_ALONE.items()),
    Norm("norm-64x256", _against(torch=2.5), 64, 256),
    Norm("norm-256x1024", _against(torch=1.7), 256, 1024),
    Norm("norm-8192x512", _against(torch=1.1), 8192, 512),
    *(
        Dense(f"dense-{m}x{k}x{n}", _against(torch=None), m, k, n)
        for m in GRID_ROWS
        for k in GRID_FEATURES
        for n in GRID_FEATURES
    ),
    _models(16),
    _models(64),
)
KINDS = tuple(dict.fromkeys(case.kind for case in CASES))


class UnknownRow(ValueError):
    """A name that is neither a row nor a kind of rows."""


def find(name: str) -> Case:
    """The row called ``name``."""
    for case in CASES:
        if case.name == name:
            return case
    raise UnknownRow(f"unknown row {name!r}; python -m bench peers --list shows them all")


def step(name: str) -> Step:
    """The row called ``name``, which is a step."""
    case = find(name)
    assert isinstance(case, Step)
    return case


def select(names: Iterable[str] = (), quick: bool = False) -> list[Case]:
    """The rows with these names or of these kinds, in the order of :data:`CASES`; all where no name is given.

    ``quick`` thins the grid of dense shapes.
    """
    wanted = set(names)
    chosen = {find(name).name for name in wanted - set(KINDS)}
    return [
        case
        for case in CASES
        if case.name in chosen or ((not wanted or case.kind in wanted) and not (quick and _left_out(case)))
    ]


def _left_out(case: Case) -> bool:
    return isinstance(case, Dense) and not (
        case.m in _QUICK_ROWS and case.k in _QUICK_FEATURES and case.n in _QUICK_FEATURES
    )
