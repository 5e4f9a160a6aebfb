"""Every word that crosses a process boundary.

A message is a frozen noun that knows nobody. What travels is always a *list* of messages packed
into one multipart frame set (`nbtasks.wire.frames`), because one send a task is what makes queues
slow. Who says what to whom:

    client     → broker    Hello Define Submit Follow Unfollow Revoke Hasten Redo Update
                           Forget Ask Scale Stop Bye
    broker     → client    Welcome Accepted Refused Lacking Event Replayed Answer
    worker     → broker    Hello Started Report Output Joining Handling Done Again Returned Fetch
                           Prepared Bye
    broker     → worker    Welcome Run Recall Define Lacking Noted
    supervisor → broker    Hello Died Pool Bye
    broker     → supervisor  Welcome Kill Scale Stop

User bytes (`body`) are opaque to everybody but the two ends. A body of over `INLINE_LIMIT` bytes,
and pickle's out-of-band buffers, do not lie in the message: `frames` says how many payload frames
of the same multipart message belong to it, in the order in which the messages stand. When `frames`
is not 0 and `body` is empty, the first of these frames is the body.

Times called `*_at`, `eta` and `expires` are wall-clock seconds since the epoch; `due` is seconds on
the boot clock, which no step of the wall clock moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

#: Goes up whenever a message changes shape; processes of unlike versions refuse each other.
PROTOCOL_VERSION = 6

#: The largest body, in bytes, that travels inside a message rather than as a frame of its own.
INLINE_LIMIT = 32 * 1024

#: Reason of the refusal that means: say Hello first.
STRANGER = "hello"

#: Calls are ordered 9 first, 0 last; this one is meant where the caller names none.
DEFAULT_PRIORITY = 5

#: The queue of calls that name none.
DEFAULT_QUEUE = "default"


#: What may come from outside in a field that counts: anything else would not fit the store.
MOST = 2**53
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
#: Retries of one call; whoever counts stops here, so that what is passed on can be read.
MOST_RETRIES = 2**31
#: A time or a duration, seconds; not NaN, not infinite.
Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=9)]
#: Worker processes of one cluster: more would be the end of any machine.
Workers = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
#: A process number: more would not fit the system's own type.
Pid = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
#: What names a function: 16 bytes.
Digest = Annotated[bytes, msgspec.Meta(min_length=1, max_length=64)]
#: A signal by name, never another word of Python's module `signal`.
SignalName = Annotated[str, msgspec.Meta(pattern="^SIG[A-Z0-9]+$")]

Role = Literal["client", "worker", "supervisor"]


class Now(NamedTuple):
    """One instant on both clocks."""

    #: Seconds since the epoch.
    wall: float
    #: Seconds since the machine started, suspended time included.
    boot: float


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that lies inside a message."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Something that one process says to another."""

    @property
    def frames(self) -> int:
        """How many payload frames belong to it; messages that may have any say so themselves."""
        return 0


# ---------------------------------------------------------------------------------------- parts


class Options(Part, frozen=True):
    """What few calls carry."""

    #: Hard limit of one run, seconds.
    time_limit: Seconds | None = None
    #: Soft limit of one run, seconds.
    soft_time_limit: Seconds | None = None
    #: Overrides the task's `ignore_result`.
    ignore_result: bool | None = None
    #: Payload of the caller's own headers (a dict), or empty.
    headers: bytes = b""
    #: Name to show instead of the task's.
    shadow: str | None = None
    #: Shown instead of the arguments.
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    #: Who sent it, as `pid@host`.
    origin: str | None = None
    #: Ids of the tasks that must succeed first.
    needs: tuple[str, ...] = ()
    group: str | None = None
    group_index: Count | None = None
    reply_to: str | None = None
    #: Bytes by which the process may grow in one run.
    memory_limit: Count | None = None
    #: Anything later versions add, by name.
    extra: dict[str, str] = {}


class Call(Part, frozen=True):
    """One submitted run of a task, as the caller wants it."""

    #: Task id: any text, by default a random 128-bit number written as a UUID.
    id: str
    #: Digest of the `Define` to run; empty when the caller knows the name only.
    definition: Annotated[bytes, msgspec.Meta(max_length=64)]
    #: The task's name.
    name: str
    #: The payload of `(args, kwargs)`.
    body: bytes
    frames: Count = 0
    #: Arguments as short text, for people: `(3, lr=0.1)`.
    summary: str = ""
    #: Earliest start by countdown or back-off, boot clock.
    due: Seconds | None = None
    #: Earliest start as the caller gave it, wall clock (set for countdowns too: it is what
    #: `request.eta` shows; `due` wins).
    eta: Seconds | None = None
    #: Latest start, wall clock.
    expires: Seconds | None = None
    priority: Priority = DEFAULT_PRIORITY
    queue: str = DEFAULT_QUEUE
    #: Id of the first task of the tree; empty means this one.
    root: str = ""
    #: Id of the task that sent this one, or empty.
    parent: str = ""
    #: How many retries came before this attempt.
    retries: Annotated[int, msgspec.Meta(ge=0, le=MOST_RETRIES)] = 0
    options: Options | None = None


