"""How long to wait: before a failed task runs again, before a call is sent again, between starts.

Pure functions of numbers. Chance comes in as an argument, so that a test can say what it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

#: Celery's policy for sending a call again while the broker cannot be reached.
PUBLISH_POLICY: Final[Mapping[str, Any]] = {
    "max_retries": 3,
    "interval_start": 0.0,
    "interval_step": 0.2,
    "interval_max": 1.0,
    "retry_errors": None,
}

#: Starts per second; the least that a message can carry.
SLOWEST: Final = 1e-12

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def backoff(
    retries: int,
    factor: float,
    maximum: float,
    jitter: Callable[[int], int] | None,
) -> int:
    """Return the seconds to wait before the next attempt: `factor * 2**retries`, within bounds.

    Parameters
    ----------
    retries
        How many retries came before: 0 when the first run has just failed.
    factor
        Seconds to wait at first; True means 1, fractions are cut off, the least is 1.
    maximum
        The longest wait, seconds; fractions are cut off.
    jitter
        `random.randrange` or the like: given n, a number from 0 to n - 1. The wait is then drawn
        from 0 to what it would have been, both included, so that tasks that failed together do
        not come back together. None: no jitter.

    Raises
    ------
    ValueError
        When `factor`, `maximum` or `retries` is no number that can be meant.

    Notes
    -----
    Celery's formula ("full jitter": M. Brooker, Exponential Backoff And Jitter, AWS 2015).

    Examples
    --------
    >>> [backoff(retries, True, 600, None) for retries in range(4)]
    [1, 2, 4, 8]
    """
    first = int(max(1.0, _number("retry_backoff", factor)))
    ceiling = int(_number("retry_backoff_max", maximum))
    if ceiling < 0:
        raise ValueError(f"retry_backoff_max={maximum!r} is below 0. Give seconds, 0 or more.")
    if retries < 0:
        raise ValueError(f"retries={retries!r} is below 0: count them from 0.")
    # Past the ceiling's own size a higher power changes nothing but the digits to be computed.
    delay = min(ceiling, first << min(retries, ceiling.bit_length()))
    return delay if jitter is None else jitter(delay + 1)


def publish_waits(policy: Mapping[str, Any] | None = None) -> Iterator[float]:
    """Yield the seconds to wait before each further attempt to send a call; then it has failed.

    Parameters
    ----------
    policy
        Keys of `PUBLISH_POLICY` that differ from it: `max_retries` (None: without end),
        `interval_start`, `interval_step` and `interval_max` (seconds).

    Raises
    ------
    ValueError
        When a key is unknown or a value no number that can be meant.

    Examples
    --------
    >>> list(publish_waits({"max_retries": 4, "interval_step": 0.5}))
    [0.0, 0.5, 1.0, 1.0]
    """
    merged = merge_policy(policy)
    start, step, most = (merged[f"interval_{word}"] for word in ("start", "step", "max"))
    limit = merged["max_retries"]
    counter = itertools.count() if limit is None else iter(range(limit))
    return (min(start + step * attempt, most) for attempt in counter)


def merge_policy(*policies: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a whole publish retry policy: the given ones over `PUBLISH_POLICY`, later ones win.

    Raises
    ------
    TypeError
        When a policy is no mapping.
    ValueError
        When a key is unknown or a value no number that can be meant.
    """
    merged = dict(PUBLISH_POLICY)
    for policy in policies:
        if policy is not None and not isinstance(policy, Mapping):
            raise TypeError(
                f"retry_policy={policy!r} is no mapping. Give a dict, such as "
                f"{{'max_retries': 3}}; it knows: {', '.join(PUBLISH_POLICY)}."
            )
        merged.update(policy or {})
    if unknown := sorted(set(merged) - set(PUBLISH_POLICY)):
        raise ValueError(
            f"retry_policy has no key {unknown[0]!r}. It knows: {', '.join(PUBLISH_POLICY)}."
        )
    for key in ("interval_start", "interval_step", "interval_max"):
        merged[key] = _not_negative(f"retry_policy[{key!r}]", merged[key])
    exception_classes("retry_policy['retry_errors']", merged["retry_errors"])
    limit = merged["max_retries"]
    if limit == math.inf:
        merged["max_retries"] = None
    elif limit is not None:
        merged["max_retries"] = int(_not_negative("retry_policy['max_retries']", limit))
    return merged


def parse_rate(rate: str | float | None) -> float:
    """Return the least seconds between two starts that a `rate_limit` means; 0: no limit.

    Parameters
    ----------
    rate
        Starts per second as a number, or text with a unit: `"10/s"`, `"10/m"`, `"10/h"`. None, 0
        and empty text: no limit.

    Raises
    ------
    ValueError
        When it is none of these.

    Examples
    --------
    >>> parse_rate("10/m")
    6.0
    """
    if rate is None or rate == "":
        return 0.0
    count, _, unit = str(rate).partition("/")
    try:
        per_second = float(count) / _UNITS[unit.strip() or "s"]
    except (ValueError, KeyError):
        per_second = -1.0
    if not (per_second == 0.0 or SLOWEST <= per_second < math.inf):
        raise ValueError(
            f"rate_limit={rate!r} is no rate. Give starts per second as a number, or text with a "
            f"unit: '10/s', '10/m' (minute) or '10/h' (hour); None for no limit."
        )
    return 1.0 / per_second if per_second else 0.0


def exception_classes(option: str, value: Any) -> tuple[type[BaseException], ...]:
    """Return what an option such as `autoretry_for` means: a tuple for `except`.

    Parameters
    ----------
    option
        Its name, for the error message.
    value
        A class of exceptions, several of them in a tuple or list, or nothing (None, False).

    Raises
    ------
    TypeError
        When it is none of these.

    Examples
    --------
    >>> exception_classes("throws", KeyError)
    (<class 'KeyError'>,)
    """
    if not value:
        return ()
    classes = tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(
                f"{option}={value!r} holds {cls!r}, which is no class of exceptions. Give a class "
                f"such as ConnectionError, or several of them in a tuple."
            )
    return classes


def _number(name: str, value: Any) -> float:
    """Return `value` as a finite float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r} is no number of seconds. Give a number such as 2.")
    return number


def _not_negative(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name}={value!r} cannot be used. Give a number, 0 or more.")
    return number
