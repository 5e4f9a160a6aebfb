"""Large values for many tasks."""

from __future__ import annotations

from typing import Any

from nbtasks.client.client import current
from nbtasks.wire.shared import Shared


def share(value: Any) -> Shared:
    """Write a large value once, to give it to many tasks.

    Parameters
    ----------
    value
        An array, a frame, or anything that can be an argument. Later changes to it are not seen.

    Returns
    -------
    Shared
        Give this to tasks, by itself or inside of other arguments: they get the value. In a direct
        call, which runs here, give the value. The file that holds it (256 KiB and more) goes with
        the last of this object and the tasks that need it.

    Raises
    ------
    EncodeError
        When the value cannot be pickled.
    OperationalError
        When no cluster can be started or found.

    Examples
    --------
    >>> import nbtasks
    >>> table = nbtasks.share(frame)                                          # doctest: +SKIP
    >>> results = [fit.delay(table, column) for column in columns]            # doctest: +SKIP
    """
    return Shared(value, current().segments)
