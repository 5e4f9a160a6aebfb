"""Ids of tasks: unique among all processes, and cheap."""

from __future__ import annotations

import itertools
import secrets
import uuid

_prefix: str
_numbers: itertools.count[int]


def new_id() -> str:
    """Return a UUID of version 4: 74 random bits for the process, 48 bits that count."""
    return f"{_prefix}{next(_numbers):012x}"


def renew() -> None:
    """Begin anew; for a child made by fork, whose ids would be those of its parent."""
    global _prefix, _numbers
    _prefix = str(uuid.uuid4())[:-12]
    _numbers = itertools.count(secrets.randbits(40))


renew()
