"""Calls on their way to the broker, until it has accepted them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from nbtasks.client.record import Record
from nbtasks.core.messages import Call, Define, take
from nbtasks.wire import segments
from nbtasks.wire.frames import Buffer

#: Calls in one Submit.
BATCH = 1_000

#: A submission in the line: call, payload frames, definition, check, confirm, record.
Entry = tuple[
    Call, Sequence[Buffer], tuple[Define, Sequence[Buffer]] | None, bool, bool, Record
]  # fmt: skip


class Batch:
    """Calls that are sent as one message."""

    __slots__ = ("buffers", "calls", "defines", "records", "sent_at", "size")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.buffers: list[Buffer] = []
        self.records: list[Record] = []
        self.defines: dict[bytes, tuple[Define, Sequence[Buffer]]] = {}
        self.sent_at = 0.0
        #: Bytes that its arguments take, in memory or in files.
        self.size = 0

    def add(self, entries: Iterable[Entry]) -> None:
        for call, buffers, define, _check, _confirm, record in entries:
            self.calls.append(call)
            self.records.append(record)
            self.size += len(call.body)
            if buffers:
                self.buffers.extend(buffers)
                self.size += sum(map(segments.cost, buffers))
            if define is not None and call.definition not in self.defines:
                self.defines[call.definition] = define

    def apart(self) -> Iterator[Entry]:
        """Yield its calls one by one."""
        frames = iter(self.buffers)
        for call, record in zip(self.calls, self.records, strict=True):
            define = self.defines.get(call.definition)
            yield call, take(frames, call.frames), define, True, False, record


class Batches:
    """All batches that are not accepted yet. Only the I/O thread changes it."""

    def __init__(self) -> None:
        self._number = 0
        #: By number, the oldest first.
        self.open: dict[int, Batch] = {}
        #: Calls in them, and bytes that their arguments take.
        self.calls = self.size = 0

    def __bool__(self) -> bool:
        return bool(self.open)

    def __len__(self) -> int:
        return len(self.open)

    def take(self, line: deque[Entry]) -> tuple[int, list[Entry]]:
        """Make a batch of those who stand first in a line; return its number, and them."""
        # It stands here before its calls leave the line: whoever flushes looks at both.
        number, batch = self._new()
        entries = [line.popleft() for _ in range(min(len(line), BATCH))]
        self._fill(batch, entries)
        return number, entries

    def put(self, entry: Entry) -> int:
        """Make a batch of one submission; return its number."""
        number, batch = self._new()
        self._fill(batch, [entry])
        return number

    def pop(self, number: int) -> Batch:
        """Take a batch out."""
        batch = self.open.pop(number)
        self.calls -= len(batch.calls)
        self.size -= batch.size
        return batch

    def _new(self) -> tuple[int, Batch]:
        self._number += 1
        batch = self.open[self._number] = Batch()
        return self._number, batch

    def _fill(self, batch: Batch, entries: list[Entry]) -> None:
        batch.add(entries)
        self.calls += len(entries)
        self.size += batch.size
