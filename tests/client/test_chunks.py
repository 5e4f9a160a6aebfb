"""How many items of a `map` travel together."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtasks.client import chunks, waiting
from nbtasks.client.chunks import AHEAD, AT_ONCE, CAREFUL, LATE, LEAST, WORTH, Chunks, _each
from nbtasks.client.executor import Executor
from nbtasks.exceptions import DecodeError, Ignore, OperationalError

WORKERS = 2


class Clock:
    """A clock that stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Sent:
    """Stands for the result of a chunk."""

    def __init__(self, items: list[int]) -> None:
        self._record = SimpleNamespace(final=None, error=None)
        self.size = len(items)
        self.result: Any = items
        self.revoked = False

    def _when_over(self, function: Any) -> None: ...

    def get(self, **_: Any) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def ready(self) -> bool:
        return self._record.final is not None

    def revoke(self) -> None:
        self.revoked = True


class Flown(Chunks):
    """Items whose chunks end when the test says so."""

    def __init__(self, count: int, clock: Clock, sending: float = 0.0) -> None:
        super().__init__(abs, [range(count)], None, lambda _: None)
        self.sizes: list[int] = []
        self.open: list[Sent] = []
        self._clock = clock
        self._seconds = sending
        self._task = SimpleNamespace(apply_async=self._fly)  # type: ignore[assignment]

    def _fly(self, items: Any, **_: Any) -> Any:
        self.sizes.append(len(items[0]))
        self.open.append(Sent(list(items[0])))
        self._clock.now += self._seconds * len(items[0])
        self.while_sending()
        return self.open[-1]

    def while_sending(self) -> None:
        """What happens meanwhile in the same thread."""

    def end(self, each: float, done: int | None = None, number: int = 0) -> None:
        """Let a chunk end, the first by default, whose items took `each` seconds."""
        sent = self.open.pop(number)
        if not isinstance(sent.result, Exception):
            sent.result = sent.result[:done]
        done = sent.size if done is None else done
        sent._record.final = SimpleNamespace(runtime=done * each)
        self._note(sent)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "client", lambda: SimpleNamespace(ask={"wanted": WORKERS}.get))
    monkeypatch.setattr(chunks, "_done", lambda sent, size: len(sent.result))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(chunks, "time", clock)
    return clock


def all_sizes(count: int, each: float, clock: Clock, sending: float = 0.0) -> list[int]:
    flown = Flown(count, clock, sending)
    flown.feed()
    while flown.open:
        flown.end(each, done=min(flown.open[0].size, max(1, round(LATE / each))))
    assert list(flown.values(None)) == list(range(count))
    return flown.sizes


def test_first_chunk_holds_one_item_and_the_next_what_is_quickly_sent(clock: Clock):
    sizes = all_sizes(1_000_000, each=0.01, clock=clock, sending=0.001)

    assert sizes[:2] == [1, round(WORTH / 0.001)]


def test_few_items_travel_one_by_one_until_one_is_done(clock: Clock):
    sizes = all_sizes(100, each=1e-6, clock=clock)

    assert sizes[:4] == [1, 1, 1, 1]
    assert len(sizes) < 15


def test_chunk_takes_a_tenth_of_a_second_once_that_is_known(clock: Clock):
    sizes = all_sizes(10_000, each=0.01, clock=clock)

    assert max(sizes[AHEAD * WORKERS :]) == round(WORTH / 0.01)


def test_last_chunks_of_slow_items_are_small_so_that_all_workers_have_some(clock: Clock):
    assert all_sizes(1_000, each=0.01, clock=clock)[-4:] == [1, 1, 1, 1]


def test_last_chunks_of_quick_items_are_still_worth_the_journey(clock: Clock):
    sizes = all_sizes(100_000, each=1e-6, clock=clock)

    assert all(size >= LEAST / 1e-6 for size in sizes[-6:-1])
    assert len(sizes) < 30


def test_long_items_travel_one_by_one_once_that_is_known(clock: Clock):
    assert set(all_sizes(50, each=1.0, clock=clock)[AHEAD * WORKERS :]) == {1}


def test_large_items_are_not_sent_by_the_thousand(clock: Clock):
    assert max(all_sizes(1_000, each=1e-6, clock=clock, sending=0.01)) == round(WORTH / 0.01)


def test_what_a_chunk_has_not_reached_is_sent_again_before_all_else(clock: Clock):
    flown = Flown(10_000, clock)
    flown.feed()
    flown.end(1.0)
    assert flown.open[0].size > 1

    flown.end(1.0, done=1)

    assert [*flown.open[-1].result] == [2]


