"""When brief jobs run alone because other processes want the cores."""

import itertools

import pytest

from dlcore.kernels.cpu import crowd, threads


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: ``clock.now``."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(crowd.time, "monotonic", lambda: Clock.now)
    return Clock


def test_one_long_wait_is_no_crowd(clock):
    c = crowd.Crowd()
    c.note(True)
    assert not c.here()
    clock.now += 1.0
    c.note(True)
    assert not c.here()


def test_two_long_waits_are_and_it_is_tried_again_less_and_less_often(clock):
    c = crowd.Crowd()
    c.note(True)
    clock.now += 0.01
    lengths = []
    for _ in range(8):
        c.note(True)  # the job that tried
        assert c.here()
        start = clock.now
        while c.here():
            clock.now += 0.001
        lengths.append(clock.now - start)
    assert lengths[0] == pytest.approx(0.02, abs=0.002)
    assert all(later >= earlier - 0.002 for earlier, later in itertools.pairwise(lengths))
    assert lengths[-1] == pytest.approx(0.32, abs=0.002)


def test_a_quiet_machine_is_soon_forgotten_to_have_been_crowded(clock):
    c = crowd.Crowd()
    c.note(True)
    c.note(True)
    clock.now += 0.5
    assert not c.here()
    for _ in range(100):
        c.note(False)
        clock.now += 0.01
    assert not c.here()
    c.note(True)
    assert not c.here()
    clock.now += 0.01
    c.note(True)
    clock.now += 0.021
    assert not c.here()  # the first pause is short again


def test_brief_jobs_get_one_thread_in_a_crowd(clock, monkeypatch):
    c = crowd.Crowd()
    monkeypatch.setattr(threads, "crowd", c)
    for brief in (True, False):
        with threads.pool(2, brief) as granted:
            assert granted == 2
    c.note(True)
    c.note(True)
    with threads.pool(2, True) as granted:
        assert granted == 1
    with threads.pool(2) as granted:
        assert granted == 2
