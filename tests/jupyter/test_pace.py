"""How fast things get on."""

from __future__ import annotations

import pytest

from nbtasks.jupyter.pace import QUIET, Pace, Throughput


def test_a_task_that_counts_evenly_has_that_rate_and_a_certain_end():
    pace = Pace(100.0)
    for second in range(1, 6):
        pace.learn(100.0 + second, 3.0 * second)

    assert pace.rate == pytest.approx(3.0)
    assert pace.end(30.0) == pytest.approx(110.0)


def test_what_was_fast_a_while_ago_counts_less_than_what_is_slow_now():
    pace = Pace(0.0)
    pace.learn(1.0, 100.0)
    for second in range(2, 30):
        pace.learn(float(second), 100.0 + second)

    assert pace.rate == pytest.approx(1.0, abs=0.5)


def test_the_time_before_the_first_step_does_not_count_where_the_task_says_zero():
    pace = Pace(0.0)
    pace.learn(60.0, 0.0)
    pace.learn(61.0, 5.0)

    assert pace.rate == 5.0


def test_a_second_pass_begins_from_the_beginning():
    pace = Pace(0.0)
    pace.learn(10.0, 10.0)
    pace.learn(11.0, 1.0)
    pace.learn(12.0, 2.0)

    assert pace.rate == pytest.approx(1.0)
    assert pace.end(10.0) == pytest.approx(20.0)


def test_a_task_that_says_nothing_new_has_no_rate():
    pace = Pace(0.0)
    pace.learn(0.0, 5.0)

    assert (pace.rate, pace.end(10.0)) == (None, None)


def test_ends_are_counted_by_the_second():
    throughput = Throughput()
    for step in range(41):
        throughput.learn(step / 10, step * 2)

    assert throughput.rate(4.0) == pytest.approx(20.0, rel=0.1)


def test_a_few_ends_make_no_rate():
    throughput = Throughput()
    throughput.learn(0.0, 0)
    throughput.learn(5.0, 2)

    assert throughput.rate(5.0) is None


def test_slow_ends_have_a_rate_after_a_while():
    throughput = Throughput()
    for end in range(8):
        throughput.learn(end * 30.0, end)

    assert throughput.rate(210.0) == pytest.approx(1 / 30)


def test_a_rate_is_forgotten_when_nothing_ends_any_more():
    throughput = Throughput()
    for second in range(10):
        throughput.learn(float(second), second * 10)

    assert throughput.rate(9.5) is not None
    assert throughput.rate(9.0 + QUIET) is None
