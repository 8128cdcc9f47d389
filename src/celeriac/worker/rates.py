"""`rate_limit` of a task, for each worker as in Celery: a token bucket. A task over its limit is given back with a pause, so it never holds up others."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable
from typing import Any

from ..core.errors import ImproperlyConfigured
from .slots import anonymous_file

_BUCKETS = 8192
_BUCKET = struct.Struct("<d")
_BYTES = _BUCKETS * _BUCKET.size
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
    """The buckets of one worker, in memory that its processes share. Each holds one token at most, so calls are spread evenly.

    A bucket is the moment from which its next token is free (seconds of the monotonic clock). A record lock, which the kernel
    takes back from a process that dies, guards them all; only tasks with a limit pay for it (some 3 µs).
    """

    def __init__(self, fd: int, names: Iterable[str]) -> None:
        """`fd`: of `create`, inherited. `names`: of all tasks, the same in every process."""
        self._fd = fd
        self._memory = mmap.mmap(fd, _BYTES)
        self._places = {name: 8 * place for place, name in enumerate(sorted(names)[:_BUCKETS])}
        self._threads = threading.Lock()

    @staticmethod
    def create() -> int:
        """The descriptor of fresh buckets, all full."""
        fd = anonymous_file("celeriac-rates")
        os.ftruncate(fd, _BYTES)
        return fd

    def pause_seconds(self, task: Any) -> float:
        """0.0 and a token taken, or how long until there is one."""
        rate = parse_rate(task.rate_limit)
        place = self._places.get(task.name)
        if rate <= 0.0 or place is None:
            return 0.0
        with self._threads:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            try:
                (free_at,) = _BUCKET.unpack_from(self._memory, place)
                now = time.monotonic()
                if now < free_at:
                    return float(free_at - now)
                _BUCKET.pack_into(self._memory, place, now + 1.0 / rate)
                return 0.0
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
