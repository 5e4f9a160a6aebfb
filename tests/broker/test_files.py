"""The store unlinks a file when no row needs it, and never before."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbtasks.broker.payloads import SWEEPS
from nbtasks.broker.store import Store
from nbtasks.core.messages import Event
from nbtasks.core.tasks import Task
from nbtasks.exceptions import StoreError
from nbtasks.wire import segments as segments_module
from nbtasks.wire.connection import SEGMENTS
from nbtasks.wire.segments import LARGE, Segments, name_in
from tests.broker.saves import (
    SaveCall,
    SaveEmptied,
    SaveEvent,
    SaveForget,
    SaveTask,
    SaveUnwanted,
    commit,
)
from tests.broker.test_store import CLIENT, NOW, accept, call_for, finish, later
from tests.conftest import short_directory


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "store.sqlite"


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Store]]:
    """Open stores that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_store(path: Path) -> Store:
            store = Store(path, "normal")
            stack.callback(store.close)
            return store

        yield open_store


@pytest.fixture
def store(path: Path, opened: Callable[[Path], Store]) -> Store:
    return opened(path)


@pytest.fixture
def keep(path: Path) -> Callable[[], bytes]:
    """Put a large piece into a file and return the reference to it."""
    segments = Segments(path.parent / SEGMENTS)
    return lambda: bytes(segments.keep(memoryview(bytes(LARGE))))


def there(store: Store) -> set[str]:
    return segments_module.there(store.path.parent / SEGMENTS)


def names(*frames: bytes) -> set[str]:
    return {str(name_in(frame)) for frame in frames}


def accept_with(store: Store, seq: int, *frames: bytes) -> Task:
    return accept(store, seq, frames, frames=len(frames))


def finish_with(store: Store, task: Task, frame: bytes) -> None:
    """End a task with a large result."""
    task.phase, task.state, task.n, task.ended_at = "done", "SUCCESS", task.n + 1, NOW.wall
    event = Event(task.id, task.n, NOW.wall, "state", "SUCCESS", frames=1, final=True)
    commit(store, [SaveEvent(task.seq, event, (frame,)), SaveTask(task)], NOW)


# ------------------------------------------------------------------------------- while it is needed


def test_reference_is_stored_and_not_the_piece(store, keep):
    frame = keep()
    accept_with(store, 1, frame)

    assert store.calls([1])[1][1] == (frame,)
    assert there(store) == names(frame)
    assert store.size() > LARGE


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_arguments_of_a_task_that_may_be_repeated_stay(store, keep, state):
    frame = keep()

    finish(store, accept_with(store, 1, frame), state)

    assert there(store) == names(frame)


def test_arguments_go_when_their_task_has_succeeded(store, keep):
    kept, freed = keep(), keep()
    accept_with(store, 1, kept)

    finish(store, accept_with(store, 2, freed))

    assert there(store) == names(kept)


def test_arguments_stay_when_a_task_says_success_before_its_end(store, keep):
    frame = keep()
    task = accept_with(store, 1, frame)

    task.state, task.n = "SUCCESS", 1
    commit(store, [SaveTask(task)], NOW)

    assert there(store) == names(frame)


def test_arguments_of_a_repeated_task_go_when_it_succeeds(store, keep):
    task = accept_with(store, 1, keep())
    finish(store, task, "FAILURE")

    task.phase, task.state, task.ended_at = "queued", "PENDING", None
    commit(store, [SaveTask(task)], NOW)
    finish(store, task)

    assert there(store) == set()


def test_arguments_are_known_to_the_next_broker(store, keep, opened):
    task = accept_with(store, 1, keep())
    store.close()

    finish(opened(store.path), task)

    assert there(store) == set()


def test_retry_with_the_same_arguments_keeps_them(store, keep):
    frame = keep()
    task = accept_with(store, 1, frame)

    call = call_for(1, frames=1, retries=1)
    commit(store, [SaveCall(1, call, CLIENT, NOW.wall, (frame,)), SaveTask(task)], NOW)

    assert there(store) == names(frame)


def test_retry_with_other_arguments_frees_the_former(store, keep):
    former, present = keep(), keep()
    task = accept_with(store, 1, former)

    call = call_for(1, frames=1, retries=1)
    commit(store, [SaveCall(1, call, CLIENT, NOW.wall, (present,)), SaveTask(task)], NOW)

    assert there(store) == names(present)


@pytest.fixture
def synced(path: Path) -> Iterator[Store]:
    """Return a store that promises to survive a loss of power."""
    with contextlib.closing(Store(path, "full")) as store:
        yield store


