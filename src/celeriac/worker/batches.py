"""How many messages a process takes at once: as many as are some 50 ms of work, and no more.

A batch makes short tasks cheap (one trip to the engine for many), and is a hostage when a task turns out long. So the size follows the run times seen, starts
at one whenever the process was idle (others may be idle too, and the queue is shallow), and doubles while batches come back full.
"""

from __future__ import annotations

TARGET_SECONDS = 0.05
LARGEST = 64
_WEIGHT = 0.2


class BatchSize:
    """Adapts to one process's tasks."""

    def __init__(self, largest: int = LARGEST, target_seconds: float = TARGET_SECONDS) -> None:
        self._largest = largest
        self._target_seconds = target_seconds
        self._ramp = 1
        self._mean_seconds = 0.0

    def limit(self) -> int:
        """How many to reserve now."""
        fitting = self._largest if self._mean_seconds <= 0.0 else int(self._target_seconds / self._mean_seconds)
        return max(1, min(self._ramp, fitting, self._largest))

    def came(self, count: int) -> None:
        """A reservation brought so many."""
        if count >= self._ramp:
            self._ramp = min(self._ramp * 2, self._largest)
        elif count * 2 < self._ramp:
            self._ramp = max(1, count)

    def idle(self) -> None:
        """There was nothing: what comes next is shared with the processes that are idle too."""
        self._ramp = 1

    def ran(self, count: int, seconds: float) -> None:
        """So many tasks ran in so many seconds. A slow one counts at once, fast ones little by little."""
        mean = seconds / count
        weight = 1.0 if mean > 4 * self._mean_seconds else _WEIGHT
        self._mean_seconds += weight * (mean - self._mean_seconds)
