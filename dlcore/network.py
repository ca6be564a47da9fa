"""From layers, loss, metrics and optimizer to one program with the lists "train", "test" and "predict"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .kernels import Buffer, Builder, Program
from .kernels.compile import uniforms_of
from .kernels.program import update_by_tensor
from .kernels.step_text import UNIFORM_HEADER
from .layers import Activation, Dropout, Layer
from .losses import Loss
from .metrics import Metric
from .optimizers import Optimizer


@dataclass(frozen=True)
class Plan:
    """What a program is made for; a model makes another when it changes."""

    loss: Loss | None = None
    metrics: tuple[Metric, ...] = ()
    optimizer: Optimizer | None = None
    labels: bool = False  # targets are class numbers, not a matrix
    weighted: bool = False  # every sample has a weight

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for plans whose programs are the same."""
        optimizer = self.optimizer
        updates = None if optimizer is None else (optimizer.rule, optimizer.surroundings)
        return self.loss, self.metrics, updates, self.labels, self.weighted

    @property
    def clipped(self) -> str:
        """``"global"`` or ``"tensor"`` where gradients are scaled to a norm: updates wait for all gradients then."""
        return "" if self.optimizer is None else self.optimizer.clipped

    @property
    def sharpness(self) -> tuple[float, float, float] | None:
        """Radius, floor of the weights and whether it is adaptive, where gradients are those of a point nearby."""
        return None if self.optimizer is None else self.optimizer.sharpness

    @property
    def turns(self) -> int:
        """How many mini-batches an update takes the mean gradient of."""
        return 1 if self.optimizer is None else self.optimizer.gradient_accumulation_steps or 1

    @property
    def scaled(self) -> tuple[float, ...]:
        """What the scale of the loss begins with; empty where gradients are not checked."""
        scaler = None if self.optimizer is None else self.optimizer.scaler
        return () if scaler is None else tuple(scaler.tolist())


@dataclass
class Network:
    """A program with the buffers that the model reads and writes by name."""

    program: Program
    step: Buffer
    seed: Buffer
    hyper: Buffer | None = None
    output: Buffer | None = None
    scaler: Buffer | None = None
    batches: Buffer | None = None
    histories: list[str] = field(default_factory=list)


def _absorbs(plan: Plan, last: Layer) -> bool:
    loss = plan.loss
    if loss is None or loss.from_logits or loss.absorbs is None:
        return False
    activation = last.final_activation
    name = activation if isinstance(activation, str) else getattr(activation, "name", None)
    return name == loss.absorbs


def assemble(layers: Sequence[Layer], shape: tuple[int, ...], dtype: np.dtype, plan: Plan) -> Network:
    """Build every layer for samples of ``shape`` and emit the lists that ``plan`` allows."""
    b = Builder(dtype)
    network = Network(b.program, b.state("step", (1,), np.int64), b.state("seed", (1,), np.int64))
    # dropout counts mini-batches, the optimizer updates
    network.batches = b.state("batches", (1,), np.int64) if plan.turns > 1 else network.step
    sample = shape
    for number, layer in enumerate(layers):
        layer.build(b, sample)
        if isinstance(layer, Dropout):
            layer.stream = (network.seed, network.batches, number)
        sample = layer.output_shape(sample)
    samples = b.extern("samples", (0, math.prod(shape)))
    order = b.extern("order", (0,), np.int64)

    def gather() -> Any:
        x = b.rows("x", math.prod(shape))
        b.emit("gather_rows", samples, order, x)
        return x

    if plan.loss is not None:
        assert plan.optimizer is not None
        emitter = _Emitter(b, layers, plan, order, math.prod(sample))
        rule = plan.optimizer.rule
        hyper = network.hyper = b.state("hyper", (len(rule.hyper),), np.float64)
        uniforms = b.state("uniforms", (UNIFORM_HEADER + len(uniforms_of(rule)),))
        if plan.scaled:  # the name tells apart scales that were asked for, so that another one begins anew
            name = "scaler_{:g}_{:g}".format(*plan.scaled[::2])
            network.scaler = emitter.scaler = b.state(name, (len(plan.scaled),), np.float64)
            b.program.constants[network.scaler] = np.array(plan.scaled)
        whole = b.whole(len(rule.slots))
        network.histories = ["loss", *(metric.name for metric in plan.metrics)]
        b.emit("optimizer_begin", hyper, network.step, uniforms, rule=rule)
        x = gather()
        emitter.pass_over(x, training=True)
        if plan.sharpness is not None:
            _emit_nearby(b, plan, emitter, x, whole, uniforms)
        _emit_update(b, plan, network, whole, uniforms)
        for layer in layers:
            for kernel, constraint in layer.constraints:
                constraint.emit(b, kernel)
        b.finish("train")
        emitter.pass_over(gather(), training=False)
        b.finish("test")
    x = gather()
    for layer in layers:
        x, _ = layer.forward(b, x, False)
    instead = b.finish("predict")
    network.output = instead.get(x, x)
    return network