def test_store_may_lie_behind_a_link(short_path):
    (short_path / "real").mkdir()
    (short_path / "link").symlink_to("real")
    place = short_path / "link" / "nb"
    place.mkdir()

    Store(place / "store.sqlite", "full").close()

    assert (short_path / "real" / "nb" / "store.sqlite").exists()


def test_files_go_once_the_disk_knows_that_nobody_needs_them(synced, keep):
    frame = keep()

    finish(synced, accept_with(synced, 1, frame))

    assert (there(synced), synced.behind) == (names(frame), True)
    synced.sync()
    assert there(synced) == set()


def test_files_that_others_took_the_place_of_are_for_whoever_knows_of_those(synced, keep):
    former, present = keep(), keep()
    task = accept_with(synced, 1, former)
    call = call_for(1, frames=1, retries=1)

    commit(synced, [SaveCall(1, call, CLIENT, NOW.wall, (present,)), SaveTask(task)], NOW)
    synced.sync()

    assert there(synced) == names(former, present)
    assert synced.payloads.replaced == names(former)


def test_file_of_a_call_that_is_known_goes_unless_a_row_needs_it(store, keep):
    needed, unwanted = keep(), keep()
    accept_with(store, 1, needed)

    commit(store, [SaveUnwanted((needed, unwanted, b"no reference"))], NOW)

    assert there(store) == names(needed)


def test_result_stays_until_it_expires(store, keep):
    frame = keep()
    finish_with(store, accept_with(store, 1), frame)

    store.expire(NOW.wall)
    assert there(store) == names(frame)

    store.expire(later(1).wall)
    assert there(store) == set()


def test_forgotten_task_takes_its_files_along(store, keep):
    task = accept_with(store, 1, keep())
    finish_with(store, task, keep())

    commit(store, [SaveForget(1)], NOW)

    assert there(store) == set()


def test_purged_task_takes_its_arguments_along(store, keep):
    task = accept_with(store, 1, keep())
    finish(store, task, "REVOKED")

    commit(store, [SaveEmptied(1)], NOW)

    assert there(store) == set()


def test_second_name_of_a_file_keeps_it(store, keep):
    freed, kept = keep(), keep()
    accept_with(store, 2, kept)

    finish(store, accept_with(store, 1, freed))

    assert there(store) == names(kept)
    assert bytes(segments_module.opened(kept)) == bytes(LARGE)


# ------------------------------------------------------------------------------- when it goes wrong


