"""The benchmark against peers: its protocol with peers that sleep, its arithmetic."""

import json
import pathlib
import re
import textwrap
import threading

import pytest

from bench import cases, report, roofline, timing, worker

ROOT = pathlib.Path(__file__).parent.parent

# a run of way "slow" takes 4 ms, of way "fast" 1 ms: three runs of it make one call
ROW = {"case": "row", "way": "a"}
EVEN, UNEVEN = [1.0, 1.0], [1.0, 2.0]  # the parts of a burst

FAKE = """
import os, time
from bench.cases import Missing, Work

def find(name):
    return name

def build(case, way):
    print("noise on standard output")
    if way == "missing":
        raise Missing("no such layer")
    if way == "broken":
        raise ValueError("a bug")
    if way == "dies":
        os._exit(3)
    return Work(lambda: time.sleep(0.003), 3) if way == "fast" else Work(lambda: time.sleep(0.004))
"""
PLAN = timing.Plan(rounds=4, seconds=0.016, limit=30.0)


@pytest.fixture
def workers(tmp_path):
    (tmp_path / "fake_peer.py").write_text(textwrap.dedent(FAKE))
    environment = {"PYTHONPATH": str(tmp_path)}
    modules = {"fake": ("fake_peer", environment), "other": ("fake_peer", environment), "absent": ("no_module", {})}
    with timing.Workers(modules) as running:
        yield running


def columns(*ways, worker="fake"):
    return [timing.Column(way, worker, way) for way in ways]


def row(*comparisons, **sizes):
    return cases.Dense("row", comparisons, *(sizes.get(axis, 8) for axis in "mkn"))


def figures(*bursts, noisy=()):
    return timing.Figures([*bursts], [*noisy])


# ------------------------------------------------------------------------------------------------- protocol


@pytest.mark.usefixtures("_quiet")
def test_every_column_gets_its_rounds(workers):
    result = timing.Result(row())
    timing.measure(result, columns("fast", "slow"), workers, PLAN)
    fast, slow = result.figures["fast"], result.figures["slow"]
    assert len(fast.quiet) == len(slow.quiet) == PLAN.rounds
    assert fast.median >= 0.001  # a sleep may take longer, never shorter
    assert slow.median >= 0.004


def test_a_burst_fills_its_time_and_divides_by_the_runs_of_a_call(monkeypatch):
    now = [0.0]

    def call():
        now[0] += 0.003

    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    prepared = worker._Prepared(cases.Work(call, runs=3), seconds=0.06)
    start = now[0]
    assert prepared.burst() == [pytest.approx(0.001)] * worker.PARTS
    assert now[0] - start == pytest.approx(0.06 + 0.003)  # the first call is a warm-up


@pytest.mark.parametrize(
    ("way", "why"),
    [("missing", "^no such layer$"), ("broken", "^failed: ValueError: a bug$"), ("dies", "^the process ended")],
)
def test_what_one_peer_cannot_do_stops_no_other(workers, way, why):
    result = timing.Result(row())
    both = [timing.Column(way, "fake", way), timing.Column("slow", "other", "slow")]
    timing.measure(result, both, workers, PLAN._replace(rounds=1))
    assert re.search(why, result.figures[way].missing)
    assert result.figures[way].median is None
    assert result.figures["slow"].bursts


def test_a_peer_that_is_not_installed_is_missing(workers):
    result = timing.Result(row())
    timing.measure(result, columns("any", worker="absent"), workers, PLAN)
    assert result.figures["any"].missing == "no_module is not installed"


@pytest.fixture
def _quiet(monkeypatch):
    """No other process exists, and waiting for quiet costs nothing."""
    monkeypatch.setattr(timing, "busy_seconds", lambda: None)
    monkeypatch.setattr(timing, "wait_until_quiet", lambda limit: None)
    monkeypatch.setattr(timing, "_SPREAD", 1e9)


class Script:
    """A worker whose bursts were written down before."""

    def __init__(self, *bursts):
        self.bursts, self.asked = list(bursts), []

    def ask(self, **request):
        self.asked.append(request["do"])
        return {"cpu": 0.1, "seconds": self.bursts.pop(0)} if request["do"] == "burst" else {"cpu": 0.0}


