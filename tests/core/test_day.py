"""A short day of the simulation that `./dev day` runs at length."""

from __future__ import annotations

from tests.benchmarks.day import Day, held, wrong


def test_each_task_of_a_day_ends_once_and_nothing_is_left() -> None:
    day = Day(10_000)
    before = held(day.scheduler)

    for _ in day.hours():
        pass

    assert wrong(day) == []
    assert day.ends["SUCCESS"] > 9_000
    # The functions, and where the last calls of each were; nothing of ten thousand tasks.
    assert held(day.scheduler) < before + 100
