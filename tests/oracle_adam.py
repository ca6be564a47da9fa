"""Adam and what came after, as :mod:`oracle_optimizers` has the others: ``update(w, g, slots, t, h) -> (w, slots)``."""

import math

import numpy as np


def norm_pnm(n):
    return math.sqrt((1 + n) ** 2 + n**2)


# ----------------------------------------------------------------------------------------------------------- adam.py


def _moments(g, m, v, h):
    return h.beta_1 * m + (1 - h.beta_1) * g, h.beta_2 * v + (1 - h.beta_2) * g**2


def _corrected(m, v, t, h):
    return m / (1 - h.beta_1**t), v / (1 - h.beta_2**t)


def _adam_step(m, v, t, h, where):
    m_hat, v_hat = _corrected(m, v, t, h)
    if where == "hat":
        rate = h.learning_rate * math.sqrt(1 - h.beta_2**t) / (1 - h.beta_1**t)
        return rate * m / (np.sqrt(v) + h.epsilon)
    return h.learning_rate * m_hat / (np.sqrt(v_hat + h.epsilon) if where == "inside" else np.sqrt(v_hat) + h.epsilon)


def adam(where):
    def update(w, g, s, t, h):
        m, v = _moments(g, s[0], s[1], h)
        return w - _adam_step(m, v, t, h, where), [m, v]

    return update


def amsgrad(where):
    def update(w, g, s, t, h):
        m, v = _moments(g, s[0], s[1], h)
        largest = np.maximum(s[2], v)
        return w - _adam_step(m, largest, t, h, where), [m, v, largest]

    return update


