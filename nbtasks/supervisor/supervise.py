"""Keep one broker and the wanted number of workers alive, until told to stop.

                 SIGCHLD, SIGTERM                      zmq (ipc)
    kernel ───────▶ wake-up pipe ───▶ ┌────────────┐ ◀──────────── broker: Welcome Kill Scale Stop
                                      │ Supervisor │
    broker, workers ◀── spawn, kill ──└────────────┘ ────────────▶ broker: Hello Died Pool Bye

One thread, one poll. A child's end arrives as SIGCHLD within a fraction of a millisecond, never by
a time-out; so does its freezing (SIGSTOP). What is due at a time (the end of a grace, the next try
after a failed start) stands in `_timers`.

A dead broker is replaced at once, and greeted on a new socket: whatever the old one had been told
and may not have saved is told again (`_deaths`). A dead worker's cell says what it had begun; the
cell is kept until the broker has had ample time to save the death, so that it survives even if all
of us are killed now: the next supervisor finds the cell and tells the next broker.

When this process dies, its children see the end of their standard input and go.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from heapq import heappop, heappush
from math import ceil
from pathlib import Path
from typing import Any

import zmq

from nbtasks.core.messages import Bye, Died, Hello, Kill, Pool, Refused, Scale, Stop, Welcome
from nbtasks.supervisor import limits, sweep
from nbtasks.supervisor.children import ENDING, Child, Exit, News, tail
from nbtasks.supervisor.crew import Crew, Worker
from nbtasks.wire import cell, frames, locks, sockets
from nbtasks.wire.connection import (
    CONNECTION_FILE,
    EXIT_BUSY,
    EXIT_CONFIG,
    FAILED_FILE,
    SETTINGS_FILE,
    SOCKET_FILE,
    SUPERVISOR_LOCK,
    boot,
    read_connection,
    write_private,
)
from nbtasks.wire.memory import resident

#: Why workers cannot start, for whoever asks; gone when one can.
TROUBLE_FILE = "trouble.txt"

#: Seconds after which a broker that lives has saved what it was told of a death.
SAVED = 30.0

#: Seconds after which a start that the system refused (no memory, no processes) is tried again.
RETRY = 1.0

#: Lines of what a task has printed that are told when its process died.
LAST_LINES = 12

#: Seconds between two looks whether a broker that does not answer serves at another place.
SEEK = 0.2

#: Seconds between two looks at whether the runtime directory still exists.
LOOK = 5.0

#: Orderly stop, seconds: for what runs to end, after SIGTERM, after SIGKILL, and for the broker
#: after the end of its input and after SIGTERM. Together under three.
FINISH, TERM, GONE, BROKER_BYE, BROKER_TERM = 0.4, 0.6, 0.5, 0.5, 0.5


def note(text: str) -> None:
    """Write a line to the log, if the disk has room for it."""
    with suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


class Link:
    """The supervisor's connection to one run of the broker."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], runtime: Path) -> None:
        self.socket = sockets.dealer(context, runtime, sockets.identity("supervisor"))
        self.instance = b""

    def send(self, *messages: Any) -> None:
        with suppress(zmq.ZMQError):
            parts = frames.pack_to_broker(self.instance, messages)
            self.socket.send_multipart(parts, zmq.DONTWAIT)

    def receive(self) -> list[Any]:
        """Return all messages that have come."""
        received: list[Any] = []
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return received
            try:
                self.instance, messages, _ = frames.unpack_from_broker(parts)
                received += messages
            except frames.ProtocolError as error:
                note(f"The broker said something that cannot be read: {error}")

    def close(self, linger: int = 0) -> None:
        self.socket.close(linger)


