"""How many processors there are for us: the quotas of containers, as Linux writes them down."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from nbtasks import processors

#: /proc/self/cgroup, files below /sys/fs/cgroup, processors.
MACHINES = {
    "no control groups": (None, {}, math.inf),
    "version 2, no limit": ("0::/", {"cpu.max": "max 100000"}, math.inf),
    "version 2, in a container": ("0::/", {"cpu.max": "150000 100000"}, 1.5),
    "version 2, outside": (
        "0::/user.slice/me.scope",
        {"user.slice/cpu.max": "400000 100000", "user.slice/me.scope/cpu.max": "max 100000"},
        4.0,
    ),
    "version 2, a limit in a limit": (
        "0::/a/b",
        {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000"},
        0.5,
    ),
    "version 1, in a container that is called otherwise outside": (
        "5:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        3.0,
    ),
    "version 1, no limit": (
        "4:cpu:/\n3:cpuset:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        math.inf,
    ),
    "a limit of something else": ("3:cpuset:/", {"cpuset/cpu.max": "100000 100000"}, math.inf),
    "nonsense": (
        "0:\n:\n0::/../x\n0:://x\n",
        {"cpu.max": "much of it", "x/cpu.max": "1 0"},
        math.inf,
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_quota_is_that_of_our_own_control_group(machine: str, tmp_path: Path):
    membership, files, expected = MACHINES[machine]
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    assert processors.quota(tmp_path / "cgroup", tmp_path / "fs") == expected


def test_a_quota_counts_where_it_is_less_than_the_processors(monkeypatch):
    monkeypatch.setattr(processors, "seen", lambda: 8)

    found = []
    for quota in (math.inf, 100.0, 2.5, 0.1, 0.0):
        monkeypatch.setattr(processors, "quota", lambda quota=quota: quota)
        found.append(processors.usable())

    assert found == [8, 8, 3, 1, 1]


def test_no_more_are_counted_than_there_are():
    assert 1 <= processors.usable() <= (os.cpu_count() or 1)
