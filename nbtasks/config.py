"""Settings: what a call, a task and a cluster fall back to.

Three places, the later wins: `NBTASKS_*` environment variables, `[tool.nbtasks]` in the nearest
`pyproject.toml` that has such a table, and `nbtasks.configure(...)`. The names are Celery's where
Celery has one; in the environment they are upper case: `NBTASKS_TASK_ALWAYS_EAGER=1`.
"""

from __future__ import annotations

import difflib
import numbers
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import msgspec

from nbtasks.exceptions import ImproperlyConfigured

PREFIX: Final = "NBTASKS_"

#: Variables with our prefix that are no settings: they tell a process who its cluster and its
#: parent are.
_NOT_SETTINGS: Final = frozenset({"NBTASKS_RUNTIME", "NBTASKS_PARENT"})

#: Words of the environment for what is on or off, beside those that msgspec knows.
_BOOLEANS: Final = {"yes": True, "on": True, "no": False, "off": False}

#: Whole numbers, numpy's among them, with the usual ones in front: they are found at once.
WHOLE: Final[Any] = (int, numbers.Integral)

#: How alike a stray variable must be to a setting's name to be taken for a misspelt one.
_MISSPELT: Final = 0.8

#: Celery's: waits of 0, 0.2 and 0.4 seconds, then the error.
_RETRY_POLICY: Final = {
    "max_retries": 3,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 1,
    "retry_errors": None,
}

Durability = Literal["full", "normal", "none"]
Transport = Literal["ipc", "tcp"]
_CHOICES: Final = (Durability, Transport)
Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, with their defaults; `settings()` returns the ones in force."""

    # Where the cluster is, and what it is made of (the words of `nbtasks.start`).
    #: Folder of the cluster's files; None: one cluster per user, project folder and interpreter.
    dir: str | None = None
    #: When a task counts as accepted: on the disk (full), in the store (normal), in memory (none).
    durability: Durability = "full"
    transport: Transport = "ipc"
    #: Number of workers; None: one for each processor that we may use, two at least.
    worker_concurrency: Count | None = None
    #: A worker is replaced after so many tasks; None: never.
    worker_max_tasks_per_child: Count | None = None
    #: A worker is replaced when it has grown beyond so many KiB of memory; None: never.
    worker_max_memory_per_child: Count | None = None

    # How calls travel.
    task_serializer: str = "pickle"
    result_serializer: str = "pickle"
    #: Serializers of arguments that workers of a new cluster read; None: all that are registered.
    accept_content: tuple[str, ...] | None = None
    task_compression: str | None = None
    result_compression: str | None = None
    task_publish_retry: bool = True
    #: What `retry_policy` of a call is merged over; itself merged over Celery's defaults.
    task_publish_retry_policy: dict[str, Any] = msgspec.field(
        default_factory=lambda: dict(_RETRY_POLICY)
    )
    task_default_queue: str = "default"
    #: 0 to 9, 9 first.
    task_default_priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5

    # How tasks run.
    task_always_eager: bool = False
    task_eager_propagates: bool = False
    task_ignore_result: bool = False
    task_store_errors_even_if_ignored: bool = False
    task_track_started: bool = False
    task_acks_late: bool = False
    task_acks_on_failure_or_timeout: bool = True
    task_reject_on_worker_lost: bool | None = None
    #: `10`, `"10/s"`, `"10/m"` or `"10/h"`.
    task_default_rate_limit: str | float | None = None
    #: Hard limit of a run, seconds.
    task_time_limit: Seconds | None = None
    #: Soft limit of a run, seconds.
    task_soft_time_limit: Seconds | None = None
    #: Memory that a run may take: bytes, or text such as `"300MB"`.
    task_memory_limit: int | str | None = None

    # Results.
    #: How long results are kept, seconds (or a timedelta); None or 0: for ever.
    result_expires: Annotated[float, msgspec.Meta(ge=0)] | None = 86400.0
    result_extended: bool = False

    # Time.
    timezone: str = "UTC"
    enable_utc: bool = True

    # Taken for the sake of existing configurations; nothing here depends on them: what runs eagerly
    # is kept by its result alone, workers prefetch by time rather than by count, and events are
    # always told.
    task_store_eager_result: bool = False
    worker_prefetch_multiplier: int = 4
    worker_send_task_events: bool = False
    task_send_sent_event: bool = False


_FIELDS: Final = {field.name: field for field in msgspec.structs.fields(Settings)}


class _Given(NamedTuple):
    """One setting that somebody gave."""

    name: str
    value: Any
    #: Where it stands, for error messages: `the environment variable NBTASKS_DIR`.
    place: str


_configured: dict[str, Any] = {}
_current: Settings | None = None


def settings() -> Settings:
    """Return the settings in force; they are read once and kept until `configure` or `reload`.

    Raises
    ------
    ImproperlyConfigured
        When one of them is unknown or of the wrong type.
    """
    return _current or reload()


def configure(**changes: Any) -> Settings:
    """Change settings of this process, over what the environment and pyproject.toml say.

    Parameters
    ----------
    **changes
        Settings by name; see `nbtasks.config.Settings` for all of them.

    Returns
    -------
    Settings
        Those now in force.

    Raises
    ------
    ImproperlyConfigured
        When a name is unknown or a value of the wrong type; then nothing is changed.

    Examples
    --------
    >>> import nbtasks
    >>> nbtasks.configure(task_default_priority=7).task_default_priority
    7
    """
    for name, value in changes.items():
        _convert(_Given(name, value, "nbtasks.configure()"))
    _configured.update(changes)
    return reload()


def reload() -> Settings:
    """Read the environment and pyproject.toml again."""
    global _current
    values: dict[str, Any] = {}
    for given in _all_given():
        values[given.name] = _convert(given)
    _current = Settings(**values)
    return _current


def reset() -> None:
    """Forget what `configure` changed, and read all afresh at the next use."""
    global _current
    _configured.clear()
    _current = None


def _all_given() -> Iterator[_Given]:
    yield from _from_environment(os.environ)
    with suppress(FileNotFoundError):  # the folder that we are in may have been removed
        yield from _from_pyproject(Path.cwd())
    for name, value in _configured.items():
        yield _Given(name, value, "nbtasks.configure()")


# ------------------------------------------------------------------------------- the environment


def _from_environment(environment: Mapping[str, str]) -> Iterator[_Given]:
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS:
            continue
        name = variable.removeprefix(PREFIX).lower()
        place = f"the environment variable {variable}"
        if name in _FIELDS:
            yield _Given(name, _parse(name, text, place), place)
        elif difflib.get_close_matches(name, _FIELDS, 1, _MISSPELT):
            # The environment is everybody's, so only what looks misspelt is an error.
            raise _unknown(name, place)


def _parse(name: str, text: str, place: str) -> Any:
    """Return what `text` means for the setting `name`, as far as text alone can say."""
    word = text.strip().lower()
    if word in ("", "none", "null") and _takes(name, None):
        return None
    if name == "accept_content":
        return [word.strip() for word in text.split(",") if word.strip()]
    if name == "task_publish_retry_policy":
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise _unusable(_Given(name, text, place), f"not a JSON object: {error}") from None
    if word in _BOOLEANS and _takes(name, _BOOLEANS[word]):
        return _BOOLEANS[word]
    return text if _takes(name, "any text") else text.strip()


def _takes(name: str, value: Any) -> bool:
    try:
        msgspec.convert(value, _FIELDS[name].type)
    except msgspec.ValidationError:
        return False
    return True


# ---------------------------------------------------------------------------------- pyproject.toml


def _from_pyproject(folder: Path) -> Iterator[_Given]:
    for candidate in (folder, *folder.parents):
        path = candidate / "pyproject.toml"
        table = _table(path)
        if table is not None:
            for name, value in table.items():
                yield _Given(name.replace("-", "_"), value, f"[tool.nbtasks] of {path}")
            return


def _table(path: Path) -> dict[str, Any] | None:
    """Return `[tool.nbtasks]` of the file, or None when it has none."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if "nbtasks" not in text:  # nearly always; spares the import of a parser
        return None
    import tomllib

    try:
        table = tomllib.loads(text).get("tool", {}).get("nbtasks")
    except tomllib.TOMLDecodeError as error:
        raise ImproperlyConfigured(
            f"{path} is not valid TOML: {error}. nbtasks looks there for its settings "
            f"([tool.nbtasks]); correct the file."
        ) from None
    return table if isinstance(table, dict) else None