def adam_uncorrected(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    return w - h.learning_rate * m / (np.sqrt(v) + h.epsilon), [m, v]


def adamd(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    return w - h.learning_rate * m / (np.sqrt(_corrected(m, v, t, h)[1]) + h.epsilon), [m, v]


def adamax(w, g, s, t, h):
    m = h.beta_1 * s[0] + (1 - h.beta_1) * g
    u = np.maximum(h.beta_2 * s[1], np.abs(g) + h.epsilon)
    return w - h.learning_rate / (1 - h.beta_1**t) * (m / u), [m, u]


def nadam(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    mu = [h.beta_1 * (1 - 0.5 * 0.96 ** (i * h.momentum_decay)) for i in range(1, t + 2)]
    m_bar = mu[t] * m / (1 - math.prod(mu)) + (1 - mu[t - 1]) * g / (1 - math.prod(mu[:t]))
    return w - h.learning_rate * m_bar / (np.sqrt(_corrected(m, v, t, h)[1]) + h.epsilon), [m, v]


def radam(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    infinity = 2 / (1 - h.beta_2) - 1
    rho = infinity - 2 * t * h.beta_2**t / (1 - h.beta_2**t)
    step = m / (1 - h.beta_1**t)
    if rho > h.threshold:
        r = math.sqrt((rho - 4) * (rho - 2) * infinity / ((infinity - 4) * (infinity - 2) * rho))
        step = r * step * math.sqrt(1 - h.beta_2**t) / (np.sqrt(v) + h.epsilon)
    return w - h.learning_rate * step, [m, v]


def adabelief(w, g, s, t, h):
    m = h.beta_1 * s[0] + (1 - h.beta_1) * g
    v = h.beta_2 * s[1] + (1 - h.beta_2) * (g - m) ** 2 + h.epsilon
    m_hat, v_hat = _corrected(m, v, t, h)
    return w - h.learning_rate * m_hat / (np.sqrt(v_hat) + h.epsilon), [m, v]


def _bounded(m, v, t, h):
    rate = h.learning_rate * math.sqrt(1 - h.beta_2**t) / (1 - h.beta_1**t) / (np.sqrt(v) + h.epsilon)
    low, high = h.final_rate * (1 - 1 / (h.gamma * t + 1)), h.final_rate * (1 + 1 / (h.gamma * t))
    return np.clip(rate, low, high) * m


def adabound(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    return w - _bounded(m, v, t, h), [m, v]


def amsbound(w, g, s, t, h):
    m, v = _moments(g, s[0], s[1], h)
    largest = np.maximum(s[2], v)
    return w - _bounded(m, largest, t, h), [m, v, largest]


def adamod(w, g, s, t, h):
    m, v = _moments(g, s[0], s[1], h)
    m_hat, v_hat = _corrected(m, v, t, h)
    rate = h.learning_rate / (np.sqrt(v_hat) + h.epsilon)
    smooth = h.beta_3 * s[2] + (1 - h.beta_3) * rate
    return w - np.minimum(rate, smooth) * m_hat, [m, v, smooth]


def qhadam(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    m_hat, v_hat = _corrected(m, v, t, h)
    top, bottom = (1 - h.nu_1) * g + h.nu_1 * m_hat, np.sqrt((1 - h.nu_2) * g**2 + h.nu_2 * v_hat) + h.epsilon
    return w - h.learning_rate * top / bottom, [m, v]


# ------------------------------------------------------------------------------------------------------- adaptive.py


def yogi(w, g, s, t, h):
    v = s[1] if t > 1 else np.full_like(g, h.initial_accumulator)
    m = h.beta_1 * s[0] + (1 - h.beta_1) * g
    v = v - (1 - h.beta_2) * np.sign(v - g**2) * g**2
    return w - h.learning_rate * m / (np.sqrt(v) + h.epsilon), [m, v]


def diffgrad(w, g, s, t, h):
    m, v = _moments(g, s[0], s[1], h)
    m_hat, v_hat = _corrected(m, v, t, h)
    friction = 1 / (1 + np.exp(-np.abs(s[2] - g)))
    return w - h.learning_rate * friction * m_hat / (np.sqrt(v_hat) + h.epsilon), [m, v, g]


def padam(w, g, s, t, h):
    m, v = _moments(g, s[0], s[1], h)
    largest = np.maximum(s[2], v)
    rate = h.learning_rate * math.sqrt(1 - h.beta_2**t) / (1 - h.beta_1**t)
    return w - rate * m / (np.sqrt(largest) + h.epsilon) ** (2 * h.partial), [m, v, largest]


def adafom(w, g, s, t, h):
    m, v = h.beta * s[0] + (1 - h.beta) * g, (1 - 1 / t) * s[1] + (1 / t) * g**2
    return w - h.learning_rate * m / (np.sqrt(v) + h.epsilon), [m, v]


def adamnc(w, g, s, t, h):
    beta = h.beta * h.decay ** (t - 1)
    m, v = beta * s[0] + (1 - beta) * g, (1 - 1 / t) * s[1] + (1 / t) * g**2
    return w - h.learning_rate / math.sqrt(t) * m / (np.sqrt(v) + h.epsilon), [m, v]


def adamx(w, g, s, t, h):
    beta = h.beta_1 * h.decay ** (t - 1)
    m, v = beta * s[0] + (1 - beta) * g, h.beta_2 * s[1] + (1 - h.beta_2) * g**2
    ratio = (1 - beta) / (1 - h.beta_1 * h.decay ** (t - 2))
    largest = v if t == 1 else np.maximum(ratio**2 * s[2], v)
    return w - h.learning_rate * m / (np.sqrt(largest) + h.epsilon), [m, v, largest]


def adax(w, g, s, t, h):
    """The paper keeps ``V``; the slot is ``V / ((1 + b2)^t - 1)``."""
    m = h.beta_1 * s[0] + (1 - h.beta_1) * g
    before, now = (math.expm1(k * math.log1p(h.beta_2)) for k in (t - 1, t))  # (1 + b2)^k - 1
    v_hat = ((1 + h.beta_2) * (s[1] * before) + h.beta_2 * g**2) / now
    return w - h.learning_rate * m / (np.sqrt(v_hat) + h.epsilon), [m, v_hat]


def laprop(w, g, s, t, h):
    v = h.beta_2 * s[1] + (1 - h.beta_2) * g**2
    m = h.beta_1 * s[0] + (1 - h.beta_1) * g / (np.sqrt(v / (1 - h.beta_2**t)) + h.epsilon)
    return w - h.learning_rate * m / (1 - h.beta_1**t), [m, v]


def msvag(w, g, s, t, h):
    m, v = h.beta * s[0] + (1 - h.beta) * g, h.beta * s[1] + (1 - h.beta) * g**2
    m_hat, v_hat = m / (1 - h.beta**t), v / (1 - h.beta**t)
    if t == 1:
        return w - h.learning_rate * m_hat, [m, v]
    rho = (1 - h.beta) * (1 + h.beta**t) / ((1 + h.beta) * (1 - h.beta**t))
    variance = np.maximum(v_hat - m_hat**2, 0) / (1 - rho)
    return w - h.learning_rate * m_hat**2 / (m_hat**2 + rho * variance) * m_hat, [m, v]


def sadam(w, g, s, t, h):
    beta_2 = 1 - h.gamma / t
    m, v = h.beta * s[0] + (1 - h.beta) * g, beta_2 * s[1] + (1 - beta_2) * g**2
    return w - h.learning_rate / t * m / (v + h.delta / t), [m, v]


def adan(w, g, s, t, h):
    m, d, n, before = s
    change = g - before if t > 1 else np.zeros_like(g)
    m = h.beta_1 * m + (1 - h.beta_1) * g
    d = h.beta_2 * d + (1 - h.beta_2) * change
    n = h.beta_3 * n + (1 - h.beta_3) * (g + h.beta_2 * change) ** 2
    step = m / (1 - h.beta_1**t) + h.beta_2 * d / (1 - h.beta_2**t)
    return w - h.learning_rate * step / (np.sqrt(n / (1 - h.beta_3**t)) + h.epsilon), [m, d, n, g]


def ademamix(w, g, s, t, h):
    m, v = _moments(g, s[0], s[2], h)
    slow = h.beta_3 * s[1] + (1 - h.beta_3) * g
    m_hat, v_hat = _corrected(m, v, t, h)
    return w - h.learning_rate * (m_hat + h.alpha * slow) / (np.sqrt(v_hat) + h.epsilon), [m, slow, v]


def adopt(w, g, s, t, h):
    m, v = s
    if t == 1:
        return w, [m, g**2]
    m = h.beta_1 * m + (1 - h.beta_1) * g / np.maximum(np.sqrt(v), h.epsilon)
    return w - h.learning_rate * m, [m, h.beta_2 * v + (1 - h.beta_2) * g**2]


def eadam(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    v = v + h.epsilon
    m_hat, v_hat = _corrected(m, v, t, h)
    return w - h.learning_rate * m_hat / np.sqrt(v_hat), [m, v]


def ftml(w, g, s, t, h):
    v = h.beta_2 * s[1] + (1 - h.beta_2) * g**2
    d = (1 - h.beta_1**t) / h.learning_rate * (np.sqrt(v / (1 - h.beta_2**t)) + h.epsilon)
    sigma = d - h.beta_1 * s[0]
    z = h.beta_1 * s[2] + (1 - h.beta_1) * g - sigma * w
    return -z / d, [d, v, z]


def grams(w, g, s, t, h):
    m, v = _moments(g, *s, h)
    m_hat, v_hat = _corrected(m, v, t, h)
    return w - h.learning_rate * np.sign(g) * np.abs(m_hat / (np.sqrt(v_hat) + h.epsilon)), [m, v]


def adapnm(w, g, s, t, h):
    m = h.beta_1**2 * s[1] + (1 - h.beta_1**2) * g
    v = h.beta_2 * s[2] + (1 - h.beta_2) * g**2
    largest = np.maximum(s[3], v)
    m_hat = ((1 + h.negative) * m - h.negative * s[0]) / (1 - h.beta_1**t)
    v_hat = largest / (1 - h.beta_2**t)
    step = h.learning_rate / norm_pnm(h.negative) * m_hat / (np.sqrt(v_hat) + h.epsilon)
    return w - step, [m, s[0], v, largest]


def acclip(w, g, s, t, h):
    m = h.beta_1 * s[0] + (1 - h.beta_1) * g
    tau = h.beta_2 * s[1] + (1 - h.beta_2) * np.abs(g)
    return w - h.learning_rate * np.minimum(tau / (np.abs(m) + h.epsilon), 1) * m, [m, tau]


UPDATES = (
    adam_uncorrected, adamd, adamax, nadam, radam, adabelief, adabound, amsbound, adamod, qhadam, yogi, diffgrad,
    padam, adafom, adamnc, adamx, adax, laprop, msvag, sadam, adan, ademamix, adopt, eadam, ftml, grams, adapnm,
    acclip,
)  # fmt: skip
