"""Methods that came after Adam and change its moments, its rate or its step."""

from dataclasses import replace

from ..mathfn import exp, expm1, log, log1p, sigmoid, sqrt
from ..optimizer_rule import optimizer
from ..rule import register
from .adam import MOMENTS
from .signs import sign


@optimizer(learning_rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-3, initial_accumulator=1e-6)
def yogi(w, g, m, v, h):
    """``v -= (1 - b2) sign(v - g^2) g^2; w -= lr m / (sqrt(v) + eps)``. Zaheer et al. 2018."""
    v = h.initial_accumulator if h.t == 1 else v
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = v - (1.0 - h.beta_2) * sign(v - g * g) * g * g
    return w - h.learning_rate * m / (sqrt(v) + h.epsilon), m, v


@optimizer(**MOMENTS)
def diffgrad(w, g, m, v, before, h):
    """``w -= lr sigmoid(|g_(t-1) - g|) mhat / (sqrt(vhat) + eps)``. Dubey et al. 2020."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    step = sigmoid(abs(before - g)) * m / (1.0 - h.beta_1**h.t)
    return w - h.learning_rate * step / (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon), m, v, g


@optimizer(**{**MOMENTS, "learning_rate": 0.1}, partial=0.125)
def padam(w, g, m, v, largest, h):
    """``w -= lr mhat / (sqrt(vhat) + eps)^(2 partial)`` with AMSGrad's largest ``v``. Chen et al. 2020."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    largest = max(largest, v)
    rate = h.learning_rate * sqrt(1.0 - h.beta_2**h.t) / (1.0 - h.beta_1**h.t)
    return w - rate * m * exp(-2.0 * h.partial * log(sqrt(largest) + h.epsilon)), m, v, largest


@optimizer(learning_rate=0.001, beta=0.9, epsilon=1e-8)
def adafom(w, g, m, v, h):
    """``v = (1 - 1/t) v + g^2 / t; w -= lr m / (sqrt(v) + eps)``: AdaGrad with momentum. Chen et al. 2019."""
    m = h.beta * m + (1.0 - h.beta) * g
    v = (1.0 - 1.0 / h.t) * v + 1.0 / h.t * g * g
    return w - h.learning_rate * m / (sqrt(v) + h.epsilon), m, v


@optimizer(learning_rate=0.001, beta=0.9, decay=1.0 - 1e-8, epsilon=1e-8)
def adamnc(w, g, m, v, h):
    """AdaFom with ``lr / sqrt(t)`` and ``beta decay^(t-1)``. Reddi, Kale & Kumar 2018, their choice of ``beta_2``."""
    beta = h.beta * h.decay ** (h.t - 1.0)
    m = beta * m + (1.0 - beta) * g
    v = (1.0 - 1.0 / h.t) * v + 1.0 / h.t * g * g
    return w - h.learning_rate / sqrt(h.t) * m / (sqrt(v) + h.epsilon), m, v


@optimizer(**MOMENTS, decay=1.0 - 1e-8)
def adamx(w, g, m, v, largest, h):
    """``largest = max(((1 - b_t) / (1 - b_(t-1)))^2 largest, v); w -= lr m / (sqrt(largest) + eps)``.

    ``b_t = b1 decay^(t-1)``. Tran & Phong 2019.
    """
    beta = h.beta_1 * h.decay ** (h.t - 1.0)
    before = h.beta_1 * h.decay ** (h.t - 2.0)
    m = beta * m + (1.0 - beta) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    largest = max(((1.0 - beta) / (1.0 - before)) ** 2 * largest, v)
    return w - h.learning_rate * m / (sqrt(largest) + h.epsilon), m, v, largest


