"""`nbtasks doctor`: each fault that it knows is made here; it must find it and say what to do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nbtasks
from nbtasks import cli
from nbtasks.wire.connection import (
    SUPERVISOR_LOCK,
    read_connection,
    read_settings,
    write_connection,
    write_settings,
)
from tests.living import eventually, kill, lives

#: Runs the doctor on a place; returns its findings that are not fine, in one text.
Doctor = Callable[[Path], str]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def doctor(directory: Path) -> str:
        code = cli.main(["doctor", "--dir", str(directory)])
        out = capsys.readouterr().out
        assert code == (1 if re.search(r"^bad ", out, re.M) else 0)
        return "\n".join(line for line in out.splitlines() if not line.startswith("ok "))

    return doctor


@pytest.fixture
def there(make_cluster: Callable[..., nbtasks.Cluster]) -> nbtasks.Cluster:
    """A running cluster of which the doctor knows as any other process does."""
    cluster = make_cluster(workers=0)
    cluster.close()
    return cluster


# ------------------------------------------------------------------------------------ nothing wrong


def test_a_healthy_cluster_has_no_findings(
    there: nbtasks.Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--dir", str(there.dir)]) == 0

    out = capsys.readouterr().out
    assert "The broker answers after" in out
    assert {line[:3].strip() for line in out.splitlines()} == {"ok"}


def test_it_tells_what_is_kept(there: nbtasks.Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(read_settings(there.dir).data) / "segments"
    folder.mkdir(mode=0o700)
    (folder / ("a" * 32)).write_bytes(bytes(2_500_000))

    cli.main(["doctor", "--dir", str(there.dir)])

    said = r"The store takes \d+\.\d MB, large arguments and results 2\.5 MB"
    assert re.search(said, capsys.readouterr().out)


def test_no_cluster_is_no_fault(doctor: Doctor, short_path: Path) -> None:
    assert doctor(short_path / "new") == ""


# -------------------------------------------------------------------------------------- permissions


def test_an_open_folder(doctor: Doctor, short_path: Path) -> None:
    short_path.chmod(0o755)

    assert f"chmod 700 {short_path}" in doctor(short_path)


@pytest.mark.parametrize("name", ["store.sqlite", "connection.json", "broker.sock", "logs"])
def test_an_open_file(doctor: Doctor, there: nbtasks.Cluster, name: str) -> None:
    path = there.dir / name
    path.chmod(0o755)

    assert f"→ chmod {700 if name == 'logs' else 600} {path}" in doctor(there.dir)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else(doctor: Doctor, short_path: Path) -> None:
    os.chown(short_path, 65_534, 65_534)

    found = doctor(short_path)

    assert "belongs to user 65534" in found
    assert "Give another dir" in found


def test_a_symbolic_link(doctor: Doctor, short_path: Path) -> None:
    (short_path / "real").mkdir()
    (short_path / "link").symlink_to(short_path / "real")

    assert "is a symbolic link" in doctor(short_path / "link")


def test_something_in_the_way(doctor: Doctor, short_path: Path) -> None:
    (short_path / "broker.sock").mkdir()

    found = doctor(short_path)

    assert f"{short_path / 'broker.sock'} is in the way" in found
    assert "Move it away" in found


def test_a_path_too_long(doctor: Doctor, tmp_path: Path) -> None:
    assert "Give a shorter dir" in doctor(tmp_path / ("long" * 30))


# ---------------------------------------------------------------------------------------- leftovers


def test_why_the_last_start_failed(doctor: Doctor, short_path: Path) -> None:
    (short_path / "failed.txt").write_text("The store is of a newer version.")
    (short_path / "failed.txt").chmod(0o600)

    found = doctor(short_path)

    assert "bad  The last start failed. The store is of a newer version." in found
    assert "Put this right, start again" in found


def test_a_cluster_that_was_killed(doctor: Doctor, there: nbtasks.Cluster) -> None:
    broker = there.broker_pid
    kill(there.supervisor_pid)
    eventually(lambda: not lives(broker))

    found = doctor(there.dir)

    assert "The last cluster here was killed; its files were left over" in found
    assert "the next start takes up what was open" in found


def test_processes_without_a_supervisor(doctor: Doctor, short_path: Path) -> None:
    words = [sys.executable, "-c", "input()", "nbtasks.worker", str(short_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as leftover:
        found = doctor(short_path)

        assert f"kill -9 {leftover.pid}" in found
        leftover.communicate(b"\n")


# -------------------------------------------------------------------------------- a running cluster


def test_a_broker_that_does_not_answer(doctor: Doctor, there: nbtasks.Cluster) -> None:
    pids = there.supervisor_pid, there.broker_pid  # the one would replace the other
    kill(*pids, by=signal.SIGSTOP)
    try:
        found = doctor(there.dir)
    finally:
        kill(*pids, by=signal.SIGCONT)

    assert "The broker does not answer" in found
    assert f"Read {there.dir / 'logs' / 'broker.log'}" in found


def test_workers_that_are_not_there(doctor: Doctor, there: nbtasks.Cluster) -> None:
    (there.dir / "trouble.txt").write_text("Workers cannot start: the last one exited with code 1.")
    (there.dir / "trouble.txt").chmod(0o600)

    found = doctor(there.dir)

    assert "bad  Workers cannot start" in found
    assert "workers are tried again by themselves" in found


def test_another_interpreter(doctor: Doctor, there: nbtasks.Cluster) -> None:
    settings = read_settings(there.dir)
    settings.extra["python"] = "/opt/other/bin/python"
    write_settings(there.dir, settings)

    found = doctor(there.dir)

    assert "The cluster was started with /opt/other/bin/python" in found
    assert "`nbtasks stop` and start it with this one" in found


def test_another_version(doctor: Doctor, there: nbtasks.Cluster) -> None:
    import msgspec

    connection = read_connection(there.dir)
    assert connection is not None
    # Another cluster's place by now, or the broker would write its own file again.
    (there.dir / SUPERVISOR_LOCK).write_text("")
    write_connection(there.dir, msgspec.structs.replace(connection, protocol=99))

    found = doctor(there.dir)

    assert "The cluster speaks version 99 of the protocol" in found
    assert "`nbtasks stop` and start again" in found


# ----------------------------------------------------------------------------------------- the disk


def test_a_disk_that_is_nearly_full(
    doctor: Doctor, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, used, _ = shutil.disk_usage(short_path)
    usage = type(shutil.disk_usage(short_path))(total, used, 12_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    found = doctor(short_path)

    assert "Only 12 MB are free" in found
    assert "Make room" in found
