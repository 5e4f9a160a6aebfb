"""A peer of `./dev bench` that hangs or falls over costs its own time and leaves nothing."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks import plan, systems

#: What a turn's process does here; each workload is named after what it comes to.
SCRIPT = """
import json, subprocess, sys, time
for workload in sys.argv[2].split(","):
    if workload == "hangs":
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(sleep, start_new_session=True)
        time.sleep(600)
    if workload == "falls_over":
        sys.exit("it fell over")
    if workload == "goes_wrong":
        print(json.dumps([workload, {"wrong": "an error"}]))
        break
    print("something of its own")
    print(json.dumps([workload, {"rate": 1.0}]), flush=True)
"""


class Scripted(systems.System):
    """A system that does what SCRIPT says."""

    def __init__(self) -> None:
        self.name = "scripted"
        self.folders: list[str] = []

    def command(self, folder: str, workloads: list[str]) -> list[str]:
        self.folders.append(folder)
        return [sys.executable, "-c", SCRIPT, folder, ",".join(workloads)]


@pytest.fixture
def system(monkeypatch) -> Scripted:
    monkeypatch.setattr(plan, "START", 1)
    monkeypatch.setattr(plan, "LIMIT", 1)
    monkeypatch.setattr(systems, "GRACE", 1)
    return Scripted()


@pytest.mark.processes
def test_what_comes_after_trouble_is_still_measured(system):
    told = list(system.turn(["a", "falls_over", "b", "goes_wrong", "c"]))

    assert told == [
        ("a", {"rate": 1.0}),
        ("falls_over", {"wrong": "it fell over"}),
        ("b", {"rate": 1.0}),
        ("goes_wrong", {"wrong": "an error"}),
        ("c", {"rate": 1.0}),
    ]


@pytest.mark.processes
def test_what_hangs_is_ended_with_all_that_it_started(system):
    told = dict(system.turn(["a", "hangs", "b"]))

    assert told["hangs"] == {"wrong": "was silent for 3 s"}
    assert told["b"] == {"rate": 1.0}
    assert not [each for folder in system.folders for each in systems.marked(folder)]


@pytest.mark.processes
def test_system_that_does_not_start_is_not_tried_again(system):
    told = dict(system.turn(["falls_over", "a", "b"]))

    assert set(told) == {"falls_over", "a", "b"}
    assert {found["wrong"] for found in told.values()} == {"it fell over"}
    assert len(system.folders) == 1
