"""What an onlooker knows of a task: its events, folded."""

from __future__ import annotations

import msgspec

from nbtasks.core import states
from nbtasks.core.messages import Event


class View(msgspec.Struct, eq=False, weakref=True):
    """The present of one task, as its events tell it.

    `apply` takes each event once; one that it has had already changes nothing.
    """

    id: str
    #: Number of the last event that was applied.
    n: int = 0
    state: str = states.PENDING
    #: The event that set the state.
    state_event: Event | None = None
    #: The event that ended the task, or None while it is open.
    final: Event | None = None
    #: Whether a body is running now.
    running: bool = False
    worker: str = ""
    retries: int = 0
    #: Next start on the boot clock, while it waits for a retry.
    due: float | None = None
    #: Wall time at which the present run began.
    started_at: float | None = None
    children: tuple[str, ...] = ()
    #: Why it runs once more, for people.
    reason: str = ""

    @property
    def ended_at(self) -> float | None:
        """Wall time at which the task ended, or None while it is open."""
        return None if self.final is None else self.final.at

    @property
    def purged(self) -> bool:
        """Whether it was purged, and its arguments with it: it can never run again.

        The broker says so in words of its own; what a task raised is a payload.
        """
        event = self.final
        return event is not None and event.state == states.REVOKED and '"purged"' in event.text

    def apply(self, event: Event) -> bool:
        """Fold one event in; return False when it was known already."""
        if event.n <= self.n:
            return False
        self.n = event.n
        if event.kind == "state":
            self._state(event)
        elif event.kind == "run":
            self._run(event)
        elif event.kind == "again":
            self._again(event)
        if event.final:
            self.final = event
            self.running = False
        return True

    def _run(self, event: Event) -> None:
        self.running = True
        self.started_at = event.at
        self.worker = event.worker
        self.due = None

    def _state(self, event: Event) -> None:
        self.state = event.state
        self.state_event = event
        self.retries = event.retries
        self.worker = event.worker or self.worker
        self.due = None
        if event.children:
            self.children = event.children
        if event.state == states.RETRY:
            self.running = False
            self.due = event.due

    def _again(self, event: Event) -> None:
        self.final = None
        self.running = False
        self.reason = event.text
        if self.state in states.READY_STATES:
            self.state = states.PENDING
