"""Measure nbtasks side by side with its peers: `./dev bench`.

    ./dev bench                          all systems, all workloads; hours
    ./dev bench --rounds 1               the same once; an hour or more
    ./dev bench --quick                  the standard library's pools and the raw relay only
    ./dev bench --only nbtasks_,dask_    these systems

Each system runs in an environment of its own (.bench/NAME, made on demand) and takes its turn in
every round; the median of the rounds counts, with the least and the most beside it. Absolute
figures move from machine to machine, the ratios are what matters. Tables and goals are printed;
they are written to a folder as well, with the figures as JSON and a picture of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import goals, plan, report
from tests.benchmarks.drivers import drivers
from tests.benchmarks.systems import ENVIRONMENTS, Found, System, say

QUICK = ("nbtasks_", "process_pool", "mp_pool", "relay")


class Run:
    """Some rounds of some systems, and what they have come to so far."""

    def __init__(self, systems: list[System], workloads: list[str]) -> None:
        self.systems = systems
        self.workloads = workloads
        self.figures: report.Figures = {system.name: {} for system in systems}
        self.gaps: report.Gaps = {system.name: {} for system in systems}

    def round(self, number: int) -> None:
        """Let each system do all workloads: forwards, and the next time backwards.

        So nobody is always measured on a cold or a tired machine.
        """
        for system in self.systems if number % 2 == 0 else reversed(self.systems):
            say(f"round {number + 1}: {system.name}")
            is_ours = system.name == report.OURS
            wanted = [each for each in self.workloads if is_ours or each not in plan.OURS_ONLY]
            self.note(system, system.turn(each for each in wanted if each not in plan.ONCE))
            if number == 0:
                self.note(system, system.turn(each for each in wanted if each in plan.ONCE))
            if is_ours and "round_trip" in wanted:
                normal = system.turn(["round_trip"], BENCH_DURABILITY="normal")
                self.note(system, (("round_trip_normal", found) for _, found in normal))

    def note(self, system: System, turn: Iterable[tuple[str, Found]]) -> None:
        for workload, found in turn:
            reason = report.NOT_OFFERED if "not_offered" in found else found.get("wrong")
            if reason:
                self.gaps[system.name].setdefault(workload, []).append(reason)
                if reason != report.NOT_OFFERED:
                    say(f"   {workload}: {reason}")
                continue
            kept = self.figures[system.name].setdefault(workload, {})
            for figure, value in found.items():
                kept.setdefault(figure, []).append(value)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=plan.positive, default=3, help="turns of each (default: 3)"
    )
    parser.add_argument("--only", help=f"systems, with commas: {','.join(drivers())}")
    parser.add_argument("--quick", action="store_true", help="only what is quickly installed")
    parser.add_argument("--workloads", help=f"workloads, with commas: {','.join(plan.WORKLOADS)}")
    parser.add_argument("--folder", type=Path, default=ENVIRONMENTS / "latest")
    parser.add_argument("--strict", action="store_true", help="exit 1 unless all goals are met")
    given = parser.parse_args()
    given.only = chosen(parser, given.only, QUICK if given.quick else drivers(), drivers())
    given.workloads = chosen(parser, given.workloads, plan.WORKLOADS, plan.WORKLOADS)
    return given


def chosen(
    parser: argparse.ArgumentParser, given: str | None, default: Iterable[str], known: Iterable[str]
) -> list[str]:
    names = given.split(",") if given else list(default)
    strange = [name for name in names if name not in known]
    if strange:
        parser.error(f"there is no {strange[0]!r}. There are: {', '.join(known)}")
    return names


def machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def main() -> int:
    given = arguments()
    plan.end_in_order()
    about: dict[str, Any] = {"machine": machine(), "rounds": given.rounds}
    began = time.monotonic()
    systems = [System(name) for name in given.only]
    for system in systems:
        system.set_up()
        if system.left_out:
            say(f"{system.name} is left out: it {system.left_out}")
    present = [system for system in systems if not system.left_out]
    about["left_out"] = {system.name: system.left_out for system in systems if system.left_out}
    about["versions"] = {system.name: system.versions() for system in present}

    run = Run(present, given.workloads)
    try:
        for number in range(given.rounds):
            run.round(number)
    except KeyboardInterrupt:
        say("interrupted: this is what there is so far")
    about["seconds"] = round(time.monotonic() - began)
    return tell(run, about, given.folder, given.strict)


def tell(run: Run, about: dict[str, Any], folder: Path, strict: bool) -> int:
    reached = goals.goals(run.figures)
    parts = (
        [f"{name}: {', '.join(packages)}" for name, packages in about["versions"].items()],
        report.medians(run.figures, run.gaps),
        report.ratios(run.figures),
        report.remarks(run.figures, run.gaps, about["left_out"]),
        ["Goals", "", *(goal.line() for goal in reached)],
    )
    lines = [line for part in parts if part for line in ("", *part)]
    print("\n".join(lines))
    report.write(folder, about, run.figures, run.gaps, (goal.facts() for goal in reached), lines)
    print(f"\nwritten to {folder}: report.txt, figures.json, picture.svg")
    return 1 if strict and any(goal.verdict != "met" for goal in reached) else 0


if __name__ == "__main__":
    sys.exit(main())
