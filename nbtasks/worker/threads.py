"""Threads of numeric libraries: each run gets its share of the processors.

numpy, scipy, PyTorch and their like compute in as many threads as there are processors. Where as
many tasks run beside each other, all of these threads are in each other's way: those that wait for
one another do so busily, and what should be faster takes ten times as long. So a run that is alone
has all processors, and of four each has a quarter. It is told how many they are when it is given
out; one that goes on already keeps what it has.

Whoever sets one of `VARIABLES`, before the cluster starts or in a task, is obeyed: then all this
does not happen.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, Final

from nbtasks import processors

#: What tells these libraries how many threads they may have, when they are loaded.
VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
#: Packages without which none of these libraries is there.
PACKAGES: Final = ("numpy", "torch")


class Threads:
    """The threads of this process that numeric libraries may have."""

    def __init__(self) -> None:
        self._processors = processors.usable()
        #: How many each of these libraries has if nobody says anything, and now.
        self._natural = self._present = processors.seen()
        #: The libraries that are loaded, and how many modules there were when that was looked up.
        self._loaded: Any = None
        self._modules = 0

    def share(self, runs: int) -> None:
        """Take the share of a run when so many go on at once, this one included."""
        threads = max(1, self._processors // runs)
        # Where anything else is set than we have set, it is the user's wish.
        if threads == self._present or _set() != self._variables(self._present):
            return
        self._present = threads
        for name in VARIABLES:  # for what is loaded from now on, and for what the run starts
            os.environ.pop(name, None)
        os.environ.update(self._variables(threads))
        if any(package in sys.modules for package in PACKAGES):
            with suppress(Exception):  # a library that is unlike all others
                self._limit(threads)

    def _variables(self, threads: int) -> dict[str, str]:
        """Return the variables that say so: none where so it is anyway."""
        return {} if threads == self._natural else dict.fromkeys(VARIABLES, str(threads))

    def _limit(self, threads: int) -> None:
        import threadpoolctl  # where there is nothing to limit, nobody waits for it

        if self._modules != len(sys.modules):
            self._loaded = threadpoolctl.ThreadpoolController()
            self._modules = len(sys.modules)
        for library in self._loaded.lib_controllers:
            library.set_num_threads(threads)


def _set() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