@pytest.mark.usefixtures("_quiet")
def test_the_order_is_reversed_every_other_round():
    asked = []

    class Named(Script):
        def ask(self, **request):
            if request["do"] == "burst":
                asked.append(request["way"])
            return {"cpu": 0.0, "seconds": [1.0]}

    timing.measure(timing.Result(row()), columns("a", "b", "c"), {"fake": Named()}, PLAN._replace(rounds=2))
    assert asked == ["a", "b", "c", "c", "b", "a"]


@pytest.mark.parametrize(("others", "noisy"), [(0.0, False), (5.0, True)])
def test_a_burst_is_noisy_where_others_used_the_cores(monkeypatch, others, noisy):
    busy = iter([100.0, 100.0 + 0.1 + others])  # 0.1 of it the worker's own
    monkeypatch.setattr(timing, "busy_seconds", lambda: next(busy))
    assert timing.burst(Script([2.0, 1.0, 3.0]), ROW, patience=0) == (2.0, noisy, "")


def test_where_the_system_does_not_count_the_spread_tells(monkeypatch):
    monkeypatch.setattr(timing, "_STAT", pathlib.Path("/no/such/file"))
    assert timing.busy_seconds() is None
    assert timing.burst(Script([1.0, 1.1]), ROW, patience=0) == (pytest.approx(1.05), False, "")
    assert timing.burst(Script([1.0, 2.0]), ROW, patience=0)[1]


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(
    ("bursts", "quiet", "noisy"),
    [
        ([EVEN, EVEN, EVEN], 2, 0),  # no more than the two rounds
        ([UNEVEN, EVEN, UNEVEN, EVEN, EVEN], 2, 2),
        ([UNEVEN] * 9, 0, 6),  # three times the rounds, and no more
    ],
)
def test_a_noisy_burst_is_repeated_a_few_times(monkeypatch, bursts, quiet, noisy):
    monkeypatch.setattr(timing, "_SPREAD", 1.3)
    result = timing.Result(row())
    timing.measure(result, columns("a"), {"fake": Script(*bursts)}, PLAN._replace(rounds=2))
    found = result.figures["a"]
    assert (found.quiet, found.noisy) == ([1.0] * quiet, [1.5] * noisy)
    assert found.doubtful == (not quiet)


@pytest.mark.usefixtures("_quiet")
def test_a_row_is_measured_on():
    result, worker = timing.Result(row()), Script(*[EVEN] * 2, *[[3.0]] * 3)
    timing.measure(result, columns("a"), {"fake": worker}, PLAN._replace(rounds=2))
    timing.measure(result, columns("a"), {"fake": worker}, PLAN._replace(rounds=3))
    assert result.figures["a"].quiet == [1.0, 1.0, 3.0, 3.0, 3.0]


# ----------------------------------------------------------------------------------------------- arithmetic


def test_median_and_percentiles_are_those_of_quiet_bursts():
    found = figures(1, 2, 3, 4, 5, 6, noisy=[90])
    assert found.median == 3.5
    assert (found.percentile(20), found.percentile(80)) == (2, 5)
    assert not found.doubtful


def test_noisy_bursts_count_where_few_were_quiet():
    found = figures(1, noisy=[3, 5, 7])
    assert found.median == 4
    assert found.doubtful
    assert figures().median is None


@pytest.mark.parametrize(
    ("ratio", "at_least", "doubtful", "expected"),
    [
        (2.0, 2.0, False, "ok"),
        (1.99, 2.0, False, "MISS"),
        (3.0, 2.0, True, "ok?"),
        (3.0, None, False, ""),
        (None, 2.0, False, "n/a"),
    ],
)
def test_verdict(ratio, at_least, doubtful, expected):
    assert report.verdict(ratio, at_least, doubtful) == expected


CEILINGS = roofline.Ceilings(2, peak=100.0, bandwidth=((50.0, 20.0), (float("inf"), 4.0)))


