"""The client's end of the wire, and the thread that serves it: the only one that touches sockets.

    calls, outbox, questions ──▶ Define, Submit(batch), Follow, Ask ... ──▶ DEALER ──▶ broker
                                 batches are kept until Accepted, sent again after a reconnect
    records, questions, waiting ◀── Event, Accepted, Answer ... ◀── DEALER ◀── broker

While there is no broker, what users have put down stays where it is. After each Welcome all is said
again that this broker may not have heard, and news is asked of all open tasks. When the whole
cluster is gone, it is started again, or those who wait are told.
"""

from __future__ import annotations

import itertools
import logging
import os
import platform
import socket as sockets_of_the_system
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from nbtasks import exceptions
from nbtasks.client.batches import Batches, Entry
from nbtasks.client.callbacks import settling
from nbtasks.client.record import release, ring
from nbtasks.client.records import Records
from nbtasks.core.messages import (
    STRANGER,
    Accepted,
    Answer,
    Ask,
    Bye,
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
from nbtasks.exceptions import BrokerUnavailable, ClusterError, OperationalError
from nbtasks.wire import locks, sockets
from nbtasks.wire.connection import SUPERVISOR_LOCK, read_connection
from nbtasks.wire.frames import (
    Buffer,
    ForeignVersion,
    ProtocolError,
    pack_to_broker,
    unpack_from_broker,
)

log = logging.getLogger("nbtasks.client")

#: Milliseconds for which calls of a loop come together, unless somebody waits.
GATHER = 1
#: Seconds after which what is not accepted is said again.
RESEND = 3.0
#: Seconds without a broker after which the client looks whether there still is a cluster.
MISSING = 0.7
#: Seconds that a cluster may be without a connection file while it is starting again.
ABSENT = 1.2
#: Seconds within which a broker that dies may have taken an order with it.
UNHEARD = 2.0
#: Orders that do no harm when they are said again.
_ORDERS = (Revoke, Forget, Hasten)


class Question(NamedTuple):
    """Something that the broker is asked."""

    ask: Ask
    #: A lock, released when the answer has come.
    waiter: Any
    answers: list[Answer]


class Link:
    """What lies between the users' threads and the broker of one cluster.

    Parameters
    ----------
    runtime
        The cluster's runtime directory.
    name
        What the broker is to call this process.
    records
        The tasks that news is told to.
    revive
        Called in a thread of its own when the whole cluster is gone, to start it again; None where
        that is not wanted.
    """

    def __init__(
        self, runtime: Path, name: str, records: Records, revive: Callable[[], None] | None
    ) -> None:
        self._runtime = runtime
        self._name = name
        self._records = records
        self._revive = revive
        # What users' threads put down:
        self.calls: deque[Entry] = deque()
        #: Messages that are sent together, and their payload frames.
        self.outbox: deque[tuple[Sequence[Any], Sequence[Buffer]]] = deque()
        self.questions: dict[int, Question] = {}
        #: Numbers of questions.
        self.requests = itertools.count(1)
        #: Locks of all who wait for something that may never come.
        self.waiting: set[Any] = set()
        #: Who has promised an outcome: `lose(error)` is called when there can be none any more.
        self.dependents: set[Any] = set()
        self.closing = False
        #: Whether the thread has met with an error of ours, and left.
        self.failed = False
        # What they look at:
        #: Sent and not accepted yet.
        self.batches = Batches()
        #: Of the broker's present run, and of its store.
        self.instance = b""
        self.store = ""
        #: Whether the broker has welcomed us. (An Event would not do: an interrupt in its `wait`
        #: can leave its lock held, and then the I/O thread hangs.)
        self.up = False
        self.down_since = time.monotonic()
        #: Why there is no cluster, once that is certain.
        self.gone: Exception | None = None
        #: Whether the thread sleeps until something comes, or it is woken.
        self.sleeping = False
        # Its own:
        #: Orders of the last moments, and when they were sent.
        self._orders: deque[tuple[float, Sequence[Any]]] = deque()
        self._defined: set[bytes] = set()
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
        #: Opened in the thread, where no interrupt can part them from who closes them: what ZeroMQ
        #: has open when it is collected as garbage blocks for ever.
        self._socket: zmq.Socket[bytes]
        self._monitor: zmq.Socket[bytes]
        self._waker, self._wakened = sockets_of_the_system.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="nbtasks-client", daemon=True)

    # -------------------------------------------------------------------- from the users' threads

    def start(self) -> None:
        """Let the thread begin."""
        self._thread.start()

    def wake(self) -> None:
        """Let the thread look at once what there is to do."""
        self.sleeping = False
        with suppress(OSError):  # it is full, or the thread has left meanwhile
            self._waker.send(b"\0")

    def hurry(self) -> None:
        """Say that somebody waits for what is accepted in its own time otherwise."""
        if self.calls or self.batches:
            self.outbox.append(((Submit(0, (), urgent=True),), ()))
            self.wake()

    def unsaid(self) -> tuple[int, int, int]:
        """Return how many calls are not sent, batches not accepted, and messages not sent."""
        return len(self.calls), len(self.batches), len(self.outbox)

    def close(self) -> None:
        """Say good-bye, and let go of the sockets and the thread."""
        self.closing = True
        self.wake()
        if self._thread.ident is None:  # it could not be started
            self._waker.close()
            self._wakened.close()
        else:
            self._thread.join(2.0)

    def bereave(self, error: Exception) -> None:
        """Let everybody look again who waits, and those lose who have promised an outcome."""
        self._release_all()
        for each in list(self.dependents):
            settling.post(partial(each.lose, error))

    def _release_all(self) -> None:
        for waiter in list(self.waiting):
            release(waiter)

    # -------------------------------------------------------------------------- in the I/O thread

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._socket, self._monitor = sockets.watched_dealer(
                context, self._runtime, sockets.identity("client"), gives_signs=True
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
        try:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            poller.register(self._monitor, zmq.POLLIN)
            poller.register(self._wakened.fileno(), zmq.POLLIN)
            gathers = False
            while not self.closing:
                # Amid many calls each of them would wake us: let some come together meanwhile.
                self.sleeping = not gathers
                busy = self.calls or self.outbox
                ready = dict(poller.poll(GATHER if gathers else 0 if busy else 200))
                self.sleeping = False
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
            self.failed = True
            self._give_up(
                OperationalError(
                    f"The connection to the cluster in {self._runtime} has failed: "
                    f"{type(error).__name__}: {error}. Tasks go on; connect again: "
                    f"nbtasks.start(), with the same dir if there was one."
                )
            )

    def _leave(self) -> None:
        with suppress(zmq.ZMQError):
            if self.up:
                self._post([Bye()])
        self.up = False
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()

    def _post(self, messages: Sequence[Any], buffers: Sequence[Buffer] = ()) -> None:
        parts = pack_to_broker(self.instance, messages, buffers)
        self._socket.send_multipart(parts, zmq.NOBLOCK, copy=sockets.must_copy(buffers))

    def _say_hello(self) -> None:
        """Introduce ourselves and, in the same breath, ask how our tasks are getting on."""
        hello = Hello("client", self._name, os.getpid(), platform.python_version())
        pending = {record.id for batch in self.batches.open.values() for record in batch.records}
        pending.update(call[5].id for call in list(self.calls))
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
        if self.up:
            self.up = False
            self.down_since = time.monotonic()

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
        connection = read_connection(self._runtime)
        if connection is not None and connection.instance != welcome.instance.hex():
            log.warning("a broker that is not the cluster's has answered in %s", self._runtime)
            return  # nothing is said to it
        if welcome.store != self.store:
            self._defined.clear()
        self.instance, self.store = welcome.instance, welcome.store
        self.gone = None
        self._probe = 0
        for number in list(self.batches.open):
            self._send_batch(number)
        for question in list(self.questions.values()):
            self.outbox.append(((question.ask,), ()))
        # After the calls that they are about, and before whatever was not said yet.
        self.outbox.extendleft(
            (messages, ())
            for sent_at, messages in reversed(self._orders)
            if sent_at > self.down_since - UNHEARD
        )
        self._orders.clear()
        self.up = True
        self._release_all()

    def _take_refused(self, refused: Refused, _: Any) -> None:
        if refused.reason == STRANGER:
            # Many messages to a former broker get as many refusals from the next one: one Hello, as
            # it asks for news of all our tasks. While the link is down it has been said.
            if self.up:
                self._hold_back()
                self._say_hello()
        elif self.up and self.batches:
            # It knows us, so it is something that was said: better lose that than everything.
            for number in list(self.batches.open):
                for record in self.batches.pop(number).records:
                    self._records.fail(record, OperationalError(refused.reason))
        else:
            self._give_up(ClusterError(refused.reason))

    def _take_lacking(self, lacking: Lacking, _: Any) -> None:
        self._defined.difference_update(lacking.digests)
        for number, batch in list(self.batches.open.items()):
            if not batch.defines.keys().isdisjoint(lacking.digests):
                self._send_batch(number)

    def _take_accepted(self, accepted: Accepted, _: Any) -> None:
        for number in accepted.batches:
            if number not in self.batches.open:
                continue
            for record in self.batches.pop(number).records:
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
        record.note(event)
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
        question = self.questions.get(answer.request)
        if question is not None:
            question.answers.append(answer)
            release(question.waiter)

    def _send_out(self) -> int:
        """Send what users have put down, and return how many calls that were.

        While there is no broker, it stays where it is.
        """
        sent = 0
        if not self.up:
            return sent
        while self.calls:
            number, entries = self.batches.take(self.calls)
            again = any(entry[3] for entry in entries)
            urgent = any(entry[4] for entry in entries)
            self._send_batch(number, again, urgent)
            sent += len(entries)
        while self.outbox:
            messages, buffers = self.outbox.popleft()
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
        batch = self.batches.open[number]
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
        batch = self.batches.pop(number)
        if len(batch.calls) == 1:
            text = f"The call cannot be sent: {type(error).__name__}: {error}"
            self._records.fail(batch.records[0], exceptions.EncodeError(text))
            return
        for entry in batch.apart():
            self._send_batch(self.batches.put(entry))

    def _look_after(self) -> None:
        """Now and then: say again what was not accepted, and see whether there is a cluster."""
        instant = time.monotonic()
        if not self.up:
            if not self._connected and instant - self._sought_at > MISSING:
                self._sought_at = instant
                sockets.follow(self._socket, self._runtime)
            if self.gone is None and instant - self.down_since > MISSING:
                self._seek_cluster()
        elif self.batches and not self._probe:
            if any(instant - batch.sent_at > RESEND for batch in self.batches.open.values()):
                self._probe, self._probed_at = next(self.requests), instant
                self._post([Ask(self._probe, "peek", {"key": ""})])

    def _send_again(self) -> None:
        """Say again what the broker has not taken in, though it has heard all that was said.

        That is why it is asked first: one that merely stands still would find the same calls many
        times in its mail, which would lie in our memory until then.
        """
        self._probe = 0
        for number, batch in list(self.batches.open.items()):
            if batch.sent_at < self._probed_at:
                self._send_batch(number)

    def _seek_cluster(self) -> None:
        """No broker for a while: a supervisor restarts it, or we do, or it is all over."""
        connection = read_connection(self._runtime)
        # Not by its process number: after a crash that may be anybody's.
        if connection is not None and locks.is_held(self._runtime / SUPERVISOR_LOCK):
            return
        waited = time.monotonic() - self.down_since
        if self._revive is None:
            if connection is not None or waited > ABSENT:
                self._give_up(BrokerUnavailable(self._runtime, waited))
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
            waited = time.monotonic() - self.down_since
            lost = BrokerUnavailable(self._runtime, waited)
            lost.__cause__ = error
            if not self.up:
                self._give_up(lost)

    def _give_up(self, error: Exception) -> None:
        """Tell everybody who waits that there is nothing to wait for."""
        self.gone = error
        self.up = False
        self.bereave(error)
