"""The options of a call, checked: Celery's words in, what a `Call` says out.

Everything here is plain arithmetic on what the caller gave; errors arise at the call, before
anything is sent.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import numbers
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from nbtasks.config import WHOLE, parse_size
from nbtasks.core.messages import INLINE_LIMIT, MOST, MOST_RETRIES, Now, Options
from nbtasks.exceptions import NaiveTimeWarning
from nbtasks.wire.codecs import find_compression, find_serializer

#: Options of `apply_async` that this module turns into `Options`.
RARE: Final = frozenset(
    {
        *("shadow", "argsrepr", "kwargsrepr", "group_index", "reply_to", "ignore_result"),
        *("time_limit", "soft_time_limit", "headers", "memory_limit", "group_id", "group"),
    }
)

#: Options that say where and how to publish in other brokers; here they change nothing.
IGNORED: Final = frozenset(
    {
        *("producer", "publisher", "connection", "exchange", "delivery_mode", "mandatory"),
        *("immediate", "exchange_type", "declare", "utc", "correlation_id", "task_type"),
        *("result_cls", "route_name", "app", "router", "logfile", "loglevel", "throw", "type"),
    }
)

#: Options of signatures, which are not there yet.
CANVAS: Final = frozenset({"link", "link_error", "chord", "chain", "stamped_headers"})

#: All others that `apply_async` knows.
COMMON: Final = frozenset(
    {
        *("task_id", "countdown", "eta", "expires", "retry", "retry_policy", "serializer"),
        *("compression", "priority", "queue", "routing_key", "add_to_parent", "root_id"),
        *("parent_id", "retries", "confirm", "idempotency_key"),
    }
)

KNOWN: Final = RARE | IGNORED | CANVAS | COMMON


def check_known(name: str, options: Mapping[str, Any]) -> None:
    """Raise when there are options that nobody knows, or that cannot be had yet.

    Raises
    ------
    TypeError
        When an option is unknown.
    NotImplementedError
        When it belongs to signatures.
    """
    for option, value in options.items():
        if option not in KNOWN:
            near = difflib.get_close_matches(option, KNOWN, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{name} got the option {option!r}, which calls do not have.{hint} Arguments of "
                f"the task itself go into args and kwargs: apply_async((1, 2), {{'x': 3}})."
            )
        if option in CANVAS and value:
            raise NotImplementedError(
                f"{name} got {option}=, but nbtasks has no signatures yet, so it cannot start one "
                f"task after another. Wait for the first with get() and send the second then, or "
                f"send it from the first task's body."
            )


# ----------------------------------------------------------------------------------------- times


class Start(NamedTuple):
    """When a call may start."""

    #: Boot clock, for countdowns.
    due: float | None
    #: Wall clock.
    eta: float | None


def start_of(countdown: Any, eta: Any, instant: Now) -> Start:
    """Return the earliest start that the options mean; when both are given, countdown wins.

    Raises
    ------
    TypeError, ValueError
        When one of them is no time.
    """
    if countdown is not None:
        wait = seconds("countdown", countdown)
        due = instant.boot + wait if wait > 0 else None
        return Start(due, instant.wall + wait)
    if eta is None:
        return Start(None, None)
    if isinstance(eta, _REAL):
        raise TypeError(
            f"eta={eta!r} is a number, but eta is a point in time: a datetime, or ISO text. "
            f"To start some seconds from now, write countdown={eta!r}."
        )
    return Start(None, timestamp("eta", eta))


def end_of(expires: Any, wall: float) -> float | None:
    """Return the latest start, wall clock, that `expires` means: seconds from now, or a time.

    Raises
    ------
    TypeError, ValueError
        When it is neither.
    """
    if expires is None:
        return None
    if isinstance(expires, (datetime, str)):
        return timestamp("expires", expires)
    return wall + seconds("expires", expires)


def seconds(option: str, value: Any) -> float:
    """Return a number of seconds (or a timedelta) as a float."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{option}={value!r} is no number of seconds. Give a number, such as 2.5, or a "
            f"timedelta."
        ) from None
    # Celery's bound too: beyond it no clock of ours goes.
    if not math.isfinite(number) or abs(number) > 2**31:
        raise ValueError(
            f"{option}={value!r} is out of range: seconds must lie within 68 years. Give fewer."
        )
    return number