# ----------------------------------------------------------------------------------------- sizes

_UNITS: Final = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS[_letter] = _UNITS[f"{_letter}IB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power


def parse_size(size: int | str) -> int:
    """Return a size in bytes.

    Parameters
    ----------
    size
        Bytes, or text such as `"300MB"` (10^6), `"1.5GiB"` or `"1.5G"` (2^30).

    Raises
    ------
    ValueError
        When it is not a positive size.

    Examples
    --------
    >>> parse_size("300MB")
    300000000
    """
    text = str(size).strip().upper()
    digits = text.rstrip("BIKMGT ")
    try:
        result = int(float(digits) * _UNITS[text[len(digits) :].strip()])
    except (ValueError, KeyError, OverflowError):
        result = 0
    if result <= 0:
        raise ValueError(
            f"{size!r} is not a size in bytes. Give a whole number above 0, or text such as "
            f"'300MB' or '1.5GiB'."
        )
    return result


# ------------------------------------------------------------------------------------ checking


def _convert(given: _Given) -> Any:
    """Return the value as the setting's own type."""
    field = _FIELDS.get(given.name)
    if field is None:
        raise _unknown(given.name, given.place)
    value = given.value
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, Path):
        value = str(value)
    lenient = given.place.startswith("the environment")
    try:
        value = msgspec.convert(value, field.type, strict=not lenient)
    except msgspec.ValidationError as error:
        choices = ", ".join(map(repr, get_args(field.type))) if field.type in _CHOICES else ""
        raise _unusable(given, f"it is none of {choices}" if choices else str(error)) from None
    if given.name == "timezone" and not _is_zone(value):
        raise _unusable(
            given,
            "there is no such time zone here. They have names such as 'Europe/Paris'; where the "
            "system has none at all, install the package tzdata",
        )
    return {**_RETRY_POLICY, **value} if given.name == "task_publish_retry_policy" else value


def _is_zone(name: str) -> bool:
    if name == "UTC":  # needs no data
        return True
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not found; not a name; a folder, say
        return False
    return True


def _unknown(name: str, place: str) -> ImproperlyConfigured:
    near = difflib.get_close_matches(name, _FIELDS, 1, 0.5)
    hint = f"Did you mean {near[0]!r}?" if near else "See nbtasks.config.Settings for all names."
    return ImproperlyConfigured(f"nbtasks has no setting {name!r} (given in {place}). {hint}")


def _unusable(given: _Given, why: str) -> ImproperlyConfigured:
    default = _FIELDS[given.name].default
    if default is msgspec.NODEFAULT:
        default = _RETRY_POLICY
    return ImproperlyConfigured(
        f"The setting {given.name} = {given.value!r} in {given.place} cannot be used: {why}. "
        f"Correct it, or remove it to have the default, {default!r}."
    )
