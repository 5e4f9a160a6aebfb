"""A value that is given to many tasks: its large pieces are written once, by whoever shares it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbtasks.wire import payloads, segments
from nbtasks.wire.segments import Buffer


class Shared:
    """Stands for a value among the arguments of tasks; `nbtasks.share` makes it.

    A task gets the value itself. As it is sent, nothing is copied and nothing compared.

    Parameters
    ----------
    value
        Anything that can be an argument of a task.
    place
        Where its large pieces are put.

    Raises
    ------
    EncodeError
        When the value cannot be pickled.
    """

    __slots__ = ("_body", "_pieces", "_text")

    def __init__(self, value: Any, place: segments.Segments) -> None:
        self._body, self._pieces = payloads.dumps(value, keep=place.hold)
        size = len(self._body) + sum(map(len, self._pieces))
        self._text = f"<Shared {type(value).__name__}, {size:,} bytes>"

    def __repr__(self) -> str:
        return self._text

    def value(self) -> Any:
        """Return the value, as a task gets it that runs here."""
        return load(self._body, *self._pieces)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # By protocol 4, which `multiprocessing` and `copy` take, nothing travels beside the pickle.
        piece = bytearray if protocol < 5 else payloads.out_of_band
        return load, (self._body, *map(piece, self._pieces))


def load(body: Buffer, *pieces: Buffer) -> Any:
    """Return the value of a `Shared` that has travelled."""
    return payloads.loads(body, list(map(_own, pieces)), ours=True)


def _own(piece: Buffer) -> Buffer:
    """Return a piece that may be written to, where it is one's own mapping of a file.

    It is told as read-only, as it was where it came from.
    """
    mapping = segments.mapping_of(memoryview(piece))
    return piece if mapping is None else memoryview(mapping)
