"""The benchmark against peers: its protocol with peers that sleep, its arithmetic, its command line."""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from bench import __main__ as command
from bench import cases, peers, report, roofline, timing, worker

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


# ----------------------------------------------------------------------------------------- rows and commands


def test_every_column_has_a_peer_and_every_row_a_name_of_its_own():
    assert {label for case in cases.CASES for label in case.columns} == set(peers.COLUMNS)
    assert {column.worker for column in peers.COLUMNS.values()} == set(peers.MODULES)
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)
    assert sum(case.kind == "dense" for case in cases.CASES) == 6 * 5 * 5


def test_flops_and_parameters_of_a_step():
    step = cases.find("digits")
    assert step.parameters == 64 * 128 + 128 + 128 * 10 + 10
    assert step.flops == 2 * 32 * (2 * 64 * 128 + 3 * 128 * 10)  # forward and dW; forward, dW and dx
    with_norm = cases.find("digits-norm")
    assert with_norm.parameters == 64 * 128 + 128 * 128 + 128 * 10 + 4 * 128 + 10


def test_outputs_are_those_of_the_network_of_a_step():
    from bench.peers import ours

    case = cases.find("predict-32")
    assert case.title == "outputs of 64-128-10, 32 samples"
    assert case.flops == 2 * 32 * (64 * 128 + 128 * 10)
    assert case.moved == 4 * (64 * 128 + 128 + 128 * 10 + 10 + 32 * (64 + 10))
    outputs = ours.build(case, "step").call()
    np.testing.assert_array_equal(outputs, ours.network(cases.step("digits")).predict(case.data()))
    assert outputs.shape == (32, 10)
    assert cases.find("predict-1").title == "outputs of 64-128-10, 1 sample"


def test_rows_are_chosen_by_name_and_by_kind():
    assert [case.name for case in cases.select(["norm-64x256", "tiny"])] == ["tiny", "norm-64x256"]
    assert {case.kind for case in cases.select(["adam"])} == {"adam"}
    assert len(cases.select(["dense"], quick=True)) == 27
    assert [case.name for case in cases.select(["dense-8x256x256"], quick=True)] == ["dense-8x256x256"]


def test_many_models_are_one_call_where_dlcore_has_it(monkeypatch):
    import dlcore
    from bench.peers import ours

    asked = []

    def fit_many(models, x, y, **options):
        asked.append((len(models), len(x), len(y), options))

    case = cases.find("models-16")
    monkeypatch.setattr(dlcore, "fit_many", fit_many, raising=False)
    work = ours.build(case, "together")
    work.call()
    samples = case.fit_steps * 32
    assert asked == [(16, samples, samples, {"epochs": 1, "batch_size": 32, "shuffle": True})]
    assert work.runs == 16 * case.fit_steps
    monkeypatch.delattr(dlcore, "fit_many")
    with pytest.raises(cases.Missing, match="not there"):
        ours.build(case, "together")


def test_list_names_rows_and_targets(capsys):
    assert command.main(["peers", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(case.name in text for case in cases.CASES)
    assert "20x torch" in text
    assert "median 1.0x, worst 0.8x" in text


@pytest.mark.parametrize("arguments", [["peers", "sideways"], ["conditions", "sideways"]])
def test_an_unknown_name_is_one_line_and_exit_code_2(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, cwd=ROOT, env={**os.environ}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "'sideways'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_measured(capsys, tmp_path):
    assert command.main(["peers", "tiny", "--json", str(tmp_path / "no" / "such.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_an_interrupt_shows_the_rows_before_it(capsys, monkeypatch):
    def measure(result, *_):
        if result.case.name != "tiny":
            raise KeyboardInterrupt
        result.figures["dlcore"] = figures(1e-5)

    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(command, "_ceilings", list)
    assert command.main(["peers", "tiny", "digits"]) == 130
    assert "10.0 us" in capsys.readouterr().out


def test_an_interrupt_of_the_longer_look_says_how_far_it_came(capsys, monkeypatch):
    asked = []

    def measure(result, columns, workers, plan):
        asked.append(result.case.name)
        if len(asked) == 5:
            raise KeyboardInterrupt
        for label in ("dlcore", "torch"):
            result.figures.setdefault(label, timing.Figures()).quiet.append(1e-3)

    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(command, "_ceilings", list)
    assert command.main(["peers", "adam-1e4", "adam-1e6", "adam-1e7"]) == 130
    assert asked == ["adam-1e4", "adam-1e6", "adam-1e7", "adam-1e4", "adam-1e6"]
    assert "; 2 rows below" in capsys.readouterr().out


def test_rows_near_their_targets_get_a_longer_look(capsys, monkeypatch):
    asked = []
    ratios = {"dense-1x64x64": [0.7, 1.1], "dense-8x64x64": [1.1], "adam-1e4": [5.5, 4.8], "adam-200x2k": [13.0]}

    def measure(result, columns, workers, plan):
        name = result.case.name
        asked.append((name, plan.rounds))
        for label, seconds in (("dlcore", 1e-3), ("torch", 1e-3 * ratios[name].pop(0))):
            result.figures.setdefault(label, timing.Figures()).quiet.extend([seconds] * plan.rounds)

    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(command, "_ceilings", list)
    assert command.main(["peers", *ratios, "--rounds", "8"]) == 0
    first = [("adam-1e4", 8), ("adam-200x2k", 8), ("dense-1x64x64", 4), ("dense-8x64x64", 4)]
    assert asked == [*first, ("adam-1e4", 16), ("dense-1x64x64", 16)]
    text = capsys.readouterr().out
    assert "median 1.10x, worst 1.10x" in text  # of 4 bursts at 0.7 and 16 at 1.1
    assert re.search(r"4\.8x +\| 5x +\| MISS", text)
    assert "2 rows below 1.25 times their target measured on, all their bursts count" in text
