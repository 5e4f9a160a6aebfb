"""Results, under the module name that Celery has for them."""

from nbtasks.client.eager_result import EagerResult
from nbtasks.client.family import ResultBase
from nbtasks.client.outcome import Moment
from nbtasks.client.result import AsyncResult
from nbtasks.client.result_set import GroupResult, ResultSet, result_from_tuple
from nbtasks.context import allow_join_result, denied_join_result

__all__ = [
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "Moment",
    "ResultBase",
    "ResultSet",
    "allow_join_result",
    "denied_join_result",
    "result_from_tuple",
]