class Supervisor:
    """The only parent: what is not its child is not part of the cluster."""

    def __init__(self, crew: Crew, clock: Callable[[], float] = boot) -> None:
        self.crew = crew
        self.children = crew.children
        self.runtime = Path(crew.runtime)
        self.clock = clock
        self.exit_code = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._wakeup = self._catch_signals()
        self._poller.register(self._wakeup, zmq.POLLIN)
        self._link: Link | None = None
        self._welcome = False
        self._stop: Stop | None = None
        #: Whether the broker has told the workers to go, too.
        self._told_by_broker = False
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._born: dict[int, float] = dict.fromkeys(self._pids(), clock())
        self._frozen: dict[int, float] = {}
        self._worker_starts = limits.Backoff()
        self._broker_starts = limits.Backoff()
        self._failed_brokers = 0
        self._pending_workers = 0
        #: Workers that run a call with a memory limit.
        self._limited: set[Worker] = set()
        #: Pid → what the run had taken that was ended for its memory limit, bytes.
        self._taken: dict[int, int] = {}
        #: Processes that we have killed and that are not gone yet.
        self._destroyed: set[int] = set()
        #: Name → why we ended a process.
        self._reasons: dict[str, str] = {}
        #: Deaths that a broker may still have to be told of, and when this one was told.
        self._deaths: dict[str, tuple[Died, float | None]] = {}

    # ------------------------------------------------------------------------------------ life

    def serve(self) -> int:
        """Run until told to stop; return the exit code."""
        limits.become_subreaper()
        self._look()
        self._greet()
        self._report_leftovers()
        self._reap()
        self._fill()
        self._find_limited()
        while self._stop is None:
            self._turn(self._until_next_timer())
        self._shut_down()
        self._context.destroy(0)
        return self.exit_code

    def _turn(self, timeout: float) -> None:
        """Wait for news, for `timeout` seconds at most, and act on all there are."""
        self._poller.poll(max(0, ceil(timeout * 1000)))
        self._read_signals()
        self._reap()
        if self._link is not None:
            for message in self._link.receive():
                self._obey(message)
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            heappop(self._timers)[2]()

    def _until_next_timer(self) -> float:
        return self._timers[0][0] - self.clock() if self._timers else LOOK

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heappush(self._timers, (self.clock() + seconds, next(self._order), action))

    def _catch_signals(self) -> int:
        """Return a descriptor that becomes readable when a signal has come."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGURG, *ENDING):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        return reading

    def _read_signals(self) -> None:
        with suppress(BlockingIOError):
            numbers = os.read(self._wakeup, 4096)
            if signal.SIGURG in numbers:
                self._find_limited()
            # Not on SIGINT: that is the notebook's, whatever group it reaches.
            if self._stop is None and signal.SIGTERM in numbers:
                note("Told to stop by a signal.")
                self._stop = Stop()

    def _look(self) -> None:
        """End when our directory is gone: nobody can ever reach this cluster again."""
        if not self._is_in_place():
            self._vanish()
        if _is_gone(self.runtime / SETTINGS_FILE):
            self._stop = Stop()
        lock = self.runtime / SUPERVISOR_LOCK
        if not locks.is_held(lock):
            # Somebody has removed the file, and a second supervisor could begin.
            with suppress(OSError):
                locks.acquire(lock)
        elif locks.holder(lock) not in (0, os.getpid()):
            self._vanish()  # it has begun
        self._drop_old_deaths()
        self._after(LOOK, self._look)

    def _is_in_place(self) -> bool:
        """Whether our directory is where others look for it."""
        try:
            there = self.runtime.stat()
        except OSError:
            return not _is_gone(self.runtime)
        place = self.crew.place
        return place is None or os.path.samestat(os.fstat(place), there)

    def _vanish(self) -> None:
        """End at once and touch no file: what lies in our place now, or soon, is another's."""
        # Workers first: they would go over to the next broker there. Ours last, and not in an
        # orderly way: it would take away the socket of its name.
        for child in (*self.crew.workers.values(), self.crew.broker):
            if child is not None:
                self.children.kill(child, signal.SIGKILL)
        os._exit(0)  # the undertaker sees to the rest

    # ---------------------------------------------------------------------------------- broker

    def _greet(self) -> None:
        """Introduce ourselves to the broker that was started last."""
        if self._link is not None:
            self._poller.unregister(self._link.socket)
            self._link.close()
            self._link = None
        self._welcome = False
        if sockets.transport(self.runtime) == "tcp" and not sockets.tcp_connection(self.runtime):
            self._after(0.02, self._greet)  # there is no address yet
            return
        self._link = Link(self._context, self.runtime)
        self._poller.register(self._link.socket, zmq.POLLIN)
        self._after(SEEK, self._greet_where_it_is)
        self._deaths = {name: (died, None) for name, (died, _) in self._deaths.items()}
        self._link.send(
            Hello(
                role="supervisor",
                name=f"{os.getpid()}@{os.uname().nodename}",
                pid=os.getpid(),
                python=".".join(map(str, sys.version_info[:3])),
                workers=tuple(self.crew.workers),
            )
        )

    def _greet_where_it_is(self) -> None:
        """Introduce ourselves anew to a broker that serves elsewhere than the former one did."""
        if self._welcome or self._link is None:
            return
        if sockets.has_moved(self._link.socket, self.runtime):
            self._greet()
        else:
            self._after(SEEK, self._greet_where_it_is)

    def _obey(self, message: Any) -> None:
        match message:
            case Welcome():
                self._welcome = True
                self._failed_brokers = 0
                self._tell_deaths()
                self._tell_pool()
            case Kill():
                self._kill(message)
            case Scale():
                self._scale(message)
            case Stop():
                note("Told to stop by the broker.")
                self._stop = message
                self._told_by_broker = True
            case Refused():
                note(f"The broker refuses the supervisor: {message.reason}")

    def _tell_pool(self) -> None:
        if self._welcome and self._link is not None:
            crew = self.crew
            leaving = tuple(crew.leaving & crew.workers.keys())
            self._link.send(Pool(tuple(crew.workers), crew.wanted, crew.extra, leaving))

    def _tell_deaths(self) -> None:
        untold = [died for died, told in self._deaths.values() if told is None]
        if untold and self._welcome and self._link is not None:
            self._link.send(*untold)
            now = self.clock()
            self._deaths.update((died.name, (died, now)) for died in untold)

    def _drop_old_deaths(self) -> None:
        now = self.clock()
        for name, (_, told) in list(self._deaths.items()):
            if told is not None and now - told > SAVED:
                del self._deaths[name]
                with suppress(FileNotFoundError):
                    os.unlink(self.crew.cell(name))

    def _restart_broker(self) -> None:
        if self._stop is not None:
            return
        try:
            child = self.crew.start_broker()
        except OSError as error:
            note(f"No broker can be started: {error}. Trying again in {RETRY:g} s.")
            self._after(RETRY, self._restart_broker)
            return
        self._born[child.pid] = self.clock()
        self._greet()

    def _broker_died(self, exit_: Exit, lived: float) -> None:
        self.crew.broker = None
        self._welcome = False
        if self._stop is not None:
            return
        served = self._served(exit_.child)
        note(f"The broker {describe(exit_.code)} after {lived:.1f} s.")
        if exit_.code in (EXIT_BUSY, EXIT_CONFIG):
            self._give_up("The broker will not start.", exit_)
            return
        self._failed_brokers = (
            0 if served or exit_.code == -signal.SIGKILL else self._failed_brokers + 1
        )
        if self._failed_brokers >= limits.BROKER_TRIES:
            self._give_up(
                f"The broker {describe(exit_.code)} before it served, "
                f"{self._failed_brokers} times in a row.",
                exit_,
            )
            return
        # A broker that was killed from outside did nothing wrong; one that crashes after it has
        # served might crash over the same thing at once.
        wait = self._broker_starts.died(lived, useful=served and exit_.code == -signal.SIGKILL)
        if wait:
            self._after(wait, self._restart_broker)
        else:
            self._restart_broker()

    def _served(self, broker: Child) -> bool:
        connection = read_connection(self.runtime)
        return connection is not None and connection.broker_pid == broker.pid

    def _give_up(self, what: str, exit_: Exit) -> None:
        """Stop for good and leave the reason for whoever waits for us, or comes later."""
        path = self.runtime / FAILED_FILE
        if not path.exists():
            log = tail(exit_.child.log)
            reason = f"{what} The last lines of {exit_.child.log}:\n{log}" if log else what
            with suppress(OSError):
                write_private(path, reason.encode())
        note(f"{what} Giving up.")
        self.exit_code = EXIT_CONFIG
        self._stop = Stop()

    # --------------------------------------------------------------------------------- workers

    def _fill(self) -> None:
        """Start as many workers as are lacking."""
        while self._stop is None and self.crew.lacking > self._pending_workers:
            try:
                self._start_worker()
            except OSError as error:
                note(f"No worker can be started: {error}. Trying again in {RETRY:g} s.")
                self._after(RETRY, self._fill)
                return

    def _start_worker(self) -> None:
        worker = self.crew.start_worker()
        self._born[worker.pid] = self.clock()
        self._tell_pool()
        self._after(limits.SHORT_LIFE, partial(self._grown_up, worker))

    def _start_pending_worker(self) -> None:
        self._pending_workers -= 1
        self._fill()

    def _grown_up(self, worker: Worker) -> None:
        if self.children.alive(worker) and self._worker_starts.early:
            self._worker_starts = limits.Backoff()
            (self.runtime / TROUBLE_FILE).unlink(missing_ok=True)

    def _worker_died(self, exit_: Exit, lived: float) -> None:
        name = exit_.child.name
        self.crew.workers.pop(name, None)
        reading = self._reading(exit_.child) or cell.Reading(exit_.child.pid, 0, 0)
        remains = cell.remains(Path(self.crew.cell(name)))
        died = Died(
            name,
            exit_.child.pid,
            exit_.code,
            reading.started,
            reading.finished,
            exit_.peak_memory,
            self._taken.pop(exit_.child.pid, 0),
            remains.outcomes,
            last_words(remains.words, exit_) if exit_.code or reading.running else "",
            self._reasons.pop(name, ""),
            remains.sent,
        )
        self._deaths[name] = (died, None)
        self._tell_deaths()
        self._tell_pool()
        if exit_.code:
            note(f"{name} {describe(exit_.code)} after {lived:.1f} s.")
            with suppress(OSError):
                self.crew.drop_old_logs()
        else:
            with suppress(FileNotFoundError):
                os.unlink(exit_.child.log)
        ordered = exit_.child.pid in self._destroyed
        innocent = exit_.code == 0 or ordered or reading.started > 0
        wait = self._worker_starts.died(lived, useful=innocent)
        if exit_.code == -signal.SIGKILL:  # by a person, or by a system out of memory
            wait = min(wait, limits.KILLED_WAIT)
        if self._worker_starts.early == limits.TROUBLE:
            self._tell_trouble(exit_)
        if wait and self._stop is None:
            if self.crew.lacking > self._pending_workers:
                self._pending_workers += 1
                self._after(wait, self._start_pending_worker)
        else:
            self._fill()
        if exit_.code:
            self._end_left_by(name)

    def _end_left_by(self, name: str) -> None:
        """Kill what a dead worker has started and left behind."""
        if self._stop is not None:
            return
        try:
            sweep.end_all(sweep.WORKER, name)
        except OSError as error:
            note(f"What {name} has left cannot be ended: {error}. Trying again in {RETRY:g} s.")
            self._after(RETRY, lambda: self._end_left_by(name))

    def _restart_undertaker(self) -> None:
        if self._stop is not None:
            return
        try:
            self.crew.start_undertaker()
        except OSError as error:
            note(f"No undertaker can be started: {error}. Trying again in {RETRY:g} s.")
            self._after(RETRY, self._restart_undertaker)

    def _tell_trouble(self, exit_: Exit) -> None:
        killed = exit_.code == -signal.SIGKILL
        hint = ", often a sign of too little memory" if killed else ""
        text = (
            f"Workers cannot start: the last one {describe(exit_.code)}{hint}. "
            f"The last lines of {exit_.child.log}:\n{tail(exit_.child.log)}"
        )
        note(text)
        with suppress(OSError):
            write_private(self.runtime / TROUBLE_FILE, text.encode())

    def _scale(self, scale: Scale) -> None:
        """Have so many workers: start those lacking; the broker lets surplus ones go."""
        self.crew.extra = scale.extra
        self.crew.let_go(scale.leaving)
        try:
            self.crew.want(scale.workers)
        except (OSError, ValueError, TypeError) as error:  # or the file is not what it was
            note(f"The number of workers cannot be written down: {error}. It holds until we end.")
        self._fill()
        self._tell_pool()

    def _report_leftovers(self) -> None:
        """Tell of workers of a supervisor that was killed: their cells say how far they were."""
        with os.scandir(self.runtime / "cells") as entries:
            names = [entry.name for entry in entries if entry.name not in self.crew.workers]
        for name in names:
            reading = cell.read(Path(self.crew.cell(name)))
            if reading is None:
                with suppress(OSError):
                    os.unlink(self.crew.cell(name))
            elif limits.end_leftover(reading.pid, self.crew.runtime, name):
                outcomes = cell.remains(Path(self.crew.cell(name))).outcomes
                died = Died(
                    name, reading.pid, 0, reading.started, reading.finished, outcomes=outcomes
                )
                self._deaths[name] = (died, None)
        self._tell_deaths()
        if names:
            sweep.end_left_over(self.crew.runtime)

    # ---------------------------------------------------------------------------------- ending

    def _kill(self, kill: Kill) -> None:
        worker = self.crew.workers.get(kill.name)
        if worker is None:
            return
        number = getattr(signal, kill.signal, signal.SIGKILL)
        with self._frozen_if_it_runs(worker, kill.ticket) as runs:
            if runs and number == signal.SIGKILL:
                self._destroy(worker)
            elif runs:
                self.children.kill(worker, number)
                self._after(kill.grace, partial(self._kill_for_good, worker, kill.ticket))

    def _kill_for_good(self, worker: Worker, ticket: int) -> None:
        if self.children.alive(worker):
            with self._frozen_if_it_runs(worker, ticket) as runs:
                if runs:
                    self._destroy(worker)

    @contextmanager
    def _frozen_if_it_runs(self, worker: Worker, ticket: int) -> Iterator[bool]:
        """Say whether a worker runs this ticket (0: anything will do), and let it run no other.

        Between a look at the cell and the signal it could begin another call.
        """
        if ticket:
            self.children.freeze(worker)
        try:
            yield self._runs(worker, ticket)
        finally:
            if ticket:
                self.children.kill(worker, signal.SIGCONT)

    def _runs(self, worker: Worker, ticket: int) -> bool:
        """Return whether the worker runs this ticket (0: anything will do)."""
        reading = self._reading(worker)
        return not ticket or reading is None or reading.running == ticket

    def _destroy(self, child: Child) -> None:
        """Kill a child and all that it started, sessions of their own or not."""
        self._destroyed.add(child.pid)
        limits.end_descendants(child.pid)
        self.children.kill(child, signal.SIGKILL)

    def _replace_frozen(self, child: Child, since: float) -> None:
        if self._frozen.get(child.pid) == since and self.children.alive(child):
            why = f"stood still (SIGSTOP) for {limits.FROZEN:g} s and was killed"
            note(f"{child.name} {why}; it is replaced.")
            self._reasons[child.name] = why
            self._destroy(child)

    def _find_limited(self) -> None:
        """Look which workers run a call with a memory limit, and begin to watch these."""
        watching = bool(self._limited)
        self._limited.update(filter(self._limited_run, self.crew.workers.values()))
        if self._limited and not watching:
            self._check_memory()

    def _check_memory(self) -> None:
        """End the runs that have taken more memory than they may; come back while there are any."""
        for worker in list(self._limited):
            run = self._limited_run(worker)
            if run is None:
                self._limited.discard(worker)
            elif (taken := resident(worker.pid) - run.base) > run.limit:
                with self._frozen_if_it_runs(worker, run.running) as still_runs:
                    if still_runs:
                        self._taken[worker.pid] = taken
                        self._destroy(worker)
        if self._limited:
            self._after(limits.MEMORY_LOOK, self._check_memory)

    def _limited_run(self, worker: Worker) -> cell.Reading | None:
        """Return what the cell of a worker says, if it runs a call with a memory limit."""
        reading = self._reading(worker) if self.children.alive(worker) else None
        return reading if reading is not None and 0 < reading.running == reading.limited else None

    def _reading(self, worker: Child) -> cell.Reading | None:
        return cell.read(Path(self.crew.cell(worker.name)))

    def _reap(self) -> News:
        news = self.children.reap()
        for child in news.stopped:
            since = self._frozen[child.pid] = self.clock()
            self._after(limits.FROZEN, partial(self._replace_frozen, child, since))
        for child in news.continued:
            self._frozen.pop(child.pid, None)
        for exit_ in news.exits:
            self._frozen.pop(exit_.child.pid, None)
            lived = self.clock() - self._born.pop(exit_.child.pid, self.clock())
            if isinstance(exit_.child, Worker):
                self._worker_died(exit_, lived)
            elif exit_.child is self.crew.undertaker:
                self.crew.undertaker = None
                self._after(RETRY, self._restart_undertaker)
            else:
                self._broker_died(exit_, lived)
            self._destroyed.discard(exit_.child.pid)
        return news

    def _shut_down(self) -> None:
        """End everybody within three seconds: workers first, so that the broker hears of it."""
        # Without a connection file clients know that this end is meant: those that come now wait
        # for it and start anew, those that are there start nothing.
        (self.runtime / CONNECTION_FILE).unlink(missing_ok=True)
        workers = self.crew.workers
        if self._link is not None and self._welcome:
            # The broker lets them go, each after the call that it is running. A look at their cells
            # could come between two calls, and the signal in the midst of the second.
            if not self._told_by_broker:
                self._link.send(Stop())
            self._wait(FINISH, lambda: not workers)
        if not self.exit_code:  # or there is nobody left to hear what they come to
            self._wait(FINISH / 2, lambda: not any(map(self._busy, workers.values())))
            for worker in workers.values():
                self.children.kill(worker, signal.SIGTERM)
            self._wait(TERM, lambda: not workers)
        for worker in list(workers.values()):
            self._destroy(worker)
        self._wait(GONE, lambda: not workers)
        if self.crew.undertaker is not None:
            self.children.kill(self.crew.undertaker, signal.SIGKILL)
            self._wait(GONE, lambda: self.crew.undertaker is None)
        self._end_broker()
        if self.children.orphans():
            limits.end_descendants(os.getpid())
        # A broker that had just begun may have written another one.
        for file in (CONNECTION_FILE, SOCKET_FILE, TROUBLE_FILE):
            (self.runtime / file).unlink(missing_ok=True)
        note("Stopped.")

    def _end_broker(self) -> None:
        broker = self.crew.broker
        if broker is None:
            return
        if self._link is not None and self._welcome:
            self._link.send(Bye())
        # The end of its standard input is the word that no broker can miss.
        self.children.close()
        self._wait(BROKER_BYE, lambda: self.crew.broker is None)
        self.children.kill(broker, signal.SIGTERM)
        self._wait(BROKER_TERM, lambda: self.crew.broker is None)
        self.children.kill(broker, signal.SIGKILL)
        self._wait(GONE, lambda: self.crew.broker is None)

    def _busy(self, worker: Worker) -> bool:
        reading = self._reading(worker)
        return reading is not None and reading.running > 0

    def _wait(self, seconds: float, condition: Callable[[], bool]) -> None:
        """Go on hearing news until the condition holds, for `seconds` at most."""
        end = self.clock() + seconds
        while not condition() and self.clock() < end:
            self._poller.poll(20)
            self._read_signals()
            self._reap()

    def _pids(self) -> list[int]:
        broker = [self.crew.broker] if self.crew.broker else []
        return [child.pid for child in (*broker, *self.crew.workers.values())]


def _is_gone(path: Path) -> bool:
    """Return whether there is certainly nothing of this name."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # nobody can tell
        pass
    return False


def last_words(words: str, exit_: Exit) -> str:
    """Return what a process that died of its own or a stranger's doing said last, for people.

    What its task printed and logged, and then what only stands in its log: the words of C
    libraries, of programs, and Python's own where a signal ended it.
    """
    said = [line.rpartition("\r")[2] for line in words.rstrip().split("\n")]
    found = {
        "The last that it printed": "\n".join(filter(None, said[-LAST_LINES:])),
        "The end of its process's log (not all need be of it)": tail(exit_.child.log, lines=40),
    }
    return "\n".join(f"{title}:\n{text}" for title, text in found.items() if text)


def describe(code: int) -> str:
    """Return what an exit code means, for people."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
