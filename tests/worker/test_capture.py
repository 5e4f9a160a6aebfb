from __future__ import annotations

import io
from typing import Any

import pytest

from nbtasks.core.messages import Output
from nbtasks.worker import capture as module
from nbtasks.worker.capture import Capture, Stream, clean


class Listener:
    def __init__(self) -> None:
        self.told: list[Output] = []
        self.stirred = 0
        self.capture = Capture(self.told.append, self.stir)

    def stir(self) -> None:
        self.stirred += 1

    def texts(self) -> list[tuple[str, str]]:
        self.capture.flush()
        return [(output.stream, output.text) for output in self.told]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def out(listener: Listener, log: io.StringIO) -> Stream:
    return Stream(listener.capture, "stdout", log)


def test_text_of_a_running_task_is_gathered(listener: Listener, out: Stream) -> None:
    listener.capture.begin("t")

    print("a", 1, file=out)
    print("b", file=out)

    assert listener.told == []
    assert listener.texts() == [("stdout", "a 1\nb\n")]
    assert listener.told[0].id == "t"


def test_only_the_first_text_asks_for_a_flush(listener: Listener, out: Stream) -> None:
    listener.capture.begin("t")

    out.write("a")
    out.write("b")
    listener.capture.flush()
    out.write("c")

    assert listener.stirred == 2


def test_streams_keep_their_order(listener: Listener, out: Stream, log: io.StringIO) -> None:
    err = Stream(listener.capture, "stderr", log)
    listener.capture.begin("t")

    for stream in (out, err, err, out):
        stream.write("x")

    assert listener.texts() == [("stdout", "x"), ("stderr", "xx"), ("stdout", "x")]


def test_text_outside_of_tasks_goes_to_the_log(
    listener: Listener, out: Stream, log: io.StringIO
) -> None:
    out.write("before")
    listener.capture.begin("t")
    out.write("during")
    listener.capture.end()
    out.write("after")

    assert log.getvalue() == "beforeafter"
    assert listener.texts() == [("stdout", "during")]


def test_what_a_progress_bar_overwrites_does_not_travel(listener: Listener, out: Stream) -> None:
    listener.capture.begin("t")

    out.write("start\n 1%\r 2%\r 3%")
    out.write("\r 4%\r\nend\r")

    assert listener.texts() == [("stdout", "start\n\r 4%\r\nend\r")]


@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}"])
def test_messages_are_bounded(listener: Listener, out: Stream, letter: str) -> None:
    listener.capture.begin("t")

    out.write(letter * 100_000)

    texts = [text for _, text in listener.texts()]
    assert "".join(texts) == letter * 100_000
    assert max(len(text.encode()) for text in texts) <= module.CHUNK


def test_text_that_utf8_cannot_carry_is_spelled_out(listener: Listener, out: Stream) -> None:
    listener.capture.begin("t")

    out.write("a\udc80é")

    assert listener.texts() == [("stdout", "a\\udc80é")]
    assert clean("é") == "é"


def test_bytes_are_decoded(listener: Listener, out: Stream) -> None:
    listener.capture.begin("t")

    out.buffer.write("é".encode() + b"\xff")

    assert listener.texts() == [("stdout", "é\\xff")]


def test_output_without_end_stops_to_be_told(
    listener: Listener, out: Stream, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RUN_LIMIT", 10)
    listener.capture.log_path = "some.log"
    listener.capture.begin("t")

    for _ in range(4):
        out.write("12345678")

    told = "".join(text for _, text in listener.texts())
    assert told.startswith("1234567812\n[10 characters were printed")
    assert "some.log" in told
    assert log.getvalue() == "345678" + 2 * "12345678"


def test_stream_is_what_programs_expect(out: Stream) -> None:
    assert (out.encoding, out.isatty(), out.writable()) == ("utf-8", False, True)
    with pytest.raises(TypeError, match="must be str"):
        out.write(_bytes())
    out.flush()


def _bytes() -> Any:
    return b"no"
