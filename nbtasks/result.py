"""Results, under the module name that Celery has for them."""

from nbtasks.client.result import (
    AsyncResult,
    EagerResult,
    GroupResult,
    Moment,
    ResultBase,
    ResultSet,
    result_from_tuple,
)

__all__ = [
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "Moment",
    "ResultBase",
    "ResultSet",
    "result_from_tuple",
]
