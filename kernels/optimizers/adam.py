"""Adam and the methods that keep its two moments ``m`` and ``v``, each in its conventions.

``m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; mhat = m / (1 - b1^t); vhat = v / (1 - b2^t)``.
"""

from dataclasses import replace
from typing import Any

from ..mathfn import exp, expm1, log, sqrt
from ..optimizer_rule import optimizer
from ..rule import register

MOMENTS: dict[str, Any] = {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}

# ------------------------------------------------------------------------- Adam, AdamW, AMSGrad by where epsilon is


def _outside(v, correction, epsilon):
    return sqrt(v / correction) + epsilon


def _inside(v, correction, epsilon):
    return sqrt(v / correction + epsilon)


def _hat(v, correction, epsilon):
    return (sqrt(v) + epsilon) / sqrt(correction)


def _adam(suffix, denominator):
    @optimizer(name="adam" + suffix, **MOMENTS)
    def adam(w, g, m, v, h):
        """``w -= lr mhat / (sqrt(vhat) + eps)``. Kingma & Ba 2015.

        ``adam_inside``: ``sqrt(vhat + eps)``; ``adam_hat``: ``sqrt(v) + eps`` before the correction, the paper's
        efficient form.
        """
        m = h.beta_1 * m + (1.0 - h.beta_1) * g
        v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
        m_hat = m / (1.0 - h.beta_1**h.t)
        return w - h.learning_rate * m_hat / denominator(v, 1.0 - h.beta_2**h.t, h.epsilon), m, v

    @optimizer(name="amsgrad" + suffix, **MOMENTS)
    def amsgrad(w, g, m, v, largest, h):
        """Adam with the largest ``v`` so far. Reddi, Kale & Kumar 2018, bias-corrected as in PyTorch."""
        m = h.beta_1 * m + (1.0 - h.beta_1) * g
        v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
        largest = max(largest, v)
        m_hat = m / (1.0 - h.beta_1**h.t)
        return w - h.learning_rate * m_hat / denominator(largest, 1.0 - h.beta_2**h.t, h.epsilon), m, v, largest

    # With weight decay on the weights. Loshchilov & Hutter 2019.
    register(replace(adam, name="adamw" + suffix, decoupled=True))
    register(replace(amsgrad, name="amsgradw" + suffix, decoupled=True))


for _suffix, _denominator in (("", _outside), ("_inside", _inside), ("_hat", _hat)):
    _adam(_suffix, _denominator)


@optimizer(**MOMENTS)
def adam_uncorrected(w, g, m, v, h):
    """``w -= lr m / (sqrt(v) + eps)``: Adam without bias correction, as BERT was trained. Devlin et al. 2019."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    return w - h.learning_rate * m / (sqrt(v) + h.epsilon), m, v


@optimizer(**MOMENTS)
def adamd(w, g, m, v, h):
    """``w -= lr m / (sqrt(vhat) + eps)``: only ``v`` is corrected. St John 2021."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    return w - h.learning_rate * m / (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon), m, v


