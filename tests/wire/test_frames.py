"""Batches of messages on the wire: what goes in comes out, and nonsense is refused."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtasks.core.messages import PROTOCOL_VERSION, Call, Event, Hello, Submit, Welcome, take
from nbtasks.wire import frames
from nbtasks.wire.frames import PIECE

INSTANCE = b"12345678"


@given(bodies=st.lists(st.binary(max_size=100), max_size=5), buffers=st.lists(st.binary()))
def test_a_batch_comes_out_as_it_went_in(bodies: list[bytes], buffers: list[bytes]) -> None:
    calls = tuple(Call(f"id-{i}", b"d", "f", body) for i, body in enumerate(bodies))
    last = Call("last", b"d", "f", b"", frames=len(buffers))
    submit = Submit(1, (*calls, last))

    instance, messages, payload = frames.unpack_to_broker(frames.pack(INSTANCE, [submit], buffers))

    assert instance == INSTANCE
    assert messages == [submit]
    assert payload == buffers


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_refused_and_never_crashes(parts: list[bytes]) -> None:
    with pytest.raises(frames.ProtocolError):
        frames.unpack_to_broker(parts)


@given(st.binary(max_size=300))
def test_garbage_behind_a_right_first_frame_is_refused(header: bytes) -> None:
    try:
        _, messages, _ = frames.unpack_to_broker([frames.MAGIC + INSTANCE, header])
    except frames.ProtocolError:
        return
    assert messages == []


def test_other_version_of_the_protocol_is_named() -> None:
    first = b"nbt%c" % (PROTOCOL_VERSION + 1)

    with pytest.raises(frames.ForeignVersion, match=f"version {PROTOCOL_VERSION + 1}"):
        frames.unpack_from_broker([first, b"\x90"])


def test_claiming_more_payload_than_came_is_refused() -> None:
    event = Event("id", 1, 0.0, "state", frames=2)

    with pytest.raises(frames.ProtocolError, match="claim 2"):
        frames.unpack_from_broker(frames.pack(INSTANCE, [event], [b"one"]))


def test_brokers_words_are_not_taken_from_a_peer() -> None:
    with pytest.raises(frames.ProtocolError):
        frames.unpack_to_broker(frames.pack(INSTANCE, [Welcome(INSTANCE, "store")]))


def test_peers_words_are_not_taken_from_a_broker() -> None:
    with pytest.raises(frames.ProtocolError):
        frames.unpack_from_broker(frames.pack(INSTANCE, [Hello("client", "n", 1, "3.11.0")]))


@pytest.mark.parametrize("size", [0, 1, -1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_long_frames_are_cut_on_their_way_to_the_broker_and_joined_there(size: int) -> None:
    body, frame = b"b" * abs(size), memoryview(b"f" * abs(size))
    said = [Submit(1, (Call("id", b"d", "f", body, frames=2),))]

    parts = frames.pack_to_broker(INSTANCE, said, [frame, b""])
    _, messages, buffers = frames.unpack_to_broker(parts)

    assert max(map(len, parts)) <= PIECE
    assert messages == said
    assert list(map(bytes, buffers)) == [bytes(frame), b""]


def test_what_fits_is_sent_as_it_is() -> None:
    frame = bytes(PIECE - 1)

    parts = frames.pack_to_broker(INSTANCE, [Submit(1, (Call("", b"", "", b"", 1),))], [frame])

    assert parts[-1] is frame


def test_a_frame_that_ends_in_the_middle_is_refused() -> None:
    parts = [*frames.pack(INSTANCE, []), bytes(PIECE)]

    with pytest.raises(frames.ProtocolError, match="ends in the middle"):
        frames.unpack_to_broker(parts)


@pytest.mark.parametrize("first", [b"", b"n", b"nbt", b"nbu"])
def test_half_a_first_frame_is_refused(first: bytes) -> None:
    with pytest.raises(frames.ProtocolError, match="not nbtasks"):
        frames.unpack_to_broker([first, b"\x90"])


def test_text_that_is_none_is_refused() -> None:
    with pytest.raises(frames.ProtocolError, match="cannot be read"):
        frames.unpack_to_broker([frames.MAGIC, b"\x91\x94\xa3Ask\x01\xa1\xff\x80"])


def test_take_takes_no_more_than_it_was_asked_for() -> None:
    buffers = iter([b"a", b"b", b"c"])

    assert take(buffers, 2) == (b"a", b"b")
    assert list(buffers) == [b"c"]
