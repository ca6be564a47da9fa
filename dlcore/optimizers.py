"""Optimizers as a user names them: classes with the names of the field, and wrappers around any of them."""

from __future__ import annotations

import copy
from typing import Any

from . import schedules
from .kernels import find
from .kernels.wrappers import WRAPPERS, Wrapper, lookahead, swa
from .optimizer import Optimizer, count, flag, number, share


class SGD(Optimizer):
    """Gradient descent ``w -= lr g``; with ``momentum`` the classical or the Nesterov form, as in PyTorch.

    ``v = momentum v + (1 - dampening) g`` (at first ``v = g``); ``w -= lr v``, or ``w -= lr (g + momentum v)``.
    Other forms go by their names: ``"ewa_momentum"``, ``"ewa_momentum_corrected"``, ``"heavy_ball"``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        **options: Any,
    ) -> None:
        if flag("nesterov", nesterov) and (not momentum or dampening):
            raise ValueError(
                f"nesterov=True needs a momentum above 0 and no dampening, got {momentum!r}, {dampening!r}"
            )
        if dampening and not momentum:
            raise ValueError(f"dampening={dampening!r} needs a momentum above 0")
        if momentum:
            options |= {"beta": momentum} | ({} if nesterov else {"dampening": dampening})
        rule = "sgd" if not momentum else "nesterov" if nesterov else "momentum"
        super().__init__(rule, learning_rate=learning_rate, **options)


class Adagrad(Optimizer):
    """``s += g^2; w -= lr g / (sqrt(s) + epsilon)``; ``epsilon_mode="inside"``: ``sqrt(s + epsilon)``."""

    def __init__(
        self,
        learning_rate: Any = 0.01,
        initial_accumulator: float = 0.0,
        epsilon: float = 1e-10,
        epsilon_mode: str = "outside",
        **options: Any,
    ) -> None:
        options |= {"initial_accumulator": initial_accumulator, "epsilon": epsilon}
        super().__init__("adagrad" + _suffix(epsilon_mode, 2), learning_rate=learning_rate, **options)


class RMSprop(Optimizer):
    """``s = rho s + (1 - rho) g^2; w -= lr g / (sqrt(s) + epsilon)``.

    ``centered`` takes the variance, ``s`` less the squared average of ``g``; ``momentum`` gathers the steps.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        **options: Any,
    ) -> None:
        rule = "rmsprop" + "_centered" * flag("centered", centered) + "_momentum" * bool(momentum)
        options |= {"momentum": momentum} if momentum else {}
        super().__init__(rule, learning_rate=learning_rate, beta=rho, epsilon=epsilon, **options)


_EPSILON_MODES = {"outside": "", "inside": "_inside", "hat": "_hat"}


def _suffix(epsilon_mode: str, modes: int = 3) -> str:
    known = list(_EPSILON_MODES)[:modes]
    if epsilon_mode not in known:
        raise ValueError(f"epsilon_mode must be one of {', '.join(known)}; got {epsilon_mode!r}")
    return _EPSILON_MODES[epsilon_mode]


