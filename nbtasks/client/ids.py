"""Ids of tasks: unique among all processes, and cheap."""

from __future__ import annotations

import itertools
import secrets


class _Ids:
    """Makes ids as UUIDs are written: 80 random bits for the process, 48 bits that count."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        head = secrets.token_hex(10)
        self._prefix = f"{head[:8]}-{head[8:12]}-{head[12:16]}-{head[16:20]}-"
        self._numbers = itertools.count(secrets.randbits(40))

    def __call__(self) -> str:
        return f"{self._prefix}{next(self._numbers):012x}"


new_id = _Ids()
