"""The kernel's end of the wire, as users' threads see it.

    user's threads                          I/O thread (`link`: nobody else touches sockets)
    ──────────────                          ──────────────────────────────────────────────
    submit() ── calls ──▶ deque ──▶ Define, Submit(batch) ──▶ DEALER ──▶ broker
                                    kept until Accepted, sent again after a reconnect
    tell(), ask() ──────▶ deque ──▶
    wait() ◀── locks ◀── Record ◀── Event, Accepted, Answer ◀── DEALER ◀── broker

The user's thread only puts things into a deque and, when the I/O thread sleeps, wakes it. While a
cell submits in a loop, the I/O thread gets its turn every few milliseconds and sends all that has
gathered as one message; that is where the speed comes from. An interrupt (SIGINT) hits the user's
thread, so it can never leave half a message on the wire.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from nbtasks import exceptions
from nbtasks.client import ids
from nbtasks.client.ids import new_id
from nbtasks.client.link import Link, Question
from nbtasks.client.record import Callback, Record, locked, release
from nbtasks.client.records import Records
from nbtasks.client.waiting import afresh, pause
from nbtasks.core.messages import (
    Answer,
    Ask,
    Call,
    Define,
    Follow,
)
from nbtasks.exceptions import BrokerUnavailable, ForkedError, OperationalError
from nbtasks.wire import segments
from nbtasks.wire.frames import Buffer, check_sendable

__all__ = [
    "Client",
    "Record",
    "current",
    "keep",
    "new_id",
    "open_clients",
    "set_current",
    "submitted_hooks",
]

log = logging.getLogger("nbtasks.client")

#: Calls that may wait for acceptance, and bytes that their arguments take (in memory or in files),
#: before a further one makes its caller wait until half of them are accepted.
UNACCEPTED = 50_000
UNACCEPTED_BYTES = 64 * 1024**2
#: Seconds that one attempt to publish waits for a broker.
ATTEMPT = 0.25
#: Seconds that the end of the process waits while nothing more is accepted; and for the clients of
#: other clusters, when one was waited for in vain.
FAREWELL = 1.5
FAREWELL_MORE = 0.3
#: What to do about a broker that does not answer.
_BUSY = (
    "It or this machine is busy: try again; `nbtasks doctor` looks for the cause if it stays so."
)

#: Called with each record in the thread that submitted it, right after.
submitted_hooks: list[Callable[[Record], None]] = []


class Client:
    """A connection to the broker of one cluster, for all threads of this process.

    Parameters
    ----------
    runtime
        The cluster's runtime directory.
    name
        Shown in `nbtasks status`.
    revive
        Called in a thread of its own when the whole cluster is gone, to start it again; None where
        that is not wanted.
    connect_timeout
        Seconds to wait for the broker's welcome.

    Raises
    ------
    BrokerUnavailable
        When no broker has answered in time.
    """

    def __init__(
        self,
        runtime: Path,
        *,
        name: str = "",
        revive: Callable[[], None] | None = None,
        connect_timeout: float = 10.0,
    ) -> None:
        self.runtime = Path(runtime)
        self.name = name or f"{os.getpid()}@{platform.node()}"
        #: Where large arguments are put, and large results are found.
        self.segments = segments.of_cluster(self.runtime)
        self._records = Records()
        self._records.open.update(_left.pop(self.runtime, {}))
        self._forked = False
        self._link = Link(self.runtime, self.name, self._records, revive)
        _clients.append(self)
        try:
            self._link.start()
            if not self._link_comes(connect_timeout):
                raise BrokerUnavailable(self.runtime, connect_timeout)
        except BaseException:  # an interrupt, too: nobody will have this client
            self.close(patience=0.0)
            raise

    # --------------------------------------------------------------------- in the users' threads

    @property
    def closed(self) -> bool:
        return self._link.closing

    @property
    def failed(self) -> bool:
        """Whether nothing goes through it any more, for a fault of its own."""
        return self._link.failed

    @property
    def connected(self) -> bool:
        """Whether the broker has welcomed us and has not been lost since."""
        return self._link.up

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a child made by fork, which can do nothing."""
        return self._forked

    @property
    def dependents(self) -> set[Any]:
        """Who has promised an outcome: `lose(error)` is called when there can be none any more."""
        return self._link.dependents

    @property
    def instance(self) -> str:
        """Return the name of the broker's present run, hexadecimal."""
        return self._link.instance.hex()

    def submit(
        self,
        call: Call,
        buffers: Sequence[Buffer] = (),
        define: tuple[Define, Sequence[Buffer]] | None = None,
        *,
        confirm: bool = False,
        check: bool = False,
        retry: bool = True,
        policy: dict[str, Any] | None = None,
    ) -> Record:
        """Send a call to the broker and return what will be known of it.

        Parameters
        ----------
        call, buffers
            The call and its payload frames.
        define
            The function's definition, sent when this broker has not had it yet.
        confirm
            Wait until the broker has stored it.
        check
            The id is the user's choice: there may be a task of that id.
        retry, policy
            Whether, and how, to wait for a broker that is away (SEMANTICS: publish retry).

        Raises
        ------
        OperationalError
            When there is no broker.
        """
        try:
            self._check_usable()
            link = self._link
            waiting = len(link.calls) + link.batches.calls
            if waiting > UNACCEPTED or link.batches.size > UNACCEPTED_BYTES or buffers:
                self._await_room(retry, policy)
            if not link.up:
                self._await_link(retry, policy)
        except BaseException:  # an interrupt, too
            segments.withdraw(buffers)
            raise
        record = Record(call.id, call=call, created=time.time())
        if check:
            record = self._records.open.setdefault(call.id, record)
        else:
            self._records.open[call.id] = record
        link.calls.append((call, buffers, define, check, confirm, record))
        if link.sleeping:
            link.wake()
        for hook in submitted_hooks:
            hook(record)
        if confirm:
            self._await_acceptance(record)
        return record

    def record(self, task_id: str) -> Record:
        """Return what is known of a task, and follow it if it was not followed yet."""
        self._check_usable()
        record = self._records.get(task_id)
        if record is None:
            follow = Follow((task_id,), (0,))
            check_sendable(follow)  # before it is kept: after a reconnect it would be said again
            record = self._records.open.setdefault(task_id, Record(task_id))
            self.tell(follow)
        return record

    def hears_of(self, record: Record) -> bool:
        """Whether news of this task still reaches this very record."""
        return self._records.hears_of(record)

    def drop(self, task_ids: Iterable[str]) -> None:
        """Know nothing of these tasks any more."""
        self._records.drop(task_ids)

    def follow(self, record: Record) -> None:
        """Go on listening to a task that had ended (it was told to run again)."""
        self._records.open[record.id] = record
        self.tell(Follow((record.id,), (record.n,)))

    def learn(self, record: Record, timeout: float | None = None) -> None:
        """Wait until the broker has told what it knows of a followed task.

        Raises
        ------
        TimeoutError
            When it has not in `timeout` seconds.
        BrokerUnavailable
            When there is no cluster any more.
        """
        if record.known is None and not record.over and record.call is None:
            arrived = self.wait_until(record, lambda: record.known is not None, timeout)
            if not arrived:
                raise exceptions.TimeoutError(
                    f"The broker has not answered within {timeout:g} s. {_BUSY}"
                )

    def wait(self, records: Iterable[Record], timeout: float | None = None) -> bool:
        """Wait until all tasks are over; return False when time ran out.

        Parameters
        ----------
        records
            What to wait for.
        timeout
            Seconds, or None for no end.

        Raises
        ------
        BrokerUnavailable
            When there is no cluster any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for record in records:
            if not self._wait_for(record, partial(getattr, record, "over"), deadline):
                return False
        return True

    def wait_until(
        self, record: Record, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until what is known of a task is so; return False when time ran out.

        It is looked at anew with each piece of news; raises as `wait`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._wait_for(record, condition, deadline, each=True)

    def add_waiter(self, record: Record, callback: Callable[[], Any]) -> Callback:
        """Call `callback` once when the task is over: at once if it is, else in the I/O thread.

        Whoever gives up before that gives what is returned to `Record.remove_waiter`.
        """
        waiter = Callback(callback)
        record.add_waiter(waiter)
        if record.over:
            record.remove_waiter(waiter)
            waiter.release()
        return waiter

    def tell(self, *messages: Any, buffers: Sequence[Buffer] = ()) -> None:
        """Send messages that need no answer.

        Raises
        ------
        BrokerUnavailable
            When there is no cluster any more.
        EncodeError
            When there is something in them that cannot be sent.
        """
        self._check_usable()
        check_sendable(*messages)
        if (gone := self._link.gone) is not None:
            raise afresh(gone)
        self._link.outbox.append((messages, buffers))
        if self._link.sleeping:
            self._link.wake()

    def ask(self, what: str, *, timeout: float = 10.0, **args: Any) -> Any:
        """Ask the broker and return its answer.

        Raises
        ------
        TimeoutError
            When no answer came in `timeout` seconds.
        OperationalError
            When the broker refused the question, or there is none.
        EncodeError
            When an argument cannot be sent.
        """
        ask = Ask(next(self._link.requests), what, args)
        check_sendable(ask)
        waiter = threading.Lock()
        waiter.acquire()
        answers: list[Answer] = []
        try:
            self._link.questions[ask.request] = Question(ask, waiter, answers)
            self.tell(ask)
            self._sleep_on(waiter, lambda: bool(answers), time.monotonic() + timeout)
        finally:
            self._link.questions.pop(ask.request, None)
        if not answers:
            raise exceptions.TimeoutError(
                f"The broker has not answered the question {what!r} within {timeout:g} s. {_BUSY}"
            )
        if answers[0].error:
            raise OperationalError(answers[0].error)
        return answers[0].value

    def settle(self, timeout: float = 10.0) -> None:
        """Wait until the broker has carried out all that it was told before; raises as `ask`."""
        self.ask("settled", timeout=timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was submitted is accepted; return False when time ran out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._link.hurry()
        while any(self._link.unsaid()):
            if self._link.gone or (deadline is not None and time.monotonic() > deadline):
                return False
            time.sleep(pause(0.002))
        return True

    def close(self, patience: float = FAREWELL) -> bool:
        """Say good-bye and let go of all sockets and the thread.

        Parameters
        ----------
        patience
            Seconds to wait for what is not accepted yet, from the last sign that it goes on.

        Returns
        -------
        bool
            Whether all is accepted.
        """
        if self._link.closing or self._forked:
            return True
        said = not patience or self._say_all(patience)
        if not said:
            log.warning(
                "The broker in %s has not accepted %d tasks that were sent last; they may be lost.",
                self.runtime,
                len(self._link.calls) + self._link.batches.calls,
            )
        try:
            self._link.close()
        finally:  # when we are interrupted, too: nobody comes back to it
            with suppress(ValueError):
                _clients.remove(self)
            awaited = {
                record.id: record
                for record in list(self._records.open.values())
                if record.waiters or record.listeners
            }
            if awaited:
                _left.setdefault(self.runtime, {}).update(awaited)
            self._link.bereave(self._let_go_of())
        return said

    def bury(self) -> None:
        """Tell everybody who waits that the tasks are deleted with their store."""
        if self._forked:
            return
        for record in list(self._records.open.values()):
            if record.final is not None:
                continue
            record.home = self.runtime  # nobody starts a cluster to ask for it
            self._records.fail(
                record,
                OperationalError(
                    f"Task {record.id} was deleted before it had ended, with all else in its "
                    f"cluster: shutdown(purge=True). Send it again."
                ),
            )

    def _say_all(self, patience: float) -> bool:
        """Wait until all is accepted; return False when there is no broker, or nothing goes on."""
        before, since = (-1, -1, -1), time.monotonic()
        self._link.hurry()
        while any(left := self._link.unsaid()):
            if left != before:
                before, since = left, time.monotonic()
            if self._link.gone is not None or time.monotonic() - since > patience:
                return not (self._link.calls or self._link.batches)
            time.sleep(0.002)
        return True

    # ------------------------------------------------------------------------- waiting, in detail

    def _check_usable(self) -> None:
        if self._forked:
            raise ForkedError()
        if self._link.closing:
            raise self._let_go_of()

    def _let_go_of(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"The connection to the cluster in {self.runtime} was closed here, by close() or "
            f"shutdown(). Connect again: nbtasks.start(), with the same dir if there was one."
        )

    def _await_link(self, retry: bool, policy: dict[str, Any] | None) -> None:
        """Wait for a broker as the publish policy says; raise when there is none in the end."""
        from nbtasks.core.retry import publish_waits

        began = time.monotonic()
        waits = publish_waits(policy or {}) if retry else iter(())
        while not self._link_comes(ATTEMPT):
            wait = next(waits, None)
            if wait is None:
                raise BrokerUnavailable(self.runtime, time.monotonic() - began)
            if self._link_comes(wait):
                return

    def _link_comes(self, within: float) -> bool:
        """Wait for a broker for so many seconds at most; raise when there will be none."""
        return self._sleep_on(locked(), lambda: self._link.up, time.monotonic() + within)

    def _too_much(self, share: float) -> bool:
        """Return whether more than this share of what may wait for acceptance does."""
        calls, size = len(self._link.calls) + self._link.batches.calls, self._link.batches.size
        size += sum(sum(map(segments.cost, entry[1])) for entry in list(self._link.calls))
        return calls > UNACCEPTED * share or size > UNACCEPTED_BYTES * share

    def _await_room(self, retry: bool, policy: dict[str, Any] | None) -> None:
        """Hold a caller that is faster than the broker; raise when there is none in the end."""
        if not self._too_much(1.0):
            return
        self._link.hurry()
        while self._too_much(0.5):
            self._check_usable()
            if not self._link.up:
                self._await_link(retry, policy)
            time.sleep(pause(0.002))

    def _await_acceptance(self, record: Record) -> None:
        self.wait_until(record, lambda: record.accepted or record.error is not None)
        if record.error is not None:
            raise afresh(record.error)

    def _wait_for(
        self,
        record: Record,
        condition: Callable[[], bool],
        deadline: float | None,
        *,
        each: bool = False,
    ) -> bool:
        """Sleep until a condition holds that the end of a task, or each event of it, may make."""
        if condition():
            return True
        self._check_usable()  # a child made by fork may find locks of its parent's threads held
        waiter = locked()

        def wake(*_: object) -> None:
            release(waiter)

        try:
            record.add_waiter(waiter)
            if each:
                record.listen(wake)
            return self._sleep_on(waiter, condition, deadline)
        finally:
            record.remove_waiter(waiter)
            if each:
                record.unsubscribe(wake)

    def _sleep_on(self, waiter: Any, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Sleep until a condition holds; whoever may have made it hold releases the lock."""
        self._check_usable()
        try:
            self._link.waiting.add(waiter)
            while not condition():
                if (gone := self._link.gone) is not None:
                    raise afresh(gone)
                if self._link.closing:
                    raise self._let_go_of()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if self._link.calls:
                    self._link.wake()
                waiter.acquire(timeout=pause(left))
            return True
        finally:
            self._link.waiting.discard(waiter)


