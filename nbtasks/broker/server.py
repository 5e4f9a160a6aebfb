"""The broker's shell: drain the socket, let the scheduler decide, save once, send.

    clients ──┐                    ┌─ what is to be saved ─▶ store (one commit a turn)
    workers ──┼─▶ ROUTER ─▶ Scheduler                           │
    supervisor┘   (drain)   (pure)  └─ mail ─ after the commit ◀┘
                                         └─▶ a multipart message a peer,
                                             or several where it is much

One thread, one loop. A turn takes in whatever lies ready, so under load many messages share one
commit and few sends, and alone a message waits for nobody.

When the store cannot write (a full disk), what was decided is kept and nothing that follows from it
is sent until it can: no false word leaves here. What tells of the past goes on. New calls are not
taken in meanwhile: whoever sent them sends them again until they are accepted.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import zmq

from nbtasks.broker.disk import Disk
from nbtasks.broker.questions import Questions
from nbtasks.broker.store import Store
from nbtasks.core.messages import (
    STRANGER,
    Accepted,
    Ask,
    Call,
    Define,
    Event,
    Hello,
    Now,
    Policy,
    Refused,
    Replayed,
    Stop,
    Submit,
    Welcome,
    take,
)
from nbtasks.core.scheduler import Scheduler
from nbtasks.core.states import DONE
from nbtasks.core.tasks import Row, call_now
from nbtasks.core.turn import Send, Turn
from nbtasks.exceptions import ClusterError, StoreCorrupt
from nbtasks.wire import locks, segments, sockets
from nbtasks.wire.connection import (
    CONNECTION_FILE,
    SEGMENTS,
    SOCKET_FILE,
    STORE_FILE,
    SUPERVISOR_LOCK,
    Connection,
    Settings,
    boot,
    now,
    read_connection,
    write_connection,
)
from nbtasks.wire.frames import Buffer, ProtocolError, pack, unpack_to_broker
from nbtasks.wire.parent import alive

log = logging.getLogger("nbtasks.broker")

#: What a turn takes in at most, calls and outcomes: bounds memory, and how long others wait.
DRAIN = 2_000
#: Seconds between two looks at things that are nobody's news.
HOUSEKEEPING = 5.0
#: Seconds between two attempts to write when the store cannot.
STORE_RETRY = 0.2
#: Seconds without news after which the store's journal is brought into its tables, and how many
#: rows of it at once, or those of a whole turn: whoever comes then waits for some milliseconds.
QUIET = 0.05
CATCH_UP = 500
#: Seconds that a confirmation nobody waits for is held back, to travel with other news.
LAZY = 0.005
#: Seconds between two looks for files that nobody needs.
SWEEP = 600.0
#: Seconds after which such a file is certainly not on its way any more.
LONG_AGO = 86_400.0
#: Ended tasks that are dropped in one turn, so that nobody waits for it.
EXPIRE = 1_000
#: Seconds that a broker just killed may hold its lock.
LOCK_PATIENCE = 5.0
#: Bytes after which what a peer is told goes on in another batch: no peer takes a batch of over
#: `HEADER_LIMIT`, and all of it lies in our memory.
PARCEL = 8 * 1024 * 1024
#: Events of a task that are read at once to be told again.
PAGE = 100
#: Times that one peer is told no until the next look around: who does not listen shall fill neither
#: our memory nor the log.
REFUSALS = 20


class StoredFacts:
    """The store, as the scheduler asks it (`core.tasks.Archive`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, task_id: str) -> Row | None:
        return self._store.find(task_id)

    def policy_of(self, digest: bytes) -> tuple[str, Policy] | None:
        found = self._store.functions.definition(digest)
        return None if found is None else (found[0].name, found[0].policy)

    def definition_named(self, name: str) -> bytes | None:
        return self._store.functions.definition_named(name)

    def revoked(self) -> list[str]:
        return self._store.revoked()


