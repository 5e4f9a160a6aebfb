"""Ask the broker what no event tells: places in the queue, why tasks wait, what tasks have sent.

    flusher thread ── follow(watch) ──▶ outlook thread: about once a second, for all panels at once,
                                          watch.want() ──▶ client.ask("outlook") ──▶ watch.learn()
                                        it sleeps while nobody wants to know anything

A question may take its time, so neither the user's thread nor the one that draws asks; but for
tasks that another process has sent, and that are to be told at once (`Watch.ask`). When the broker
is away the question is dropped and put again a second later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nbtasks.client import client

log = logging.getLogger("nbtasks.jupyter")

#: Seconds between two questions.
PERIOD = 1.0
#: Seconds before the first one: most tasks have ended by then.
PAUSE = 0.15
#: Ids of each kind in one question.
MOST = 100
#: Seconds to wait for an answer.
PATIENCE = 5.0

#: What is told of a task that the broker was asked to show: name, arguments as text.
Named = Mapping[str, tuple[str, str]]


class Wants(NamedTuple):
    """What one panel would like to know."""

    #: Ids of tasks that wait.
    waiting: list[str]
    #: Ids of tasks that may have sent others.
    parents: list[str]
    #: Ids of tasks of which only the id is known.
    nameless: list[str]
    #: Wall time at which there will be something to look at, or None.
    next: float | None

    @property
    def anything(self) -> bool:
        return bool(self.waiting or self.parents or self.nameless)


class Curious(Protocol):
    """The rows of a panel, as far as they want to know something."""

    @property
    def home(self) -> Path | None: ...

    def want(self, most: int) -> Wants | None: ...

    def learn(
        self, here: client.Client, answer: Mapping[str, Any], wants: Wants, named: Named
    ) -> None: ...


class Outlook:
    """The one thread that asks."""

    def __init__(self) -> None:
        self._curious: set[Curious] = set()
        self._awake = threading.Event()
        self._lock = threading.Lock()
        #: Held by whoever asks: what panels learn, they learn from one thread at a time.
        self._asking = threading.RLock()
        self._thread: threading.Thread | None = None

    def follow(self, curious: Curious) -> None:
        """Ask for this panel until it wants nothing more. Cheap, and callable from any thread."""
        if curious in self._curious:
            return
        with self._lock:
            self._curious.add(curious)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="nbtasks-outlook", daemon=True
                )
                self._thread.start()
        self._awake.set()

    def leave(self, curious: Curious) -> None:
        self._curious.discard(curious)

    def _run(self) -> None:
        pause: float | None = None
        while True:
            self._awake.wait(pause)
            self._awake.clear()
            time.sleep(PAUSE)
            try:
                pause = self.look()
            except Exception:
                log.exception("The outlook of the panels failed; the tasks go on.")
                pause = PERIOD
            time.sleep(PERIOD - PAUSE)

    def look(self) -> float | None:
        """Ask for all; return the seconds after which to ask again, None: when somebody comes."""
        with self._asking:
            wants = self._gather()
            homes = {curious.home for curious, want in wants.items() if want.anything}
            for home in homes:
                mine = {curious: want for curious, want in wants.items() if curious.home == home}
                ask(mine, home)
        if homes:
            return 0.0
        nexts = [want.next for want in wants.values() if want.next is not None]
        return max(0.0, min(nexts) - time.time()) if nexts else None

    def _gather(self) -> dict[Curious, Wants]:
        followed = list(self._curious)
        share = max(1, MOST // max(1, len(followed)))
        wants = {}
        for curious in followed:
            # First out, then perhaps in again: whoever comes in between is not lost.
            self._curious.discard(curious)
            want = curious.want(share)
            if want is not None:
                self._curious.add(curious)
                wants[curious] = want
        return wants


def ask(wants: Mapping[Curious, Wants], home: Path | None) -> None:
    """Put the questions of panels of one cluster together, and tell them the answer."""
    here = client_at(home)
    if here is None:
        return
    try:
        answer = here.ask(
            "outlook",
            timeout=PATIENCE,
            ids=several(want.waiting for want in wants.values()),
            parents=several(want.parents for want in wants.values()),
        )
        asked = several(want.nameless for want in wants.values())
        named = {task_id: shown(here, task_id) for task_id in asked}
    except Exception as error:  # the broker is away, or the client closed: it comes back, or not
        log.debug("The broker was not heard: %s", error)
        return
    for curious, want in wants.items():
        curious.learn(here, answer, want, named)


def several(lists: Iterable[list[str]]) -> list[str]:
    return [each for one in lists for each in one][:MOST]


def shown(here: client.Client, task_id: str) -> tuple[str, str]:
    """Return name and arguments of a task, or nothing of one that the broker does not know."""
    task = here.ask("show", timeout=PATIENCE, id=task_id)
    return (task.get("shown", task["name"]), task["summary"]) if task else ("", "")


def client_at(home: Path | None) -> client.Client | None:
    """Return the open client of a cluster."""
    return next((one for one in client.open_clients() if one.runtime == home), None)


def home_of(record: client.Record) -> Path | None:
    """Return the runtime directory of the cluster that a task is in."""
    here = client_of(record, None)
    return None if here is None else here.runtime


def client_of(record: client.Record, home: Path | None) -> client.Client | None:
    """Return the client that hears of a task, else that of a cluster; never start one."""
    with suppress(Exception):  # one that is being closed
        for one in client.open_clients():
            if one.hears_of(record):
                return one
    return client_at(home)


outlook = Outlook()
