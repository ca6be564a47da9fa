"""Schedules: their formulas against textbooks and PyTorch, and inside the fused step on both engines."""

import json

import numpy as np
import pytest

import dlcore
from dlcore import callbacks, kernels, optimizers, schedules
from dlcore.kernels.compile import uniforms_of
from dlcore.kernels.rule import REGISTRY, RuleError
from dlcore.kernels.schedules import check
from dlcore.kernels.step_text import UNIFORM_HEADER

EVERY = {
    "exponential": schedules.ExponentialDecay(0.1, 10, 0.5),
    "staircase": schedules.ExponentialDecay(0.1, 3, 0.5, staircase=True),
    "inverse time": schedules.InverseTimeDecay(0.2, per="epoch", start=1),
    "inverse time in steps": schedules.InverseTimeDecay(0.2, 4, 0.5, staircase=True),
    "inverse square root": schedules.InverseSquareRootDecay(0.2, 0.5),
    "polynomial": schedules.PolynomialDecay(0.1, 8, 0.01, power=2.0),
    "polynomial again and again": schedules.PolynomialDecay(0.1, 4, 0.01, cycle=True),
    "cosine": schedules.CosineDecay(0.1, 10, alpha=0.1),
    "cosine after a warm-up": schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=4),
    "cosine with restarts": schedules.CosineDecayRestarts(0.1, 3, m_mul=0.5),
    "one cycle": schedules.OneCycle(0.1, 16),
    "warm-up": schedules.WarmUp(0.1, 5),
    "cyclic": schedules.Cyclic(0.01, 0.1, 4, shrink=0.5),
    "piecewise": schedules.PiecewiseConstantDecay([3, 7, 11], [0.1, 0.05, 0.02, 0.01]),
}


def data(rng):
    return rng.standard_normal((32, 5)).astype(np.float32), rng.integers(0, 3, 32)


def model(optimizer, device="cpu"):
    dlcore.set_seed(5)
    made = dlcore.Sequential([dlcore.layers.Dense(7, "tanh"), dlcore.layers.Dense(3, "softmax")], device=device)
    made.compile(optimizer, "sparse_categorical_crossentropy")
    return made


def test_every_built_in_schedule_passes_the_check_at_registration():
    for rule in REGISTRY["schedule"].values():
        check(rule)


def test_inverse_time_decay_of_the_textbook():
    """lr0 = 0.2 and decay 1: the epochs 1 to 4 have 0.1, 0.0667, 0.05, 0.04."""
    rate = schedules.InverseTimeDecay(0.2, per="epoch", start=1)
    assert [round(rate(epoch), 4) for epoch in range(4)] == [0.1, 0.0667, 0.05, 0.04]


def test_exponential_and_square_root_decay_of_the_textbook():
    """``lr0 0.95^epoch`` and ``lr0 k / sqrt(epoch)``, epochs from 1."""
    rate = schedules.ExponentialDecay(0.2, per="epoch", start=1)
    np.testing.assert_allclose([rate(e) for e in range(3)], [0.2 * 0.95**e for e in (1, 2, 3)], rtol=1e-15)
    rate = schedules.InverseSquareRootDecay(0.2, k=0.5, per="epoch")
    np.testing.assert_allclose([rate(e) for e in range(3)], [0.1, 0.1 / np.sqrt(2), 0.1 / np.sqrt(3)], rtol=1e-15)


def of_torch(make, steps=24):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