@optimizer(learning_rate=0.0015, beta_1=0.9, beta_2=1e-4, epsilon=1e-12)
def adax(w, g, m, v, h):
    """``V = (1 + b2) V + b2 g^2; w -= lr m / (sqrt(V / ((1 + b2)^t - 1)) + eps)``: long memory. Li et al. 2020.

    The slot holds the quotient, ``v = v + q (g^2 - v)`` with ``q = b2 / ((1 + b2)^t - 1)``: ``V`` itself overflows.
    """
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = v + h.beta_2 / expm1(h.t * log1p(h.beta_2)) * (g * g - v)
    return w - h.learning_rate * m / (sqrt(v) + h.epsilon), m, v


# AdaX with weight decay on the weights. Li et al. 2020.
adaxw = register(replace(adax, name="adaxw", decoupled=True))


@optimizer(learning_rate=4e-4, beta_1=0.9, beta_2=0.999, epsilon=1e-15)
def laprop(w, g, m, v, h):
    """``m = b1 m + (1 - b1) g / (sqrt(vhat) + eps); w -= lr mhat``. Ziyin, Wang & Ueda 2020."""
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    m = h.beta_1 * m + (1.0 - h.beta_1) * g / (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon)
    return w - h.learning_rate / (1.0 - h.beta_1**h.t) * m, m, v


@optimizer(learning_rate=0.1, beta=0.9)
def msvag(w, g, m, v, h):
    """``w -= lr mhat^2 / (mhat^2 + p s) mhat``, ``s = (vhat - mhat^2) / (1 - p)``. Balles & Hennig 2018 (M-SVAG).

    ``p = (1 - b)(1 + b^t) / ((1 + b)(1 - b^t))``; the first step, where ``s`` is not defined, is ``lr mhat``.
    """
    m = h.beta * m + (1.0 - h.beta) * g
    v = h.beta * v + (1.0 - h.beta) * g * g
    left = 1.0 - h.beta**h.t
    p = (1.0 - h.beta) * (1.0 + h.beta**h.t) / ((1.0 + h.beta) * left)
    noise = 0.0 if h.t == 1 else p / (1.0 - p)
    m_hat = m / left
    square = m_hat * m_hat
    total = square + noise * max(v / left - square, 0.0)
    return w - h.learning_rate * (square / total if total > 0.0 else 0.0) * m_hat, m, v


@optimizer(learning_rate=0.01, beta=0.9, gamma=0.9, delta=0.01)
def sadam(w, g, m, v, h):
    """``v = (1 - gamma/t) v + gamma/t g^2; w -= lr/t m / (v + delta/t)``, strongly convex costs. Wang et al. 2020."""
    m = h.beta * m + (1.0 - h.beta) * g
    v = (1.0 - h.gamma / h.t) * v + h.gamma / h.t * g * g
    return w - h.learning_rate / h.t * m / (v + h.delta / h.t), m, v


@optimizer(learning_rate=0.001, beta_1=0.98, beta_2=0.92, beta_3=0.99, epsilon=1e-8, decoupled=True)
def adan(w, g, m, d, n, before, h):
    """``w -= lr (mhat + b2 dhat) / (sqrt(nhat) + eps)``; averages of ``g``, ``c = g - before``, ``(g + b2 c)^2``.

    Xie et al. 2022, with the bias corrections of the authors' code; their ``beta`` are ``1 - beta`` here.
    """
    change = 0.0 if h.t == 1 else g - before
    ahead = g + h.beta_2 * change
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    d = h.beta_2 * d + (1.0 - h.beta_2) * change
    n = h.beta_3 * n + (1.0 - h.beta_3) * ahead * ahead
    step = m / (1.0 - h.beta_1**h.t) + h.beta_2 / (1.0 - h.beta_2**h.t) * d
    return w - h.learning_rate * step / (sqrt(n / (1.0 - h.beta_3**h.t)) + h.epsilon), m, d, n, g


@optimizer(**MOMENTS, beta_3=0.9999, alpha=5.0, decoupled=True)
def ademamix(w, g, m, slow, v, h):
    """``w -= lr (mhat + alpha slow) / (sqrt(vhat) + eps)``, ``slow = b3 slow + (1 - b3) g``.

    Pagliardini, Ablin & Grangier 2024, without warm-up of ``alpha`` and ``b3``.
    """
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    slow = h.beta_3 * slow + (1.0 - h.beta_3) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    step = m / (1.0 - h.beta_1**h.t) + h.alpha * slow
    return w - h.learning_rate * step / (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon), m, slow, v


