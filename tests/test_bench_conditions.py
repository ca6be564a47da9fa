"""What `python -m bench conditions` makes of what its probes measured."""

import pytest

from bench import conditions, probes, report


def test_steps_until_the_pace_is_back():
    assert probes.steps_until([9.0] * 7 + [1.0] * 20, 1.1) == 3  # then five of ten are back and the median with them
    assert probes.steps_until([9.0] * 20, 1.1) is None


def test_conditions_name_their_parts():
    assert set(conditions.PARTS) == {"cold", "overhead", "scaling", "loaded", "neighbours", "memory"}


@pytest.mark.parametrize(
    ("steps", "figure", "verdict"),
    [
        ([3, None, 0, 5, 100], "5 (0, 3, 5, 100, more than 300)", report.OK),
        ([None, 7, None], "more than 300 (7, more than 300, more than 300)", report.MISS),
        ([101, 0, 150], "101 (0, 101, 150)", report.MISS),
    ],
)
def test_recovery_is_judged_by_the_median_of_the_processes(steps, figure, verdict):
    outcome = conditions.recovery("steps", steps, 300)
    assert (outcome.figure, outcome.verdict) == (figure, verdict)
