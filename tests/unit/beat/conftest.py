"""A beat in the test's own thread, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.beat.beat import Beat
from celeriac.contracts.schedules import EntryState, LedgerLine
from celeriac.core.message import Holder, Message
from celeriac.engines.memory import MemoryEngine
from celeriac.testing.clock import FakeClock
from celeriac.testing.contract.harness import settlement, start

NOON = datetime(2026, 5, 13, 12, 0, tzinfo=UTC).timestamp()


class Lab:
    """An app whose engine is memory, and any number of beats of it."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock(time=NOON)
        self.engine = MemoryEngine("memory://", clock=self.clock)
        self.app = Celeriac("lab", broker="memory://", set_as_current=False, **settings)
        self._patch = self.app.with_engine(self.engine)
        self._patch.__enter__()
        self.worker: Holder = start(self.engine)

        @self.app.task(name="job")
        def job(*args: Any, **kwargs: Any) -> None: ...

        self.job = job

    def close(self) -> None:
        self._patch.__exit__(None, None, None)

    def beat(self) -> Beat:
        beat = Beat(self.app)
        beat.begin()
        return beat

    def settle(self, beat: Beat) -> float:
        """Lets the beat do all that is due now. Returns how long it would sleep."""
        for _ in range(10_000):
            pause = beat.tick()
            if pause > 0:
                return pause
        raise AssertionError("the beat finds no end")

    def let_pass(self, beat: Beat, seconds: float, step: float = 1.0) -> None:
        """Time goes by, with the beat awake."""
        end = self.clock.time() + seconds
        self.settle(beat)
        while self.clock.time() < end:
            self.clock.advance(min(step, end - self.clock.time()))
            self.settle(beat)

    def waiting(self) -> list[Message]:
        return [waiting.message for waiting in self.engine.peek("celery", limit=100_000) if waiting.message is not None]

    def take(self) -> list[Any]:
        """A worker takes all that is ready."""
        return self.engine.reserve(["celery"], limit=100_000, holder=self.worker)

    def finish(self, deliveries: list[Any]) -> None:
        assert self.engine.settle([settlement(delivery) for delivery in deliveries]) == []

    def state(self, name: str) -> EntryState:
        return self.app.schedules.get(name)

    def ledger(self, name: str) -> list[LedgerLine]:
        """The oldest first."""
        return self.app.schedules.history(name, limit=100_000)[::-1]

    def outline(self, name: str) -> list[tuple[float, str, str, int]]:
        """(seconds after noon, outcome, why, how many) of each line."""
        return [(line.planned_at - NOON, line.outcome, line.why, line.occurrences) for line in self.ledger(name)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
def make_lab() -> Iterator[Any]:
    made: list[Lab] = []

    def make(**settings: Any) -> Lab:
        made.append(Lab(**settings))
        return made[-1]

    yield make
    for lab in made:
        lab.close()
