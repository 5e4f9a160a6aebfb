"""Large pieces are on the disk before the call that refers to them is accepted."""

from __future__ import annotations

import errno
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbtasks.broker import disk
from nbtasks.broker.disk import Disk
from nbtasks.broker.server import Server
from nbtasks.core.messages import Accepted, Hello, Submit
from nbtasks.wire.connection import Settings, now, prepare_directory
from nbtasks.wire.frames import pack_to_broker
from nbtasks.wire.segments import LARGE, Segments, name_in
from tests.living import eventually, run
from tests.promises.peers import DEFINE, a_call


@pytest.fixture
def folder(short_path: Path) -> Path:
    (short_path / "segments").mkdir()
    return short_path / "segments"


@pytest.fixture
def rung() -> threading.Event:
    return threading.Event()


@pytest.fixture
def kept(folder: Path, rung: threading.Event) -> Iterator[Disk]:
    kept = Disk(folder, rung.set)
    yield kept
    kept.close()


def test_files_and_their_names_are_synced_and_then_told(kept, folder, rung, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")

    wish = kept.keep(["a", "b"], 1.0)
    kept.begin(2.0)

    assert rung.wait(10)
    assert kept.through == wish
    assert synced == [str(folder / "a"), str(folder / "b"), str(folder), str(folder.parent)]


def test_file_that_the_disk_has_failed_on_is_written_once_more(kept, folder, rung, monkeypatch):
    written: list[Path] = []
    monkeypatch.setattr(disk, "RETRY", 0.01)
    monkeypatch.setattr(disk, "write_again", written.append)
    failures = iter([OSError(errno.EIO, "Input/output error")])

    def sync(path: Path) -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(disk, "sync", sync)
    (folder / "a").write_text("a")

    wish = kept.keep(["a"], 1.0)
    kept.begin(2.0)

    assert rung.wait(10)
    assert kept.through == wish
    assert written == [folder / "a"]


def test_file_that_is_written_once_more_is_as_before(folder):
    content = os.urandom(disk.PIECE + 1_000)
    (folder / "a").write_bytes(content)
    os.utime(folder / "a", (1.0, 1.0))

    disk.write_again(folder / "a")

    assert (folder / "a").read_bytes() == content
    assert (folder / "a").stat().st_mtime > 1.0


def test_nothing_is_synced_before_it_is_time(kept, folder, monkeypatch):
    monkeypatch.setattr(disk, "sync", lambda _: pytest.fail("synced"))

    kept.keep(["a"], 1.0)

    assert kept._thread is None
    assert kept.through == 0


def test_files_wait_until_no_more_come_for_a_moment(kept, rung):
    wish = kept.keep(["a"], 10.0)
    assert kept.keep(["b"], 10.1) == wish
    assert kept.wait(10.1) == pytest.approx(disk.MOMENT)
    kept.begin(10.0 + disk.MOMENT)
    assert kept._thread is None

    kept.begin(10.1 + disk.MOMENT)
    assert rung.wait(10)
    assert (kept.through, kept.wait(11.0)) == (wish, None)


def test_files_that_keep_coming_wait_no_longer_than_that(kept, rung):
    instant = 10.0
    while instant < 10.0 + disk.LATEST:
        wish = kept.keep(["a"], instant)
        kept.begin(instant)
        assert kept._thread is None
        instant += disk.MOMENT / 2

    kept.begin(instant)
    assert rung.wait(10)
    assert kept.through == wish


def test_files_do_not_wait_when_somebody_is_in_a_hurry(kept, rung):
    first = kept.keep(["a"], 20.0)
    kept.hurry()
    assert kept.keep(["b"], 20.0) == first
    assert kept.wait(20.0) == 0.0
    kept.begin(20.0)
    assert rung.wait(10)
    assert kept.through == first


def test_end_does_what_was_asked_for(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(disk, "sync", synced.append)
    kept = Disk(folder, lambda: None)
    kept.keep(["a"], 1.0)

    kept.close()

    assert synced == [folder / "a", folder / "", folder / ".."]


def test_file_that_is_gone_holds_nobody_up(kept, rung):
    wish = kept.keep(["gone"], 1.0)
    kept.begin(2.0)

    assert rung.wait(10)
    assert kept.through == wish


def test_disk_that_fails_is_tried_again(kept, folder, rung, monkeypatch, caplog):
    monkeypatch.setattr(disk, "RETRY", 0.001)
    answers = iter([OSError(5, "Input/output error"), None, None, None])

    def sync(_: Path) -> None:
        if (answer := next(answers)) is not None:
            assert kept.through == 0
            raise answer

    monkeypatch.setattr(disk, "sync", sync)

    wish = kept.keep(["a"], 1.0)
    kept.begin(2.0)

    assert rung.wait(10)
    assert kept.through == wish
    assert "Input/output error" in caplog.text


def test_end_does_not_wait_for_a_disk_that_fails(kept, monkeypatch):
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "sync", fail)
    kept.keep(["a"], 1.0)
    kept.begin(2.0)

    kept.close()

    assert kept.through == 0
    assert kept._thread is not None
    assert not kept._thread.is_alive()


# ------------------------------------------------------------------------------------- the broker


class Slow(Disk):
    """A disk that is done when the test says so."""

    def keep(self, names: Any, instant: float) -> int:
        self._last += 1
        return self._last


@pytest.fixture
def server(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    runtime = prepare_directory(short_path / "c")
    server = Server(runtime, Settings(data=str(runtime), workers=1))
    server._disk = Slow(runtime / "segments", server._ring)
    told: list[Any] = []
    monkeypatch.setattr(server, "_send", lambda peer, messages, _: told.extend(messages))
    server.told = told  # type: ignore[attr-defined]
    hello = Hello("client", "c", os.getpid(), platform.python_version())
    say(server, hello, DEFINE[0], instance=b"")
    yield server
    server.close()


def say(server: Any, *messages: Any, frames: Any = (), instance: bytes | None = None) -> None:
    """Let a client say something, and the broker do what follows."""
    parts = pack_to_broker(server.instance if instance is None else instance, messages, frames)
    server._take_in(b"client", parts, now(), [])
    server.scheduler.tick(now())
    server.carry_out(now())


def accepted(server: Any) -> list[int]:
    return [n for message in server.told if type(message) is Accepted for n in message.batches]


def a_reference(server: Server) -> Any:
    return Segments(Path(server.settings.data) / "segments").keep(memoryview(bytes(LARGE)))


def test_call_is_accepted_when_its_pieces_are_on_the_disk(server):
    say(server, Submit(1, (a_call(frames=1),), urgent=True), frames=[a_reference(server)])
    say(server, Submit(2, (a_call(),), urgent=True))
    server._accept_what_is_kept()
    assert accepted(server) == [2]

    server._disk.through = 1
    server._accept_what_is_kept()

    assert accepted(server) == [2, 1]


def test_nobody_who_waits_for_acceptance_waits_for_the_moment(server):
    server._disk = Disk(Path(server.settings.data) / "segments", server._ring)
    say(server, Submit(1, (a_call(frames=1),)), frames=[a_reference(server)])
    assert server._disk.wait(now().boot) > 0

    say(server, Submit(0, (), urgent=True))  # as a client does whose calls have no room left
    assert server._disk.wait(now().boot) == 0


def test_batch_that_is_said_again_meanwhile_is_accepted_once_it_is_safe(server):
    call, frame = a_call(frames=1), a_reference(server)
    for _ in range(2):
        say(server, Submit(1, (call,), again=True, urgent=True), frames=[frame])
    server._disk.through = 1
    server._accept_what_is_kept()
    assert accepted(server) == []

    server._disk.through = 2
    server._accept_what_is_kept()

    assert accepted(server) == [1]
    assert len(server.scheduler.tasks) == 1


def test_real_disk_ends_the_wait_of_the_loop(server):
    server._disk = Disk(Path(server.settings.data) / "segments", server._ring)
    say(server, Submit(1, (a_call(frames=1),), urgent=True), frames=[a_reference(server)])

    server._disk.begin(now().boot)
    eventually(lambda: server._disk.through == 1)

    assert server._wake_up.recv(1) == b"\0"
    server._accept_what_is_kept()
    assert accepted(server) == [1]


def test_what_is_replaced_goes_after_its_replacement_is_on_the_disk(server, monkeypatch):
    folder = Path(server.settings.data) / "segments"
    new, old = a_reference(server), a_reference(server)
    seen = []

    def sync(path: Path) -> None:
        seen.append((path.name, (folder / str(name_in(old))).exists()))

    monkeypatch.setattr("nbtasks.broker.disk.sync", sync)
    disk = server._disk = Disk(folder, server._ring)

    wish = disk.keep([str(name_in(new))], now().boot)
    disk.drop([str(name_in(old))], now().boot)
    disk.hurry()
    disk.begin(now().boot)

    eventually(lambda: disk.through == wish)
    assert seen[0] == (name_in(new), True)
    assert not (folder / str(name_in(old))).exists()


# ------------------------------------------------------------------------------------- the dead


def test_files_of_a_client_that_died_before_it_spoke_of_them_go(server):
    writer = run(WRITES, server.settings.data)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    hello = Hello("client", "d", writer.pid, platform.python_version())
    parts = pack_to_broker(b"", (hello,), ())
    server._take_in(b"writer", parts, now(), [])

    look_around(server, times=3)
    alive = files_of(server)
    writer.kill()
    writer.communicate()
    look_around(server, times=3)

    assert len(alive) == 1
    assert files_of(server) == []


WRITES = """
import sys, time
from pathlib import Path
from nbtasks.wire.segments import LARGE, Segments

Segments(Path(sys.argv[1]) / "segments").keep(memoryview(bytes(LARGE)))
print("written", flush=True)
time.sleep(60)
"""


def look_around(server: Any, times: int) -> None:
    """Let the broker look for what is nobody's news, with seconds in between."""
    for _ in range(times):
        instant = now()
        server._next_look = server._next_burial = instant.boot
        server.turn(instant)


def files_of(server: Any) -> list[str]:
    return sorted(os.listdir(Path(server.settings.data) / "segments"))
