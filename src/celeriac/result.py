"""Results, where Celery's users look for them."""

from __future__ import annotations

from .tasks.groups import GroupResult, ResultSet
from .tasks.result import AsyncResult, EagerResult, allow_join_result, assert_will_not_block, denied_join_result, result_from_tuple

__all__ = [
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "ResultSet",
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "result_from_tuple",
]