PEERS = {
    "step": (schedules.ExponentialDecay(0.1, 5, 0.3, staircase=True), lambda s, o: s.StepLR(o, 5, 0.3)),
    "exponential": (schedules.ExponentialDecay(0.1, 1, 0.9), lambda s, o: s.ExponentialLR(o, 0.9)),
    "multi-step": (schedules.PiecewiseConstantDecay([2, 8], [0.1, 0.01, 0.001]), lambda s, o: s.MultiStepLR(o, [3, 9])),
    "cosine": (schedules.CosineDecay(0.1, 23), lambda s, o: s.CosineAnnealingLR(o, 23)),
    "restarts": (schedules.CosineDecayRestarts(0.1, 4), lambda s, o: s.CosineAnnealingWarmRestarts(o, 4, 2)),
    "polynomial": (schedules.PolynomialDecay(0.1, 12, 0.0, 2.0), lambda s, o: s.PolynomialLR(o, 12, 2.0)),
    "one cycle": (schedules.OneCycle(0.1, 24), lambda s, o: s.OneCycleLR(o, 0.1, 24)),
    "cyclic": (schedules.Cyclic(0.02, 0.1, 5), lambda s, o: s.CyclicLR(o, 0.02, 0.1, 5)),
    "shrinking": (schedules.Cyclic(0.02, 0.1, 5, 0.5), lambda s, o: s.CyclicLR(o, 0.02, 0.1, 5, mode="triangular2")),
    "warm-up": (schedules.WarmUp(0.1, 8), lambda s, o: s.LinearLR(o, 1 / 8, 1.0, 7)),
}


@pytest.mark.parametrize(("ours", "theirs"), PEERS.values(), ids=PEERS)
def test_the_rates_are_those_of_torch(ours, theirs):
    np.testing.assert_allclose([ours(step) for step in range(24)], of_torch(theirs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", EVERY.values(), ids=EVERY)
def test_training_with_a_schedule_is_training_with_its_rates(schedule):
    x, y = data(np.random.default_rng(1))
    fitted = model(optimizers.AdamW(schedule, weight_decay=0.5))  # whose decay goes with the rate
    history = fitted.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0).history
    by_hand = model(optimizers.AdamW(weight_decay=0.5))
    rates = [schedule(step if schedule.per == "step" else step // 4) for step in range(16)]
    for step, rate in enumerate(rates):
        by_hand.optimizer.learning_rate = rate
        at = 8 * (step % 4)
        by_hand.train_on_batch(x[at : at + 8], y[at : at + 8])
    assert history["learning_rate"] == rates[3::4]
    for got, expected in zip(fitted.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", EVERY.values(), ids=EVERY)
def test_a_schedule_is_what_its_config_says(schedule):
    again = schedules.from_config(json.loads(json.dumps(schedule.config())))
    assert [again(step) for step in range(20)] == [schedule(step) for step in range(20)]
    optimizer = optimizers.Adam(schedule, global_clipnorm=1.0)
    again = optimizers.from_config(json.loads(json.dumps(optimizer.config())))
    assert again.hyper().tolist() == optimizer.hyper().tolist()


def test_a_schedule_of_the_user_and_the_uniforms_of_both_engines():
    @kernels.schedule(half=3.0)
    def halving(rate, h):
        """The parameter is called like nothing of Adam, the argument like nothing of ours."""
        passed = h.t - 1.0
        while passed >= h.half:
            rate *= 0.5
            passed -= h.half
        return rate

    schedule = schedules.LearningRateSchedule(halving, 0.8)
    assert [schedule(step) for step in (0, 2, 3, 6)] == [0.8, 0.8, 0.4, 0.2]
    rule = optimizers.Adam(schedule, clipvalue=0.25, weight_decay=0.125).rule
    hyper = optimizers.Adam(schedule, clipvalue=0.25, weight_decay=0.125).hyper()
    plain = optimizers.Adam(0.2, clipvalue=0.25, weight_decay=0.125)

    def uniforms(rule, hyper, convert):
        out = convert(np.zeros(UNIFORM_HEADER + len(uniforms_of(rule))))
        backend = kernels.ops._backend(out=out)
        backend.run("optimizer_begin", [convert(hyper), convert(np.array([6])), out], rule)
        return out.copy_to_host() if hasattr(out, "copy_to_host") else out

    expected = uniforms(plain.rule, plain.hyper(), np.asarray)  # the seventh step: a quarter of the rate
    assert expected[3] == 0.25
    assert uniforms(rule, hyper, np.asarray).tolist() == expected.tolist()
    from numba import cuda

    if cuda.is_available():
        assert uniforms(rule, hyper, cuda.to_device).tolist() == expected.tolist()


def test_a_rate_by_hand_ends_the_schedule():
    x, y = data(np.random.default_rng(2))
    trained = model(optimizers.SGD(schedules.ExponentialDecay(0.5, 1, 0.5)))
    trained.fit(x, y, batch_size=32, epochs=2, verbose=0)
    trained.optimizer.learning_rate = 0.3
    assert trained.fit(x, y, verbose=0).history["learning_rate"] == [0.3]
    trained.optimizer.learning_rate = schedules.ExponentialDecay(0.5, 1, 0.5)
    assert trained.fit(x, y, verbose=0).history["learning_rate"] == [0.5 * 0.5**3]  # it counts all steps


def test_a_model_with_a_schedule_is_saved_and_goes_on(tmp_path):
    x, y = data(np.random.default_rng(3))
    trained = model(optimizers.Adam(EVERY["piecewise"], clipnorm=0.5))
    trained.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    trained.save(tmp_path / "model.safetensors")
    again = dlcore.load(tmp_path / "model.safetensors", device="cpu")
    histories = [m.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history for m in (trained, again)]
    assert histories[0] == histories[1]
    assert histories[0]["learning_rate"] == [0.05, 0.02]


def test_reduce_on_plateau():
    callback = callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=0.01, cooldown=1, min_lr=0.2)
    callback.model = model(optimizers.SGD(1.0))
    rates = []
    for epoch, loss in enumerate([1.0, 0.5, 0.495, 0.499, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1, 0.2]):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {"loss": loss})
        rates.append(callback.model.optimizer.learning_rate)
    # reduced after two epochs without progress; the epoch after a reduction does not count
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]
    with pytest.raises(ValueError, match="monitor 'loss' is not measured; there is: accuracy"):
        callback.on_epoch_end(0, {"accuracy": 1.0})


def test_reduce_on_plateau_is_that_of_torch():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(4).uniform(0.4, 0.6, 60)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.01, threshold_mode="abs", cooldown=2
    )
    ours = callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=3, min_delta=0.01, cooldown=2)  # torch counts on
    ours.model = model(optimizers.SGD(1.0))
    for epoch, value in enumerate(values):
        theirs.step(value)
        ours.on_epoch_begin(epoch)
        ours.on_epoch_end(epoch, {"loss": value})
        assert ours.model.optimizer.learning_rate == optimizer.param_groups[0]["lr"], epoch


