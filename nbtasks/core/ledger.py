"""All open tasks, what the present turn decides of them, and who is told.

Open tasks are in memory, ended ones in the archive (the store) only. **Events** are numbered per
task and kept; whoever follows a task is told each of them, its sender first of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from nbtasks.core import states
from nbtasks.core.messages import (
    Call,
    Event,
    Follow,
    Hello,
    Now,
    Output,
    Replayed,
    Unfollow,
)
from nbtasks.core.tasks import Archive, Row, Task, task_of
from nbtasks.core.turn import Send, Turn

#: Bytes of calls that are kept in memory until a worker wants them; the rest waits in the store.
KEPT_BYTES: Final = 4 * 1024 * 1024


class Ledger:
    """What all parts of the scheduler write in.

    Parameters
    ----------
    archive
        What has been saved.
    ticket
        Tickets of this run of the broker are above this one.
    """

    def __init__(self, archive: Archive, ticket: int) -> None:
        self.archive = archive
        #: Open, by id.
        self.tasks: dict[str, Task] = {}
        self.clients: dict[bytes, Hello] = {}
        #: Empty until it has said Hello.
        self.supervisor: bytes = b""
        #: The highest that was given.
        self.ticket = ticket
        #: What has been decided since the last commit.
        self.turn = Turn()
        #: Ended since the last commit: the archive does not know it yet.
        self.just_ended: dict[str, Task] = {}
        self._followers: dict[str, set[bytes]] = {}
        self._kept = 0

    # ---------------------------------------------------------------------------- looking things up

    def find(self, task_id: str) -> Row | None:
        """Return what is known of a task that is not open; of a forgotten one, nothing."""
        row = self.just_ended.get(task_id) or self.archive.find(task_id)
        return None if row is None or row.seq in self.turn.forgotten else row

    def ended(self, task_id: str) -> Task | None:
        """Return a task that is over, for what may still come: the output of its handlers."""
        row = self.find(task_id)
        if row is None or isinstance(row, Task):
            return row
        # Kept until the commit: what comes next in this turn must find the number of this event.
        task = self.just_ended[task_id] = task_of(row)
        return task

    def is_known(self, task_id: str) -> bool:
        """Whether there is, or was, a task of this id."""
        return task_id in self.tasks or self.find(task_id) is not None

    # -------------------------------------------------------------------------- writing things down

    def step(self, task: Task, step: str) -> None:
        """Move the phase of a task, as the table in `states` allows."""
        try:
            task.phase = states.TRANSITIONS[task.phase][step]
        except KeyError:
            raise states.IllegalStep(task.phase, step) from None

    def save(self, task: Task) -> None:
        """Have the row of a task written as it is at the end of the turn."""
        self.turn.tasks[task.seq] = task

    def clear(self, worker: str, below: int) -> None:
        """Drop the notes of what a worker was given under tickets below this one."""
        self.turn.cleared[worker] = below

    def close(self, task: Task, event: Event, buffers: tuple[Any, ...]) -> None:
        """Take a task out that is over, and tell of that."""
        self.release(task)
        del self.tasks[task.id]
        self.just_ended[task.id] = task
        self.tell(task, event, buffers)
        self.save(task)
        if self._followers:
            self._followers.pop(task.id, None)

    def reopen(self, row: Row) -> Task:
        """Take a task in again that was over; whoever has seen it end counts on that.

        Nobody follows what is over, so all clients are told what becomes of it now.
        """
        task = self.tasks[row.id] = task_of(row)
        self.just_ended.pop(row.id, None)
        self._followers.setdefault(row.id, set()).update(self.clients)
        return task

    def committed(self) -> Turn:
        """Begin the next turn, as the archive has this one, and return this one."""
        self.just_ended.clear()
        turn, self.turn = self.turn, Turn()
        return turn

    # ------------------------------------------------------------------------------ calls in memory

    def keep(self, task: Task, call: Call, buffers: tuple[Any, ...]) -> None:
        """Keep a call in memory while there is room; otherwise it is read from the store later."""
        size = size_of(call, buffers)
        if self._kept + size <= KEPT_BYTES:
            self._kept += size
            task.kept = call, buffers

    def release(self, task: Task) -> tuple[Call | None, tuple[Any, ...]]:
        """Keep a call in memory no more; return it and its payload frames, if it was there.

        It is the call as it shall run now: nothing of it changes before it is given to a worker.
        """
        kept = task.kept
        if kept is None:
            return None, ()
        task.kept = None
        self._kept -= size_of(*kept)
        return kept

    # -------------------------------------------------------------------------------------- telling

    def event(self, task: Task, now: Now, kind: str, **fields: Any) -> Event:
        """Return the next event of a task."""
        task.n += 1
        return Event(
            id=task.id, n=task.n, at=fields.pop("at", 0.0) or now.wall, kind=kind, **fields
        )

    def tell(self, task: Task, event: Event, buffers: tuple[Any, ...]) -> None:
        """Save an event and tell it to everybody who follows the task."""
        turn, client = self.turn, task.client
        if event.kept:
            turn.events.append((task.seq, event, buffers))
        said = Send(event, buffers) if buffers else event
        if client in self.clients:
            turn.mail[client].append(said)
        if self._followers:
            for peer in self._followers.get(task.id, ()):
                if peer != client:
                    turn.mail[peer].append(said)

    def tell_again(self, task: Task, why: str, now: Now) -> None:
        """Tell that a task will run once more; a SUCCESS that it has stored itself stays."""
        if task.state != states.SUCCESS:
            event = self.event(task, now, "again", text=why, retries=task.retries)
            self.tell(task, event, ())

    def tell_output(self, task_id: str, stream: str, text: str, now: Now, at: float = 0.0) -> None:
        """Tell what was printed, or logged, in the name of a task."""
        task = self.tasks.get(task_id) or self.ended(task_id)
        if task is not None:
            event = self.event(task, now, "output", state=stream, text=text, at=at)
            self.tell(task, event, ())
            self.save(task)

    def output(self, peer: bytes, output: Output, now: Now, _: Iterator[Any]) -> None:
        """Take in what a task has printed."""
        self.tell_output(output.id, output.stream, output.text, now, output.at)

    # ---------------------------------------------------------------------------------- who is told

    def follow(self, peer: bytes, follow: Follow, now: Now, _: Iterator[Any]) -> None:
        """Tell a client of tasks: what came after an event of each, and what is to come."""
        for task_id, after in zip(follow.ids, follow.after, strict=True):
            task = self.tasks.get(task_id)
            if task is not None:
                self.follow_open(peer, task, after)
                continue
            row = self.find(task_id)
            if row is None:
                # It may still come, from another client.
                self._followers.setdefault(task_id, set()).add(peer)
                self.turn.say(peer, Send(Replayed(task_id, False, 0), free=True))
            else:
                replayed = Replayed(task_id, True, row.n, row.phase)
                saved = task_id not in self.just_ended
                self.turn.say(peer, Send(replayed, replay=(row.seq, after), free=saved))

    def follow_open(self, peer: bytes, task: Task, after: int) -> None:
        """Tell a client of an open task: what came after an event, and what is to come."""
        if task.client != peer:
            self._followers.setdefault(task.id, set()).add(peer)
        replayed = Replayed(task.id, True, task.n, task.phase)
        news = (task.seq, after) if after < task.n else None
        self.turn.say(peer, Send(replayed, replay=news))

    def unfollow(self, peer: bytes, unfollow: Unfollow, now: Now, _: Iterator[Any]) -> None:
        """Tell a client of these tasks no more."""
        for task_id in unfollow.ids:
            followers = self._followers.get(task_id)
            if followers is not None:
                followers.discard(peer)
                if not followers:
                    del self._followers[task_id]

    def leave(self, peer: bytes) -> None:
        """Tell a client nothing any more."""
        self.clients.pop(peer, None)
        for task_id, followers in list(self._followers.items()):
            followers.discard(peer)
            if not followers:
                del self._followers[task_id]


def size_of(call: Call, buffers: tuple[Any, ...]) -> int:
    """Return about how many bytes of memory a call takes."""
    size = len(call.body) + 400
    return size + sum(map(len, buffers)) if buffers else size