class Policy(Part, frozen=True):
    """What the broker must know of a task to schedule its calls."""

    #: Least seconds between two starts, or 0.
    interval: Seconds = 0.0
    #: A run whose process died, was killed for time, or failed is handed out again, or not.
    acks_late: bool = False
    acks_on_failure: bool = True
    acks_on_timeout: bool = True
    #: A lost process counts as a retry, at most `max_retries` of them (None: without end).
    retry_on_worker_lost: bool = False
    max_retries: Count | None = 3
    ignore_result: bool = False
    store_errors_even_if_ignored: bool = False
    time_limit: Seconds | None = None
    #: Bytes by which the process may grow in one run.
    memory_limit: Count | None = None
    track_started: bool = False
    #: With `acks_late`: whether a run whose process died is handed out again.
    reject_on_worker_lost: bool = True
    #: Whether something is to be run after a failure: `on_failure` or `after_return`.
    handlers: bool = False


class Held(Part, frozen=True):
    """A call that a worker has in hand when it meets a (new) broker."""

    ticket: Count
    id: str
    #: Whether its body has begun.
    started: bool


# --------------------------------------------------------------------------------- hand-shaking


class Hello(Message, frozen=True):
    """The first word of every peer to every broker that it meets."""

    role: Role
    #: Name of the peer: `worker-1f3c@host`, `1234@host`.
    name: str
    pid: Pid
    #: `3.11.7`; workers and clients of unlike minor versions are refused.
    python: str
    #: Queues that a worker serves; empty means all of them.
    queues: tuple[str, ...] = ()
    #: What a worker has in hand.
    held: tuple[Held, ...] = ()
    #: Names of the workers alive, from the supervisor.
    workers: tuple[str, ...] = ()
    #: Of the function that a worker has found last by its name alone: a new broker does not know.
    found: tuple[str, Policy] | None = None
    #: Digest of what a worker is loading ahead.
    prepares: Annotated[bytes, msgspec.Meta(max_length=64)] = b""


class Welcome(Message, frozen=True):
    """The broker's answer to Hello: only now may the peer go on."""

    #: Random name of this run of the broker.
    instance: bytes
    #: Name of the store: differs when the cluster's data were purged.
    store: str


class Refused(Message, frozen=True):
    """The broker will not: the peer, or one of its submissions (`batch` > 0)."""

    reason: str
    batch: Count = 0
    ids: tuple[str, ...] = ()


class Bye(Message, frozen=True):
    """The peer leaves of its own will."""


# --------------------------------------------------------------------------------- submitting


class Define(Message, frozen=True):
    """A function and what goes with it, sent once and named by digest ever after."""

    digest: Digest
    name: str
    policy: Policy
    #: Payload: opaque to the broker.
    body: bytes
    frames: Count = 0


class Lacking(Message, frozen=True):
    """The broker holds no definition of these digests: say Define (client), or give up (worker)."""

    digests: tuple[bytes, ...]


class Submit(Message, frozen=True):
    """Calls to be accepted together."""

    #: Numbered by the client from 1; Accepted names it.
    batch: Count
    calls: tuple[Call, ...]
    #: Whether any of the ids may be known already (sent again, or chosen by the user).
    again: bool = False
    #: Whether somebody waits for Accepted; otherwise it may come a little later, with other news.
    urgent: bool = False

    @property
    def frames(self) -> int:
        return sum([call.frames for call in self.calls])


class Accepted(Message, frozen=True):
    """These batches are in the store."""

    batches: tuple[int, ...]


# -------------------------------------------------------------------------------------- events


