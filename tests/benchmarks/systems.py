"""A system in an environment of its own: installing it, letting it take its turns, ending it.

A turn is a process (turn.py) that tells one line of JSON for each workload. After trouble a new
process goes on with the workloads that are left, so one that hangs costs its own time and no more.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import plan

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / ".bench"

#: Set for a turn and inherited by all that it starts, so that they can be found.
MARK = "BENCH_TURN"

#: Seconds for what a turn has started to end by itself, when the turn is over.
GRACE = 5

#: What a workload came to: figures, or `wrong` or `not_offered` with the reason.
Found = dict[str, Any]


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
        digest = hashlib.sha256(f"{sys.version} {wanted} {own_needs(wanted)}".encode()).hexdigest()
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

    def command(self, folder: str, workloads: list[str]) -> list[str]:
        """Return the command of a process that does these workloads."""
        script = str(HERE / "turn.py")
        return [str(self.python), script, self.module, folder, ",".join(workloads)]

    def versions(self) -> list[str]:
        """Return which versions are installed of what the system needs."""
        parts = [part.replace("-e {root}", "nbtasks") for part in self.facts["requirements"]]
        packages = [re.split(r"[\[<>=]", part)[0] for part in parts]
        script = (
            "import sys; from importlib.metadata import version\n"
            "for name in sys.argv[1:]: print(name, version(name))"
        )
        told = subprocess.run(
            [str(self.python), "-c", script, *packages], capture_output=True, text=True, check=False
        )
        return told.stdout.splitlines() or [f"Python {platform.python_version()}"]

    def turn(self, workloads: Iterable[str], **variables: str) -> Iterator[tuple[str, Found]]:
        """Let the system do these workloads once."""
        left = list(workloads)
        while left:
            with Process(self, left, variables) as process:
                for workload, found in process.told():
                    left.remove(workload)
                    yield workload, found
            for workload in process.lost(left):
                left.remove(workload)
                yield workload, {"wrong": process.last_words}


class Process:
    """One process that does a turn, or what is left of it, with all that it starts."""

    def __init__(self, system: System, workloads: list[str], variables: dict[str, str]) -> None:
        self.system = system
        self.waiting = list(workloads)
        self.last: Found = {}
        self.last_words = ""
        self.folder = Path(tempfile.mkdtemp(prefix="nbt-"))
        self.errors = self.folder / "errors.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                system.command(str(self.folder), workloads),
                env={**clean(), **variables, MARK: str(self.folder)},
                cwd=self.folder,  # and not where a pyproject.toml has settings
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        """End what the system has not ended by itself, and say so: it would burden the others."""
        if not self.last_words:
            self.last_words = last_line(self.errors.read_text(errors="replace"))
        _, remaining = psutil.wait_procs(self.family(), timeout=GRACE)
        if remaining:
            say(f"   {self.system.name} left running: {names(remaining)}")
            self.end()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def told(self) -> Iterator[tuple[str, Found]]:
        """Yield what the process tells, until it ends or has been silent for too long."""
        assert self.process.stdout
        with self.process.stdout as lines:
            watch = self.watch()
            for line in lines:
                watch.cancel()
                with contextlib.suppress(ValueError):  # a system may print something of its own
                    workload, found = json.loads(line)
                    self.last = found
                    self.waiting.remove(workload)
                    yield workload, found
                watch = self.watch()
            watch.cancel()

    def lost(self, left: list[str]) -> list[str]:
        """Return the workloads that are not worth another process."""
        if not self.last:
            return list(left)  # it has not even started, and would not the next time
        return [] if "wrong" in self.last else left[:1]

    def watch(self) -> threading.Timer:
        """End everything if the next line does not come in time."""
        # Longer than the process allows itself, so that it can tell by itself what took too long.
        patience = 2 * plan.START + (plan.limit(self.waiting[0]) if self.waiting else 0)

        def give_up() -> None:
            self.last_words = f"was silent for {patience} s"
            self.end()

        watch = threading.Timer(patience, give_up)
        watch.daemon = True
        watch.start()
        return watch

    def family(self) -> list[psutil.Process]:
        """Return the process and all that it has started, also what was orphaned since."""
        with contextlib.suppress(psutil.Error):
            mine = psutil.Process(self.process.pid)
            children = {mine, *mine.children(recursive=True)}
            return list(children | set(marked(str(self.folder))))
        return list(marked(str(self.folder)))

    def end(self) -> None:
        family = self.family()
        for how in (psutil.Process.terminate, psutil.Process.kill):
            for each in family:
                with contextlib.suppress(psutil.Error):
                    how(each)
            _, family = psutil.wait_procs(family, timeout=GRACE)


def marked(folder: str) -> Iterator[psutil.Process]:
    """Find what a turn has started, by the variable that it inherits or the folder it works in."""
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if each.environ().get(MARK) == folder or each.cwd().startswith(folder):
                yield each


def names(processes: Iterable[psutil.Process]) -> str:
    return ", ".join(sorted(f"{each.name()} ({each.pid})" for each in processes))


def facts_of(module: str) -> dict[str, Any]:
    """Read a driver's facts without importing its system, which is not installed here."""
    tree = ast.parse((HERE / "drivers" / f"{module}.py").read_text(encoding="utf-8"))
    body = next(
        each.body for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "Driver"
    )
    found: dict[str, Any] = {"requirements": (), "programs": (), "slow": 1}
    for line in body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


def own_needs(wanted: list[str]) -> str:
    """Return what a system that is installed from its source needs, as far as it is ours."""
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8") if str(ROOT) in wanted else ""


def clean() -> dict[str, str]:
    """Return our variables without those that bend another environment's Python, or nbtasks."""
    bent = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in bent and not name.startswith("NBTASKS_")
    }


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:160] if lines else "ended without a word"


def say(text: str) -> None:
    print(f"-- {text}", flush=True)