_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST: Final = datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC).timestamp()


def timestamp(option: str, value: Any) -> float:
    """Return a datetime, or ISO text, as seconds since the epoch. Without a zone it is UTC.

    What lies beyond a datetime's range when it is turned into UTC (`datetime.max` for "never") is
    the last, or the first, second that lies in it.
    """
    return min(max(moment(option, value).timestamp(), _FIRST), _LAST)


def moment(option: str, value: Any) -> datetime:
    """Return a datetime, or ISO text, as an aware datetime. Without a zone it is UTC.

    Raises
    ------
    TypeError, ValueError
        When it is no point in time.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"{option}={value!r} is no point in time. Text must be as ISO 8601 has it: "
                f"'2030-01-31T12:00:00+00:00'."
            ) from None
    if not isinstance(value, datetime):
        raise TypeError(
            f"{option}={value!r} is no point in time. Give a datetime with a zone, such as "
            f"datetime.now(timezone.utc) + timedelta(hours=1)."
        )
    if value.tzinfo is None or value.utcoffset() is None:
        aware = value.replace(tzinfo=UTC)
        _warn_of_naive(option, aware)
        return aware
    return value


#: Seconds from which on a time without a zone may well be a local one: no zone is off by less.
_FAR: Final = 14 * 60
#: Of what it was warned: option, whether it lay in the past, and the line of the caller.
_warned: Final[set[tuple[str, bool, str, int]]] = set()


def _warn_of_naive(option: str, value: datetime) -> None:
    """Warn of a time that may be a local one, once for each line. A near one is none."""
    off = (value - datetime.now(UTC)).total_seconds()
    if abs(off) <= _FAR:
        return
    levels = levels_up()
    caller = sys._getframe(levels - 1)
    told = (option, off < 0, caller.f_code.co_filename, caller.f_lineno)
    if told in _warned:
        return
    _warned.add(told)
    warnings.warn(
        f"{option} has no time zone and was taken as UTC: {value:%Y-%m-%d %H:%M:%S} UTC, which is "
        f"{_in_words(off)}. If local time was meant, write datetime.now().astimezone() "
        f"instead of datetime.now(). (This is said once for each line.)",
        NaiveTimeWarning,
        stacklevel=levels,
    )


def _in_words(off: float) -> str:
    amount, unit = abs(off), "seconds"
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if amount >= size:
            amount, unit = amount / size, name
            break
    return f"{amount:.1f} {unit} {'ago' if off < 0 else 'from now'}"


def levels_up() -> int:
    """Return at which level the first line outside of nbtasks stands, for `stacklevel`."""
    level = 2
    frame = sys._getframe(2)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("nbtasks."):
        level += 1
        if frame.f_back is None:
            break
        frame = frame.f_back
    return level


# -------------------------------------------------------------------------------- other options

#: As `WHOLE`.
_REAL: Final[Any] = (int, float, numbers.Real)


def priority_of(value: Any) -> int:
    """Return a priority: a whole number from 0 to 9, 9 first.

    Raises
    ------
    ValueError
        When it is none.
    """
    if isinstance(value, WHOLE) and 0 <= value <= 9:
        return int(value)
    raise ValueError(
        f"priority={value!r} cannot be used. Give a whole number from 0 (last) to 9 (first); 5 is "
        f"what calls have that name none."
    )


def queue_of(value: Any) -> str:
    """Return the name of a queue, of which the caller may also have an object with a `name`."""
    name = getattr(value, "name", value)
    if isinstance(name, str) and name:
        return text_of("queue", name)
    raise TypeError(f"queue={value!r} is no name of a queue. Give text, such as queue='slow'.")


def limit_of(option: str, value: Any) -> float | None:
    """Return a time limit in seconds, or None.

    Raises
    ------
    ValueError
        When it is not above 0.
    """
    if value is None:
        return None
    limit = seconds(option, value)
    if limit <= 0:
        raise ValueError(
            f"{option}={value!r} leaves no time to run. Give seconds above 0, or None."
        )
    return limit


def check_limits(soft: float | None, hard: float | None) -> None:
    """Raise ValueError when the soft limit lies beyond the hard one."""
    if soft is not None and hard is not None and soft > hard:
        raise ValueError(
            f"soft_time_limit={soft:g} is more than time_limit={hard:g}, so the task would be "
            f"killed before it is asked to end. Give a soft limit below the hard one."
        )


def memory_of(value: Any) -> int | None:
    """Return a memory limit in bytes, or None.

    Raises
    ------
    ValueError
        When it is no size.
    """
    try:
        return None if value is None else min(parse_size(value), MOST)
    except ValueError as error:
        raise ValueError(f"memory_limit: {error}") from None


def retries_of(option: str, value: Any) -> int | None:
    """Return a number of retries; None, or infinity: for ever.

    Raises
    ------
    ValueError
        When it is none.
    """
    if value is None or value == math.inf:
        return None
    if isinstance(value, _REAL) and value >= 0 and value == int(value):
        return min(int(value), MOST_RETRIES)
    raise ValueError(
        f"{option}={value!r} is no number of retries. Give a whole number, 0 for none, or None "
        f"for retries without end."
    )


def bound_of(limit: Any) -> float | None:
    """Return the most retries of one decision, which may be any number.

    Raises
    ------
    ValueError
        When it is none.
    """
    if limit is None or isinstance(limit, _REAL):
        return limit
    return retries_of("max_retries", limit)


def text_of(option: str, value: Any) -> str:
    """Return text that says which task, queue or function is meant.

    Raises
    ------
    TypeError, ValueError
        When it is no text, or holds what UTF-8 cannot carry.
    """
    if not isinstance(value, str):
        raise TypeError(f"{option}={value!r} is no text. Give a str.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{option}={value!r} holds half a character (a lone surrogate), which UTF-8 cannot "
            f"carry. Give other text."
        ) from error
    return str(value)


def _shown_text(value: Any) -> str:
    """Return text that is only shown, whatever was given."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _place(value: Any) -> int:
    """Return a place in a group."""
    if isinstance(value, WHOLE) and 0 <= value <= MOST:
        return int(value)
    raise ValueError(f"group_index={value!r} is no place in a group. Give a whole number from 0.")


