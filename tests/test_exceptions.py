"""Errors: their families, what they say, and that they travel."""

from __future__ import annotations

import builtins
import copy
import pickle
from datetime import UTC, datetime
from fractions import Fraction

import pytest

from nbtasks import exceptions
from nbtasks.exceptions import (
    BrokerUnavailable,
    CeleryError,
    ClusterError,
    ForkedError,
    MaxRetriesExceededError,
    NotPermitted,
    NotRegistered,
    OperationalError,
    Reject,
    Retry,
    TimeLimitExceeded,
    UnpickleableExceptionWrapper,
)

ERRORS = [
    value
    for name in exceptions.__all__
    if issubclass(value := getattr(exceptions, name), BaseException)
    and not issubclass(value, Warning)
]

#: Those that do not simply take a text.
ARGUMENTS = {
    BrokerUnavailable: ("/run/broker.sock", 2.5),
    Reject: ("no", True),
    Retry: ("later", ValueError("v"), 10),
    TimeLimitExceeded: (3.0,),
    UnpickleableExceptionWrapper: ("mine", "Strange", ("1",)),
}


class Unlucky(CeleryError):
    """What a user may derive: two arguments, one text."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code


def example(cls: type[BaseException]) -> BaseException:
    return cls(*ARGUMENTS.get(cls, ("what happened",)))


@pytest.mark.parametrize("cls", [*ERRORS, Unlucky], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("protocol", [2, 5])
def test_every_error_survives_pickling_with_text_and_attributes(cls, protocol):
    error = Unlucky(3, "so") if cls is Unlucky else example(cls)
    error.add_note("seen on Tuesday")

    again = pickle.loads(pickle.dumps(error, protocol))

    assert type(again) is cls
    assert str(again) == str(error)
    assert repr(again) == repr(error)
    assert again.__notes__ == ["seen on Tuesday"]
    assert set(vars(again)) == set(vars(error))


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_can_be_copied(cls):
    assert str(copy.copy(example(cls))) == str(example(cls))


def test_attributes_travel():
    error = MaxRetriesExceededError("no more", task_args=(1,), task_kwargs={"x": 2})

    again = pickle.loads(pickle.dumps(error))

    assert (again.task_args, again.task_kwargs) == ((1,), {"x": 2})
    assert pickle.loads(pickle.dumps(BrokerUnavailable("/s", 1.0))).waited == 1.0


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (exceptions.TimeoutError, builtins.TimeoutError),
        (BrokerUnavailable, ConnectionError),
        (NotRegistered, KeyError),
        (exceptions.QueueNotFound, KeyError),
        (exceptions.SerializerNotInstalled, KeyError),
        (exceptions.EncodeError, ValueError),
        (ClusterError, RuntimeError),
        (ForkedError, RuntimeError),
        (NotPermitted, PermissionError),
        (exceptions.WorkerShutdown, SystemExit),
    ],
)
def test_errors_are_what_a_python_programmer_expects_too(ours, builtin):
    assert issubclass(ours, builtin)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("ImproperlyConfigured", "CeleryError"),
        ("SecurityError", "CeleryError"),
        ("Ignore", "TaskPredicate"),
        ("Reject", "TaskPredicate"),
        ("Retry", "TaskPredicate"),
        ("TaskPredicate", "CeleryError"),
        ("TaskError", "CeleryError"),
        ("TimeoutError", "TaskError"),
        ("MaxRetriesExceededError", "TaskError"),
        ("TaskRevokedError", "TaskError"),
        ("ChordError", "TaskError"),
        ("BackendGetMetaError", "BackendError"),
        ("OperationalError", "KombuError"),
        ("ContentDisallowed", "SerializerNotInstalled"),
        ("DuplicateTaskNameWarning", "CeleryWarning"),
    ],
)
def test_families_are_those_of_celery(name, base):
    assert issubclass(getattr(exceptions, name), getattr(exceptions, base))


def test_a_missing_broker_says_where_how_long_and_what_to_type():
    error = BrokerUnavailable("/run/broker.sock", 2.04)

    assert isinstance(error, OperationalError)
    assert "/run/broker.sock within 2.0 s" in str(error)
    assert "nbtasks start" in str(error)


def test_an_unregistered_name_says_what_to_do_and_a_sentence_stays_as_it_is():
    assert "'pkg.add'" in str(NotRegistered("pkg.add"))
    assert "task.name" in str(NotRegistered("pkg.add"))
    assert str(NotRegistered("The function is gone.")) == "The function is gone."


def test_a_time_limit_says_how_long_it_was():
    assert "3 s" in str(TimeLimitExceeded(3))
    assert str(TimeLimitExceeded("as told")) == "as told"


# --------------------------------------------------------------------------------------- Retry


def test_retry_says_when_and_why():
    moment = datetime(2030, 1, 1, tzinfo=UTC)

    assert str(Retry(exc=ValueError("v"), when=10)) == "Retry in 10s: ValueError('v')"
    assert str(Retry(when=10)) == "Retry in 10s"
    assert str(Retry(when=Fraction(1, 2))) == "Retry in 1/2s"
    assert Retry(when=moment).humanize() == f"at {moment}"
    assert str(Retry("later", ValueError("v"), 10)) == "later"


def test_retry_keeps_the_exception_and_its_text():
    reason = ValueError("v")

    error = Retry(exc=reason, when=1)

    assert error.exc is reason
    assert error.excs == "ValueError('v')"
    assert Retry(exc="as text").excs == "as text"


def test_reject_keeps_reason_and_requeue():
    error = pickle.loads(pickle.dumps(Reject("full", requeue=True)))

    assert (error.reason, error.requeue) == ("full", True)


def test_an_exception_that_cannot_travel_leaves_its_text():
    class Strange(Exception):
        def __repr__(self):
            raise RuntimeError

    wrapper = UnpickleableExceptionWrapper.from_exception(ValueError(Strange(), 3))

    assert wrapper.exc_cls_name == "ValueError"
    assert wrapper.exc_args[1] == "3"
    assert "could not be carried back" in str(wrapper)
