"""How many items of a `map` travel together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nbtasks.client import executor, waiting
from nbtasks.client.executor import LEAST, WORTH, _Chunks


class Sent:
    """Stands for the result of a chunk."""

    _record: Any = None

    def _when_over(self, function: Any) -> None: ...


class Chunks(_Chunks):
    """Items whose chunks end when the test says so."""

    def __init__(self, count: int) -> None:
        super().__init__(abs, [range(count)], None, lambda _: None)
        self.sizes: list[int] = []
        self.sent: list[Any] = []
        self._task = SimpleNamespace(apply_async=self._fly)  # type: ignore[assignment]

    def _fly(self, items: Any, **_: Any) -> Any:
        self.sizes.append(len(items[0]))
        self.sent.append(Sent())
        return self.sent[-1]

    def end(self, number: int, each: float) -> None:
        """Let the chunk of this number end, whose items took `each` seconds."""
        runtime = self.sizes[number - 1] * each
        sent = self.sent[number - 1]
        sent._record = SimpleNamespace(final=SimpleNamespace(runtime=runtime))
        self._note(sent)


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "client", lambda: SimpleNamespace(ask={"wanted": 2}.get))
    # Sending takes no time here.
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=lambda: 0.0))


def all_sizes(count: int, each: float) -> list[int]:
    chunks = Chunks(count)
    chunks.feed()
    number = 0
    while number < len(chunks.sizes):
        number += 1
        chunks.end(number, each)
    assert sum(chunks.sizes) == count
    return chunks.sizes


def test_first_chunks_hold_one_item_and_the_next_a_hundred_times_as_many_at_most():
    sizes = all_sizes(1_000_000, each=1e-7)

    assert sizes[:5] == [1, 1, 1, 1, 100]
    assert all(size <= 100 for size in sizes[4:8])


def test_chunk_takes_a_tenth_of_a_second():
    assert max(all_sizes(10_000, each=0.01)) == round(WORTH / 0.01)


def test_last_chunks_of_slow_items_are_small_so_that_all_workers_have_some():
    assert all_sizes(1_000, each=0.01)[-4:] == [1, 1, 1, 1]


def test_last_chunks_of_quick_items_are_still_worth_the_journey():
    sizes = all_sizes(100_000, each=1e-6)

    assert all(size >= LEAST / 1e-6 for size in sizes[-6:-1])
    assert len(sizes) < 30


def test_long_items_travel_one_by_one():
    assert set(all_sizes(50, each=1.0)) == {1}