def id_of(task_id: Any, key: Any, name: str) -> str | None:
    """Return the id that the caller chose, by itself or by an idempotency key, or None.

    The same key for the same task is the same id, so sending it again starts nothing new.

    Raises
    ------
    ValueError
        When both are given, or the id is empty.
    """
    if task_id is not None:
        if key is not None:
            raise ValueError(
                "Both task_id and idempotency_key were given, and each of them decides the id. "
                "Give one of them."
            )
        text = str(task_id)
        if not text:
            raise ValueError("task_id is empty. Give some text, or None to have an id made.")
        return text_of("task_id", text)
    if key is None:
        return None
    data = f"{name}\0{key}".encode("utf-8", "surrogatepass")
    digits = hashlib.blake2b(data, digest_size=16, person=b"nbtasks-key").hexdigest()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def encode_headers(headers: Any) -> bytes:
    """Return the payload of the caller's own headers.

    Raises
    ------
    TypeError
        When they are no mapping.
    EncodeError, ValueError
        When they cannot be encoded, or are too large.
    """
    if not headers:
        return b""
    if not isinstance(headers, Mapping):
        raise TypeError(
            f"headers={headers!r} is no mapping. Give a dict, such as {{'user': 'ann'}}."
        )
    from nbtasks.wire import payloads

    body, buffers = payloads.dumps(dict(headers))
    if buffers:
        raise ValueError(
            f"The headers take more than {INLINE_LIMIT // 1024} KiB, but they travel inside the "
            f"message. Give large values as arguments of the task."
        )
    return body


