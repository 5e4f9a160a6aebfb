"""Batches of messages on the wire: what goes in comes out, and nonsense is refused."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtasks.core.messages import PROTOCOL_VERSION, Call, Event, Hello, Submit, Welcome, take
from nbtasks.wire import frames

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

    with pytest.raises(frames.ProtocolError, match=f"version {PROTOCOL_VERSION + 1}"):
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


def test_take_takes_no_more_than_it_was_asked_for() -> None:
    buffers = iter([b"a", b"b", b"c"])

    assert take(buffers, 2) == (b"a", b"b")
    assert list(buffers) == [b"c"]
