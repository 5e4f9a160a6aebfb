"""The runtime directory: ours alone, and honest about what is wrong with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nbtasks.exceptions import ClusterError
from nbtasks.wire import cell, connection, parent


def test_directory_is_made_for_us_alone_even_under_an_open_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        place = connection.prepare_directory(tmp_path / "cluster")
        connection.write_private(place / "secret", b"x")
    finally:
        os.umask(before)

    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "secret").stat().st_mode) == 0o600


def test_open_directory_is_closed(tmp_path: Path) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o755)

    connection.prepare_directory(place)

    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(ClusterError, match="symbolic link"):
        connection.prepare_directory(tmp_path / "link")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs to be root")
def test_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir()
    os.chown(place, 12345, 12345)

    with pytest.raises(ClusterError, match="belongs to user 12345"):
        connection.prepare_directory(place)


def test_folders_on_the_way_are_closed_to_the_writing_of_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        connection.prepare_directory(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)

    modes = [stat.S_IMODE((tmp_path / place).stat().st_mode) for place in ("a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o755, 0o700]


@pytest.mark.parametrize("told", [True, False])
def test_umask_is_read_and_stays(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    if not told:  # as on systems without /proc
        monkeypatch.setattr(connection, "open", refuse, raising=False)
    before = os.umask(0o024)
    try:
        found = connection.umask()
    finally:
        after = os.umask(before)

    assert found == after == 0o024


def refuse(*_: object) -> None:
    raise FileNotFoundError


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**70])
def test_no_process_has_a_number_that_cannot_be(pid: int) -> None:
    assert not parent.alive(pid)
    assert parent.alive(os.getpid())


def test_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ClusterError, match=r"cannot use the directory|not a directory"):
        connection.prepare_directory(tmp_path / "file")


def test_long_socket_path_is_refused_with_its_length(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 120)

    with pytest.raises(ClusterError, match=r"has \d+ bytes; the system takes 10[37]"):
        connection.check_socket_path(place)


def test_half_written_connection_file_is_no_connection(tmp_path: Path) -> None:
    (tmp_path / connection.CONNECTION_FILE).write_text('{"instance": "ab"')

    assert connection.read_connection(tmp_path) is None
    assert connection.read_connection(tmp_path / "absent") is None


def test_settings_come_back_as_they_went(tmp_path: Path) -> None:
    settings = connection.Settings(data=str(tmp_path), workers=3, queues=("a", "b"))

    connection.write_settings(tmp_path, settings)

    assert connection.read_settings(tmp_path) == settings


def test_cell_says_what_was_begun_and_finished(tmp_path: Path) -> None:
    mine = cell.Cell(tmp_path / "cell")
    mine.start(7)
    mine.finish(6)

    reading = cell.read(tmp_path / "cell")
    assert reading is not None
    assert (reading.pid, reading.started, reading.finished) == (os.getpid(), 7, 6)
    assert cell.read(tmp_path / "none") is None
    mine.close()
