"""The phases that the scheduler knows, the states that users see, and the one table between steps.

    submit ─▶ waiting ─▶ scheduled ─▶ queued ─▶ assigned ─▶ running ─▶ done
                              ▲          ▲          │           │        │
                              └── retry ─┴──────────┴───────────┘        │
                              ▲                                  redo    │
                              └──────────────────────────────────────────┘

A phase changes on one line of the program: the one in `Ledger.step` that reads `TRANSITIONS`.
"""

from __future__ import annotations

# ------------------------------------------------------------------------------------- phases

WAITING = "waiting"  #: for the results of other tasks
SCHEDULED = "scheduled"  #: for a time
QUEUED = "queued"  #: for a worker
ASSIGNED = "assigned"  #: given to a worker, not known to have begun
RUNNING = "running"
DONE = "done"

PHASES = (WAITING, SCHEDULED, QUEUED, ASSIGNED, RUNNING, DONE)

#: phase → step → phase. A step that is not in the table is a bug of ours, never of the user's.
TRANSITIONS: dict[str, dict[str, str]] = {
    WAITING: {"delay": SCHEDULED, "ready": QUEUED, "end": DONE},
    SCHEDULED: {"ready": QUEUED, "delay": SCHEDULED, "end": DONE},
    QUEUED: {"assign": ASSIGNED, "end": DONE},
    ASSIGNED: {"start": RUNNING, "ready": QUEUED, "delay": SCHEDULED, "end": DONE},
    RUNNING: {"ready": QUEUED, "delay": SCHEDULED, "end": DONE},
    DONE: {"ready": QUEUED},
}


class IllegalStep(Exception):
    """A step that the table of phases does not know."""

    def __init__(self, phase: str, step: str) -> None:
        known = ", ".join(sorted(TRANSITIONS.get(phase, ()))) or "none"
        super().__init__(f"A task that is {phase} cannot {step}; it can: {known}.")


# ------------------------------------------------------------------------------------- states

PENDING = "PENDING"
RECEIVED = "RECEIVED"
STARTED = "STARTED"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
REJECTED = "REJECTED"
RETRY = "RETRY"
IGNORED = "IGNORED"

READY_STATES = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES = frozenset({FAILURE, REVOKED})
ALL_STATES = frozenset(
    {PENDING, RECEIVED, STARTED, SUCCESS, FAILURE, RETRY, REVOKED, REJECTED, IGNORED}
)

#: Strongest first; None stands for every custom state.
PRECEDENCE: list[str | None] = [
    SUCCESS,
    FAILURE,
    None,
    REVOKED,
    STARTED,
    RECEIVED,
    REJECTED,
    RETRY,
    PENDING,
]
PRECEDENCE_LOOKUP = {name: index for index, name in enumerate(PRECEDENCE)}
NONE_PRECEDENCE = PRECEDENCE_LOOKUP[None]


def precedence(state: str | None) -> int:
    """Return the place of a state in `PRECEDENCE`: the lower, the stronger."""
    return PRECEDENCE_LOOKUP.get(state, NONE_PRECEDENCE)


class state(str):
    """A state's name that compares by precedence.

    >>> state("SUCCESS") > state("PENDING"), state("PROGRESS") > state("STARTED")
    (True, True)
    """

    __slots__ = ()

    def __gt__(self, other: str) -> bool:
        return precedence(self) < precedence(other)

    def __ge__(self, other: str) -> bool:
        return precedence(self) <= precedence(other)

    def __lt__(self, other: str) -> bool:
        return precedence(self) > precedence(other)

    def __le__(self, other: str) -> bool:
        return precedence(self) >= precedence(other)
