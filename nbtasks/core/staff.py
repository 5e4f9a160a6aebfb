"""How many workers there shall be, and how many more stand in for those whose runs wait.

A run that waits for other tasks keeps its process, but not its place in the pool: once something is
starved, another worker takes it. Whoever did stays for a while, for there may be a next wait.
"""

from __future__ import annotations

from typing import Final

from nbtasks.core.messages import Now
from nbtasks.core.workers import Workers

#: Seconds after which somebody takes the place of a worker whose run waits for other tasks, and
#: between two looks whether this is so.
GRACE: Final = 0.05
LOOK: Final = 0.2
#: Seconds for which those stay who did, and how many there are at most.
LINGER: Final = 10.0
MOST: Final = 32


class Staff:
    """Who shall be there."""

    __slots__ = ("_spared_at", "extra", "hired", "looks", "wanted")

    def __init__(self) -> None:
        #: How many workers there shall be.
        self.wanted = 0
        #: How many more in the places of those whose runs wait for other tasks.
        self.extra = 0
        #: The workers that the supervisor has started.
        self.hired: frozenset[str] = frozenset()
        #: Whether the next look at those that wait stands in the agenda.
        self.looks = False
        #: Since when (boot clock) there need not be as many extra ones.
        self._spared_at: float | None = None

    @property
    def whole(self) -> int:
        """How many workers there shall be in all."""
        return self.wanted + self.extra

    def extra_now(self, pool: Workers, now: Now) -> int:
        """Return how many extra workers there shall be from now on."""
        joining = len(pool.joining())
        if joining >= self.extra:
            self._spared_at = None
        elif self._spared_at is None:
            self._spared_at = now.boot
        # A new broker may hear of those that wait before it is told how many there shall be.
        complete = bool(self.hired) and len(pool.serving()) >= self.whole
        if complete and joining > self.extra and pool.starved():
            return min(joining, self.extra + len(pool.ready), MOST)
        if self._spared_at is not None and now.boot - self._spared_at >= LINGER:
            return joining
        return self.extra

    def room(self, pool: Workers) -> int | None:
        """Return how many idle workers may get something; None: all.

        Who took the place of one that waits may find it going on, and stay for a while.
        """
        return max(0, self.wanted - pool.running()) if self.extra else None