def _emit_nearby(b: Builder, plan: Plan, emitter: _Emitter, x: Any, whole: tuple[Buffer, ...], uniforms: Any) -> None:
    """The gradients of where the loss is larger, in the place of those here. Foret et al. 2021."""
    assert plan.sharpness is not None
    parameters, gradients, _ = whole
    kept = b.work("kept_weights", parameters.shape)
    rho, eta, adaptive = plan.sharpness
    b.emit("ascend", parameters, gradients, uniforms, kept, rho=rho, eta=eta, adaptive=adaptive)
    with b.without_state():
        emitter.pass_over(x, training=True, recorded=False)
    b.emit("restore_weights", kept, parameters)


def _emit_update(b: Builder, plan: Plan, network: Network, whole: tuple[Buffer, Buffer, Buffer], uniforms: Any) -> None:
    """Check, clip and update: one pass over all parameters, or two where tensors are looked at as a whole."""
    assert plan.optimizer is not None
    parameters, gradients, slots = whole
    rule, count = plan.optimizer.rule, uniforms.shape[0]
    if network.scaler is not None:
        b.emit("check_finite", gradients, network.scaler, network.step, uniforms)
    if plan.turns > 1:
        total = b.state("total_gradient", gradients.shape)
        turn = b.state(f"turn_of_{plan.turns}", (1,), np.int64)
        counts = turn, network.batches, network.step
        b.emit("accumulate_gradient", gradients, total, *counts, uniforms, steps=plan.turns)
        gradients = total
    if plan.clipped == "global":
        b.emit("clip_by_global_norm", gradients, network.hyper, uniforms)
    if not rule.by_tensor and plan.clipped != "tensor":
        b.emit("optimizer_update", parameters, gradients, slots, uniforms, rule=rule)
        return
    blocks = rows = None
    if not rule.after:
        blocks, tensors = b.blocks()
        rows = b.work("tensor_rows", (tensors, count + len(rule.sums)))
    if not rule.by_tensor:
        b.emit("clip_by_norm", gradients, network.hyper, uniforms, blocks, rows)
        b.emit("optimizer_update_by_tensor", parameters, gradients, slots, rows, blocks, *[None] * 3, rule=rule)
        return
    factors = b.factors() if rule.factors else None
    of_rule = update_by_tensor(rule, parameters, gradients, slots, uniforms, blocks, rows, factors)
    for op, operands, its_rule, scalars in of_rule:
        b.emit(op, *operands, rule=its_rule, **scalars)


