"""Measure nbtasks side by side with its peers: `./dev bench`.

    ./dev bench                          all systems, all workloads (an hour; see --help for less)
    ./dev bench --quick                  the standard library's pools and the raw relay only
    ./dev bench --only nbtasks_,dask_    these systems

Each system runs in an environment of its own (.bench/NAME, made on demand) and takes its turn in
every round; the median of the rounds counts, with the least and the most beside it. Absolute
figures move from machine to machine, the ratios are what matters. The table is printed, the figures
are written as JSON and drawn as a picture.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.drivers import drivers

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / ".bench"

QUICK = ("nbtasks_", "process_pool", "mp_pool", "relay")

#: Seconds for one turn of one system.
PATIENCE = 1200

#: In the order in which a turn does them; those that may leave a system in a bad way come last.
WORKLOADS = (
    *("one_by_one", "map", "round_trip", "progress", "timers", "backlog"),
    *("1_MB_in", "1_MB_out", "64_MB_in", "64_MB_out", "512_MB_in", "512_MB_out", "one_to_many"),
    "recovery",
)


class System:
    """One system in its own environment, or the reason why it is left out."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.facts = facts_of(module)
        self.name = str(self.facts["name"])
        self.folder = ENVIRONMENTS / module
        self.left_out = ""

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def set_up(self) -> None:
        """Install what the system needs, once; note why when that cannot be."""
        missing = [program for program in self.facts["programs"] if not shutil.which(program)]
        if missing:
            self.left_out = f"needs the program {missing[0]}"
            return
        wanted = [part.format(root=ROOT) for part in self.facts["requirements"]]
        wanted = " ".join(["psutil", "numpy", *wanted]).split()
        stamp = self.folder / "stamp"
        digest = hashlib.sha256(f"{sys.version} {wanted}".encode()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            return
        say(f"installing {self.name}")
        make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(self.folder)]
        install = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "-q"]
        for command in (make, [*install, *wanted]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                self.left_out = f"cannot be installed: {last_line(done.stderr)}"
                return
        stamp.write_text(digest)

    def turn(self, workloads: Iterable[str], **variables: str) -> dict[str, Any]:
        """Let the system do these workloads once; return workload → figures."""
        folder = tempfile.mkdtemp(prefix="nbt-")
        command = [str(self.python), str(HERE / "turn.py"), self.module, folder]
        try:
            done = subprocess.run(
                [*command, ",".join(workloads)],
                env={**clean(), **variables},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"turn": {"wrong": f"took more than {PATIENCE} s"}}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            return json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return {"turn": {"wrong": last_line(done.stderr)}}


def facts_of(module: str) -> dict[str, Any]:
    """Read a driver's facts without importing its system, which is not installed here."""
    tree = ast.parse((HERE / "drivers" / f"{module}.py").read_text(encoding="utf-8"))
    body = next(
        each.body for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "Driver"
    )
    found: dict[str, Any] = {"requirements": (), "programs": ()}
    for line in body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


def clean() -> dict[str, str]:
    """Return our variables without those that would bend another environment's Python."""
    bent = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"}
    return {name: value for name, value in os.environ.items() if name not in bent}


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:160] if lines else "said nothing"


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


# ------------------------------------------------------------------------------------- the rounds


def measure(systems: list[System], workloads: list[str], rounds: int) -> report.Figures:
    """Let the systems take turns; return system → workload → figure → the rounds' numbers."""
    taken: report.Figures = {system.name: {} for system in systems}
    for number in range(rounds):
        # Forwards and backwards, so that nobody is always measured on a cold or a tired machine.
        for system in systems if number % 2 == 0 else reversed(systems):
            say(f"round {number + 1} of {rounds}: {system.name}")
            note(taken[system.name], system.turn(workloads))
            if system.module == "nbtasks_":
                normal = system.turn(["round_trip"], BENCH_DURABILITY="normal")
                note(taken[system.name], {"round_trip_normal": normal.get("round_trip", {})})
    return taken


def note(taken: dict[str, dict[str, list[float]]], figures: dict[str, Any]) -> None:
    for workload, found in figures.items():
        if "wrong" in found:
            say(f"   {workload}: {found['wrong']}")
            continue
        kept = taken.setdefault(workload, {})
        for figure, value in found.items():
            kept.setdefault(figure, []).append(value)


def growth(system: System) -> dict[str, Any]:
    """Queue a million, and measure what one costs then."""
    say("1,000,000 queued")
    return system.turn(["backlog_million"])


def main() -> int:
    everybody = drivers()
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--only", default=",".join(everybody), help="systems, with commas")
    parser.add_argument("--quick", action="store_true", help="only what is quickly installed")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="workloads, with commas")
    parser.add_argument("--million", action="store_true", help="also queue 1,000,000 tasks")
    parser.add_argument("--folder", type=Path, default=ENVIRONMENTS / "latest")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()

    began = time.monotonic()
    names = QUICK if arguments.quick else arguments.only.split(",")
    systems = [System(name) for name in names]
    for system in systems:
        system.set_up()
        if system.left_out:
            say(f"{system.name} is left out: it {system.left_out}")
    present = [system for system in systems if not system.left_out]
    figures = measure(present, arguments.workloads.split(","), arguments.rounds)
    if arguments.million:
        ours = next(system for system in present if system.module == "nbtasks_")
        note(figures[ours.name], growth(ours))

    goals = report.goals(figures)
    print("\n".join(["", *report.table(figures), "", *(goal.line() for goal in goals)]))
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - began),
    }
    left_out = {system.name: system.left_out for system in systems if system.left_out}
    report.write(arguments.folder, machine, figures, goals, left_out)
    print(f"\nwritten to {arguments.folder}: figures.json, rates.svg")
    return 1 if arguments.strict and not all(goal.met for goal in goals) else 0


if __name__ == "__main__":
    sys.exit(main())