def test_an_interrupted_ceiling_leaves_no_thread_behind(monkeypatch):
    """One that waited at the gate for ever would keep the process from ending."""
    times = iter([0.0, KeyboardInterrupt()])

    def perf_counter():
        now = next(times)
        if isinstance(now, BaseException):
            raise now
        return now

    begun = []
    monkeypatch.setattr(roofline.time, "perf_counter", perf_counter)
    with pytest.raises(KeyboardInterrupt):
        roofline._best([lambda: begun.append(threading.current_thread())] * 2, 2)
    assert len(begun) == 2
    for thread in begun:
        thread.join(10)
        assert not thread.is_alive()


def test_the_peak_is_that_of_as_many_multiplications_as_are_counted():
    kernel, flops = roofline._fma_kernel()
    assert flops == 2 * roofline._CHAINS * roofline._lanes()
    kernel(1)
    multiplications = re.findall(r"\bvfn?m(?:add|sub)\w*ps\b|\bfmla\b", *kernel.inspect_asm().values())
    if not multiplications:
        pytest.skip("this processor has no FMA of either name")
    assert len(multiplications) % roofline._CHAINS == 0  # however often the loop is unrolled


def test_the_roofline_is_the_slower_of_both_limits():
    assert CEILINGS.seconds(400.0, 20.0) == 4.0  # 20 bytes fit in the cache: 1 s
    assert CEILINGS.seconds(400.0, 100.0) == 25.0
    assert roofline.Ceilings.from_dict(json.loads(json.dumps(CEILINGS.to_dict()))) == CEILINGS


def test_a_line_divides_the_peer_by_ours():
    case = row(cases.Comparison("dlcore", "torch", 3.0), m=1, k=2, n=1)  # 4 flops on 24 bytes: at least 1.2 s
    result = timing.Result(case, {"dlcore": figures(2.0), "torch": figures(5.0)})
    (line,) = report.lines(result, CEILINGS)
    assert (line.ratio, line.verdict, line.roofline) == (2.5, "MISS", 0.6)
    (line,) = report.lines(timing.Result(case, {"dlcore": figures(2.0)}))
    assert (line.ratio, line.verdict) == (None, "n/a")


def test_a_grid_is_judged_by_median_and_worst():
    def results(*ratios):
        for k, ratio in enumerate(ratios):
            case = cases.Dense(f"dense-{k}", (cases.Comparison("dlcore", "torch"),), k + 1, 8, 8)
            yield timing.Result(case, {"dlcore": figures(1.0), "torch": figures(ratio)})

    assert report.grid("dense", results(0.8, 1.0, 3.0))[2:] == (1.0, 0.8, "0", "ok")
    assert report.grid("dense", results(1.0, 3.0, 0.79))[2:] == (1.0, 0.79, "2", "MISS")
    assert report.grid("dense", results(0.9, 0.9, 3.0)).verdict == "MISS"
    *others, worst = results(1.0, 1.0, 0.9)
    worst.figures["torch"] = figures(noisy=[0.9])
    assert report.grid("dense", [*others, worst]).verdict == "ok?"


def test_the_report_shows_what_is_not_there():
    models = cases.find("models-16")
    result = timing.Result(models, {"dlcore together": timing.Figures(missing="not there"), "jax": figures(1e-5)})
    text = report.markdown([result, timing.Result(cases.find("dense-1x64x64"))], {"commit": "abc"})
    assert "n/a (not there)" in text
    assert "10.0 us (10.0 us to 10.0 us)" in text
    assert "0 met, 0 missed, 0 doubtful" in text
    fast = timing.Result(cases.find("adam-1e4"), {"dlcore": figures(1e-6), "torch": figures(noisy=[1e-5])})
    assert "0 met, 0 missed, 1 doubtful" in report.markdown([fast], {})
    assert json.loads(json.dumps(report.as_json([result], {})))["rows"][0]["columns"]["jax"]["median"] == 1e-5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-6, "1.23 us"), (99.96e-6, "100 us"), (0.9999e-3, "1.00 ms"), (0.0123, "12.3 ms"), (2.0, "2.00 s")],
)
def test_durations_have_three_digits(seconds, text):
    assert report.duration(seconds) == text
