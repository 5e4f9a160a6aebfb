"""The kernel's end of the wire.

    user's threads                          I/O thread (the only one that touches sockets)
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
import itertools
import logging
import os
import platform
import socket as sockets_of_the_system
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from nbtasks import exceptions
from nbtasks.client import ids
from nbtasks.client.batches import Batches, Entry
from nbtasks.client.callbacks import settling
from nbtasks.client.ids import new_id
from nbtasks.client.record import (
    Bell,
    Callback,
    Record,
    load_value,
    locked,
    one_over,
    release,
    ring,
    take_away,
)
from nbtasks.client.records import Records
from nbtasks.client.waiting import pause
from nbtasks.core.messages import (
    STRANGER,
    Accepted,
    Answer,
    Ask,
    Bye,
    Call,
    Define,
    Event,
    Follow,
    Forget,
    Hasten,
    Hello,
    Lacking,
    Refused,
    Replayed,
    Revoke,
    Submit,
    Welcome,
    take,
)
from nbtasks.exceptions import BrokerUnavailable, ClusterError, ForkedError, OperationalError
from nbtasks.wire import locks, segments, sockets
from nbtasks.wire.connection import SUPERVISOR_LOCK, read_connection
from nbtasks.wire.frames import (
    Buffer,
    ForeignVersion,
    ProtocolError,
    pack,
    pack_to_broker,
    unpack_from_broker,
)

__all__ = [
    "Client",
    "Record",
    "current",
    "keep",
    "load_value",
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
#: Milliseconds for which calls of a loop come together, unless somebody waits.
GATHER = 1
#: Seconds after which what is not accepted is said again.
RESEND = 3.0
#: Seconds without a broker after which the client looks whether there still is a cluster.
MISSING = 0.7
#: Seconds that a cluster may be without a connection file while it is starting again.
ABSENT = 1.2
#: Seconds that one attempt to publish waits for a broker.
ATTEMPT = 0.25
#: Seconds that the end of the process waits while nothing more is accepted; and for the clients of
#: other clusters, when one was waited for in vain.
FAREWELL = 1.5
FAREWELL_MORE = 0.3
#: Seconds within which a broker that dies may have taken an order with it.
UNHEARD = 2.0
#: Orders that do no harm when they are said again.
_ORDERS = (Revoke, Forget, Hasten)

#: Called with each record in the thread that submitted it, right after.
submitted_hooks: list[Callable[[Record], None]] = []


class _Link:
    """What the I/O thread knows of the broker."""

    def __init__(self) -> None:
        self.instance = b""
        self.store = ""
        #: Whether the broker has welcomed us. (An Event would not do: an interrupt in its `wait`
        #: can leave its lock held, and then the I/O thread hangs.)
        self.up = False
        self.down_since = time.monotonic()
        #: Why there is no cluster, once that is certain.
        self.gone: Exception | None = None


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
        self._revive = revive
        self._link = _Link()
        self._forked = False
        self._closing = False
        self._calls: deque[Entry] = deque()
        self._outbox: deque[Any] = deque()
        #: Orders of the last moments, and when they were sent.
        self._orders: deque[tuple[float, Sequence[Any]]] = deque()
        self._records = Records()
        #: Sent and not accepted yet.
        self._batches = Batches()
        self._defined: set[bytes] = set()
        self._requests = itertools.count(1)
        self._questions: dict[int, tuple[Ask, Any, list[Answer]]] = {}
        self._waiting: set[Any] = set()
        #: Who has promised an outcome: `lose(error)` is called when there can be none any more.
        self.dependents: set[Any] = set()
        #: Whether a Welcome is the present broker's: not once the monitor has told of an end.
        self._connected = False
        self._sought_at = 0.0
        self._reviving: threading.Thread | None = None
        #: An open question that shows whether the broker listens (0: none), and when it was asked.
        self._probe, self._probed_at = 0, 0.0
        self._takers: dict[type, Callable[[Any, Any], None]] = {
            Event: self._take_event, Accepted: self._take_accepted, Answer: self._take_answer,
            Replayed: self._take_replayed, Welcome: self._take_welcome,
            Refused: self._take_refused, Lacking: self._take_lacking,
        }  # fmt: skip
        #: Opened in the I/O thread, where no interrupt can part them from who closes them: what
        #: ZeroMQ has open when it is collected as garbage blocks for ever.
        self._socket: zmq.Socket[bytes]
        self._monitor: zmq.Socket[bytes]
        self._waker, self._wakened = sockets_of_the_system.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._sleeping = False
        self._thread = threading.Thread(target=self._run, name="nbtasks-client", daemon=True)
        _clients.append(self)
        try:
            self._thread.start()
            if not self._link_comes(connect_timeout):
                raise BrokerUnavailable(self.runtime, connect_timeout)
        except BaseException:  # an interrupt, too: nobody will have this client
            self.close(patience=0.0)
            raise

    # --------------------------------------------------------------------- in the users' threads

    @property
    def closed(self) -> bool:
        return self._closing

    @property
    def connected(self) -> bool:
        """Whether the broker has welcomed us and has not been lost since."""
        return self._link.up

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a child made by fork, which can do nothing."""
        return self._forked

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
            waiting = len(self._calls) + self._batches.calls
            if waiting > UNACCEPTED or self._batches.size > UNACCEPTED_BYTES or buffers:
                self._await_room(retry, policy)
            if not self._link.up:
                self._await_link(retry, policy)
        except BaseException:  # an interrupt, too
            self.segments.withdraw(buffers)
            raise
        record = Record(call.id, call=call, created=time.time())
        if check:
            record = self._records.open.setdefault(call.id, record)
        else:
            self._records.open[call.id] = record
        self._calls.append((call, buffers, define, check, confirm, record))
        if self._sleeping:
            self._wake()
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
            arrived = self._wait_until(record, lambda: record.known is not None, timeout)
            if not arrived:
                raise exceptions.TimeoutError(f"The broker has not answered within {timeout} s.")

    def wait(
        self,
        records: Iterable[Record],
        timeout: float | None = None,
        *,
        any: bool = False,
    ) -> bool:
        """Wait until all tasks are over (or any of them); return False when time ran out.

        Parameters
        ----------
        records
            What to wait for.
        timeout
            Seconds, or None for no end.
        any
            Be content with one.

        Raises
        ------
        BrokerUnavailable
            When there is no cluster any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if any:
            several = list(records)
            return self._wait_for(several, partial(one_over, several), deadline)
        for record in records:
            over = partial(one_over, (record,))
            if not over() and not self._wait_for((record,), over, deadline):
                return False
        return True

    def wait_event(self, record: Record, after: int, timeout: float | None = None) -> bool:
        """Wait until there is an event after number `after`, or the task is over."""
        return self._wait_until(record, lambda: record.n > after or record.over, timeout, each=True)

    def add_waiter(self, record: Record, callback: Callable[[], Any]) -> Callback:
        """Call `callback` once when the task is over: at once if it is, else in the I/O thread.

        Whoever gives up before that gives what is returned to `take_away`.
        """
        waiter = Callback(callback)
        record.waiters.append(waiter)
        if record.over:
            take_away(record, waiter)
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
        if self._link.gone is not None:
            raise self._link.gone.with_traceback(None)
        self._outbox.append((messages, buffers))
        if self._sleeping:
            self._wake()

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
        question = Ask(next(self._requests), what, args)
        check_sendable(question)
        waiter = threading.Lock()
        waiter.acquire()
        answers: list[Answer] = []
        try:
            self._questions[question.request] = (question, waiter, answers)
            self.tell(question)
            self._sleep_on(waiter, lambda: bool(answers), time.monotonic() + timeout)
        finally:
            self._questions.pop(question.request, None)
        if not answers:
            raise exceptions.TimeoutError(
                f"The broker has not answered the question {what!r} within {timeout:g} s."
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
        self._hurry()
        while self._calls or self._batches or self._outbox:
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
        if self._closing or self._forked:
            return True
        said = not patience or self._say_all(patience)
        if not said:
            log.warning(
                "The broker in %s has not accepted %d tasks that were sent last; they may be lost.",
                self.runtime,
                len(self._calls) + self._batches.calls,
            )
        self._closing = True
        try:
            self._wake()
            with suppress(RuntimeError):  # an interrupt came before its start
                self._thread.join(2.0)
        finally:  # when we are interrupted, too: nobody comes back to it
            with suppress(ValueError):
                _clients.remove(self)
            self._release_all()
            self._bereave(BrokerUnavailable(self.runtime, 0.0))
        return said

    def bury(self) -> None:
        """Tell everybody who waits that the tasks are deleted with their store."""
        if self._forked:
            return
        for record in list(self._records.open.values()):
            if record.final is not None:
                continue
            record.home = self.runtime  # nobody starts a cluster to ask for it
            self._fail(
                record,
                OperationalError(
                    f"Task {record.id} was deleted before it had ended, with all else in its "
                    f"cluster: shutdown(purge=True). Send it again."
                ),
            )

    def _say_all(self, patience: float) -> bool:
        """Wait until all is accepted; return False when there is no broker, or nothing goes on."""
        before, since = (-1, -1, -1), time.monotonic()
        self._hurry()
        while any(left := (len(self._calls), len(self._batches), len(self._outbox))):
            if left != before:
                before, since = left, time.monotonic()
            if self._link.gone is not None or time.monotonic() - since > patience:
                return not (self._calls or self._batches)
            time.sleep(0.002)
        return True

    # ------------------------------------------------------------------------- waiting, in detail

    def _check_usable(self) -> None:
        if self._forked:
            raise ForkedError()
        if self._closing:
            raise BrokerUnavailable(self.runtime, 0.0)

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
        calls, size = len(self._calls) + self._batches.calls, self._batches.size
        size += sum(sum(map(segments.cost, entry[1])) for entry in list(self._calls))
        return calls > UNACCEPTED * share or size > UNACCEPTED_BYTES * share

    def _await_room(self, retry: bool, policy: dict[str, Any] | None) -> None:
        """Hold a caller that is faster than the broker; raise when there is none in the end."""
        if not self._too_much(1.0):
            return
        self._hurry()
        while self._too_much(0.5):
            self._check_usable()
            if not self._link.up:
                self._await_link(retry, policy)
            time.sleep(pause(0.002))

    def _hurry(self) -> None:
        """Say that somebody waits for what is accepted in its own time otherwise."""
        if self._calls or self._batches:
            self._outbox.append(((Submit(0, (), urgent=True),), ()))
            self._wake()

    def _await_acceptance(self, record: Record) -> None:
        self._wait_until(record, lambda: record.accepted or record.error is not None, None)
        if record.error is not None:
            raise record.error

    def _wait_until(
        self,
        record: Record,
        condition: Callable[[], bool],
        timeout: float | None,
        each: bool = False,
    ) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = Bell() if each else None
        if waiter is not None:
            record.listen(waiter.ring)
        try:
            return self._wait_for([record], condition, deadline, waiter)
        finally:
            if waiter is not None:
                record.unsubscribe(waiter.ring)

    def _wait_for(
        self,
        records: Sequence[Record],
        condition: Callable[[], bool],
        deadline: float | None,
        bell: Bell | None = None,
    ) -> bool:
        if condition():
            return True
        waiter = bell.lock if bell is not None else locked()
        try:
            for record in records:
                record.waiters.append(waiter)
            return self._sleep_on(waiter, condition, deadline)
        finally:
            for record in records:
                take_away(record, waiter)

    def _sleep_on(self, waiter: Any, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Sleep until a condition holds; whoever may have made it hold releases the lock."""
        self._check_usable()
        try:
            self._waiting.add(waiter)
            while not condition():
                if self._link.gone is not None:
                    # Raised many times, it would gather the frames of all who met it.
                    raise self._link.gone.with_traceback(None)
                if self._closing:
                    raise BrokerUnavailable(self.runtime, 0.0)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if self._calls:
                    self._wake()
                waiter.acquire(timeout=pause(left))
            return True
        finally:
            self._waiting.discard(waiter)

    def _wake(self) -> None:
        self._sleeping = False
        with suppress(OSError):  # it is full, or the thread has left meanwhile
            self._waker.send(b"\0")

    # -------------------------------------------------------------------------- in the I/O thread

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._socket, self._monitor = sockets.watched_dealer(
                context, self.runtime, sockets.identity("client")
            )
        except Exception as error:
            self._give_up(error)
        else:
            self._serve()
            self._leave()
        finally:
            context.destroy(0)
            self._waker.close()
            self._wakened.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._wakened.fileno(), zmq.POLLIN)
        try:
            gathers = False
            while not self._closing:
                # Amid many calls each of them would wake us: let some come together meanwhile.
                self._sleeping = not gathers
                busy = self._calls or self._outbox
                ready = dict(poller.poll(GATHER if gathers else 0 if busy else 200))
                self._sleeping = False
                if self._wakened.fileno() in ready:
                    with suppress(BlockingIOError):
                        self._wakened.recv(4096)
                if self._monitor in ready:
                    self._look_at_link()
                if self._socket in ready:
                    self._take_in()
                gathers = self._send_out() > 1
                self._look_after()
        except Exception as error:  # whoever waits must hear of it
            log.exception("the client's thread failed")
            self._give_up(OperationalError(f"The client failed: {type(error).__name__}: {error}"))

    def _leave(self) -> None:
        with suppress(zmq.ZMQError):
            if self._link.up:
                self._post([Bye()])
        self._link.up = False
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()

    def _post(self, messages: Sequence[Any], buffers: Sequence[Buffer] = ()) -> None:
        parts = pack_to_broker(self._link.instance, messages, buffers)
        self._socket.send_multipart(parts, zmq.NOBLOCK, copy=sockets.must_copy(buffers))

    def _say_hello(self) -> None:
        """Introduce ourselves and, in the same breath, ask how our tasks are getting on."""
        hello = Hello("client", self.name, os.getpid(), platform.python_version())
        pending = {record.id for batch in self._batches.open.values() for record in batch.records}
        pending.update(call[5].id for call in list(self._calls))
        open_ones = [r for r in list(self._records.open.values()) if r.id not in pending]
        messages: list[Any] = [hello]
        if open_ones:
            messages.append(Follow(tuple(r.id for r in open_ones), tuple(r.n for r in open_ones)))
        self._socket.send_multipart(pack_to_broker(b"", messages), zmq.NOBLOCK)

    def _look_at_link(self) -> None:
        up = sockets.connected(self._monitor)
        if up is None:
            return
        self._connected = up
        # A new link may lead to a new broker, to whom nothing is said before it has welcomed us.
        self._hold_back()
        if up:
            self._say_hello()

    def _hold_back(self) -> None:
        if self._link.up:
            self._link.up = False
            self._link.down_since = time.monotonic()

    def _take_in(self) -> None:
        for _ in range(200):
            if not sockets.has_news(self._socket):
                return
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                _instance, messages, buffers = unpack_from_broker(parts)
            except ForeignVersion as error:
                self._give_up(ClusterError(str(error)))
                return
            except ProtocolError as error:
                log.error("cannot read what the broker says: %s", error)
                continue
            frames = iter(buffers)
            takers = self._takers
            for message in messages:
                taker = takers.get(type(message))
                if taker is not None:
                    taker(message, frames)

    def _take_welcome(self, welcome: Welcome, _: Any) -> None:
        if not self._connected:
            return  # the last word of a broker that is gone
        connection = read_connection(self.runtime)
        if connection is not None and connection.instance != welcome.instance.hex():
            log.warning("a broker that is not the cluster's has answered in %s", self.runtime)
            return  # nothing is said to it
        if welcome.store != self._link.store:
            self._defined.clear()
        self._link.instance, self._link.store = welcome.instance, welcome.store
        self._link.gone = None
        self._probe = 0
        for number in list(self._batches.open):
            self._send_batch(number)
        for question, _waiter, _answers in list(self._questions.values()):
            self._outbox.append(((question,), ()))
        # After the calls that they are about, and before whatever was not said yet.
        self._outbox.extendleft(
            (messages, ())
            for sent_at, messages in reversed(self._orders)
            if sent_at > self._link.down_since - UNHEARD
        )
        self._orders.clear()
        self._link.up = True
        self._release_all()

    def _take_refused(self, refused: Refused, _: Any) -> None:
        if refused.reason == STRANGER:
            # Many messages to a former broker get as many refusals from the next one: one Hello, as
            # it asks for news of all our tasks. While the link is down it has been said.
            if self._link.up:
                self._hold_back()
                self._say_hello()
        elif self._link.up and self._batches:
            # It knows us, so it is something that was said: better lose that than everything.
            for number in list(self._batches.open):
                for record in self._batches.pop(number).records:
                    self._fail(record, OperationalError(refused.reason))
        else:
            self._give_up(ClusterError(refused.reason))

    def _take_lacking(self, lacking: Lacking, _: Any) -> None:
        self._defined.difference_update(lacking.digests)
        for number, batch in list(self._batches.open.items()):
            if not batch.defines.keys().isdisjoint(lacking.digests):
                self._send_batch(number)

    def _take_accepted(self, accepted: Accepted, _: Any) -> None:
        for number in accepted.batches:
            if number not in self._batches.open:
                continue
            for record in self._batches.pop(number).records:
                record.accepted = True
                record.known = True
                if record.waiters:
                    ring(record)

    def _take_event(self, event: Event, frames: Any) -> None:
        buffers = take(frames, event.frames) if event.frames else ()
        record = self._records.get(event.id)
        if record is None or event.n <= record.n:
            return
        # Whoever sees the new state finds all that belongs to it.
        record.known = True
        if buffers:
            if not record.buffers:
                record.buffers = {}
            record.buffers[event.n] = buffers
        record.events.append(event)
        record.apply(event)
        for listener in record.listeners:
            try:
                listener(record, event)
            except Exception:
                log.exception("a listener of task %s failed", event.id)
        if event.final:
            self._records.settle(record)
            if record.waiters:
                ring(record)
        elif event.kind == "again":
            self._records.reopen(event.id)

    def _take_replayed(self, replayed: Replayed, _: Any) -> None:
        record = self._records.get(replayed.id)
        if record is None:
            return
        if not replayed.known and record.accepted:
            record.error = OperationalError(
                f"The broker does not know task {record.id} any more: its store was emptied, or it "
                f"was not durable (durability='none') and the broker was restarted."
            )
            self._records.open.pop(record.id, None)
        record.known = replayed.known
        ring(record)

    def _take_answer(self, answer: Answer, _: Any) -> None:
        if answer.request == self._probe:
            self._send_again()
        question = self._questions.get(answer.request)
        if question is not None:
            question[2].append(answer)
            release(question[1])

    def _send_out(self) -> int:
        """Send what users have put down, and return how many calls that were.

        While there is no broker, it stays where it is.
        """
        sent = 0
        if not self._link.up:
            return sent
        while self._calls:
            number, entries = self._batches.take(self._calls)
            again = any(entry[3] for entry in entries)
            urgent = any(entry[4] for entry in entries)
            self._send_batch(number, again, urgent)
            sent += len(entries)
        while self._outbox:
            messages, buffers = self._outbox.popleft()
            self._post(messages, buffers)
            if isinstance(messages[0], _ORDERS):
                self._note_order(messages)
        return sent

    def _note_order(self, messages: Sequence[Any]) -> None:
        """Keep an order for a while: nobody confirms it, and the broker may be about to die."""
        instant = time.monotonic()
        self._orders.append((instant, messages))
        while self._orders[0][0] < instant - UNHEARD:
            self._orders.popleft()

    def _send_batch(self, number: int, again: bool = True, urgent: bool = True) -> None:
        """Send a batch; `again` unless it is the first time and all its ids are new."""
        batch = self._batches.open[number]
        messages: list[Any] = []
        buffers: list[Buffer] = []
        for digest, (define, payload) in batch.defines.items():
            if digest not in self._defined:
                self._defined.add(digest)
                messages.append(define)
                buffers.extend(payload)
        messages.append(Submit(number, tuple(batch.calls), again, urgent))
        buffers.extend(batch.buffers)
        batch.sent_at = time.monotonic()
        try:
            self._post(messages, buffers)
        except (TypeError, ValueError, OverflowError) as error:
            self._take_apart(number, error)

    def _take_apart(self, number: int, error: Exception) -> None:
        """Send the calls of a batch that cannot be encoded one by one: one is to blame."""
        batch = self._batches.pop(number)
        if len(batch.calls) == 1:
            text = f"The call cannot be sent: {type(error).__name__}: {error}"
            self._fail(batch.records[0], exceptions.EncodeError(text))
            return
        for entry in batch.apart():
            self._send_batch(self._batches.put(entry))

    def _fail(self, record: Record, error: Exception) -> None:
        """Let a submission end in an error, and those go on that wait for it."""
        record.error = error
        self._records.open.pop(record.id, None)
        ring(record)

    def _look_after(self) -> None:
        """Now and then: say again what was not accepted, and see whether there is a cluster."""
        instant = time.monotonic()
        if not self._link.up:
            if not self._connected and instant - self._sought_at > MISSING:
                self._sought_at = instant
                sockets.follow(self._socket, self.runtime)
            if self._link.gone is None and instant - self._link.down_since > MISSING:
                self._seek_cluster()
        elif self._batches and not self._probe:
            if any(instant - batch.sent_at > RESEND for batch in self._batches.open.values()):
                self._probe, self._probed_at = next(self._requests), instant
                self._post([Ask(self._probe, "peek", {"key": ""})])

    def _send_again(self) -> None:
        """Say again what the broker has not taken in, though it has heard all that was said.

        That is why it is asked first: one that merely stands still would find the same calls many
        times in its mail, which would lie in our memory until then.
        """
        self._probe = 0
        for number, batch in list(self._batches.open.items()):
            if batch.sent_at < self._probed_at:
                self._send_batch(number)

    def _seek_cluster(self) -> None:
        """No broker for a while: a supervisor restarts it, or we do, or it is all over."""
        connection = read_connection(self.runtime)
        # Not by its process number: after a crash that may be anybody's.
        if connection is not None and locks.is_held(self.runtime / SUPERVISOR_LOCK):
            return
        waited = time.monotonic() - self._link.down_since
        if self._revive is None:
            if connection is not None or waited > ABSENT:
                self._give_up(BrokerUnavailable(self.runtime, waited))
        elif self._reviving is None or not self._reviving.is_alive():
            self._reviving = threading.Thread(
                target=self._try_to_revive, name="nbtasks-revive", daemon=True
            )
            self._reviving.start()

    def _try_to_revive(self) -> None:
        assert self._revive is not None
        try:
            self._revive()
        except Exception as error:
            waited = time.monotonic() - self._link.down_since
            lost = BrokerUnavailable(self.runtime, waited)
            lost.__cause__ = error
            if not self._link.up:
                self._give_up(lost)

    def _give_up(self, error: Exception) -> None:
        """Tell everybody who waits that there is nothing to wait for."""
        self._link.gone = error
        self._link.up = False
        self._release_all()
        self._bereave(error)

    def _bereave(self, error: Exception) -> None:
        for each in list(self.dependents):
            settling.post(partial(each.lose, error))

    def _release_all(self) -> None:
        for waiter in list(self._waiting):
            release(waiter)


def check_sendable(*messages: Any) -> None:
    """Raise EncodeError for what cannot be sent, in the thread of whoever says it.

    Met in the I/O thread, it would be the end of that thread, and of all that others have to say.
    """
    try:
        pack(b"", messages)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise exceptions.EncodeError(
            f"This cannot be sent to the broker: {type(error).__name__}: {error}. Ids, names and "
            f"states must be text that UTF-8 can carry, and whole numbers must fit into 64 bits."
        ) from None


# ----------------------------------------------------------------------- the client of the process

_clients: list[Client] = []
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
    for client in _clients:
        client._forked = True


def _at_exit() -> None:
    clients, patience = tuple(_clients), FAREWELL
    for client in clients:
        client._hurry()
    for client in clients:
        if not client.close(patience):
            patience = FAREWELL_MORE  # than that: the others had as long


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
