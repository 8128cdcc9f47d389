"""The file in which the workers, the producers and the bench itself count: tasks started, messages sent, and how long from call to start.

Each process counts in cells of its own, so that counting takes no lock (about 0.1 µs a task, on all sides). Nothing but the standard library: every side imports it.
"""

from __future__ import annotations

import array
import fcntl
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

PROCESSES = 256
BUCKETS = 512
STEPS = 16
"""Latencies are counted in buckets, so many for each doubling of a microsecond: exact to some 4 %."""

NEXT, LAST = 0, 1
STARTED, SENT, WAITED = 8, 8 + PROCESSES, 8 + 2 * PROCESSES
CELLS = 8 + 2 * PROCESSES + PROCESSES * BUCKETS


def create(path: Path) -> None:
    path.write_bytes(bytes(8 * CELLS))


class Counters:
    """The counting side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self.cells = memoryview(mmap.mmap(file.fileno(), 8 * CELLS)).cast("Q")
        self.own_cells()
        os.register_at_fork(after_in_child=self.own_cells)

    def own_cells(self) -> None:
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            mine = self.cells[NEXT] % PROCESSES
            self.cells[NEXT] += 1
        self.started, self.sent, self.waited = STARTED + mine, SENT + mine, WAITED + mine * BUCKETS

    def has_waited(self, nanoseconds: int) -> None:
        bucket = int(STEPS * math.log2(max(1.0, nanoseconds / 1000)))
        self.cells[self.waited + min(BUCKETS - 1, bucket)] += 1

    def waiting(self) -> int:
        """How many were sent and have not started."""
        return sum(self.cells[SENT:WAITED]) - sum(self.cells[STARTED:SENT])


@dataclass(frozen=True, slots=True)
class Counts:
    """What has been counted at one moment."""

    started: int
    sent: int
    waited: tuple[int, ...] = ()
    """How many waited how long, by bucket."""

    @classmethod
    def read(cls, path: Path, *, waited: bool = False) -> Counts:
        with path.open("rb") as file:
            cells = array.array("Q", file.read() if waited else file.read(8 * WAITED))
        buckets = tuple(sum(cells[WAITED + bucket :: BUCKETS]) for bucket in range(BUCKETS)) if waited else ()
        return cls(sum(cells[STARTED:SENT]), sum(cells[SENT:WAITED]), buckets)

    def waited_ms(self, before: Counts, percent: float) -> float:
        """So many of a hundred that started since then had waited no longer."""
        numbers = [now - then for now, then in zip(self.waited, before.waited, strict=True)]
        rank, seen = sum(numbers) * percent / 100, 0
        for bucket, number in enumerate(numbers):
            seen += number
            if seen and seen >= rank:
                return float(2 ** ((bucket + 0.5) / STEPS) / 1000)
        return 0.0