def test_nothing_is_freed_by_what_could_not_be_saved(store, keep, monkeypatch):
    frame = keep()
    accept_with(store, 1, frame)

    def fail(*_: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(store.payloads, "_let_go_of_arguments", fail)
    with pytest.raises(StoreError):
        commit(store, [SaveForget(1)], NOW)
    monkeypatch.undo()
    accept(store, 2)

    assert there(store) == names(frame)


def test_arguments_are_freed_by_a_turn_that_was_saved_at_the_second_try(store, keep, monkeypatch):
    task = accept_with(store, 1, keep())

    def fail(*_: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(store, "_changes", fail)
    with pytest.raises(StoreError):
        finish(store, task)
    monkeypatch.undo()
    finish(store, task)

    assert there(store) == set()


def test_sweep_takes_what_nobody_has_referred_to_for_three_looks(store, keep):
    needed, lost = keep(), keep()
    accept_with(store, 1, needed)

    store.payloads.sweep()
    store.payloads.sweep()
    assert there(store) == names(needed, lost)

    store.payloads.sweep()
    assert there(store) == names(needed)


def test_sweep_takes_old_ones_at_once(store, keep):
    needed, lost = keep(), keep()
    accept_with(store, 1, needed)

    store.payloads.sweep(before=time.time() - 60)
    assert there(store) == names(needed, lost)

    store.payloads.sweep(before=time.time() + 60)
    assert there(store) == names(needed)


def test_sweep_leaves_what_was_accepted_between_two_looks(store, keep):
    frame = keep()

    store.payloads.sweep()
    store.payloads.sweep()
    accept_with(store, 1, frame)
    store.payloads.sweep()
    store.payloads.sweep()

    assert there(store) == names(frame)


def test_what_the_dead_have_written_goes_at_the_second_look(store, keep, monkeypatch):
    needed, lost = keep(), keep()
    accept_with(store, 1, needed)
    monkeypatch.setattr("nbtasks.broker.payloads.alive", lambda pid: pid != os.getpid())

    assert store.payloads.sweep_after_dead()
    assert there(store) == names(needed, lost)

    assert not store.payloads.sweep_after_dead()
    assert there(store) == names(needed)


def test_what_the_dead_have_said_last_may_be_read_between_two_looks(store, keep, monkeypatch):
    frame = keep()
    monkeypatch.setattr("nbtasks.broker.payloads.alive", lambda pid: pid != os.getpid())

    store.payloads.sweep_after_dead()
    accept_with(store, 1, frame)
    store.payloads.sweep_after_dead()

    assert there(store) == names(frame)


def test_what_the_living_have_written_may_be_on_its_way(store, keep):
    frame = keep()

    assert not any(store.payloads.sweep_after_dead() for _ in range(3))

    assert there(store) == names(frame)


def test_result_is_no_orphan(store, keep):
    frame = keep()
    finish_with(store, accept_with(store, 1), frame)

    for _ in range(5):
        store.payloads.sweep()

    assert there(store) == names(frame)


def test_file_that_is_gone_already_harms_nobody(store, keep):
    frame = keep()
    accept_with(store, 1, frame)
    segments_module.remove(store.path.parent / SEGMENTS, names(frame))

    commit(store, [SaveForget(1)], NOW)

    assert store.find("task-1") is None


# ---------------------------------------------------------------------------------------- always so


class Files(RuleBasedStateMachine):
    """Whatever happens, in whatever order: needed files are there, and others go."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.path = self.stack.enter_context(short_directory()) / "store.sqlite"
        self.segments = Segments(self.path.parent / SEGMENTS)
        self.store = Store(self.path, "none")
        self.tasks: dict[int, Task] = {}
        #: Task → files that it needs: of its call, of its result.
        self.calls: dict[int, set[str]] = {}
        self.results: dict[int, set[str]] = {}
        self.orphans: set[str] = set()
        self.seq = 0

    def teardown(self) -> None:
        self.store.close()
        self.stack.close()

    def keep(self, byte: int) -> bytes:
        return bytes(self.segments.keep(memoryview(bytes([byte]) * LARGE)))

    def pick(self, data: Any, *phases: str) -> Task:
        return data.draw(st.sampled_from([t for t in self.tasks.values() if t.phase in phases]))

    def some(self, *phases: str) -> bool:
        return any(task.phase in phases for task in self.tasks.values())

    @rule(some=st.lists(st.integers(0, 2), max_size=3))
    def submit(self, some: list[int]) -> None:
        frames = tuple(map(self.keep, some))
        self.seq += 1
        self.tasks[self.seq] = accept_with(self.store, self.seq, *frames)
        self.calls[self.seq] = names(*frames)
        self.results[self.seq] = set()

    @rule(byte=st.integers(0, 2))
    def lose(self, byte: int) -> None:
        self.orphans |= names(self.keep(byte))

    @precondition(lambda self: self.some("queued"))
    @rule(data=st.data(), byte=st.none() | st.integers(0, 2))
    def succeed(self, data: Any, byte: int | None) -> None:
        task = self.pick(data, "queued")
        self.calls[task.seq] = set()
        if byte is None:
            finish(self.store, task)
        else:
            frame = self.keep(byte)
            finish_with(self.store, task, frame)
            self.results[task.seq] = names(frame)

    @precondition(lambda self: self.some("queued"))
    @rule(data=st.data(), state=st.sampled_from(["FAILURE", "REVOKED"]))
    def fail(self, data: Any, state: str) -> None:
        finish(self.store, self.pick(data, "queued"), state)

    @precondition(lambda self: self.some("queued"))
    @rule(data=st.data(), byte=st.none() | st.integers(0, 2))
    def retry(self, data: Any, byte: int | None) -> None:
        task = self.pick(data, "queued")
        _, frames = self.store.calls([task.seq])[task.seq]
        if byte is not None:
            frames = (self.keep(byte),)
        self.calls[task.seq] = names(*frames)
        call = call_for(task.seq, frames=len(frames))
        save = SaveCall(task.seq, call, CLIENT, NOW.wall, frames)
        commit(self.store, [save, SaveTask(task)], NOW)

    @precondition(lambda self: self.some("done", "queued"))
    @rule(data=st.data())
    def forget(self, data: Any) -> None:
        task = self.pick(data, "done", "queued")
        commit(self.store, [SaveForget(task.seq)], NOW)
        for known in (self.tasks, self.calls, self.results):
            del known[task.seq]

    @rule()
    def sweep_often_enough(self) -> None:
        for _ in range(SWEEPS):
            self.store.payloads.sweep()
        self.orphans.clear()

    @invariant()
    def files_are_those_that_are_needed(self) -> None:
        needed = set().union(*self.calls.values(), *self.results.values())
        assert there(self.store) == needed | self.orphans


TestFiles = Files.TestCase
TestFiles.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
