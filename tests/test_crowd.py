"""How many threads a job takes while others want the cores: told by made-up clocks."""

import types

import pytest

from dlcore.kernels.cpu import crowd, threads

WINDOW, REST = crowd._WINDOW + 0.003, crowd._REST + 0.004  # seconds, and some jobs more


class Machine:
    """The clocks of a machine, and jobs that pass on them."""

    def __init__(self):
        self.now = self.idle = 0.0
        self.looks = 0

    def job(self, found, asked, seconds, share, ours, free):
        """Run a job; its calling thread has ``share`` of a core, the process ``ours``, and others leave ``free``."""
        granted = found.limit(asked)
        due = granted > 1 and found.due()
        self.now += seconds
        self.idle += max(0, free - granted) * seconds
        if due:
            self.looks += 1
            found.count(granted, seconds, share * seconds, ours * seconds)
        return granted


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(crowd, "_LOST", 0.25)
    monkeypatch.setattr(crowd, "available", lambda: set(range(4)))
    clocks = types.SimpleNamespace(perf_counter=lambda: made.now)
    monkeypatch.setattr(crowd, "time", clocks)
    monkeypatch.setattr(crowd, "_idle_seconds", lambda: made.idle)
    return made


def _run(machine, found, seconds, *arguments):
    return [machine.job(found, 4, 0.001, *arguments) for _ in range(round(seconds / 0.001))]


def test_a_quiet_machine_gives_what_is_asked_for(machine):
    assert set(_run(machine, crowd.Crowd(), 0.5, 1.0, 4.0, 4)) == {4}
    assert set(_run(machine, crowd.Crowd(), 0.5, 1.0, 1.5, 4)) == {4}  # though most of it is for the calling thread


def test_the_clocks_are_read_now_and_then(machine):
    """A glance now and then; closely, for a window, from a job on that was kept off its core."""
    found = crowd.Crowd()

    def looked_at(jobs, share):
        before = machine.looks
        for _ in range(jobs):
            machine.job(found, 4, 20e-6, share, 4.0, 4)
        return machine.looks - before

    assert 18 <= looked_at(5000, 0.8) <= 22  # one in 250
    assert looked_at(500, 0.7) > 20  # a window, once there was a glance
    assert 900 <= looked_at(10000, 1.0) <= 1000  # one in ten, until it is full
    looked_at(50000, 1.0)
    assert 18 <= looked_at(5000, 1.0) <= 22


def test_an_interruption_of_ten_milliseconds_is_no_crowd(machine):
    found = crowd.Crowd()
    for _ in range(20):
        assert set(_run(machine, found, 0.01, 0.0, 0.5, 0)) == {4}
        assert set(_run(machine, found, 0.1, 1.0, 4.0, 4)) == {4}


def test_fewer_threads_in_a_crowd_and_all_of_them_when_it_has_gone(machine):
    found = crowd.Crowd()
    assert _run(machine, found, WINDOW, 0.5, 1.5, 0)[-1] == 2  # half as many
    assert _run(machine, found, 2 * WINDOW, 0.5, 0.7, 0)[-1] == 1  # and half of those
    assert set(_run(machine, found, 0.5, 0.5, 0.5, 0)) == {1}  # alone, as long as no core idles
    assert _run(machine, found, 3 * REST, 0.9, 1.8, 2)[-1] == 2  # one more for each core that idles
    assert _run(machine, found, 2 * REST, 1.0, 4.0, 4)[-1] == 4
    assert set(_run(machine, found, 0.5, 1.0, 4.0, 4)) == {4}


def test_more_threads_than_cpus_are_no_crowd(machine, monkeypatch):
    monkeypatch.setattr(crowd, "available", lambda: {0, 1})
    assert set(_run(machine, crowd.Crowd(), 0.5, 0.5, 2.0, 0)) == {4}


def test_threads_of_this_process_are_no_crowd(machine):
    """Those of a BLAS library, which turn on the spot for a while after each product."""
    assert set(_run(machine, crowd.Crowd(), 0.5, 0.5, 3.0, 0)) == {4}


def test_where_the_system_does_not_tell_what_idles_all_threads_are_tried_again(machine, monkeypatch):
    monkeypatch.setattr(crowd, "_idle_seconds", lambda: None)
    found = crowd.Crowd()
    assert _run(machine, found, WINDOW, 0.5, 1.5, 0)[-1] == 2
    assert _run(machine, found, REST, 0.5, 1.5, 0)[-1] == 4


STAT = b"""\
cpu  9 9 9 9000 9 0 0 0 0 0
cpu0 1 2 3 400 50 6 7 8 9 0
cpu1 1 2 3 999 99 6 7 8 9 0
cpu12 1 2 3 30 4 6 7 8 9 0
intr 77 0
"""


def test_idle_seconds_are_those_of_the_cpus_of_this_process(tmp_path, monkeypatch):
    (tmp_path / "stat").write_bytes(STAT)
    monkeypatch.setattr(crowd, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(crowd, "available", lambda: {0, 12})
    monkeypatch.setattr(crowd.os, "sysconf", {"SC_CLK_TCK": 100}.get, raising=False)
    assert crowd._idle_seconds() == 4.84
    monkeypatch.setattr(crowd, "_STAT", tmp_path / "none")
    assert crowd._idle_seconds() is None
    monkeypatch.setattr(crowd, "available", lambda: None)
    assert crowd._idle_seconds() is None


def test_the_pool_asks(monkeypatch):
    """Threads that wait for each other are fewer; whole models, which do not, are shared out as ever."""
    asked = types.SimpleNamespace(watched=False, limit=lambda threads: 1, count=lambda *figures: None)
    monkeypatch.setattr(threads._pool, "crowd", asked)
    with threads.pool(2) as granted:
        assert granted == 1
    with threads.pool(2, meet=False) as granted:
        assert granted == 2


def test_the_pool_tells(monkeypatch):
    told = []
    due = iter([True, False])
    asked = types.SimpleNamespace(
        watched=False,
        limit=lambda threads: threads,
        due=lambda: next(due),
        count=lambda *figures: told.append(figures),
    )
    monkeypatch.setattr(threads._pool, "crowd", asked)
    with threads.pool(2):
        pass
    with threads.pool(2):
        pass
    with threads.pool(2, meet=False):
        pass
    with threads.pool(1):
        pass
    ((count, *seconds),) = told
    assert count == 2
    assert all(0.0 <= passed < 1.0 for passed in seconds)
