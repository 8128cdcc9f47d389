"""A clock that stands still while the machine does: who says how long something may take has not measured the machine with it."""

from __future__ import annotations

import threading
import time
from typing import Any

TICK_SECONDS = 0.01


class AwakeClock:
    """What this process was able to count, never more than went by; it counts in a thread, within the context.

    It shows no less of a call that waits on a machine at rest; of one that was kept from its processor it shows next to nothing. It is no measure for what
    has to take long.
    """

    def __init__(self) -> None:
        self.longest_standstill_seconds = 0.0
        self._ticks = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, name="awake clock", daemon=True)

    def seconds(self) -> float:
        return self._ticks * TICK_SECONDS

    def _count(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(TICK_SECONDS):
            now = time.monotonic()
            self.longest_standstill_seconds = max(self.longest_standstill_seconds, now - last - TICK_SECONDS)
            last = now
            self._ticks += 1

    def __enter__(self) -> AwakeClock:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()
