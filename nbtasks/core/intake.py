"""How functions and calls come in."""

from __future__ import annotations

from collections.abc import Iterator
from sys import intern
from typing import Any

import msgspec

from nbtasks.core import states
from nbtasks.core.agenda import Agenda
from nbtasks.core.flow import Flow
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    Accepted,
    Call,
    Define,
    Lacking,
    Now,
    Replayed,
    Submit,
    take,
)
from nbtasks.core.orders import Orders
from nbtasks.core.states import WAITING
from nbtasks.core.tasks import Task
from nbtasks.core.turn import NewCall, Send
from nbtasks.core.workers import Workers


class Intake:
    """Makes tasks of calls.

    Parameters
    ----------
    ledger, agenda, pool
        What the scheduler's parts share.
    flow, orders
        Where tasks go from here, and who knows what was revoked before it came.
    seq
        The highest that was ever given.
    """

    def __init__(
        self, ledger: Ledger, agenda: Agenda, pool: Workers, flow: Flow, orders: Orders, seq: int
    ) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._pool = pool
        self._flow = flow
        self._orders = orders
        self.seq = seq
        #: To be confirmed at the end of the turn: batches, and whether somebody waits for it.
        self._accepted: dict[bytes, tuple[list[int], bool]] = {}

    def define(self, peer: bytes, define: Define, now: Now, buffers: Iterator[Any]) -> None:
        """Take in a function."""
        payload = take(buffers, define.frames)
        self._ledger.turn.definitions.append((define, payload))
        self._pool.define(define.digest, define.name, define.policy)

    def submit(self, peer: bytes, submit: Submit, now: Now, buffers: Iterator[Any]) -> None:
        """Take in calls: all of a batch, or nothing where a function is lacking."""
        named = {call.definition for call in submit.calls} - {b""}
        lacking = [digest for digest in named if self._pool.definition(digest) is None]
        if lacking:
            # All or nothing: the client defines them and says it all again.
            for call in submit.calls:
                take(buffers, call.frames)
            self._ledger.turn.say(peer, Lacking(tuple(sorted(lacking))))
            return
        tasks = self._ledger.tasks
        for call in submit.calls:
            payload = take(buffers, call.frames) if call.frames else ()
            if call.id in tasks:
                self._ledger.follow_open(peer, tasks[call.id], 0)
            elif submit.again and (row := self._ledger.find(call.id)) is not None:
                replayed = Replayed(row.id, True, row.n, row.phase)
                self._ledger.turn.say(peer, Send(replayed, replay=(row.seq, 0)))
            else:
                self.accept(peer, call, payload, now)
                continue
            if payload:
                self._ledger.turn.unwanted.extend(payload)
        batches, urgent = self._accepted.get(peer, ([], False))
        batches.append(submit.batch)
        self._accepted[peer] = (batches, urgent or submit.urgent)

    def accept(self, peer: bytes, call: Call, buffers: tuple[Any, ...], now: Now) -> None:
        """Make a task of a call."""
        ledger = self._ledger
        self.seq = seq = self.seq + 1
        if not call.definition and (digest := ledger.archive.definition_named(call.name)):
            call = msgspec.structs.replace(call, definition=digest)
        definition = self._pool.of(call)
        # One copy of each name: a hundred thousand calls bring as many.
        task = Task(
            seq, call.id, definition.digest, definition.name, peer,
            call.priority, intern(call.queue), WAITING, states.PENDING, 0, call.retries, 0,
            call.due, call.eta, call.expires, "", 0, None, "", None, call.options,
        )  # fmt: skip
        ledger.tasks[call.id] = task
        ledger.turn.calls[seq] = NewCall(call, task, now.wall, buffers)
        if self._orders.was_revoked(call.id):
            self._flow.end_by_broker(task, states.REVOKED, "TaskRevokedError", ["revoked"], now)
            return
        ledger.keep(task, call, buffers)
        needs = call.options.needs if call.options is not None else ()
        if call.expires is not None:
            self._agenda.add_wall(call.expires, "expire", task)
        if needs and self._flow.wait_for(task, needs, now):
            return
        self._flow.schedule_or_queue(task, now)

    def has_all(self, call: Call) -> bool:
        """Whether the function of a call, if it says which, has been defined."""
        return not call.definition or self._pool.definition(call.definition) is not None

    def confirm(self) -> None:
        """Say which batches will be in the store with this turn."""
        for peer, (batches, urgent) in self._accepted.items():
            self._ledger.turn.say(peer, Send(Accepted(tuple(batches)), lazy=not urgent))
        self._accepted.clear()
