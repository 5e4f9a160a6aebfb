"""Who waits for whose result.

A call with needs waits until all of them have succeeded; one that ends otherwise ends it, too.
Chains, groups and chords are calls with needs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable


class Needs:
    """The open waits, both ways round."""

    def __init__(self) -> None:
        self._missing: dict[str, set[str]] = {}
        #: Need → who waits for it: each once, however often it came and was revoked, in the order
        #: in which they came.
        self.waiters: dict[str, dict[str, None]] = {}

    def wait(self, waiter: str, needed: Iterable[str]) -> None:
        """Let `waiter` wait for all that is `needed`."""
        missing = set(needed)
        if not missing:
            return
        self._missing[waiter] = missing
        for need in missing:
            self.waiters.setdefault(need, {})[waiter] = None

    def succeed(self, need: str) -> list[str]:
        """Return those that waited for nothing but this, in the order in which they came."""
        ready = []
        for waiter in self.waiters.pop(need, ()):
            missing = self._missing.get(waiter)
            if missing is None:
                continue
            missing.discard(need)
            if not missing:
                del self._missing[waiter]
                ready.append(waiter)
        return ready

    def fail(self, need: str) -> list[str]:
        """Return all that waited for this: in vain."""
        waiters = [name for name in self.waiters.pop(need, ()) if name in self._missing]
        for waiter in waiters:
            del self._missing[waiter]
        return waiters

    def drop(self, waiter: str) -> None:
        """Let `waiter` wait no more (it was revoked)."""
        self._missing.pop(waiter, None)

    def missing(self, waiter: str) -> frozenset[str]:
        """Return what `waiter` still waits for."""
        return frozenset(self._missing.get(waiter, ()))
