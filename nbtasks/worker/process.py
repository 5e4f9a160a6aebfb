"""The worker process: one call at a time on the main thread, the wire on another.

    main thread (`work`)                 I/O thread (the only one that touches sockets)
    ───────────                          ──────────────────────────────────────────────
    work():                              Link.serve():
      inbox ─▶ Runner.run ─▶ outbox        poll ┬ broker     Run, Recall, Define, Noted, Stop ...
        soft limit ◀── signal ─────────         ├ wake-up    the main thread has something to say
        stdout, logging ─▶ Capture              ├ signals    SIGTERM (written by the C handler)
                                                ├ monitor    the link is up: say Hello
                                                └ parent     end of file: the supervisor is gone
                                           send all that has gathered as one message

The I/O thread goes on while the body of a task computes, as long as that lets go of the interpreter
now and then. It holds back everything from the loss of a link until the broker, old or new, has
answered Hello with Welcome. Outcomes are kept until Noted says that they are saved, and said again
after each Welcome; what the worker has in hand stands in Hello. So a broker can die at any moment.

A worker that is to go (told to, or full of years) gives back what it has not begun, waits until
its last outcome is saved, says Bye and ends with exit code 0.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from math import ceil
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import zmq

from nbtasks.core.messages import (
    STRANGER,
    Again,
    Bye,
    Define,
    Done,
    Fetch,
    Held,
    Hello,
    Lacking,
    Noted,
    Prepared,
    Recall,
    Refused,
    Returned,
    Run,
    Started,
    Stop,
    Welcome,
    take,
)
from nbtasks.wire import sockets
from nbtasks.wire.connection import EXIT_CONFIG
from nbtasks.wire.frames import (
    Buffer,
    ForeignVersion,
    ProtocolError,
    pack_to_broker,
    unpack_from_broker,
)
from nbtasks.worker.handover import (
    Assignment,
    Handover,
    Leave,
    Loaded,
    Preparation,
    Receipt,
    Reply,
)

if TYPE_CHECKING:
    from nbtasks.wire.cell import Cell
    from nbtasks.worker.capture import Capture
    from nbtasks.worker.limits import SoftLimit

#: Seconds that a call runs before the broker is told of it.
STARTED_AFTER = 0.010
#: Seconds that loading a function with a limit may take before its time begins to run all the same.
LOADING_MOST = 60.0
#: Seconds between two looks while calls follow one another.
ROUND = 0.001
#: Seconds without news, in the middle of a call, after which the I/O thread waits to be woken.
QUIET = 0.020
#: Seconds within which printed text is gathered.
GATHER = 0.030
#: Seconds after which an unanswered Hello is said again. Only a link that broke unseen needs it; a
#: second Hello that overtakes a call on its way here would make the broker give it out again.
HELLO_AGAIN = 10.0
#: Seconds between two looks whether a broker that is away serves at another place.
SEEK = 0.5
#: Seconds that a leaving worker waits until the broker has saved its last outcomes.
LEAVE_WAIT = 5.0
#: Messages in one batch.
BATCH = 4_096

_OUTCOMES = (Done, Again)


class Link:
    """The worker's end of the wire, and the thread that serves it.

    Parameters
    ----------
    runtime
        The cluster's runtime directory.
    name, queues
        What the worker is called, and which queues it serves (none named: all).
    parent
        A descriptor that reads end-of-file when the supervisor is gone, or None.
    """

    def __init__(
        self, runtime: Path, name: str, queues: tuple[str, ...], parent: int | None
    ) -> None:
        self.handover = Handover(self._ring)
        self._runtime = runtime
        self._name = name
        self._queues = queues
        self._parent = parent
        self._cell: Cell | None = None
        self._capture: Capture | None = None
        self._limit: SoftLimit | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket, self._monitor = sockets.watched_dealer(
            self._context, runtime, sockets.identity("worker")
        )
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._poller = zmq.Poller()
        for source in (self._socket, self._monitor, self._bell):
            self._poller.register(source, zmq.POLLIN)
        if parent is not None:
            self._poller.register(parent, zmq.POLLIN)
        self._instance = b""
        self._welcome = False
        self._hello_at: float | None = None
        self._seek_at = 0.0
        #: The link has not yet come up as far as we saw; Hello waits for it on the way.
        self._expected = True
        #: What the broker believes that we hold, in order: until an outcome is Noted.
        self._held: deque[Run] = deque()
        #: Outcomes that may not have been saved yet, in order.
        self._unnoted: deque[Done | Again | Loaded] = deque()
        #: Messages, Hello not counted.
        self._sent = 0
        self._news_at = 0.0
        self._flush_at: float | None = None
        self._leaving: Leave | None = None
        self._leave_by: float | None = None
        self._terminated = False
        self._thread = threading.Thread(target=self._serve_or_die, name="nbtasks-io", daemon=True)
        self._obey: dict[type, Callable[[Any, Iterator[Buffer]], None]] = {
            Welcome: self._on_welcome, Refused: self._on_refused, Noted: self._on_noted,
            Recall: self._on_recall, Define: self._on_define, Lacking: self._on_lacking,
            Stop: self._on_stop,
        }  # fmt: skip

    # ---------------------------------------------------------------------------- main thread

    def start(self) -> None:
        """Begin to serve, and hear SIGTERM even while the main thread computes."""
        signal.set_wakeup_fd(self._rope.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._thread.start()

    def attend(self, cell: Cell, capture: Capture, limit: SoftLimit) -> None:
        """Write down what is sent, and keep an eye on printed text and on the soft time limit."""
        self._cell, self._capture, self._limit = cell, capture, limit

    def _ring(self) -> None:
        try:
            self._rope.send(b"\0")
        except OSError:  # full: it rings already; closed: nobody is there any more
            pass

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        # Python has written the number to the bell too, unless a library took that over.
        self._terminated = True
        self._ring()

    # ------------------------------------------------------------------------------- the loop

    def _serve_or_die(self) -> None:
        try:
            self._serve()
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.__stderr__)
            os._exit(70)

    def _serve(self) -> None:
        handover = self.handover
        self._say_hello()
        while not handover.over.is_set():
            # First say that we sleep, then look whether there is anything to do: see `handover`.
            handover.asleep = handover.dozing = True
            wait = self._patience()
            if wait is not None and wait <= ROUND:
                handover.dozing = False
            ready = self._poller.poll(-1 if wait is None else ceil(wait * 1000))
            handover.asleep = handover.dozing = False
            for source, _ in ready:
                if source is self._socket:
                    self._receive()
                elif source == self._bell.fileno():
                    self._hear_bell()
                elif source is self._monitor:
                    self._look_at_link()
                else:
                    self._look_at_parent()
            if self._terminated:
                self._terminate()
            self._do_what_is_due(time.monotonic())
            self._send()
            if self._leaving is not None:
                self._try_to_leave()
        handover.inbox.put(None)

    def _patience(self) -> float | None:
        """Return the seconds for which there is nothing to do unless we are woken."""
        handover = self.handover
        busy = self._is_busy()
        if handover.outbox and self._welcome and not busy:
            return 0.0
        instant = time.monotonic()
        due = []
        untold = handover.running() > handover.told
        if untold and handover.loading:
            due.append(handover.began_at + LOADING_MOST)
            untold = False
        if busy and (untold or instant - self._news_at < QUIET):
            return ROUND
        limit = self._limit.pending() if self._limit is not None else None
        if limit is not None:
            due.append(limit)
        if self._capture is not None and self._capture.pending:
            if self._flush_at is None:
                self._flush_at = instant + GATHER
            due.append(self._flush_at)
        if self._hello_at is not None and not self._welcome:
            due.append(self._hello_at + HELLO_AGAIN)
        if not self._welcome:
            due.append(self._seek_at)
        if self._leaving is not None:
            due.append(instant + QUIET)
        return max(min(due) - instant, 0.0) if due else None

    def _is_busy(self) -> bool:
        """Return whether the main thread has, or is about to have, something to run."""
        return bool(self._held) and self._held[-1].ticket > self.handover.ended

    def _do_what_is_due(self, instant: float) -> None:
        handover = self.handover
        if self._limit is not None:
            self._limit.fire_if_due(instant)
        ticket = handover.running()
        patience = LOADING_MOST if handover.loading else STARTED_AFTER
        if ticket > handover.told and instant - handover.began_at >= patience:
            self._tell_started(ticket, instant)
        if self._flush_at is not None and self._flush_at <= instant:
            self._flush_at = None
            if self._capture is not None:
                self._capture.flush()
        unanswered = self._hello_at is not None and not self._welcome
        if unanswered and instant >= (self._hello_at or 0.0) + HELLO_AGAIN:
            self._say_hello()
        if not self._welcome and instant >= self._seek_at:
            self._seek_at = instant + SEEK
            if sockets.follow(self._socket, self._runtime):
                # The Hello that was on its way there is gone.
                self._expected, self._hello_at = False, None

    def _tell_started(self, ticket: int, instant: float) -> None:
        self.handover.told = ticket
        began = time.time() - (instant - self.handover.began_at)
        self.handover.outbox.append(Started(ticket, began))

    # ------------------------------------------------------------------------------- speaking

    def _send(self) -> None:
        """Hand all that has gathered to zmq, as one multipart message."""
        outbox = self.handover.outbox
        if not outbox or not self._welcome:
            return
        messages: list[Any] = []
        buffers: list[Buffer] = []
        receipts: list[Receipt] = []
        unnoted = self._unnoted
        for _ in range(min(len(outbox), BATCH)):
            item = outbox.popleft()
            kind = type(item)
            if kind is Done:
                unnoted.append(item)
                messages.append(item)
            elif kind is Loaded:
                messages.append(item.message)
                buffers.extend(item.buffers)
                if type(item.message) in _OUTCOMES:
                    unnoted.append(item)
            elif kind is Receipt:
                receipts.append(item)
            elif kind is Leave:
                self._start_leaving(item)
            else:
                messages.append(item)
                if kind is Again:
                    unnoted.append(item)
        if messages:
            self._news_at = time.monotonic()
            self._say(messages, buffers)
        for receipt in receipts:
            receipt.set()

    def _say(self, messages: list[Any], buffers: list[Buffer]) -> None:
        frames = pack_to_broker(self._instance, messages, buffers)
        self._sent += len(messages)
        if self._cell is not None:
            self._cell.send(self._sent)
        self._socket.send_multipart(frames, copy=sockets.must_copy(buffers))

    def _say_hello(self) -> None:
        """Introduce ourselves; until the answer comes, nothing else is said."""
        self._welcome = False
        self._hello_at = time.monotonic()
        began = self.handover.began
        held = tuple(
            Held(run.ticket, run.call.id, run.ticket <= began)
            for run in self._held
            if run.call is not None
        )
        python = ".".join(map(str, sys.version_info[:3]))
        hello = Hello(
            "worker",
            self._name,
            os.getpid(),
            python,
            self._queues,
            held,
            found=self.handover.found,
            prepares=self.handover.prepares,
        )
        self._socket.send_multipart(pack_to_broker(b"", [hello]))

    # ------------------------------------------------------------------------------ listening

    def _look_at_link(self) -> None:
        up = sockets.connected(self._monitor)
        if up and not self._expected:
            self._say_hello()
        elif up is False:
            self._welcome = False
            self._hello_at = None
        if up is not None:
            self._expected = False

    def _receive(self) -> None:
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        # Payload frames stay where they are, and nobody may write to them: a retry sends them on.
        payload = [frame.buffer.toreadonly() for frame in frames[2:]]
        try:
            _, messages, buffers = unpack_from_broker(
                [*(frame.bytes for frame in frames[:2]), *payload]
            )
        except ForeignVersion as error:
            self._end_for_good(str(error))
            return
        except ProtocolError as error:
            print(f"A message of the broker was not understood: {error}", file=sys.__stderr__)
            return
        self._news_at = time.monotonic()
        rest = iter(buffers)
        for kind, row in groupby(messages, type):
            if kind is Run:
                self._on_runs(row, rest)
            elif (obey := self._obey.get(kind)) is not None:
                for message in row:
                    obey(message, rest)

    def _on_welcome(self, welcome: Welcome, _: Iterator[Buffer]) -> None:
        self._welcome = True
        self._hello_at = None
        self._instance = welcome.instance
        messages: list[Any] = []
        buffers: list[Buffer] = []
        if (handling := self.handover.handling) is not None:
            messages.append(handling)
        for item in self._unnoted:
            if type(item) is Loaded:
                messages.append(item.message)
                buffers.extend(item.buffers)
            else:
                messages.append(item)
        # After the ends of former calls, which end that, too.
        if (joining := self.handover.joining) is not None:
            messages.append(joining)
        if messages:
            self._say(messages, buffers)

    def _on_refused(self, refused: Refused, _: Iterator[Buffer]) -> None:
        if refused.reason != STRANGER:
            self._end_for_good(f"The broker refuses this worker: {refused.reason}")
        elif self._welcome:
            self._say_hello()

    def _end_for_good(self, why: str) -> None:
        """End a process that the broker will never take."""
        print(why, file=sys.__stderr__)
        os._exit(EXIT_CONFIG)

    def _on_runs(self, runs: Iterable[Run], frames: Iterator[Buffer]) -> None:
        """Take calls that have come in a row."""
        asked, say = self.handover.asked, self.handover.outbox.append
        hold, put = self._held.append, self.handover.inbox.put
        for run in runs:
            call = run.call
            if call is None:
                continue
            buffers = take(frames, call.frames) if call.frames else ()
            if not self._welcome:
                continue  # of a former broker; the new one knows from Hello that we do not hold it
            if self._leaving is not None:
                say(Returned((run.ticket,)))
                continue
            digest = call.definition
            if digest and digest not in asked:
                asked.add(digest)
                say(Fetch(digest))
            hold(run)
            put(Assignment(run, buffers))

    def _on_noted(self, noted: Noted, _: Iterator[Buffer]) -> None:
        ticket = noted.ticket
        unnoted, held = self._unnoted, self._held
        while unnoted and unnoted[0].ticket <= ticket:
            unnoted.popleft()
        while held and held[0].ticket <= ticket:
            held.popleft()
        self.handover.note(ticket)

    def _on_recall(self, recall: Recall, _: Iterator[Buffer]) -> None:
        """Give back what has not begun; the main thread may take some of it meanwhile."""
        self._give_back(frozenset(recall.tickets))
        running = self.handover.running()
        if running and running in recall.tickets:
            self.handover.unwanted = running
            if running > self.handover.told:
                self._tell_started(running, time.monotonic())

    def _give_back(self, tickets: frozenset[int]) -> None:
        inbox = self.handover.inbox
        waiting: list[Assignment | Preparation] = []
        while inbox.qsize():
            try:
                assignment = inbox.get_nowait()
            except Exception:  # the main thread was faster
                break
            if assignment is not None:
                waiting.append(assignment)
        returned = []
        for each in waiting:
            if isinstance(each, Preparation):
                if self._leaving is None:  # the broker waits for that
                    inbox.put(each)
            elif not tickets or each.run.ticket in tickets:
                returned.append(each.run.ticket)
            else:
                inbox.put(each)
        if returned:
            gone = frozenset(returned)
            self._held = deque(run for run in self._held if run.ticket not in gone)
        self.handover.outbox.append(Returned(tuple(returned)))

    def _on_define(self, define: Define, frames: Iterator[Buffer]) -> None:
        digest, handover = define.digest, self.handover
        handover.replies.put(Reply(digest, define, take(frames, define.frames)))
        if digest not in handover.asked:
            # It comes unasked: for a call that is to be expected.
            handover.asked.add(digest)
            handover.prepares = digest
            handover.inbox.put(Preparation(digest))
        else:
            # For a call that waits for it; or a new broker does not know that it is here already.
            handover.outbox.append(Prepared(digest))

    def _on_lacking(self, lacking: Lacking, _: Iterator[Buffer]) -> None:
        for digest in lacking.digests:
            echo = self.handover.echoes.get(digest)
            if echo is not None:
                echo.set()
            else:
                self.handover.replies.put(Reply(digest, None, ()))

    def _on_stop(self, stop: Stop, _: Iterator[Buffer]) -> None:
        self._start_leaving(Leave(orderly=True))

    # -------------------------------------------------------------------------------- leaving

    def _start_leaving(self, leave: Leave) -> None:
        if self._leaving is None or not leave.orderly:
            self._leaving = leave
            if leave.orderly:
                self._give_back(frozenset())

    def _try_to_leave(self) -> None:
        """Say the last word, once nothing runs and all outcomes are saved."""
        leave = self._leaving
        if leave is None or self.handover.over.is_set():
            return
        instant = time.monotonic()
        if leave.orderly:
            if self._is_busy() or not self.handover.resting:
                return
            if self._held or self.handover.outbox:
                if self._leave_by is None:
                    self._leave_by = instant + LEAVE_WAIT
                if instant < self._leave_by:
                    return
            if self._welcome:
                self._say([Bye()], [])
        self._close()

    def _close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()
        self.handover.over.set()

    def _hear_bell(self) -> None:
        try:
            rung = self._bell.recv(4096)
        except BlockingIOError:
            return
        if signal.SIGTERM in rung:
            self._terminated = True

    def _terminate(self) -> None:
        """Obey SIGTERM: leave when idle, else end at once, the running task with us."""
        self._terminated = False
        if self.handover.handling is None and not self._is_busy():
            self._start_leaving(Leave(orderly=True))
            self._leave_by = min(self._leave_by or float("inf"), time.monotonic() + LEAVE_WAIT / 10)
            return
        if self._capture is not None:
            self._capture.flush()
        self._send()
        self._socket.close(linger=200)
        self._monitor.close(linger=0)
        self._context.term()
        os._exit(128 + signal.SIGTERM)

    def _look_at_parent(self) -> None:
        """End if the supervisor is gone: nobody knows of us any more."""
        if self._parent is not None and not os.read(self._parent, 1):
            end_group()


def end_group() -> None:
    """End this process at once, with all that it started in its own process group."""
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