class _Emitter:
    """Emits one pass over a mini-batch: forward, loss, metrics, their records, and in training the gradients."""

    def __init__(self, builder: Builder, layers: Sequence[Layer], plan: Plan, order: Any, outputs: int) -> None:
        assert plan.loss is not None
        self.b, self.plan, self.loss, self.order, self.outputs = builder, plan, plan.loss, order, outputs
        self.absorbed = _absorbs(plan, layers[-1])
        self.layers = [*layers[:-1], layers[-1].without_activation()] if self.absorbed else list(layers)
        self.logits = self.absorbed or self.loss.from_logits
        self.scaler: Buffer | None = None
        self.penalties = [penalty for layer in layers for penalty in layer.penalties]

    def pass_over(self, x: Any, training: bool, recorded: bool = True) -> None:
        b = self.b
        target, weight = self.target(), self.weight()
        backwards = []
        for layer in self.layers:
            x, backward = layer.forward(b, x, training)
            backwards.append((backward, x))
        value = b.rows("loss", dtype=None)
        gradient = b.rows("d_output", self.outputs) if training else None
        self.emit_loss(x, target, weight, value, gradient)
        if recorded:
            for kernel, _, penalty in self.penalties:
                b.emit("weight_penalty", kernel, value, l1=penalty.l1, l2=penalty.l2)
            b.emit("record", value, b.extern("history_loss", (0,), np.float64))
            self.emit_metrics(x, target)
        if not training:
            return
        if self.scaler is not None:
            b.emit("scale_loss", gradient, self.scaler)
        last = self.first_trainable()
        for number in range(len(self.layers) - 1, last - 1, -1):
            gradient = backwards[number][0](gradient, number > last)
        for kernel, d_kernel, penalty in self.penalties:
            b.emit("weight_penalty_gradient", kernel, d_kernel, l1=penalty.l1, l2=penalty.l2)

    def first_trainable(self) -> int:
        """The number of the first layer with parameters: nothing before it needs a gradient."""
        for number, layer in enumerate(self.layers):
            if any(gradient is not None for _, gradient, _ in layer.variables.values()):
                return number
        return len(self.layers)

    def target(self) -> Any:
        b = self.b
        if self.plan.labels:
            target = b.rows("labels", dtype=np.int64)
            b.emit("gather_labels", b.extern("targets", (0,), np.int64), self.order, target)
        else:
            target = b.rows("target", self.outputs)
            b.emit("gather_rows", b.extern("targets", (0, self.outputs)), self.order, target)
        return target

    def weight(self) -> Any:
        if not self.plan.weighted:
            return None
        weight = self.b.rows("weight")
        self.b.emit("gather_values", self.b.extern("weights", (0,)), self.order, weight)
        return weight

    def smoothed(self, target: Any) -> Any:
        """The targets of the loss, ``(1 - s) target + s / classes``; metrics see them as they are."""
        s = self.loss.label_smoothing
        if not s:
            return target
        out = self.b.rows("smooth", self.outputs)
        op = "smooth_labels" if self.plan.labels else "smooth_targets"
        classes = 2 if self.loss.kind == "binary" else self.outputs
        self.b.emit(op, target, out, keep=1.0 - s, share=s / classes)
        return out

    def emit_loss(self, p: Any, target: Any, weight: Any, value: Any, gradient: Any) -> None:
        target = self.smoothed(target)
        if self.loss.kind == "categorical" and self.logits:
            labels = self.plan.labels and not self.loss.label_smoothing
            op = "softmax_cross_entropy" if labels else "softmax_cross_entropy_dense"
            self.b.emit(op, p, target, weight, value, gradient)
        elif self.loss.rule is None:
            self.b.emit(self.loss.op, p, target, weight, value, gradient)
        else:
            rule = self.loss.rule_on(self.logits)
            mean = float(rule.reduction == "mean")
            self.b.emit(self.loss.op, p, target, weight, value, gradient, rule=rule, mean=mean)

    def emit_metrics(self, p: Any, target: Any) -> None:
        b = self.b
        for metric in self.plan.metrics:
            value = b.rows(metric.name)
            if metric.kind == "categorical_accuracy":
                op = "categorical_accuracy" if self.plan.labels else "categorical_accuracy_dense"
                b.emit(op, p, target, value)
            elif self.plan.labels:
                raise ValueError(
                    f"metric {metric.name!r} needs targets of shape (batch, {self.outputs}), not class numbers"
                )
            elif metric.kind == "binary_accuracy":
                odds = metric.threshold / (1.0 - metric.threshold)
                threshold = math.log(odds) if self.logits else metric.threshold
                b.emit("binary_accuracy", p, target, value, threshold=threshold)
            else:
                q = self.probabilities(p)
                mean = float(metric.rule.reduction == "mean")  # type: ignore[union-attr]
                b.emit("elementwise_loss", q, target, None, value, None, rule=metric.rule, mean=mean)
            b.emit("record", value, b.extern(f"history_{metric.name}", (0,), np.float64))

    def probabilities(self, p: Any) -> Any:
        """The model's output as the user sees it, where the loss took the logits."""
        if not self.absorbed:
            return p
        return Activation(self.loss.absorbs, name="output").forward(self.b, p, False)[0]