class Server:
    """A broker on its runtime directory.

    Parameters
    ----------
    runtime
        The cluster's runtime directory.
    settings
        What the cluster was started with.
    parent
        A descriptor that reads end-of-file when the supervisor is gone, or None.
    """

    def __init__(self, runtime: Path, settings: Settings, parent: int | None = None) -> None:
        self.runtime, self.settings = runtime, settings
        self.store = Store(Path(settings.data) / STORE_FILE, settings.durability)
        self.instance = secrets.token_bytes(8)
        self.started = now()
        self.scheduler = Scheduler(
            StoredFacts(self.store),
            first_ticket=self.store.first_ticket(self.started),
            first_seq=self.store.last_seq(),
        )
        self.questions = Questions(
            self.scheduler, self.store, settings, self.carry_out, self._facts
        )
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        bound = sockets.bind(self.context, runtime)
        self.socket = bound.socket
        self._gatekeeper = bound.gatekeeper
        self.parent = parent
        self.running = True
        self._waker, self._wake_up = socket.socketpair()
        self._waker.setblocking(False)
        self._wake_up.setblocking(False)
        #: Has large pieces reach the disk; None where that is not promised.
        self._disk: Disk | None = None
        if settings.durability == "full":
            self._disk = Disk(Path(settings.data) / SEGMENTS, self._ring)
        #: (client, batch) → the wish to the disk that must be fulfilled before it is accepted.
        self._unkept: dict[tuple[bytes, int], int] = {}
        #: The same of those that are accepted but for that.
        self._awaits_disk: dict[tuple[bytes, int], int] = {}
        self._for_supervisor: list[Any] = []
        #: Confirmations held back, and when they must go (boot clock).
        self._lazy: dict[bytes, list[Any]] = {}
        self._lazy_until = 0.0
        #: How often each peer was told no since the last look around.
        self._refusals: dict[bytes, int] = {}
        self.store_failed_at: float | None = None
        self._next_look = self._next_sweep = self._next_catch_up = self.started.boot
        self._next_burial = self.started.boot
        #: Processes that have said Hello and were alive when we looked last.
        self._pids: set[int] = set()
        #: Whether dead processes may have left files that we never heard of.
        self._deaths = True
        #: Whether the last poll brought nothing.
        self._quiet = False
        self._busy_at = self.started.boot
        self.scheduler.restore(self.store.open_tasks(self.started), self.started)
        self.carry_out(self.started)
        #: What peers find in the connection file.
        self._connection = Connection(
            instance=self.instance.hex(),
            endpoint=bound.endpoint,
            broker_pid=os.getpid(),
            supervisor_pid=os.getppid(),
            started_at=self.started.wall,
            server_key=bound.server_key,
            client_public=bound.client_public,
            client_secret=bound.client_secret,
            server_secret=bound.server_secret,
        )
        #: Whether we have asked to be stopped.
        self._leaving = False
        self._introduce()

    def _introduce(self) -> None:
        """Write down who is serving, as soon as the disk has room for it: peers look there."""
        while True:
            try:
                return write_connection(self.runtime, self._connection)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                log.error("cannot write the connection file: %s", error)
            time.sleep(STORE_RETRY)

    def _introduce_again(self) -> None:
        """Be found again if somebody has spoilt or removed a file; those who stop have none."""
        # Where the directory was removed, and there is one again, it is another cluster's.
        ours = locks.holder(self.runtime / SUPERVISOR_LOCK) == self._connection.supervisor_pid
        if self._leaving or self.scheduler.stopping or not ours:
            return
        try:
            if read_connection(self.runtime) != self._connection:
                log.warning("the connection file was spoilt or removed; writing it again")
                write_connection(self.runtime, self._connection)
            is_ipc = self._connection.endpoint.startswith("ipc:")
            if is_ipc and not (self.runtime / SOCKET_FILE).exists():
                log.warning("the file of the socket was removed; making it again")
                sockets.bind_again(self.socket, self.runtime)
        except (OSError, zmq.ZMQError) as error:  # a full disk, for one
            log.error("nobody can find this broker: %s", error)

    # -------------------------------------------------------------------------------- the loop

    def serve(self) -> None:
        """Serve until told to stop."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self._wake_up.fileno(), zmq.POLLIN)
        if self.parent is not None:
            poller.register(self.parent, zmq.POLLIN)
        while self.running:
            ready = dict(poller.poll(self._patience()))
            if self._wake_up.fileno() in ready:
                self._wake_up.recv(4096)
            if self.parent in ready and not os.read(self.parent or 0, 1):
                log.info("the supervisor is gone")
                self.running = False  # but what it said last still counts
            self.turn(now())
            self._quiet = not ready
            if self._quiet:
                self._catch_up(now())

    def obey_signals(self) -> None:
        """Leave in an orderly way on SIGTERM; ignore SIGINT, which is the notebook's."""

        def leave(*_: object) -> None:
            self.running = False

        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A signal does not end a poll, but this does.
        signal.set_wakeup_fd(self._waker.fileno())

    def _ring(self) -> None:
        """End a poll, from another thread."""
        with contextlib.suppress(BlockingIOError):  # full: it rings already
            self._waker.send(b"\0")

    def _patience(self) -> int:
        """Return the milliseconds until something is to be done without a message."""
        instant = now()
        wait = self.scheduler.next_wakeup(instant)
        look = max(self._next_look - instant.boot, 0.0)
        wait = look if wait is None else min(wait, look)
        if self.store_failed_at is not None:
            wait = min(wait, STORE_RETRY)
        if self._lazy:
            wait = min(wait, max(self._lazy_until - instant.boot, 0.0))
        if self._disk is not None and (until := self._disk.wait(instant.boot)) is not None:
            wait = min(wait, until)
        if self.store.behind and instant.boot >= self._next_catch_up:
            wait = 0.0 if self._quiet else min(wait, QUIET)
        return int(wait * 1000 + 0.999)

    def turn(self, instant: Now) -> None:
        """Take in what has come, decide, save, send."""
        questions: list[tuple[bytes, Ask]] = []
        room = DRAIN
        while room > 0 and sockets.has_news(self.socket):
            peer, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            room -= self._take_in(peer, parts, instant, questions)
        looks = instant.boot >= self._next_look
        if looks:
            self._look_around(instant)
        self.scheduler.tick(instant)
        self.carry_out(instant)
        if looks:  # only now: what expires may have been told to run again
            self._tidy(instant)
        if self._deaths and instant.boot >= self._next_burial:
            self._bury(instant)
        self._tell_supervisor()
        if self._disk is not None:
            self._disk.begin(instant.boot)
        self._accept_what_is_kept()
        self._send_held_back(instant)
        for peer, question in questions:
            self._post({peer: [self.questions.answer(question, instant)]})

    def _take_in(
        self, peer: bytes, parts: list[bytes], instant: Now, questions: list[tuple[bytes, Ask]]
    ) -> int:
        """Take a batch in; return how much that was."""
        try:
            instance, messages, buffers = unpack_to_broker(parts)
        except ProtocolError as error:
            self._refuse(peer, str(error))
            return 1
        if instance != self.instance and not isinstance(messages[0] if messages else None, Hello):
            self._refuse(peer, STRANGER)
            return 1
        if self._disk is not None and self.scheduler.role_of(peer):
            self._keep(self._disk, peer, messages, buffers, instant)
        frames = iter(buffers)
        much = len(messages)
        for kind, alike in groupby(messages, type):
            some = list(alike)
            if kind is Hello:
                if not all(self._greet(peer, hello, instant) for hello in some):
                    break
            elif kind is Ask and self.scheduler.role_of(peer) == "client":
                questions.extend((peer, question) for question in some)
            elif self.store_failed_at is not None and kind in (Define, Submit):
                take(frames, sum(message.frames for message in some))  # they will come again
            else:
                self.scheduler.receive_alike(peer, some, instant, frames)
                if kind is Submit:
                    much += sum([len(submit.calls) for submit in some])
        return much

    def _greet(self, peer: bytes, hello: Hello, instant: Now) -> bool:
        """Make a peer known, and welcome it before it hears anything else; False: we are unlike."""
        if why := self._unlike(hello):
            self._refuse(peer, why)
            return False
        mail = self.scheduler.turn.mail[peer]
        before = len(mail)
        self.scheduler.receive(peer, hello, instant)
        if self.scheduler.role_of(peer) == hello.role:
            self._pids.add(hello.pid)
            mail.insert(before, Send(Welcome(self.instance, self.store.name), free=True))
        return True

    def _tell_supervisor(self) -> None:
        """Say what there was to say to the supervisor before it was known."""
        if self._for_supervisor and (peer := self.scheduler.supervisor):
            waiting, self._for_supervisor = self._for_supervisor, []
            self._post({peer: waiting})

    def _keep(
        self,
        disk: Disk,
        peer: bytes,
        messages: list[Any],
        buffers: list[Buffer],
        instant: Now,
    ) -> None:
        """Have the files reach the disk that a batch refers to."""
        submits = [message for message in messages if type(message) is Submit]
        if buffers and (names := [name for b in buffers if (name := segments.name_in(b))]):
            wish = disk.keep(names, instant.boot)
            for submit in submits:
                self._unkept[peer, submit.batch] = wish
        if any(submit.urgent for submit in submits):
            disk.hurry()

    def _accept_what_is_kept(self) -> None:
        """Confirm the batches whose large pieces have reached the disk meanwhile."""
        if self._awaits_disk and self._disk is not None:
            through = self._disk.through
            for key in [key for key, wish in self._awaits_disk.items() if wish <= through]:
                del self._awaits_disk[key]
                self._sync()
                self._send(key[0], [Accepted((key[1],))], [])

    def _without_unkept(self, peer: bytes, accepted: Accepted) -> Accepted:
        """Put those batches aside that are saved, but whose large pieces are not yet."""
        for batch in accepted.batches:
            wish = self._unkept.pop((peer, batch), 0)
            if self._disk is not None and wish > self._disk.through:
                self._awaits_disk[peer, batch] = wish
        return Accepted(
            tuple(batch for batch in accepted.batches if (peer, batch) not in self._awaits_disk)
        )

    def _refuse(self, peer: bytes, why: str) -> None:
        """Say no to a peer, a few times."""
        refusals = self._refusals[peer] = self._refusals.get(peer, 0) + 1
        if refusals > REFUSALS:
            return
        if why != STRANGER:
            log.warning("refused %s: %s", peer.hex(), why)
        self.scheduler.turn.say(peer, Send(Refused(why), free=True))

    def _facts(self, instant: Now) -> dict[str, Any]:
        """Return what `status` tells of this process."""
        return {
            "broker_pid": os.getpid(),
            "supervisor_pid": os.getppid(),
            "instance": self.instance.hex(),
            "uptime": instant.boot - self.started.boot,
            "store_failing": self.store_failed_at is not None,
        }

    def _unlike(self, hello: Hello) -> str:
        """Return why a peer cannot be served, or nothing."""
        mine = platform.python_version()
        if hello.python.split(".")[:2] == mine.split(".")[:2]:
            return ""
        return (
            f"{hello.name} runs Python {hello.python}, this cluster Python {mine}. Functions do "
            f"not travel between minor versions. Start a cluster of its own with start(dir=...), "
            f"or stop this one first."
        )

    # ------------------------------------------------------------------------------ doing it

    def carry_out(self, instant: Now) -> None:
        """Save all that is to be saved, in one transaction; then send."""
        turn = self.scheduler.turn
        if not turn.saves or self._save(turn, instant):
            self.scheduler.committed()
            self._post(turn.mail, turn.absent)
        else:
            self._post(turn.take_free())

    def _save(self, turn: Turn, instant: Now) -> bool:
        """Save all that is to be saved; return whether the store could."""
        failed_at = self.store_failed_at
        if failed_at is not None and instant.boot - failed_at < STORE_RETRY:
            return False
        try:
            self.store.commit(turn, instant)
        except StoreCorrupt:
            raise
        except ClusterError as error:
            if failed_at is None:
                log.error("the store cannot write: %s", error)
            self.store_failed_at = instant.boot
            return False
        if failed_at is not None:
            log.info("the store can write again")
        self.store_failed_at = None
        replaced = self.store.payloads.replaced
        if replaced and self._disk is not None:
            self._sync()
            self._disk.drop(replaced, instant.boot)
            replaced.clear()
        return True

    def _post(self, mail: dict[bytes, list[Any]], absent: Sequence[int] = ()) -> None:
        """Send, one multipart message a peer; `absent` calls are read for that, all at once."""
        calls = self.store.calls(absent) if absent else {}
        role_of = self.scheduler.role_of
        # A worker may begin before the disk has the call: who could tell dies with the same power.
        for peer in sorted(mail, key=lambda peer: role_of(peer) != "worker"):
            if not peer:
                self._for_supervisor += mail[peer]
                continue
            for messages, payload in self._made_ready(peer, mail[peer], calls):
                if role_of(peer) != "worker":
                    self._sync()
                self._send(peer, self._lazy.pop(peer, []) + messages, payload)

    def _made_ready(
        self, peer: bytes, said: list[Any], calls: dict[int, tuple[Call, tuple[Any, ...]]]
    ) -> Iterator[tuple[list[Any], list[Buffer]]]:
        """Yield the messages for a peer with their payload, not too much that is read at once.

        What may wait is put aside.
        """
        messages: list[Any] = []
        payload: list[Buffer] = []
        size = 0
        for each in said:
            if type(each) is not Send:
                messages.append(each)
                continue
            message = each.message
            if self._unkept and type(message) is Accepted:
                message = self._without_unkept(peer, message)
                if not message.batches:
                    continue
            if each.lazy:
                self._hold_back(peer, message)
            elif each.task is None and each.replay is None and not each.fetch:
                messages.append(message)
                payload.extend(each.buffers)
            else:
                for found, buffers in self._look_up(each, calls):
                    messages.append(found)
                    payload.extend(buffers)
                    size += size_of(found, buffers)
                    if size > PARCEL:
                        yield messages, payload
                        messages, payload, size = [], [], 0
        if messages:
            yield messages, payload

    def _sync(self) -> None:
        """Let what was saved reach the disk; where that fails, nobody hears anything meanwhile."""
        while True:
            try:
                return self.store.sync()
            except StoreCorrupt:
                raise
            except ClusterError as error:
                if not self.running:
                    raise
                log.error("the disk does not keep the store: %s", error)
            time.sleep(STORE_RETRY)

    def _hold_back(self, peer: bytes, message: Any) -> None:
        """Keep a confirmation until there is other news for its peer, or for a moment.

        A send costs more than all else that happens to a task that travels alone.
        """
        if not self._lazy:
            self._lazy_until = boot() + LAZY
        self._lazy.setdefault(peer, []).append(message)

    def _send_held_back(self, instant: Now) -> None:
        if self._lazy and instant.boot >= self._lazy_until:
            held, self._lazy = self._lazy, {}
            self._sync()
            for peer, messages in held.items():
                self._send(peer, messages, [])

    def _look_up(
        self, send: Send, calls: dict[int, tuple[Call, tuple[Any, ...]]]
    ) -> Iterable[tuple[Any, Sequence[Buffer]]]:
        """Return the messages that a Send stands for, with their payload frames, from the store."""
        message, task = send.message, send.task
        if send.replay is not None:
            return self._replay(message, *send.replay)
        if send.fetch:
            found = self.store.functions.definition(send.fetch)
            return [] if found is None else [found]
        assert task is not None
        if task.seq not in calls:
            log.warning("the call of task %s is not in the store", task.id)
            self.scheduler.attempts.lacks(message.ticket, task, now())
            self._ring()  # what that has changed is the next turn's
            return []
        call, buffers = calls[task.seq]
        task.options = call.options
        return [(msgspec.structs.replace(message, call=call_now(call, task)), buffers)]

    def _replay(
        self, message: Replayed, seq: int, after: int
    ) -> Iterator[tuple[Any, Sequence[Buffer]]]:
        """Yield what happened to a task after event number `after`, read some at a time."""
        last, final, more = after, False, True
        while more:
            some = self.store.events(seq, last, PAGE)
            yield from some
            more = len(some) >= PAGE  # about so many: the first event may come on top
            if more:
                last = some[-1][0].n
            for event, _ in some:
                final = event.final or (final and event.kind != "again")
        if message.phase == DONE and after < message.n and not final:
            # Nothing was kept of its end, but over it is.
            row = self.store.find(message.id)
            at = now().wall if row is None or row.ended_at is None else row.ended_at
            yield Event(message.id, message.n, at, "end", final=True), ()
        yield message, ()

    def _send(self, peer: bytes, messages: list[Any], buffers: list[Buffer]) -> None:
        frames = [peer, *pack(self.instance, messages, buffers)]
        if len(frames[2]) > PARCEL and len(messages) > 1:
            # Many turns may have come together while the store could not write.
            half = len(messages) // 2
            first = sum(message.frames for message in messages[:half])
            self._send(peer, messages[:half], buffers[:first])
            self._send(peer, messages[half:], buffers[first:])
            return
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=sockets.must_copy(buffers))
        except zmq.ZMQError as error:
            # It has gone; whatever was in here is in the store, and told again when it asks.
            log.debug("cannot reach %s: %s", peer.hex(), error)

    # ------------------------------------------------------------------------------ now and then

    def _look_around(self, instant: Now) -> None:
        """Notice clients that are gone, and leave when nobody is here."""
        self._next_look = instant.boot + HOUSEKEEPING
        self._refusals.clear()
        living = set(filter(alive, self._pids))
        self._deaths |= living != self._pids
        self._pids = living
        clients = self.scheduler.clients
        for peer, hello in list(clients.items()):
            if hello.pid not in living:
                self.scheduler.gone(peer, instant)
        self._unkept = {key: wish for key, wish in self._unkept.items() if key[0] in clients}
        self._introduce_again()
        if self.scheduler.clients or self.scheduler.tasks:
            self._busy_at = instant.boot
        elif instant.boot - self._busy_at > self.settings.idle_timeout:
            log.info("idle for %.0f s", self.settings.idle_timeout)
            # Whoever looks for us from now on starts anew; who came before was taken note of.
            (self.runtime / CONNECTION_FILE).unlink(missing_ok=True)
            self._leaving = True
            self.scheduler.turn.say(self.scheduler.supervisor, Stop())

    def _catch_up(self, instant: Now) -> None:
        """Use a quiet moment to bring some of the store's journal into its tables."""
        try:
            self.store.settle(CATCH_UP)
            self.store.sync()  # so that files go which nobody needs
        except StoreCorrupt:
            raise
        except ClusterError as error:
            self._next_catch_up = instant.boot + HOUSEKEEPING
            log.warning("cannot tidy up: %s", error)

    def _tidy(self, instant: Now) -> None:
        """Drop results that have been kept long enough, and give disk space back: a little each."""
        kept = self.settings.result_expires
        try:
            # What is not saved yet may need what has expired; and while nothing is taken in, files
            # may be older than their calls.
            saved = self.store_failed_at is None
            more = False
            if saved and kept is not None:
                more = self.store.expire(instant.wall - kept, EXPIRE) >= EXPIRE
            if self.store.shrink() or more:
                self._next_look = 0.0
            if saved and instant.boot >= self._next_sweep:
                self._next_sweep = instant.boot + SWEEP
                self.store.payloads.sweep(instant.wall - LONG_AGO)
                if kept is not None:
                    for digest in self.store.expire_functions(instant.wall - kept):
                        self.scheduler.pool.forget(digest)
        except StoreCorrupt:
            raise
        except ClusterError as error:
            log.warning("cannot tidy up: %s", error)

    def _bury(self, instant: Now) -> None:
        """Unlink what the dead have written and never spoken of: all they have said is saved."""
        self._next_burial = instant.boot + HOUSEKEEPING
        if self.store_failed_at is not None:
            return
        try:
            self._deaths = self.store.payloads.sweep_after_dead()
        except StoreCorrupt:
            raise
        except ClusterError as error:
            log.warning("cannot tidy up: %s", error)

    def close(self) -> None:
        """Let go of socket and store."""
        if self._disk is not None:
            self._disk.close()
        self.socket.close()
        if self._gatekeeper is not None:
            self._gatekeeper.stop()
        self.context.term()
        self.store.close()
        self._waker.close()
        self._wake_up.close()


def size_of(message: Any, buffers: Sequence[Buffer]) -> int:
    """Return about how many bytes a message takes that was read from the store."""
    size = sum(map(len, buffers))
    return size + message.size if type(message) is Event else size


def lock(runtime: Path) -> int:
    """Return a descriptor that holds the lock of the one living broker of a runtime directory.

    A second bind on a live ipc path succeeds and steals it, so the lock comes before the bind.
    """
    path = runtime / "broker.lock"
    descriptor = locks.acquire(path, LOCK_PATIENCE)
    if descriptor is None:
        raise ClusterError(
            f"Another broker (pid {locks.holder(path)}) serves {runtime}. "
            f"Stop it first: nbtasks stop."
        )
    return descriptor
