"""Where the time comes from. Parts that need it are given a Clock, so that a test can turn the hands."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one that people read and may set, and one that only ever goes on."""

    def time(self) -> float:
        """Seconds since 1970 UTC; jumps when somebody sets the machine's clock."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment, the same for all processes of a machine until it restarts."""
        ...


class SystemClock:
    """The machine's own clocks. `monotonic` goes on while the machine is suspended, where the system can tell (Linux)."""

    if hasattr(time, "CLOCK_BOOTTIME"):

        def monotonic(self) -> float:
            return time.clock_gettime(time.CLOCK_BOOTTIME)
    else:

        def monotonic(self) -> float:
            return time.monotonic()

    # Not a function of ours around it: every message and every settlement asks.
    time = staticmethod(time.time)


SYSTEM_CLOCK = SystemClock()
