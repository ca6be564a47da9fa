"""Where the cores of a benchmark lay: one number raised by two threads in turns, and its place in the report."""

import os
import threading

import numpy as np
import pytest

from bench import cases, crossing, report, timing

PLAN = timing.Plan(rounds=2, seconds=0.016, limit=30.0)


def test_each_player_waits_for_its_number_and_raises_it():
    words = np.zeros(1, np.int64)
    word = words.ctypes.data
    assert crossing._raise_in_turns(word, 0, 2)
    assert words[0] == 1
    assert crossing._raise_in_turns(word, 1, 3)
    assert words[0] == 2
    assert not crossing._raise_in_turns(word, 4, 6)  # nobody raises it to 4
    assert words[0] == 2


def test_two_threads_take_turns_and_none_stays():
    before = threading.active_count()
    found = crossing._go()  # None where the system gave one of them no core for too long
    assert found is None or found > 0
    assert threading.active_count() == before


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores there are")
def test_of_two_cores_each_thread_has_one_for_a_while(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3})
    settled = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: settled.append((threading.get_ident(), cores)))
    crossing._go()
    here = threading.get_ident()
    assert [cores for thread, cores in settled if thread == here] == [{3}, {3, 7}]
    assert [cores for thread, cores in settled if thread != here] == [{7}]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3, 5})
    assert crossing._cores() == (None, None, None)


def test_where_threads_may_not_be_moved_they_lie_where_they_lie(monkeypatch):
    def forbid(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", forbid, raising=False)
    found = crossing._go()
    assert found is None or found > 0


@pytest.mark.parametrize(
    ("goes", "seconds"), [([3e-8, 2e-8, 9e-8], 2e-8), ([None, 9e-8, None], 9e-8), ([None] * 3, None)]
)
def test_the_quickest_go_counts(monkeypatch, goes, seconds):
    monkeypatch.setattr(crossing, "_go", iter(goes).__next__)
    assert crossing.seconds() == seconds


def test_a_row_says_where_the_cores_lay_before_each_round(monkeypatch):
    happened, found = [], iter([3e-8, 17e-8, None])

    def seconds():
        happened.append("crossing")
        return next(found)

    class Peer:
        def ask(self, **request):
            if request["do"] == "burst":
                happened.append("burst")
            return {"cpu": 0.0, "seconds": [1.0]}

    monkeypatch.setattr(crossing, "seconds", seconds)
    monkeypatch.setattr(timing, "busy_seconds", lambda: None)
    case = cases.find("adam-1e7")
    result = timing.Result(case)
    columns = [timing.Column("dlcore", "peer", "step"), timing.Column("torch", "peer", "step")]
    timing.measure(result, columns, {"peer": Peer()}, PLAN)
    timing.measure(result, columns, {"peer": Peer()}, PLAN._replace(rounds=1))
    assert happened == ["crossing", "burst", "burst"] * 3
    assert result.crossings == [3e-8, 17e-8]
    assert report.as_json([result], {})["rows"][0]["crossings"] == [3e-8, 17e-8]


def test_the_report_shows_the_middle_one():
    ours = {"dlcore": timing.Figures([1.0]), "torch": timing.Figures([2.0])}
    rows = [
        timing.Result(cases.find("adam-1e7"), ours, [3e-8, 4e-8, 17e-8]),
        timing.Result(cases.find("adam-1e6"), ours),
    ]
    rows += [timing.Result(cases.find(f"dense-{m}x64x64"), ours, [m * 1e-9] * 3) for m in (1, 8, 32)]
    table = [line for line in report.markdown(rows, {}).splitlines() if line.startswith("|")]
    assert [line.split("|")[-2].strip() for line in table[:1] + table[2:5]] == [
        "core to core",
        "40.0 ns",
        "",
        "8.00 ns (median)",
    ]
