"""Functions that workers load ahead of their first calls."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbtasks
from tests.living import SOON, eventually

#: The first process that imports it goes on at once, each other one when the gate opens.
HEAVY = """
import os, time
from pathlib import Path

place = Path(__file__).parent
with open(place / "importers", "a") as file:
    file.write(f"{os.getpid()}\\n")
while len((place / "importers").read_text().split()) > 1 and not (place / "gate").exists():
    time.sleep(0.01)

def who():
    return os.getpid()
"""


class Counting(nbtasks.Task):
    def __init__(self):
        self.count = 0


@nbtasks.task(bind=True, base=Counting)
def light(self):
    self.count += 1
    return os.getpid(), self.count


@pytest.fixture
def heavy(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nbtasks.Task]:
    place = short_path / "modules"
    place.mkdir()
    (place / "heavy.py").write_text(HEAVY)
    monkeypatch.syspath_prepend(place)
    import heavy

    (place / "importers").write_text("")  # this process does not count
    yield nbtasks.task(heavy.who)
    sys.modules.pop("heavy", None)


def importers(short_path: Path) -> list[int]:
    return [int(pid) for pid in (short_path / "modules" / "importers").read_text().split()]


def test_second_worker_loads_what_the_first_has_run(make_cluster, heavy, short_path):
    cluster = make_cluster(workers=3)

    first = heavy.delay().get(timeout=SOON)

    eventually(lambda: len(importers(short_path)) == 2)
    (short_path / "modules" / "gate").touch()
    assert importers(short_path)[0] == first
    assert set(importers(short_path)) < set(cluster.worker_pids())


def test_nobody_waits_for_what_is_merely_loaded_ahead(make_cluster, heavy, short_path):
    make_cluster()
    first = heavy.delay().get(timeout=SOON)
    eventually(lambda: len(importers(short_path)) == 2)

    runs = [light.delay() for _ in range(4)]

    assert [run.get(timeout=SOON) for run in runs] == [(first, n) for n in (1, 2, 3, 4)]
    assert not (short_path / "modules" / "gate").exists()
