"""A clock whose hands a test turns."""

from __future__ import annotations

import threading


class FakeClock:
    """Stands still until it is told otherwise. Stands for `core.clock.SystemClock`; any thread may read and turn it."""

    def __init__(self, *, time: float = 1_700_000_000.0, monotonic: float = 1_000.0) -> None:
        self._time = time
        self._monotonic = monotonic
        self._lock = threading.Lock()

    def time(self) -> float:
        """The wall clock: seconds since 1970."""
        return self._time

    def monotonic(self) -> float:
        """The clock that only goes on."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Time goes by, on both clocks."""
        if seconds < 0:
            raise ValueError(f"Time does not go back by {-seconds} s. To set the wall clock, call jump_wall().")
        with self._lock:
            self._time += seconds
            self._monotonic += seconds

    def jump_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock, forward or back; the other clock notices nothing."""
        with self._lock:
            self._time += seconds

    def __repr__(self) -> str:
        return f"FakeClock(time={self._time!r}, monotonic={self._monotonic!r})"
