"""What a turn of the broker decides: what is to be saved and, after that, what is to be said."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec

from nbtasks.core.messages import Call, Define, Event, Run
from nbtasks.core.tasks import Task

#: Payload frames.
Buffers = tuple[Any, ...]


class NewCall(msgspec.Struct, frozen=True, gc=False):
    """A call to be saved: that of a new task, or the same task's for its next attempt."""

    call: Call
    task: Task
    #: Wall clock.
    accepted_at: float
    buffers: Buffers = ()


class Send(msgspec.Struct, frozen=True, gc=False):
    """A message to be sent with more than itself, or not just so."""

    message: Any
    buffers: Buffers = ()
    #: For a Run whose call must be read from the store first.
    task: Task | None = None
    #: For a Replayed: send the events of this row after this number first.
    replay: tuple[int, int] | None = None
    #: For a Define: read it from the store.
    fetch: bytes = b""
    #: May wait a little for other news to the same peer.
    lazy: bool = False
    #: Tells nobody what is yet to be saved: goes even while the store cannot write.
    free: bool = False


class Turn:
    """What is to be saved, each thing once, and what is then to be said to whom.

    The scheduler fills it. A turn that the store cannot save goes on, with the next ones in it.
    """

    __slots__ = (
        "absent", "calls", "cleared", "definitions", "emptied", "events", "forgotten", "given",
        "mail", "revoked", "tasks", "unwanted",
    )  # fmt: skip

    def __init__(self) -> None:
        #: All by seq.
        self.calls: dict[int, NewCall] = {}
        #: Tasks whose rows change, as they are at the end of the turn (the objects live on). A new
        #: task need not be here if there is nothing special about it and no worker has told of it.
        self.tasks: dict[int, Task] = {}
        #: seq, event and its payload frames.
        self.events: list[tuple[int, Event, Buffers]] = []
        self.definitions: list[tuple[Define, Buffers]] = []
        #: Tasks of which nothing shall be left.
        self.forgotten: set[int] = set()
        #: Tasks that will never run (again): their payload goes, their rows stay.
        self.emptied: set[int] = set()
        #: What calls carried that were known already: it goes, as far as nobody else needs it.
        self.unwanted: list[Any] = []
        #: Id of a call that has not come → whether to remember that it is unwanted.
        self.revoked: dict[str, bool] = {}
        #: Worker → (ticket, seq) of what it was given. Every task is given out, so this is the one
        #: change that is not worth a row: it holds while its ticket is higher than the row's.
        self.given: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        #: Worker → below which ticket that is over.
        self.cleared: dict[str, int] = {}
        #: Peer → messages, bare or as a `Send`.
        self.mail: defaultdict[bytes, list[Any]] = defaultdict(list)
        #: Tasks whose calls must be read from the store for that.
        self.absent: list[int] = []

    @property
    def saves(self) -> bool:
        """Whether there is anything to be saved."""
        return bool(
            self.tasks or self.calls or self.events or self.given or self.cleared
            or self.definitions or self.forgotten or self.emptied or self.unwanted or self.revoked
        )  # fmt: skip

    def say(self, peer: bytes, message: Any) -> None:
        """Say something to a peer, after all that is to be saved."""
        self.mail[peer].append(message)

    def say_absent(self, peer: bytes, run: Run, task: Task) -> None:
        """Give a call to a worker that must be read from the store first."""
        self.absent.append(task.seq)
        self.say(peer, Send(run, task=task))

    def take_free(self) -> dict[bytes, list[Any]]:
        """Take out what may be said although the turn is not saved."""
        free: dict[bytes, list[Any]] = {}
        for peer, said in self.mail.items():
            free[peer] = [each for each in said if type(each) is Send and each.free]
            said[:] = [each for each in said if not (type(each) is Send and each.free)]
        return free

    def leave_out_forgotten(self) -> None:
        """Save nothing of tasks of which nothing shall be left."""
        for seq in self.forgotten:
            self.calls.pop(seq, None)
            self.tasks.pop(seq, None)
        self.events = [told for told in self.events if told[0] not in self.forgotten]