@optimizer(learning_rate=0.001, beta_1=0.9, beta_2=0.9999, epsilon=1e-6)
def adopt(w, g, m, v, h):
    """``m = b1 m + (1 - b1) g / max(sqrt(v), eps); w -= lr m``, then ``v``; the first step only sets ``v = g^2``.

    Taniguchi et al. 2024.
    """
    new = h.beta_1 * m + (1.0 - h.beta_1) * g / max(sqrt(v), h.epsilon)
    m = 0.0 * g if h.t == 1 else new
    kept = 0.0 if h.t == 1 else h.beta_2
    return w - h.learning_rate * m, m, kept * v + (1.0 - kept) * g * g


@optimizer(**MOMENTS)
def eadam(w, g, m, v, h):
    """``v = b2 v + (1 - b2) g^2 + eps; w -= lr mhat / sqrt(vhat)``. Yuan & Gao 2020."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g + h.epsilon
    return w - h.learning_rate / (1.0 - h.beta_1**h.t) * m / sqrt(v / (1.0 - h.beta_2**h.t)), m, v


@optimizer(learning_rate=0.0025, beta_1=0.6, beta_2=0.999, epsilon=1e-8)
def ftml(w, g, d, v, z, h):
    """``d = (1 - b1^t) / lr (sqrt(vhat) + eps); z = b1 z + (1 - b1) g - (d - b1 d_(t-1)) w; w = -z / d``.

    Zheng & Kwok 2017: follow the moving leader.
    """
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    new = (1.0 - h.beta_1**h.t) / h.learning_rate * (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon)
    z = h.beta_1 * z + (1.0 - h.beta_1) * g - (new - h.beta_1 * d) * w
    return -z / new, new, v, z


@optimizer(**MOMENTS, decoupled=True)
def grams(w, g, m, v, h):
    """``w -= lr sign(g) |mhat / (sqrt(vhat) + eps)|``. Cao, Li & Song 2024."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    m_hat = m / (1.0 - h.beta_1**h.t)
    return w - h.learning_rate * sign(g) * abs(m_hat) / (sqrt(v / (1.0 - h.beta_2**h.t)) + h.epsilon), m, v


@optimizer(**MOMENTS, negative=1.0)
def adapnm(w, g, m, before, v, largest, h):
    """``m_t = b1^2 m_(t-2) + (1 - b1^2) g``; AMSGrad's step with ``((1 + n) m_t - n m_(t-1)) / sqrt((1 + n)^2 + n^2)``.

    Xie, Yuan, Zhu & Sugiyama 2021; ``n`` is ``negative``.
    """
    new = h.beta_1**2 * before + (1.0 - h.beta_1**2) * g
    v = h.beta_2 * v + (1.0 - h.beta_2) * g * g
    largest = max(largest, v)
    norm = ((1.0 + h.negative) ** 2 + h.negative**2) ** 0.5
    step = h.learning_rate / (norm * (1.0 - h.beta_1**h.t)) * ((1.0 + h.negative) * new - h.negative * m)
    return w - step / (sqrt(largest / (1.0 - h.beta_2**h.t)) + h.epsilon), new, m, v, largest


@optimizer(learning_rate=1e-4, beta_1=0.9, beta_2=0.99, epsilon=1e-5)
def acclip(w, g, m, limit, h):
    """``limit = b2 limit + (1 - b2) |g|; w -= lr min(limit / (|m| + eps), 1) m``. Zhang et al. 2020, ``alpha = 1``."""
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    limit = h.beta_2 * limit + (1.0 - h.beta_2) * abs(g)
    return w - h.learning_rate * min(limit / (abs(m) + h.epsilon), 1.0) * m, m, limit