BAD = {
    "per": (lambda: schedules.WarmUp(0.1, 3, per="day"), "per must be 'step' or 'epoch', got 'day'"),
    "steps": (lambda: schedules.CosineDecay(0.1, 0), "decay_steps must be above 0, got 0"),
    "boundaries": (
        lambda: schedules.PiecewiseConstantDecay([3, 3], [1, 2, 3]),
        r"boundaries must ascend, got \[3, 3\]",
    ),
    "values": (lambda: schedules.PiecewiseConstantDecay([3], [1]), "values must be one more than boundaries"),
    "one cycle": (
        lambda: schedules.OneCycle(0.1, 10, pct_start=0.1),
        "pct_start must leave more than one of 10 steps to both parts",
    ),
    "name": (
        lambda: schedules.LearningRateSchedule("cosinus", 0.1),
        "unknown schedule 'cosinus'; did you mean 'cosine'?",
    ),
    "parameter": (lambda: schedules.LearningRateSchedule("cosine", 0.1, totl=1), "no parameter 'totl'; it has: total"),
    "a text": (lambda: schedules.LearningRateSchedule("cosine", 0.1, total="1"), "total must be a number, got '1'"),
    "factor": (lambda: callbacks.ReduceLROnPlateau(factor=1.0), r"factor must lie in \(0, 1\), got 1.0"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_schedules(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_bad_rules_of_the_user():
    with pytest.raises(RuleError, match=r"takes \(rate\); expected \(rate, h\)"):
        kernels.schedule(lambda rate: rate)
    with pytest.raises(RuleError, match=r"gives the rate -0\.1 at t = 2"):

        @kernels.schedule(decay=1.0)
        def falling(rate, h):
            return rate * (1.0 - h.decay * 2.0 * (h.t - 1.0))

    with pytest.raises(RuleError, match="fails in plain Python at t = 1: AttributeError"):

        @kernels.schedule
        def of_nothing(rate, h):
            return rate * h.decay