class Adam(Optimizer):
    """Adam with bias correction, ``w -= lr mhat / (sqrt(vhat) + epsilon)``, as in the paper and in PyTorch.

    ``epsilon_mode``: ``"outside"`` of the root; ``"inside"``, ``sqrt(vhat + epsilon)``; ``"hat"``,
    ``sqrt(v) + epsilon`` before the correction, as in Keras. ``amsgrad`` takes the largest ``v`` so far.
    """

    _decay = ""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        epsilon_mode: str = "outside",
        **options: Any,
    ) -> None:
        rule = ("amsgrad" if flag("amsgrad", amsgrad) else "adam") + self._decay + _suffix(epsilon_mode)
        options |= {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
        super().__init__(rule, learning_rate=learning_rate, **options)


class AdamW(Adam):
    """Adam with weight decay on the weights, 0.01 unless given."""

    _decay = "w"

    def __init__(self, *arguments: Any, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(*arguments, weight_decay=weight_decay, **options)


class _Wrapping(Optimizer):
    """A copy of ``inner`` that a wrapper follows."""

    def __init__(self, inner: Any, wrapper: Wrapper, values: dict[str, float]) -> None:
        vars(self).update(copy.copy(vars(get(inner))))
        if wrapper in self.wrappers:
            raise ValueError(f"{type(self).__name__} is around this optimizer already")
        self._add(wrapper, values)
        _ = self.rule  # raises where names of parameters collide


class Lookahead(_Wrapping):
    """Every ``k`` updates of ``inner``, slow weights go ``alpha`` of the way to the fast ones, which begin there anew.

    ``inner`` is an optimizer, or what names one. ``with model.averaged_weights():`` holds the slow weights. Zhang,
    Lucas, Hinton & Ba 2019.

    >>> Lookahead("adam", k=5).config()["wrappers"]
    {'lookahead': {'lookahead_k': 5.0, 'lookahead_alpha': 0.5}}
    """

    def __init__(self, inner: Any, k: int = 6, alpha: float = 0.5) -> None:
        super().__init__(inner, lookahead, {"lookahead_k": count("k", k), "lookahead_alpha": share("alpha", alpha)})


class SWA(_Wrapping):
    """The mean of the weights from update ``start`` on, every ``every`` updates; training itself is that of ``inner``.

    ``with model.averaged_weights():`` holds the mean, before ``start`` the weights. Statistics of batch norm are those
    of the weights in training. Izmailov et al. 2018.
    """

    def __init__(self, inner: Any, start: int, every: int = 1) -> None:
        super().__init__(inner, swa, {"swa_start": count("start", start), "swa_every": count("every", every)})


class SAM(Optimizer):
    """``inner`` with the gradient at ``w + rho g / ||g||``, the norm over all parameters, ``g`` the gradient at ``w``.

    ``adaptive``: at ``w + rho T^2 g / ||T g||`` with ``T = |w| + eta``. Loss and metrics are those at ``w``, dropout
    has one mask for both passes, and statistics of batch norm move in the first. Foret, Kleiner, Mobahi & Neyshabur
    2021; Kwon, Kim, Park & Choi 2021.
    """

    def __init__(self, inner: Any, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01) -> None:
        vars(self).update(copy.copy(vars(get(inner))))
        if self.sharpness is not None:
            raise ValueError("SAM is around this optimizer already")
        self.sharpness = number("rho", rho), number("eta", eta), float(flag("adaptive", adaptive))


_CLASSES: dict[str, type[Optimizer]] = {cls.__name__.lower(): cls for cls in (SGD, Adagrad, RMSprop, Adam, AdamW)}


def get(optimizer: Any) -> Optimizer:
    """An :class:`Optimizer` from an instance, a class, a rule or a name (``"adam"``, ``"SGD"``, ``"nesterov"``)."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        return optimizer()  # type: ignore[call-arg]
    if isinstance(optimizer, str):
        known = _CLASSES.get(optimizer.lower())
        return known() if known is not None else Optimizer(optimizer.lower())  # type: ignore[call-arg]
    return Optimizer(optimizer)


def from_config(config: dict[str, Any]) -> Optimizer:
    """The optimizer that ``optimizer.config()`` described."""
    config = dict(config)
    schedule = config.pop("schedule", None)
    if schedule is not None:
        config[find("optimizer", config["rule"]).rate] = schedules.from_config(schedule)
    wrappers, sharpness = config.pop("wrappers", {}), config.pop("sharpness", None)
    optimizer = Optimizer(**config)
    optimizer.sharpness = sharpness and tuple(sharpness)
    for name, values in wrappers.items():
        optimizer = _Wrapping(optimizer, WRAPPERS[name], values)
    return optimizer