def rare_options(options: Mapping[str, Any], hard: float | None, soft: float | None) -> Options:
    """Return what few calls carry.

    Parameters
    ----------
    options
        Options of the call, checked by `check_known`.
    hard, soft
        The task's own limits, seconds, against which those of the call are checked.
    """
    own_hard = limit_of("time_limit", options.get("time_limit"))
    own_soft = limit_of("soft_time_limit", options.get("soft_time_limit"))
    if own_hard is not None or own_soft is not None:
        check_limits(own_soft or soft, own_hard or hard)
    group = options.get("group_id") or options.get("group")
    return Options(
        time_limit=own_hard,
        soft_time_limit=own_soft,
        headers=encode_headers(options.get("headers")),
        memory_limit=memory_of(options.get("memory_limit")),
        group=None if group is None else text_of("group_id", group),
        origin=origin(),
        **_plain(options),
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that become fields of `Options` under the same name."""
    return {
        name: make(options[name]) for name, make in _PLAIN.items() if options.get(name) is not None
    }


#: Options that become fields of `Options` under the same name, and what makes them fit.
_PLAIN: Final[Mapping[str, Callable[[Any], Any]]] = {
    "shadow": _shown_text,
    "argsrepr": _shown_text,
    "kwargsrepr": _shown_text,
    "reply_to": _shown_text,
    "group_index": _place,
    "ignore_result": bool,
}


def origin() -> str:
    """Return the name of this process as a sender of tasks."""
    return f"{os.getpid()}@{platform.node()}"


#: Parameters of `Task.retry` that no call has.
_OF_RETRY: Final = frozenset({"args", "kwargs", "exc", "throw", "max_retries"})


def check_retry_kwargs(given: Any) -> None:
    """Raise when these cannot be keywords of `Task.retry`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `retry` does.
    """
    if not given:
        return
    if not isinstance(given, Mapping):
        raise TypeError(
            f"retry_kwargs={given!r} is no mapping. Give a dict of what retry() takes, such as "
            f"{{'max_retries': 5, 'countdown': 2}}."
        )
    rest = {name: value for name, value in given.items() if name not in _OF_RETRY}
    if rest.pop("countdown", None) is not None:
        seconds("countdown", given["countdown"])
    rest.pop("eta", None)
    normalize_for_retry(rest, 0.0)
    bound_of(given.get("max_retries"))


def normalize_for_retry(options: Mapping[str, Any], wall: float) -> dict[str, Any]:
    """Return options that `retry` was given, as `RetryPlan.options` has them.

    Raises
    ------
    TypeError, ValueError, NotImplementedError, SerializerNotInstalled
        As `apply_async` does.
    """
    check_known("retry()", options)
    found = _plain(options)
    for name, find in (("serializer", find_serializer), ("compression", find_compression)):
        if options.get(name) is not None:
            find(options[name])
            found[name] = options[name]
    if "expires" in options:
        found["expires"] = end_of(options["expires"], wall)
    if options.get("priority") is not None:
        found["priority"] = priority_of(options["priority"])
    queue = options.get("queue") or options.get("routing_key")
    if queue is not None:
        found["queue"] = queue_of(queue)
    for name in ("time_limit", "soft_time_limit"):
        if options.get(name) is not None:
            found[name] = limit_of(name, options[name])
    check_limits(found.get("soft_time_limit"), found.get("time_limit"))
    if options.get("memory_limit") is not None:
        found["memory_limit"] = memory_of(options["memory_limit"])
    if options.get("headers") is not None:
        encode_headers(options["headers"])  # so that an error arises here
        found["headers"] = dict(options["headers"])
    return found