class Event(Message, frozen=True):
    """One thing that happened to a task; numbered, kept, told in order.

    kind      meaning                                      fields used
    state     a state message: STARTED, custom, RETRY,     state, body, traceback, worker,
              SUCCESS, FAILURE, REVOKED, IGNORED           retries; when final: children
    run       a run began (whether tracked or not)         worker, pid
    output    something was printed or logged              state = stdout, stderr or log; text
    again     will run again (lost worker, redo, requeue)  text = why
    end       over without a change of state               final

    The broker never pickles: where it ends a task itself, `body` is empty and `text` is the JSON of
    `[class name in nbtasks.exceptions, [arguments]]`.
    """

    id: str
    #: 1, 2, ... without a gap in each task.
    n: Count
    at: Seconds
    kind: str
    state: str = ""
    body: bytes = b""
    frames: Count = 0
    text: str = ""
    traceback: str = ""
    worker: str = ""
    pid: Count = 0
    retries: Count = 0
    #: Seconds that the body took, for final states.
    runtime: Seconds = 0.0
    #: Next start, boot clock, for RETRY.
    due: Seconds | None = None
    children: tuple[str, ...] = ()
    #: Whether nothing further will change the task by itself.
    final: bool = False
    #: Whether it is stored; what becomes of a run whose result is ignored is only told.
    kept: bool = True

    @property
    def size(self) -> int:
        """How many bytes there are in it of what the task has said, payload frames apart."""
        return len(self.body) + len(self.text) + len(self.traceback)


class Follow(Message, frozen=True):
    """Tell me what happened to these tasks after event n, and go on telling."""

    ids: tuple[str, ...]
    after: tuple[Count, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.after):
            raise ValueError(f"{len(self.ids)} ids, but {len(self.after)} numbers of events")


class Unfollow(Message, frozen=True):
    ids: tuple[str, ...]


class Replayed(Message, frozen=True):
    """All that was known of the task up to event n has now been told."""

    id: str
    #: False: the broker has never heard of it, or has forgotten it.
    known: bool
    n: Count
    #: What the phase is: scheduled, queued ... (for people).
    phase: str = ""


# ------------------------------------------------------------------------------------- control


class Revoke(Message, frozen=True):
    ids: tuple[str, ...]
    #: Also end it when it is running.
    terminate: bool = False
    #: Signal for that, by name.
    signal: SignalName = "SIGTERM"


class Hasten(Message, frozen=True):
    """Run now: skip the wait for eta, countdown or back-off."""

    ids: tuple[str, ...]


class Redo(Message, frozen=True):
    """Run a task that ended in FAILURE or REVOKED once more."""

    ids: tuple[str, ...]


class Forget(Message, frozen=True):
    ids: tuple[str, ...]


class Update(Message, frozen=True):
    """`update_state` for a task that is not running here, or whose run is over."""

    id: str
    state: str
    body: bytes
    frames: Count = 0
    traceback: str = ""


class Ask(Message, frozen=True):
    """A question to the broker; see `Server.answer_*` for the words."""

    request: Count
    #: status, list, show, purge
    what: str
    args: dict[str, Any] = {}


class Answer(Message, frozen=True):
    request: Count
    #: msgpack values only.
    value: Any
    #: Set instead of a value when the question was refused.
    error: str = ""


class Scale(Message, frozen=True):
    """Have this many workers."""

    workers: Workers
    #: And so many more for a while, in the places of those that wait for other tasks.
    extra: Workers = 0
    #: Names of workers that go once they have ended what they run: they are none of these.
    leaving: tuple[str, ...] = ()


class Stop(Message, frozen=True):
    """End the whole cluster in an orderly way."""

    #: Forget the store as well.
    purge: bool = False


# --------------------------------------------------------------------------------- the workers


class Run(Message, frozen=True):
    """Run this, after all that you hold."""

    #: Counts the calls given to this worker: 1, 2, ... With the worker's name it is the token
    #: that fences answers of earlier attempts.
    ticket: Count
    #: None only inside the broker, until the server has read it from the store.
    call: Call | None
    #: Whether it has begun before: its process died, or it was put back into the queue.
    redelivered: bool = False
    #: Name of the client that sent it, while that is known.
    sender: str = ""
    #: Not to be run: it ended so, its process was killed, and its handlers shall hear of it.
    #: As in `Event.text`.
    verdict: str = ""
    #: How many runs go on at once with it, as far as the broker can tell.
    runs: Annotated[int, msgspec.Meta(ge=1, le=MOST)] = 1

    @property
    def frames(self) -> int:
        return 0 if self.call is None else self.call.frames


class Recall(Message, frozen=True):
    """Give back what has not begun: these tickets, or all (empty)."""

    tickets: tuple[int, ...] = ()


class Returned(Message, frozen=True):
    """These tickets were not begun and will not be."""

    tickets: tuple[int, ...]


class Started(Message, frozen=True):
    """The body of this ticket has begun."""

    ticket: Count
    at: Seconds
    #: Of a function that no client has defined: the worker has found it by its name.
    policy: Policy | None = None


class Report(Message, frozen=True):
    """`update_state` by the running task itself."""

    ticket: Count
    state: str
    body: bytes
    frames: Count = 0
    at: Seconds = 0.0
    traceback: str = ""


class Output(Message, frozen=True):
    """Something that a task printed or logged (also in its handlers, after Done)."""

    id: str
    #: stdout, stderr or log
    stream: str
    text: str
    at: Seconds = 0.0


