"""How fast things get on: one task by what it says of itself, many by how they end.

Pure: whoever asks says what time it is.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

#: Seconds after which what a task's speed was before counts a third.
MEMORY: Final = 5.0

#: So many ends, and so many seconds, make a rate that means something.
FEW: Final = 5
BRIEF: Final = 1.0

#: Seconds without an end after which there is no rate any more (or three times its period).
QUIET: Final = 5.0


class Pace:
    """The speed of one run, in whatever units it counts."""

    __slots__ = ("_at", "_done", "began", "rate")

    def __init__(self, began: float) -> None:
        #: Wall time at which the run began.
        self.began = began
        #: Units a second, or None while unknown.
        self.rate: float | None = None
        self._at = began
        self._done = 0.0

    def learn(self, at: float, done: float) -> None:
        """Take in that so much was done at this time."""
        if done < self._done or (done == 0 and self.rate is None):
            self._at, self._done = at, done  # it begins now, or from the beginning
        elif done > self._done and at > self._at:
            fresh = (done - self._done) / (at - self._at)
            if self.rate is not None:
                fresh += (self.rate - fresh) * math.exp((self._at - at) / MEMORY)
            self._at, self._done, self.rate = at, done, fresh

    def end(self, whole: float) -> float | None:
        """Return the wall time at which it will have done the whole, or None while unknown."""
        return self._at + (whole - self._done) / self.rate if self.rate else None


class Throughput:
    """How many tasks end in a second, of late."""

    __slots__ = ("_latest", "_samples")

    def __init__(self) -> None:
        #: Wall time, and how many had ended by then.
        self._samples: deque[tuple[float, int]] = deque(maxlen=50)
        self._latest = (0.0, 0)

    def learn(self, at: float, ended: int) -> None:
        """Take in how many have ended by now; the first time, when all began."""
        if ended != self._latest[1] or not self._samples:
            self._latest = (at, ended)
        if not self._samples or at - self._samples[-1][0] >= BRIEF / 4:
            self._samples.append((at, ended))

    def rate(self, at: float) -> float | None:
        """Return the ends a second, or None where there were too few, or none of late."""
        last, ended = self._latest
        for then, before in reversed(self._samples):
            if ended - before >= FEW and last - then >= BRIEF:
                rate = (ended - before) / (last - then)
                return rate if at - last < max(QUIET, 3 / rate) else None
        return None
