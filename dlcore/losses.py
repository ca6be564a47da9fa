"""Losses as a user names them, and how each becomes an instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .kernels import LossRule, RuleError, find
from .kernels.names import unknown
from .kernels.rule import REGISTRY

UNBOUNDED = 1 << 62  # the upper bound of targets that have none

# The activation that belongs to a loss: where it ends the model, the loss takes what comes before it.
_ABSORBS = {
    "categorical_crossentropy": "softmax",
    "negative_log_likelihood": "log_softmax",
    "binary_crossentropy": "sigmoid",
    "binary_focal_crossentropy": "sigmoid",
}


@dataclass(frozen=True)
class Loss:
    """A loss of a model.

    ``kind`` says what its targets are: ``"categorical"`` class numbers or a row of probabilities, ``"binary"`` numbers
    from 0 to 1, ``"signed"`` -1 and 1, ``"elementwise"`` numbers like the outputs. ``from_logits`` says that the
    model's output is not yet a probability. A softmax or sigmoid that ends the model is absorbed into the loss in any
    case, which is exact where probabilities would have to be clipped. ``rule`` is None where the loss couples the
    outputs of a sample and is the instruction ``op``. ``parameters`` are those of the rule that differ from its own.
    """

    name: str
    kind: str
    rule: LossRule | None = None
    from_logits: bool = False
    label_smoothing: float = 0.0
    parameters: tuple[tuple[str, float], ...] = ()
    op: str = "elementwise_loss"
    bounds: tuple[int, int] | None = None  # of the targets

    @property
    def absorbs(self) -> str | None:
        """The activation whose input the loss takes, where it ends the model; None where there is none."""
        if self.rule is None or self.kind == "elementwise":
            return None
        return _ABSORBS.get(self.rule.name)

    def rule_on(self, logits: bool) -> LossRule:
        """The rule with its parameters, on logits where the loss has such a rule."""
        assert self.rule is not None
        rule: LossRule = self.rule
        if logits and self.kind == "binary":
            rule = find("loss", f"{rule.name}_from_logits")
        return rule.variant(None, **dict(self.parameters)) if self.parameters else rule

    def config(self) -> dict[str, Any]:
        """What :func:`from_config` makes the loss of, as JSON."""
        return {
            "name": self.name,
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "parameters": dict(self.parameters),
        }


def _fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)


def _at_least_0(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
    return float(value)


def _rule_loss(name: str, kind: str = "elementwise", **options: Any) -> Loss:
    return Loss(name, kind, find("loss", name), **options)


# ---------------------------------------------------------------------------------------------- probabilities


def CategoricalCrossentropy(from_logits: bool = False, label_smoothing: float = 0.0) -> Loss:
    """``-sum_j y_j ln p_j``; targets ``(batch, classes)``, or class numbers ``(batch,)``.

    ``label_smoothing`` makes ``(1 - s) y + s / classes`` of the targets. Szegedy et al. 2016.
    """
    smoothing = _fraction("label_smoothing", label_smoothing)
    return _rule_loss(
        "categorical_crossentropy", "categorical", from_logits=bool(from_logits), label_smoothing=smoothing
    )


def SparseCategoricalCrossentropy(from_logits: bool = False, label_smoothing: float = 0.0) -> Loss:
    """``-ln p_y``; targets are class numbers ``(batch,)``; ``label_smoothing`` as above."""
    rule, smoothing = find("loss", "categorical_crossentropy"), _fraction("label_smoothing", label_smoothing)
    return Loss("sparse_categorical_crossentropy", "categorical", rule, bool(from_logits), smoothing)


def NegativeLogLikelihood() -> Loss:
    """``-sum_j y_j p_j`` of logarithms of probabilities ``p``; targets as for the categorical cross-entropy."""
    return _rule_loss("negative_log_likelihood", "categorical")


def BinaryCrossentropy(from_logits: bool = False, label_smoothing: float = 0.0) -> Loss:
    """``-[y ln p + (1 - y) ln(1 - p)]``, mean over the outputs; targets ``(batch,)`` or ``(batch, outputs)``.

    ``label_smoothing`` makes ``(1 - s) y + s / 2`` of the targets.
    """
    smoothing = _fraction("label_smoothing", label_smoothing)
    options = {"from_logits": bool(from_logits), "label_smoothing": smoothing}
    return _rule_loss("binary_crossentropy", "binary", bounds=(0, 1), **options)


def BinaryFocalCrossentropy(
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
) -> Loss:
    """``(1 - p_t)^gamma`` times the binary cross-entropy, ``p_t = y p + (1 - y)(1 - p)``. Lin et al. 2017.

    With ``apply_class_balancing`` also times ``y alpha + (1 - y)(1 - alpha)``.
    """
    weight = _fraction("alpha", alpha) if apply_class_balancing else -1.0
    smoothing = _fraction("label_smoothing", label_smoothing)
    options = {"from_logits": bool(from_logits), "label_smoothing": smoothing}
    parameters = (("gamma", _at_least_0("gamma", gamma)), ("alpha", weight))
    return _rule_loss("binary_focal_crossentropy", "binary", bounds=(0, 1), parameters=parameters, **options)


def KLDivergence() -> Loss:
    """``sum_j y_j ln(y_j / p_j)`` with ``0 ln 0 = 0``; targets are rows of probabilities."""
    return _rule_loss("kl_divergence", bounds=(0, 1))


def Hellinger() -> Loss:
    """``sum_j (sqrt p_j - sqrt y_j)^2 / sqrt 2``: the Hellinger cost; targets are rows of probabilities."""
    return _rule_loss("hellinger", bounds=(0, 1))


def HellingerDistance() -> Loss:
    """``|sqrt p - sqrt y| / sqrt 2``: from 0 to 1; targets are rows of probabilities."""
    return Loss("hellinger_distance", "elementwise", op="hellinger_distance", bounds=(0, 1))


# ------------------------------------------------------------------------------------------------- regression


def MeanSquaredError() -> Loss:
    """``mean_j (y_j - p_j)^2``"""
    return _rule_loss("mean_squared_error")


def HalfSquaredError() -> Loss:
    """``sum_j (y_j - p_j)^2 / 2``: the quadratic cost."""
    return _rule_loss("half_squared_error")


def MeanAbsoluteError() -> Loss:
    """``mean_j |y_j - p_j|``"""
    return _rule_loss("mean_absolute_error")


def MeanAbsolutePercentageError() -> Loss:
    """``100 mean_j |y_j - p_j| / max(|y_j|, 1e-7)``"""
    return _rule_loss("mean_absolute_percentage_error")


def MeanSquaredLogarithmicError() -> Loss:
    """``mean_j (ln(1 + y_j) - ln(1 + p_j))^2``, both clipped to at least 1e-7."""
    return _rule_loss("mean_squared_logarithmic_error")


def Huber(delta: float = 1.0) -> Loss:
    """``mean_j`` of ``d^2 / 2`` where ``|d| = |p_j - y_j| <= delta``, else ``delta (|d| - delta / 2)``. Huber 1964."""
    return _rule_loss("huber", parameters=(("delta", _at_least_0("delta", delta)),))


def LogCosh() -> Loss:
    """``mean_j ln cosh(p_j - y_j)``"""
    return _rule_loss("log_cosh")


def Poisson() -> Loss:
    """``mean_j p_j - y_j ln(p_j + 1e-7)``; the outputs are rates, the targets counts."""
    return _rule_loss("poisson", bounds=(0, UNBOUNDED))


def CosineSimilarity() -> Loss:
    """``-p y / (|p| |y|)``: -1 where outputs and targets point the same way."""
    return Loss("cosine_similarity", "elementwise", op="cosine_similarity")


# ---------------------------------------------------------------------------------------------------- margins


def Perceptron() -> Loss:
    """``mean_j max(0, -y_j p_j)``; targets -1 and 1, or 0 and 1, which are taken as -1 and 1."""
    return _rule_loss("perceptron", "signed")


def Hinge() -> Loss:
    """``mean_j max(0, 1 - y_j p_j)``; targets -1 and 1, or 0 and 1, which are taken as -1 and 1."""
    return _rule_loss("hinge", "signed")


def SquaredHinge() -> Loss:
    """``mean_j max(0, 1 - y_j p_j)^2``; targets -1 and 1, or 0 and 1, which are taken as -1 and 1."""
    return _rule_loss("squared_hinge", "signed")


def CategoricalHinge() -> Loss:
    """``max(0, 1 + max_j (1 - y_j) p_j - sum_j y_j p_j)``; targets ``(batch, classes)``, or class numbers."""
    return Loss("categorical_hinge", "categorical", op="categorical_hinge")


_MAKERS: dict[str, Callable[..., Loss]] = {
    maker().name: maker
    for maker in (
        BinaryCrossentropy, BinaryFocalCrossentropy, CategoricalCrossentropy, CategoricalHinge, CosineSimilarity,
        HalfSquaredError, Hellinger, HellingerDistance, Hinge, Huber, KLDivergence, LogCosh, MeanAbsoluteError,
        MeanAbsolutePercentageError, MeanSquaredError, MeanSquaredLogarithmicError, NegativeLogLikelihood, Perceptron,
        Poisson, SparseCategoricalCrossentropy, SquaredHinge,
    )
}  # fmt: skip
ALIASES = {
    "mse": "mean_squared_error", "mae": "mean_absolute_error", "mape": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error", "bce": "binary_crossentropy", "kld": "kl_divergence",
    "kullback_leibler_divergence": "kl_divergence", "logcosh": "log_cosh", "nll": "negative_log_likelihood",
} | {maker.__name__: name for name, maker in _MAKERS.items()}  # fmt: skip


def get(loss: Any) -> Loss:
    """A :class:`Loss` from an instance, one of the functions above, a loss rule, or a name."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        loss = ALIASES.get(loss, ALIASES.get(loss.lower(), loss))
        if loss in _MAKERS:
            return _MAKERS[loss]()
        if loss not in REGISTRY["loss"]:
            raise RuleError(unknown("loss", loss, _MAKERS, {*ALIASES, *REGISTRY["loss"]}))
    elif callable(loss):
        made = loss()
        if isinstance(made, Loss):
            return made
        raise TypeError(f"loss() returned {type(made).__name__}; expected a Loss")
    rule = find("loss", loss)
    return Loss(rule.name, "elementwise", rule)


def from_config(config: dict[str, Any]) -> Loss:
    """The loss that ``loss.config()`` described; files of earlier releases name fewer of its options."""
    made = get(config["name"])
    return Loss(
        made.name,
        made.kind,
        made.rule,
        config["from_logits"],
        config.get("label_smoothing", 0.0),
        tuple(config.get("parameters", {}).items()) or made.parameters,
        made.op,
        made.bounds,
    )
