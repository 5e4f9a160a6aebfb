"""Batches of messages ↔ multipart frames.

    frame 0   magic, protocol version, the broker's instance id (empty in a Hello)
    frame 1   the messages (msgpack, at most `HEADER_LIMIT` bytes)
    frame 2.. payload frames, in the order of the messages that own them

Nothing is believed before it is checked: a batch that does not decode raises `ProtocolError` and
costs no more memory than it brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nbtasks.core.messages import PROTOCOL_VERSION, FromBroker, ToBroker, frames_of, take

__all__ = ["Buffer", "ProtocolError", "pack", "take", "unpack_from_broker", "unpack_to_broker"]

Buffer = bytes | bytearray | memoryview

MAGIC = b"nbt%c" % PROTOCOL_VERSION
#: Bytes of messages in one batch.
HEADER_LIMIT = 256 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_from_broker = msgspec.msgpack.Decoder(list[FromBroker])
_to_broker = msgspec.msgpack.Decoder(list[ToBroker])


class ProtocolError(Exception):
    """Frames that no process of this version of nbtasks can have sent."""


def pack(instance: bytes, messages: Sequence[Any], buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the frames of one batch."""
    return [MAGIC + instance, _encoder.encode(messages), *buffers]


def unpack_from_broker(parts: Sequence[Buffer]) -> tuple[bytes, list[Any], list[Buffer]]:
    """Return instance, messages and payload frames of a batch that the broker sent."""
    return _unpack(parts, _from_broker)


def unpack_to_broker(parts: Sequence[Buffer]) -> tuple[bytes, list[Any], list[Buffer]]:
    """Return instance, messages and payload frames of a batch meant for the broker."""
    return _unpack(parts, _to_broker)


def _unpack(
    parts: Sequence[Buffer], decoder: msgspec.msgpack.Decoder[Any]
) -> tuple[bytes, list[Any], list[Buffer]]:
    if len(parts) < 2:
        raise ProtocolError(f"A batch has two frames at least, not {len(parts)}.")
    first = bytes(parts[0][:64])
    if first[:4] != MAGIC:
        if first[:3] == MAGIC[:3]:
            raise ProtocolError(
                f"The peer speaks version {first[3]} of the protocol, this process version "
                f"{PROTOCOL_VERSION}. Restart the cluster (%nbtasks stop) and the kernel."
            )
        raise ProtocolError("The first frame is not nbtasks'.")
    if len(parts[1]) > HEADER_LIMIT:
        raise ProtocolError(f"The messages have {len(parts[1])} bytes, {HEADER_LIMIT} are allowed.")
    try:
        messages = decoder.decode(parts[1])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"The messages cannot be read: {error}") from None
    claimed = sum(map(frames_of, messages))
    if claimed != len(parts) - 2:
        raise ProtocolError(f"The messages claim {claimed} payload frames, {len(parts) - 2} came.")
    return first[4:], messages, list(parts[2:])
