"""`rate_limit` of a task, per process: a token bucket. A task over its limit is given back with a pause, so it never holds up others."""

from __future__ import annotations

import time
from typing import Any

from ..core.errors import ImproperlyConfigured

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_rate(rate: str | float | None) -> float:
    """`"10/s"`, `"100/m"`, `"5/h"` or a number a second → calls a second; 0.0 means no limit.

    Raises ImproperlyConfigured for anything else.
    """
    if not rate:
        return 0.0
    try:
        if isinstance(rate, str):
            count, _, unit = rate.partition("/")
            return float(count) / _UNITS[unit.strip() or "s"]
        return float(rate)
    except (KeyError, ValueError, TypeError):
        raise ImproperlyConfigured(f"Invalid rate limit {rate!r}: write '10/s', '100/m', '5/h' or a number of calls a second.") from None


class RateLimits:
    """The buckets of one process: each holds one token at most, so calls are spread evenly."""

    def __init__(self) -> None:
        self._next_free: dict[str, float] = {}

    def pause_seconds(self, task: Any) -> float:
        """0.0 and a token taken, or how long until there is one."""
        rate = parse_rate(task.rate_limit)
        if rate <= 0.0:
            return 0.0
        now = time.monotonic()
        free_at = self._next_free.get(task.name, 0.0)
        if now < free_at:
            return free_at - now
        self._next_free[task.name] = max(now, free_at) + 1.0 / rate
        return 0.0
