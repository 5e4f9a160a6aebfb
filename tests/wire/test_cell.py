"""What the living write into their cells, and what can be read there once they are dead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nbtasks.core.messages import Again, Call, Done
from nbtasks.wire import cell as module
from nbtasks.wire.cell import HALF, WORDS, Cell, read, remains


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    cell = Cell(tmp_path / "cell")
    yield cell
    cell.close()


def done(ticket: int, size: int = 10) -> Done:
    return Done(ticket, "SUCCESS", b"x" * size)


def tickets(cell: Cell) -> list[int]:
    return [outcome.ticket for outcome in remains(cell.path).outcomes]


def test_cell_says_what_was_running(cell: Cell) -> None:
    cell.start(7)
    assert read(cell.path).running == 7

    cell.finish(7)
    assert read(cell.path).running == 0
    assert read(cell.path)[1:3] == (7, 7)


def test_memory_limit_names_its_call(cell: Cell) -> None:
    cell.start(7)
    cell.limit(7, 1_000, 200)

    assert read(cell.path)[3:] == (7, 1_000, 200)


def test_last_words_are_those_of_the_call_that_was_started_last(cell: Cell) -> None:
    cell.start(1)
    cell.say("first\n")
    cell.start(2)
    cell.say("second ")
    cell.say("one\n")

    assert remains(cell.path).words == "second one\n"


@pytest.mark.parametrize("piece", [1, 7, WORDS - 1, WORDS, WORDS + 1, 3 * WORDS])
def test_of_many_words_the_last_are_kept(cell: Cell, piece: int) -> None:
    text = "".join(chr(97 + n % 26) for n in range(3 * WORDS))
    for start in range(0, len(text), piece):
        cell.say(text[start : start + piece])

    assert remains(cell.path).words == text[-WORDS:]


def test_words_that_no_encoding_knows_are_spelled_out(cell: Cell) -> None:
    cell.say("\udc80é")

    assert remains(cell.path).words == "\\udc80é"


def test_outcomes_that_were_noted_are_not_left(cell: Cell) -> None:
    again = Again(3, Call("id", b"", "name", b""), b"reason")
    for outcome, noted in ((done(1), 0), (done(2), 0), (again, 1)):
        assert cell.keep(outcome, noted)

    assert remains(cell.path).outcomes == (done(2), again)


def test_outcomes_are_kept_until_they_are_noted(cell: Cell) -> None:
    size = HALF // 10
    kept = [ticket for ticket in range(1, 30) if cell.keep(done(ticket, size), 0)]

    assert tickets(cell) == kept == list(range(1, 19))  # nine in each half

    assert cell.keep(done(30, size), 9)
    assert tickets(cell) == [*range(10, 19), 30]


def test_outcome_that_is_too_long_is_refused(cell: Cell) -> None:
    assert not cell.keep(done(1, HALF), 0)
    assert cell.keep(done(2), 0)

    assert tickets(cell) == [2]


def test_half_written_page_costs_no_more_than_what_is_on_it(cell: Cell) -> None:
    for ticket in range(1, 4):
        cell.keep(done(ticket), 0)
    second = module._OUTCOMES + len(module._encoder.encode(done(1))) + 4
    with cell.path.open("r+b") as file:
        file.seek(second)
        file.write(b"\xff" * 8)

    assert tickets(cell) == [1]


def test_what_is_no_cell_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cell"
    assert read(path) is None

    path.write_bytes(b"short")

    assert read(path) is None
    assert remains(path) == ("", (), None)


def test_number_of_messages_sent_is_told(cell: Cell) -> None:
    assert remains(cell.path).sent == 0

    cell.send(3)

    assert remains(cell.path).sent == 3
