"""Batches of messages ↔ multipart frames.

    frame 0   magic, protocol version, the broker's instance id (empty in a Hello)
    frame 1   the messages (msgpack, at most `HEADER_LIMIT` bytes)
    frame 2.. payload frames, in the order of the messages that own them

Nothing is believed before it is checked: a batch that does not decode raises `ProtocolError` and
costs a small multiple of the memory that it brought.

On its way to the broker a long frame is cut: one of exactly `PIECE` bytes goes on in the next. So
the broker's socket, which anybody may try, takes no frame that is longer, and whoever has not yet
proved to be one of us cannot make it keep more than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from nbtasks.core.messages import PROTOCOL_VERSION, FromBroker, ToBroker, take
from nbtasks.exceptions import EncodeError

__all__ = [
    "PIECE",
    "Buffer",
    "ForeignVersion",
    "ProtocolError",
    "check_sendable",
    "pack",
    "pack_to_broker",
    "take",
    "unpack_from_broker",
    "unpack_to_broker",
]

Buffer = bytes | bytearray | memoryview

MAGIC = b"nbt%c" % PROTOCOL_VERSION
#: Bytes of messages in one batch.
HEADER_LIMIT = 256 * 1024 * 1024
#: Bytes of a frame on its way to the broker.
PIECE = 256 * 1024

_encoder = msgspec.msgpack.Encoder()
_from_broker = msgspec.msgpack.Decoder(list[FromBroker])
_to_broker = msgspec.msgpack.Decoder(list[ToBroker])


class ProtocolError(Exception):
    """Frames that no process of this version of nbtasks can have sent."""


class ForeignVersion(ProtocolError):
    """Frames of a process of another version: nothing that it says will ever be understood."""


def pack(instance: bytes, messages: Sequence[Any], buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the frames of one batch."""
    return [MAGIC + instance, _encoder.encode(messages), *buffers]


def check_sendable(*messages: Any) -> None:
    """Raise EncodeError for what cannot be sent, in the thread of whoever says it.

    Met in the thread that sends, it would be the end of all that others have to say.
    """
    try:
        pack(b"", messages)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(
            f"This cannot be sent to the broker: {type(error).__name__}: {error}. Ids, names and "
            f"states must be text that UTF-8 can carry, and whole numbers must fit into 64 bits."
        ) from None


def pack_to_broker(
    instance: bytes, messages: Sequence[Any], buffers: Sequence[Buffer] = ()
) -> list[Buffer]:
    """Return the frames of one batch for the broker, the long ones cut."""
    parts = pack(instance, messages, buffers)
    return parts if max(map(_size, parts)) < PIECE else list(_cut(parts))


def _size(part: Buffer) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


def _cut(parts: Sequence[Buffer]) -> Iterator[Buffer]:
    for part in parts:
        size = _size(part)
        if size < PIECE:
            yield part
            continue
        view = memoryview(part).cast("B")
        for start in range(0, size + 1, PIECE):
            yield view[start : start + PIECE]


def _join(parts: Sequence[Buffer]) -> Iterator[Buffer]:
    """Yield the frames that were cut."""
    pieces: list[Buffer] = []
    for part in parts:
        pieces.append(part)
        if len(part) != PIECE:
            yield part if len(pieces) == 1 else b"".join(pieces)
            pieces = []
    if pieces:
        raise ProtocolError("The last frame ends in the middle.")


def unpack_from_broker(parts: Sequence[Buffer]) -> tuple[bytes, list[Any], list[Buffer]]:
    """Return instance, messages and payload frames of a batch that the broker sent."""
    return _unpack(parts, _from_broker)


def unpack_to_broker(parts: Sequence[Buffer]) -> tuple[bytes, list[Any], list[Buffer]]:
    """Return instance, messages and payload frames of a batch meant for the broker."""
    if any(len(part) == PIECE for part in parts):
        parts = list(_join(parts))
    return _unpack(parts, _to_broker)


def _unpack(
    parts: Sequence[Buffer], decoder: msgspec.msgpack.Decoder[Any]
) -> tuple[bytes, list[Any], list[Buffer]]:
    if len(parts) < 2:
        raise ProtocolError(f"A batch has two frames at least, not {len(parts)}.")
    first = bytes(parts[0][:64])
    if first[:4] != MAGIC:
        if first[:3] == MAGIC[:3] and len(first) > 3:
            raise ForeignVersion(
                f"The peer speaks version {first[3]} of the protocol, this process version "
                f"{PROTOCOL_VERSION}. Restart the cluster (%nbtasks stop) and the kernel."
            )
        raise ProtocolError("The first frame is not nbtasks'.")
    if len(parts[1]) > HEADER_LIMIT:
        raise ProtocolError(f"The messages have {len(parts[1])} bytes, {HEADER_LIMIT} are allowed.")
    try:
        messages = decoder.decode(parts[1])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"The messages cannot be read: {error}") from None
    claimed = sum([message.frames for message in messages])
    if claimed != len(parts) - 2:
        raise ProtocolError(f"The messages claim {claimed} payload frames, {len(parts) - 2} came.")
    return first[4:], messages, list(parts[2:])