@optimizer(**{**MOMENTS, "learning_rate": 0.002})
def adamax(w, g, m, u, h):
    """``u = max(b2 u, |g| + eps); w -= lr mhat / u``. Kingma & Ba 2015; ``eps`` as in PyTorch."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    u = max(h.beta_2 * u, abs(g) + h.epsilon)
    return w - h.learning_rate / (1.0 - h.beta_1**h.t) * m / u, m, u


# ------------------------------------------------------------------------------------------------- Nesterov's momentum


def _momentum_product(beta, decay, t):
    """``prod_(i=1..t) beta (1 - 0.96^(decay i) / 2)``.

    Its logarithm is ``t log(beta) - sum_k 2^-k / k sum_i r^(k i)`` with ``r = 0.96^decay``; 60 terms are float64.
    """
    log_r = decay * log(0.96)
    total = t * log(beta)
    half = 1.0
    for k in range(1, 61):
        half = half * 0.5
        x = log_r * k
        total -= half / k * (t if x == 0.0 else exp(x) * expm1(x * t) / expm1(x))
    return exp(total)


@optimizer(learning_rate=0.002, beta_1=0.9, beta_2=0.999, epsilon=1e-8, momentum_decay=0.004)
def nadam(w, g, m, v, h):
    """``w -= lr (mu_(t+1) m / (1 - P_(t+1)) + (1 - mu_t) g / (1 - P_t)) / (sqrt(vhat) + eps)``. Dozat 2016.

    ``mu_t = b1 (1 - 0.96^(momentum_decay t) / 2)``; ``P_t`` is the product of ``mu_1`` to ``mu_t``.
    """
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    mu = h.beta_1 * (1.0 - 0.5 * 0.96 ** (h.momentum_decay * h.t))
    following = h.beta_1 * (1.0 - 0.5 * 0.96 ** (h.momentum_decay * (h.t + 1.0)))
    product = _momentum_product(h.beta_1, h.momentum_decay, h.t)
    ahead = following / (1.0 - product * following) * m + (1.0 - mu) / (1.0 - product) * g
    return w - h.learning_rate * ahead / (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon), m, v


# Nadam with weight decay on the weights.
nadamw = register(replace(nadam, name="nadamw", decoupled=True))


# --------------------------------------------------------------------------------------------- rates and other moments


@optimizer(**MOMENTS, threshold=5.0)
def radam(w, g, m, v, h):
    """``w -= lr r_t mhat / (sqrt(vhat) + eps)``, or ``lr mhat`` while the variance is not tractable. Liu et al. 2020.

    ``p = 2 / (1 - b2) - 1``, ``p_t = p - 2 t b2^t / (1 - b2^t)``, ``r_t = sqrt((p_t - 4)(p_t - 2) p / ((p - 4)(p - 2)
    p_t))`` where ``p_t > threshold`` (4 in the paper, 5 in PyTorch). ``eps`` is added before the correction.
    """
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    p = 2.0 / (1.0 - h.beta_2) - 1.0
    left = 1.0 - h.beta_2**h.t
    p_t = p - 2.0 * h.t * h.beta_2**h.t / left
    r = sqrt(max(0.0, (p_t - 4.0) * (p_t - 2.0) * p / ((p - 4.0) * (p - 2.0) * p_t)) * left)
    rate = h.learning_rate / (1.0 - h.beta_1**h.t)
    return w - rate * m * (r / (sqrt(v) + h.epsilon) if p_t > h.threshold else 1.0), m, v


@optimizer(**MOMENTS)
def adabelief(w, g, m, s, h):
    """``s = b2 s + (1 - b2) (g - m)^2 + eps; w -= lr mhat / (sqrt(shat) + eps)``. Zhuang et al. 2020."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    s = h.beta_2 * s + (1.0 - h.beta_2) * (g - m) ** 2 + h.epsilon
    m_hat = m / (1.0 - h.beta_1**h.t)
    return w - h.learning_rate * m_hat / (sqrt(s / (1.0 - h.beta_2**h.t)) + h.epsilon), m, s


@optimizer(**MOMENTS, final_rate=0.1, gamma=0.001)
def adabound(w, g, m, v, h):
    """``w -= clip(lr_t / (sqrt(v) + eps), low, high) m``: from Adam to SGD. Luo, Xiong & Liu 2019.

    ``low = final_rate (1 - 1/(gamma t + 1))``, ``high = final_rate (1 + 1/(gamma t))``; ``lr_t`` holds the corrections.
    """
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    rate = h.learning_rate * sqrt(1.0 - h.beta_2**h.t) / (1.0 - h.beta_1**h.t)
    low = h.final_rate * (1.0 - 1.0 / (h.gamma * h.t + 1.0))
    high = h.final_rate * (1.0 + 1.0 / (h.gamma * h.t))
    return w - min(max(rate / (sqrt(v) + h.epsilon), low), high) * m, m, v


@optimizer(**MOMENTS, final_rate=0.1, gamma=0.001)
def amsbound(w, g, m, v, largest, h):
    """AdaBound with the largest ``v`` so far. Luo, Xiong & Liu 2019."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    largest = max(largest, v)
    rate = h.learning_rate * sqrt(1.0 - h.beta_2**h.t) / (1.0 - h.beta_1**h.t)
    low = h.final_rate * (1.0 - 1.0 / (h.gamma * h.t + 1.0))
    high = h.final_rate * (1.0 + 1.0 / (h.gamma * h.t))
    return w - min(max(rate / (sqrt(largest) + h.epsilon), low), high) * m, m, v, largest


@optimizer(**MOMENTS, beta_3=0.999)
def adamod(w, g, m, v, s, h):
    """``e = lr / (sqrt(vhat) + eps); s = b3 s + (1 - b3) e; w -= min(e, s) mhat``. Ding et al. 2019."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    rate = h.learning_rate / (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon)
    s = h.beta_3 * s + (1.0 - h.beta_3) * rate
    return w - min(rate, s) * m / (1.0 - h.beta_1**h.t), m, v, s


@optimizer(learning_rate=0.001, beta_1=0.995, beta_2=0.999, nu_1=0.7, nu_2=1.0, epsilon=1e-8)
def qhadam(w, g, m, v, h):
    """``w -= lr ((1 - nu_1) g + nu_1 mhat) / (sqrt((1 - nu_2) g^2 + nu_2 vhat) + eps)``. Ma & Yarats 2019."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    step = (1.0 - h.nu_1) * g + h.nu_1 / (1.0 - h.beta_1**h.t) * m
    return (
        w - h.learning_rate * step / (sqrt((1.0 - h.nu_2) * g * g + h.nu_2 / (1.0 - h.beta_2**h.t) * v) + h.epsilon),
        m,
        v,
    )