@given(data=st.data())
def test_all_values_come_in_order_however_far_the_chunks_have_come(data: st.DataObject):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "time", clock)
        patch.setattr(chunks, "_done", lambda sent, size: len(sent.result))
        flown = Flown(data.draw(st.integers(0, 200)), clock, data.draw(st.sampled_from([0, 0.02])))
        flown.feed()
        while flown.open:
            assert len(flown.open) <= AHEAD * WORKERS
            number = data.draw(st.integers(0, len(flown.open) - 1))
            done = data.draw(st.integers(1, flown.open[number].size))
            flown.end(LATE / done if done < flown.open[number].size else 1e-3, done, number)

        assert list(flown.values(None)) == list(range(flown._count))


def test_value_that_is_wanted_is_sent_for_beyond_the_bound(clock: Clock):
    flown = Flown(1_000, clock)
    flown.feed()
    for _ in range(AHEAD * WORKERS):
        flown.end(LATE, done=1)

    found = []
    for value in flown.values(None):
        found.append(value)
        while flown.open:
            flown.end(0.01)

    assert found == list(range(1_000))


def test_what_a_second_run_of_a_chunk_leaves_over_is_sent_again(clock: Clock):
    flown = Flown(40 * AHEAD * WORKERS * CAREFUL, clock)
    flown.feed()
    again = flown.open[1]
    kept, again.result = again.result, ValueError()
    assert again.size > 1
    for _ in range(AHEAD * WORKERS):
        flown.end(1e-3)
    again.result = kept[:1]
    while flown.open:
        flown.end(1e-3)

    assert list(flown.values(None)) == list(range(flown._count))


def test_what_is_just_being_sent_when_all_is_cancelled_is_revoked(clock: Clock):
    flown = Flown(1_000, clock)
    flown.feed()
    flown.while_sending = flown.cancel  # type: ignore[method-assign]

    flown.end(0.01)

    assert all(sent.revoked for sent in flown.open)
    assert not flown._gaps


def test_nothing_more_is_sent_when_the_cluster_is_gone(clock: Clock):
    flown = Flown(1_000, clock)
    flown.feed()
    flown.open[0]._record.error = flown.open[0].result = OperationalError("purged")

    flown.end(0.01)

    assert len(flown.sizes) == AHEAD * WORKERS
    with pytest.raises(OperationalError, match="purged"):
        next(flown.values(None))


def test_map_that_could_not_begin_is_cancelled(monkeypatch: pytest.MonkeyPatch):
    def ask(_: str) -> int:
        raise TimeoutError("The broker has not answered.")

    def send(items: Any, **_: Any) -> Sent:
        sent.append(Sent(list(items[0])))
        return sent[-1]

    sent: list[Sent] = []
    monkeypatch.setattr(waiting, "client", lambda: SimpleNamespace(ask=ask))
    monkeypatch.setattr(chunks, "make", lambda *_: SimpleNamespace(apply_async=send))

    with pytest.raises(TimeoutError, match="not answered"):
        Executor().map(abs, range(10))

    assert [each.revoked for each in sent] == [True]


def test_values_that_cannot_be_loaded_are_waited_for_all_the_same(clock: Clock):
    flown = Flown(1, clock)
    flown.feed()
    flown.open[0].result = DecodeError("no such module")
    flown.open[0]._record.final = SimpleNamespace(runtime=0.0)

    flown.wait()

    assert not flown._flying
    with pytest.raises(DecodeError):
        next(flown.values(None))


def slowed(clock: Clock, seconds: Callable[[int], float]) -> Callable[[int], int]:
    def work(number: int) -> int:
        clock.now += seconds(number)
        return number

    return work


def test_worker_gives_back_what_it_does_not_reach_in_time(clock: Clock):
    third = slowed(clock, lambda _: LATE / 3)

    assert _each(third, in_haste=True)(range(1_000)) == [0, 1, 2]
    assert _each(third, in_haste=False)(range(10)) == list(range(10))


def test_item_that_takes_too_long_is_done_all_the_same(clock: Clock):
    assert _each(slowed(clock, lambda _: 10 * LATE), in_haste=True)(range(1_000)) == [0]


def test_worker_does_not_do_many_slow_items_because_others_were_quick(clock: Clock):
    work = slowed(clock, lambda number: 1e-6 if number < 50_000 else 1.0)

    done = len(_each(work, in_haste=True)(range(1_000_000)))

    assert 50_000 < done <= 50_000 + AT_ONCE


def test_ignore_is_an_error_as_there_must_be_values():
    def ignored(number: int) -> int:
        if number == 3:
            raise Ignore
        return number

    with pytest.raises(RuntimeError, match="Ignore") as caught:
        _each(ignored, in_haste=True)(range(10))

    assert vars(caught.value)[chunks._BEFORE] == [0, 1, 2]