# ----------------------------------------------------------------------- the client of the process

_clients: list[Client] = []
#: Open tasks that somebody wants to hear of (`then`, `listen`), by the runtime directory of a
#: cluster that no client is connected to: the next one of that cluster goes on with them.
_left: dict[Path, dict[str, Record]] = {}
_current: Client | None = None
_opening = threading.RLock()


def open_clients() -> Sequence[Client]:
    """Return the clients of this process that are not closed."""
    return tuple(_clients)


def set_current(client: Client | None) -> None:
    """Make a client the one that tasks are sent through."""
    global _current
    _current = client


def current() -> Client:
    """Return the client that tasks are sent through; start or find a cluster if there is none.

    Raises
    ------
    OperationalError
        When no cluster can be started or found.
    """
    global _current
    client = _current
    if client is not None and not client.closed:
        if client._forked:
            raise ForkedError()
        return client
    with _opening:
        if _current is None or _current.closed:
            # By name: the door to clusters is built upon this module, not the other way round.
            _current = importlib.import_module("nbtasks.cluster").default_client()
        return _current


def keep(view: memoryview) -> Buffer:
    """Return what is to travel for a piece of an argument (`segments.Segments.keep`).

    Raises
    ------
    OperationalError
        When no cluster can be started or found.
    """
    return current().segments.keep(view)


def _after_fork() -> None:
    """In a child: sockets and threads stayed with the parent, also whoever held the lock."""
    global _opening
    _opening = threading.RLock()
    ids.renew()
    _left.clear()
    for client in _clients:
        client._forked = True


def _at_exit() -> None:
    clients, patience = tuple(_clients), FAREWELL
    for client in clients:
        client._link.hurry()
    for client in clients:
        if not client.close(patience):
            patience = FAREWELL_MORE  # than that: the others had as long


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
