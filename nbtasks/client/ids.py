"""Ids of tasks: unique among all processes, and cheap."""

from __future__ import annotations

import itertools
import secrets

_prefix: str
_numbers: itertools.count[int]


def new_id() -> str:
    """Return an id as UUIDs are written: 80 random bits for the process, 48 bits that count."""
    return f"{_prefix}{next(_numbers):012x}"


def renew() -> None:
    """Begin anew; for a child made by fork, whose ids would be those of its parent."""
    global _prefix, _numbers
    head = secrets.token_hex(10)
    _prefix = f"{head[:8]}-{head[8:12]}-{head[12:16]}-{head[16:20]}-"
    _numbers = itertools.count(secrets.randbits(40))


renew()