class Done(Message, frozen=True):
    """A run is over."""

    ticket: Count
    #: SUCCESS, FAILURE, REVOKED, IGNORED, or REQUEUE (Reject with requeue)
    state: str
    body: bytes
    frames: Count = 0
    traceback: str = ""
    #: Seconds that the body took.
    runtime: Seconds = 0.0
    at: Seconds = 0.0
    children: tuple[str, ...] = ()


class Again(Message, frozen=True):
    """A run ended in retry: the call as it shall run next."""

    ticket: Count
    call: Call
    #: Payload of the exception that was given to `retry` (or of None).
    reason: bytes
    #: Payload frames: first the call's, then the reason's.
    frames: Count = 0
    traceback: str = ""
    runtime: Seconds = 0.0
    at: Seconds = 0.0
    children: tuple[str, ...] = ()
    #: False: the run goes on (`retry(throw=False)`); the retry runs beside it.
    over: bool = True

    def __post_init__(self) -> None:
        if self.call.frames > self.frames:
            raise ValueError(f"the call claims {self.call.frames} frames of {self.frames}")


class Handling(Message, frozen=True):
    """The handlers of this ticket are run next, now that the body is over; said before Done.

    Said again when they are over, and after each Welcome that comes meanwhile.
    """

    ticket: Count
    id: str
    over: bool = False


class Joining(Message, frozen=True):
    """The run of this ticket waits for other tasks; said again when it does so no more.

    And after each Welcome that comes meanwhile.
    """

    ticket: Count
    over: bool = False


class Fetch(Message, frozen=True):
    """A worker lacks this definition."""

    digest: Digest


class Prepared(Message, frozen=True):
    """A definition that came unasked is loaded, or cannot be."""

    digest: Digest


class Noted(Message, frozen=True):
    """Done and Again of all tickets up to this one are in the store."""

    ticket: Count


# ------------------------------------------------------------------------------ the supervisor


class Pool(Message, frozen=True):
    """Which workers there are, and how many there shall be."""

    workers: tuple[str, ...]
    wanted: Workers
    #: As in Scale.
    extra: Workers = 0
    #: As in Scale: a new broker does not know whom the former one has told to go.
    leaving: tuple[str, ...] = ()


class Died(Message, frozen=True):
    """A worker process is gone."""

    name: str
    pid: Count
    #: Exit code, or minus the signal's number.
    code: int
    #: Ticket last begun and last finished, from the worker's cell (0: none).
    started: Count = 0
    finished: Count = 0
    #: Peak resident memory, bytes (0: not known).
    peak_memory: Count = 0
    #: Bytes that the run had taken when the supervisor ended it for its memory limit (0: it did
    #: not).
    taken: Count = 0
    #: Outcomes (without payload frames) that it may have taken along.
    outcomes: tuple[Done | Again, ...] = ()
    #: What the process printed last, for people.
    words: str = ""
    #: Why the supervisor itself ended it, for people, or empty.
    why: str = ""
    #: How many messages it had sent at most, Hello not counted; None: that is not known.
    sent: Count | None = None


class Kill(Message, frozen=True):
    """End this worker: by signal, and with SIGKILL when it is not gone `grace` seconds later."""

    name: str
    #: Only while it runs this ticket (0: whatever it runs).
    ticket: Count = 0
    signal: SignalName = "SIGKILL"
    grace: Seconds = 2.0


ToBroker = (
    Hello | Bye | Define | Submit | Follow | Unfollow | Revoke | Hasten | Redo | Forget | Update
    | Ask | Scale | Stop | Started | Report | Output | Joining | Handling | Done | Again | Returned
    | Fetch | Prepared | Pool | Died
)  # fmt: skip
FromBroker = (
    Welcome | Refused | Lacking | Accepted | Event | Replayed | Answer | Define | Run | Recall
    | Noted | Kill | Scale | Stop
)  # fmt: skip

#: Who may say what to the broker, once it is known by its Hello.
WORDS: dict[str, frozenset[type]] = {
    "client": frozenset({
        Bye, Define, Submit, Follow, Unfollow, Revoke, Hasten, Redo, Forget, Update, Ask, Scale,
        Stop,
    }),
    "worker": frozenset({
        Bye, Started, Report, Update, Output, Joining, Handling, Done, Again, Returned, Fetch,
        Prepared,
    }),
    "supervisor": frozenset({Bye, Pool, Died, Stop}),
}  # fmt: skip


def take(buffers: Iterator[Any], count: int) -> tuple[Any, ...]:
    """Return the next `count` payload frames."""
    return tuple(buffer for _, buffer in zip(range(count), buffers, strict=False)) if count else ()
