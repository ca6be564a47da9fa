"""``Sequential``: layers one after another, with Keras's names for what one does with them."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import arrays, averaging, losses, optimizers, random, training
from .callbacks import Callback
from .kernels import resolve
from .kernels.device import engine as engine_of
from .layers import Input, Layer
from .metrics import get as get_metric
from .network import Network, Plan, assemble
from .step import Passes

_DEFAULT_ROWS = 256  # mini-batch of evaluate and predict where none is given

# buffers that begin anew with another rule; those of layers have a dot in their names
_OF_OPTIMIZER = re.compile(r"slots|factors|step|turn_of_\d+")


class Sequential:
    """A network of layers one after another.

    Python threads may share a model: each call waits for the others', and ``fit`` lets them in between epochs.

    >>> import dlcore
    >>> model = dlcore.Sequential([dlcore.layers.Input((4,)), dlcore.layers.Dense(3, "relu"), dlcore.layers.Dense(1)])
    >>> model.count_params()
    19
    """

    def __init__(self, layers: Iterable[Layer] = (), *, name: str = "sequential", device: str = "auto") -> None:
        self.name = name
        self.device = resolve(device)
        self.layers: list[Layer] = []
        self.input_shape: tuple[int, ...] | None = None
        self.stop_training = False
        self._plan = Plan()
        self._network: Network | None = None
        self._engine: Any = None
        self._assembled: tuple[Any, ...] | None = None  # the key of the plan that the program is for
        self._passes = Passes()  # of the program as it is
        self._averaged = False  # whether the weights are the optimizer's averages
        self._lock = threading.RLock()  # of the program, and of what is bound to it
        for layer in layers:
            self.add(layer)

    # ------------------------------------------------------------------------------------------------- building

    def add(self, layer: Layer) -> None:
        """Append a layer; not after the model was built."""
        if not isinstance(layer, Layer):
            raise TypeError(f"expected a layer, got {type(layer).__name__}")
        if self._network is not None:
            raise RuntimeError("the model is built already; make a new one with the layer in it")
        if any(layer is other for other in self.layers):
            raise ValueError(f"layer {layer.name!r} is in the model already; a layer stands in one place")
        if not layer.name:
            kind = type(layer).__name__.lower()
            used = sum(type(other) is type(layer) for other in self.layers)
            layer.name = f"{kind}_{used + 1}" if used else kind
        if any(layer.name == other.name for other in self.layers):
            raise ValueError(f"two layers are called {layer.name!r}; names must differ")
        self.layers.append(layer)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the layers, float32 unless they say otherwise; they must agree."""
        dtypes = {layer.dtype for layer in self.layers if layer.dtype is not None}
        if len(dtypes) > 1:
            raise ValueError(f"layers have different dtypes: {', '.join(sorted(str(d) for d in dtypes))}")
        return dtypes.pop() if dtypes else np.dtype(np.float32)

    @property
    def built(self) -> bool:
        """Whether the parameters exist."""
        return self._network is not None

    def build(self, input_shape: Sequence[int]) -> None:
        """Create and initialise the parameters for samples of ``input_shape``, which is without the batch axis."""
        if not self.layers:
            raise ValueError("the model has no layers")
        self.input_shape = tuple(int(s) for s in input_shape)
        self._assemble(_DEFAULT_ROWS)
        rng = random.generator()
        for layer in self.layers:
            for buffer, _, initializer in layer.variables.values():
                self._engine.write(buffer, np.asarray(initializer(buffer.shape, rng), self.dtype))
        assert self._network is not None
        self._engine.write(self._network.seed, random.draw_seed())

    def _ensure_built(self, x: Any = None) -> None:
        if self.built:
            return
        first = self.layers[0] if self.layers else None
        if type(first) is Input:
            self.build(first.shape)
        elif x is not None:
            shape = arrays.shape_of(x, self.device)
            if len(shape) < 2:
                raise ValueError(f"x has shape {shape}; expected (samples, features)")
            self.build(shape[1:])
        else:
            raise RuntimeError("the shape of the input is not known yet; begin with Input(shape) or call build(shape)")

    def _assemble(self, rows: int, fresh: bool = False) -> None:
        """Make the program of the current plan; parameters, statistics and, if not ``fresh``, optimizer state stay."""
        assert self.input_shape is not None
        state = self._state() if self.built else {}
        if fresh:
            state = {name: value for name, value in state.items() if not _OF_OPTIMIZER.fullmatch(name)}
        network = assemble(self.layers, self.input_shape, self.dtype, self._plan)
        engine = engine_of(self.device)(network.program, rows)
        for buffer in network.program.all_buffers():
            value = state.get(buffer.name)
            if value is not None and value.shape == tuple(buffer.shape):
                engine.write(buffer, value)
        self._network, self._engine = network, engine
        self._assembled = self._plan.key
        self._passes.clear()

    def _state(self) -> dict[str, np.ndarray]:
        """What outlives a step, by name: parameters, statistics, step, seed and the optimizer's slots."""
        assert self._network is not None
        program = self._network.program
        buffers = [*program.buffers["state"], *program.buffers["parameter"]]
        if program.slots is not None:
            buffers.append(program.slots)
        with self._lock:
            return {buffer.name: self._engine.read(buffer) for buffer in buffers}

    def _prepare(self, plan: Plan, rows: int) -> None:
        changed = plan.key != self._assembled
        self._plan = plan
        if changed:
            self._assemble(max(rows, self._engine.rows))
        else:
            self._engine.reserve(rows)

    # ------------------------------------------------------------------------------------------------- training

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Sequence[Any] = ()) -> None:
        """Choose optimizer, loss and metrics: names, classes, instances, or rules of your own.

        >>> import dlcore
        >>> model = dlcore.Sequential([dlcore.layers.Input((4,)), dlcore.layers.Dense(3, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        """
        if loss is None:
            raise ValueError("loss is missing; for example loss='mse'")
        if isinstance(metrics, str):
            raise TypeError(f"metrics must be a list, got the string {metrics!r}")
        chosen = losses.get(loss)
        found = tuple(get_metric(m, chosen) for m in metrics)
        names = [m.name for m in found]
        if len(set(names)) < len(names):
            raise ValueError(f"metrics are named twice: {', '.join(names)}")
        with self._lock:
            self._trainable()
            before, self._plan = self._plan.optimizer, Plan(chosen, found, optimizers.get(optimizer))
            if self.built:
                fresh = before is None or before.rule.state != self.optimizer.rule.state
                self._assemble(self._engine.rows, fresh)

    @property
    def optimizer(self) -> optimizers.Optimizer:
        """The optimizer; its values may be changed between epochs or steps."""
        if self._plan.optimizer is None:
            raise RuntimeError("the model has no optimizer yet; call compile(optimizer, loss)")
        return self._plan.optimizer

    def _data(
        self, x: Any, y: Any, sample_weight: Any = None, class_weight: dict[int, float] | None = None
    ) -> training.Data:
        """Check data against the model, and make the program fit it."""
        loss = self._plan.loss
        if loss is None:
            raise RuntimeError("the model has no loss yet; call compile(optimizer, loss)")
        with self._lock:
            self._ensure_built(x)
            dtype = self.dtype
            matrix = arrays.samples(x, self.input_shape, dtype, device=self.device)
            if not matrix.shape[0]:
                raise ValueError("x has no samples")
            logits = loss.from_logits or self._absorbs()
            target = arrays.targets(y, matrix.shape[0], self._outputs(), loss, logits, dtype, self.device)
            weight = arrays.weights(sample_weight, class_weight, target, dtype)
            if weight is None and self._plan.weighted:  # the program that is there serves both
                weight = np.ones(matrix.shape[0], dtype)
            return training.Data(matrix, target, weight)

    def _absorbs(self) -> bool:
        from .network import _absorbs

        return _absorbs(self._plan, self.layers[-1])

    def _outputs(self) -> int:
        assert self._network is not None
        assert self._network.output is not None
        return int(self._network.output.shape[1])

    def _runner(self, data: training.Data, rows: int) -> training.Runner:
        plan = Plan(
            self._plan.loss, self._plan.metrics, self._plan.optimizer, data.targets.ndim == 1, data.weights is not None
        )
        self._prepare(plan, min(rows, len(data.samples)))
        assert self._network is not None
        return training.Runner(self._engine, self._network, self.optimizer, data)

    def fit(
        self,
        x: Any,
        y: Any,
        batch_size: int = 32,
        epochs: int = 1,
        verbose: int = 1,
        validation_split: float = 0.0,
        validation_data: tuple[Any, Any] | None = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> training.History:
        """Train for ``epochs`` epochs of mini-batches; the last one of an epoch may be smaller.

        ``validation_split`` keeps the last share of the samples apart. ``verbose`` is 0 for silence, 1 for a
        progress bar (on a terminal only), 2 for a line an epoch. Returns the :class:`~dlcore.training.History`.
        Ctrl-C stops at the end of a mini-batch; the model stays usable.
        """
        batch_size, epochs = training.positive("batch_size", batch_size), training.positive("epochs", epochs)
        if not 0.0 <= validation_split < 1.0:
            raise ValueError(f"validation_split must lie in [0, 1), got {validation_split!r}")
        with self._lock:
            self._trainable()
        data = self._data(x, y, sample_weight, class_weight)
        validation = None
        if validation_data is not None:
            validation = self._data(*validation_data)
        elif validation_split:
            data, validation = data.split(len(data.samples) - int(len(data.samples) * validation_split))
        if validation is not None and data.weights is not None and validation.weights is None:
            validation.weights = np.ones(len(validation.samples), self.dtype)  # the same program serves both
        try:
            return training.fit(
                self, data, validation, batch_size, range(initial_epoch, epochs), shuffle, verbose, callbacks
            )
        finally:
            with self._lock:
                self._engine.release()

    def evaluate(
        self,
        x: Any,
        y: Any,
        batch_size: int = _DEFAULT_ROWS,
        verbose: int = 0,
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """The mean loss over the samples, and the metrics: a number, a list, or a dict."""
        with self._lock:
            data = self._data(x, y, sample_weight)
            result = training.evaluate(self, data, training.positive("batch_size", batch_size))
        if verbose:
            print(training.describe(result))
        return training.answer([*result.values()], [*result], return_dict)

    def predict(self, x: Any, batch_size: int = _DEFAULT_ROWS, verbose: int = 0) -> np.ndarray:
        """The outputs ``(samples, outputs)`` for ``x``, as a NumPy array."""
        rows = training.positive("batch_size", batch_size)
        with self._lock:
            if type(x) is not np.ndarray:
                x = arrays.as_array("x", x, self.device)
            known = self._passes.run("predict", x, rows)
            if known is not None:
                return known
            if not self.built:
                self._ensure_built(x)
            matrix = arrays.samples(x, self.input_shape, self.dtype, device=self.device)
            assert self._network is not None
            result = training.predict(self._engine, self._network, matrix, rows)
            if 0 < len(matrix) <= rows:
                self._passes.add_outputs(self, x, matrix)
            return result

    def train_on_batch(self, x: Any, y: Any, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """One step on one mini-batch; the loss (and metrics) before the update."""
        return self._on_batch("train", x, y, sample_weight, return_dict)

    def test_on_batch(self, x: Any, y: Any, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """The loss (and metrics) of one mini-batch."""
        return self._on_batch("test", x, y, sample_weight, return_dict)

    def _on_batch(self, name: str, x: Any, y: Any, weights: Any, return_dict: bool) -> Any:
        with self._lock:
            usual = self._passes.usual.get(name) if weights is None and not self._averaged else None
            if usual is None or not type(x) is type(y) is np.ndarray or (values := usual.again(x, y)) is None:
                values = self._on_other_batch(name, x, y, weights)
            assert self._network is not None
            return training.answer(values, self._network.histories, return_dict)

    def _on_other_batch(self, name: str, x: Any, y: Any, weights: Any) -> list[float]:
        if name == "train":
            self._trainable()
        if type(x) is not np.ndarray or type(y) is not np.ndarray:
            x, y = arrays.as_array("x", x, self.device), arrays.as_array("y", y, self.device)
        values = self._passes.run(name, x, y, weights)
        if values is None:
            data = self._data(x, y, weights)
            values = [*self._runner(data, len(data.samples)).whole(name).values()]
            self._passes.add(name, self, data, x, y)
        return values

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """The outputs for one mini-batch."""
        return self.predict(x, batch_size=max(1, len(x)))

    # -------------------------------------------------------------------------------------------------- weights

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The weights are the averages that the optimizer keeps meanwhile: to evaluate, predict, or save them.

        Those are what ``use_ema``, ``SWA`` or ``Lookahead`` hold (the outermost of them; before the first update the
        weights). Training has to wait, and so do other threads. Statistics of batch norm stay.

        >>> import dlcore, numpy as np
        >>> model = dlcore.Sequential([dlcore.layers.Dense(1, kernel_initializer="zeros")])
        >>> model.compile(dlcore.optimizers.SGD(0.125, use_ema=True, ema_momentum=0.5), "mse")
        >>> _ = model.fit(np.ones((2, 1)), np.ones((2, 1)), epochs=2, verbose=0)
        >>> with model.averaged_weights():
        ...     print(model.get_weights()[0])
        [[0.3125]]
        """
        with self._lock:
            self._trainable()
            with averaging.averaged(self):
                yield

    def _trainable(self) -> None:
        if self._averaged:
            raise RuntimeError("the weights are averages now; train after 'with model.averaged_weights():' has ended")

    def get_weights(self) -> list[np.ndarray]:
        """Copies of all weights, layer by layer: kernel, bias; gamma, beta, moving mean, moving variance."""
        with self._lock:
            self._ensure_built()
            return [self._engine.read(v[0]) for layer in self.layers for v in layer.variables.values()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all weights, in the order of :meth:`get_weights`."""
        self._ensure_built()
        variables = [v[0] for layer in self.layers for v in layer.variables.values()]
        if len(weights) != len(variables):
            raise ValueError(f"got {len(weights)} arrays; this model has {len(variables)}")
        for buffer, value in zip(variables, weights, strict=True):
            if np.shape(value) != tuple(buffer.shape):
                raise ValueError(f"{buffer.name} has shape {np.shape(value)}; expected {tuple(buffer.shape)}")
        with self._lock:
            for buffer, value in zip(variables, weights, strict=True):
                self._engine.write(buffer, np.asarray(value, self.dtype))

    def count_params(self) -> int:
        """The number of weights in all, trained or not."""
        self._ensure_built()
        return sum(math.prod(v[0].shape) for layer in self.layers for v in layer.variables.values())

    @property
    def program(self) -> Any:
        """The instructions of the model, to print."""
        self._ensure_built()
        assert self._network is not None
        return self._network.program

    def summary(self, print_fn: Any = print) -> None:
        """Print the layers with their output shapes and parameter counts."""
        self._ensure_built()
        assert self.input_shape is not None
        rows, shape, trainable, total = [], self.input_shape, 0, 0
        for layer in self.layers:
            shape = layer.output_shape(shape)
            count = sum(math.prod(v[0].shape) for v in layer.variables.values())
            trainable += sum(math.prod(v[0].shape) for v in layer.variables.values() if v[1] is not None)
            total += count
            rows.append(
                (f"{layer.name} ({type(layer).__name__})", str(("batch", *shape)).replace("'", ""), f"{count:,}")
            )
        header = ("layer", "output", "parameters")
        widths = [max(len(row[k]) for row in [header, *rows]) for k in range(3)]
        rule = "-" * (sum(widths) + 4)
        lines = [f"{self.name} on {self.device}, {self.dtype}", rule]
        lines += [f"{r[0]:<{widths[0]}}  {r[1]:<{widths[1]}}  {r[2]:>{widths[2]}}" for r in [header, *rows]]
        lines += [rule, f"parameters: {total:,}, of which trained: {trainable:,}"]
        print_fn("\n".join(lines))

    # --------------------------------------------------------------------------------------------------- saving

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write architecture, weights and optimizer state to one ``.safetensors`` file, atomically."""
        from . import checkpoint

        checkpoint.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str], *, device: str = "auto") -> Sequential:
        """The model that :meth:`save` wrote; training goes on where it was."""
        from . import checkpoint

        return checkpoint.load(path, device=device)
