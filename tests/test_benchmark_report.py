"""What `./dev bench` says of what it has measured."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks import picture, plan, report, systems
from tests.benchmarks.drivers import drivers
from tests.benchmarks.goals import Goal, goals

FIGURES: report.Figures = {
    "nbtasks": {
        "one_by_one": {"rate": [40_000, 60_000, 50_000], "cpu": [0.04]},
        "round_trip": {"median": [1.0]},
        "round_trip_normal": {"median": [0.6]},
        "fsync": {"median": [0.25]},
        "backlog_1000": {"cpu": [0.10]},
        "backlog_million": {"cpu": [0.13], "bytes": [390.0]},
    },
    "ProcessPoolExecutor": {
        "one_by_one": {"rate": [8_000], "cpu": [0.16]},
        "round_trip": {"median": [0.3]},
    },
    "ray": {"one_by_one": {"rate": [2_000], "cpu": [0.8]}},
}
GAPS: report.Gaps = {
    "ray": {"timers": ["not offered"], "512_MB_in": ["TimeoutError: took more than 180 s"]}
}


@pytest.fixture
def reached() -> dict[str, Goal]:
    return {goal.what: goal for goal in goals(FIGURES)}


def test_goal_is_met_at_its_limit_and_missed_beyond_it():
    assert Goal("rate", 5.0, 5, floor=True).verdict == "met"
    assert Goal("rate", 4.9, 5, floor=True).verdict == "MISSED"
    assert Goal("time", 0.5, 0.5, floor=False).verdict == "met"
    assert Goal("time", 0.6, 0.5, floor=False).verdict == "MISSED"


def test_goal_compares_medians(reached):
    goal = reached["no-ops one by one: rate, against ProcessPoolExecutor"]

    assert (goal.measured, goal.verdict) == (6.25, "met")


def test_goal_without_its_peer_is_told_as_not_measured(reached):
    goal = reached["no-ops one by one: rate, against dask.distributed"]

    assert goal.verdict == "not measured"
    assert goal.line().endswith("not measured")


def test_full_round_trip_is_held_against_normal_and_two_fsyncs(reached):
    goal = reached['round trip "full", against "normal" + 2 fsync']

    assert goal.measured == pytest.approx(1.0 / (0.6 + 0.5))
    assert goal.verdict == "met"


def test_task_among_a_million_is_held_against_one_among_a_thousand(reached):
    goal = reached["1,000,000 queued: CPU a task, against 1,000"]

    assert goal.measured == pytest.approx(1.3)
    assert goal.verdict == "MISSED"


def test_all_goals_are_listed_when_nothing_was_measured():
    assert len(goals({})) == len(goals(FIGURES)) >= 21
    assert {goal.verdict for goal in goals({})} == {"not measured"}


def test_goals_look_at_what_is_measured():
    measured = {*plan.WORKLOADS, "round_trip_normal"}

    assert {row.workload for row in report.ROWS} <= measured


def test_ratio_above_one_means_that_we_are_better_whatever_better_means():
    rate, cpu = report.ROWS[:2]

    assert report.better(FIGURES, "ray", rate) == 25
    assert report.better(FIGURES, "ray", cpu) == pytest.approx(20)
    assert report.better(FIGURES, "ProcessPoolExecutor", report.ROWS[2]) is None


def test_table_says_least_and_most_and_why_a_figure_is_missing():
    lines = report.medians(FIGURES, GAPS)

    assert any("50,000 (40,000–60,000)" in line for line in lines)
    assert any(line.startswith("10,000 timers") and "not offered" in line for line in lines)
    assert any(line.startswith("512 MB in") and "failed" in line for line in lines)


def test_remarks_give_the_reason_of_what_failed_or_is_left_out():
    lines = report.remarks(FIGURES, GAPS, {"huey": "needs the program x"})

    assert "huey is left out: it needs the program x" in lines
    assert "ray, 512_MB_in, 1 x: TimeoutError: took more than 180 s" in lines
    assert not any("timers" in line for line in lines)


def test_remarks_say_who_was_given_less_to_do():
    figures: report.Figures = {"ray": {"backlog": {"number": [10_000]}}}

    assert report.remarks(figures, {}, {}) == ["backlog: instead of 100,000: ray 10,000"]


def test_files_can_be_read_back(tmp_path: Path):
    facts = [goal.facts() for goal in goals(FIGURES)]
    report.write(tmp_path, {"rounds": 3}, FIGURES, GAPS, facts, ["a line"])

    whole = json.loads((tmp_path / "figures.json").read_text())
    assert (whole["figures"], whole["gaps"], whole["rounds"]) == (FIGURES, GAPS, 3)
    assert whole["goals"][0]["verdict"] == "met"
    assert ElementTree.parse(tmp_path / "picture.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "report.txt").read_text() == "a line\n"


def test_picture_has_the_best_on_top():
    field = next(each for each in report.fields(FIGURES) if each.title.startswith("CPU"))

    drawn = picture.draw_field(field, "nbtasks")

    assert drawn.index(">nbtasks<") < drawn.index(">ProcessPoolExecutor<") < drawn.index(">ray<")


def test_picture_bears_a_figure_that_is_zero():
    span = picture.Span(0.0, 0.0, 0.0)

    drawn = picture.draw([picture.Field("idle", "{:.2f}", False, {"a": span, "b": span})], "a")

    assert "0.00" in drawn


@pytest.mark.parametrize("module", drivers())
def test_driver_can_be_described_without_its_system(module: str):
    system = systems.System(module)

    assert system.name
    assert not system.left_out


def test_turn_is_not_bent_by_the_settings_of_who_measures(monkeypatch):
    monkeypatch.setenv("NBTASKS_DURABILITY", "off")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")

    assert not {"NBTASKS_DURABILITY", "PYTHONPATH"} & set(systems.clean())
