"""A broker that keeps no schedules and knows no ids: claims are made where the results are, and messages published after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from celeriac.contracts.broker import Capabilities
from celeriac.core.errors import EngineUnavailable
from celeriac.core.message import Message, Record
from celeriac.engines.memory import MemoryEngine
from tests.unit.beat.conftest import NOON, Lab


class Plain(MemoryEngine):
    """As RabbitMQ, as far as a beat can see."""

    capabilities: Capabilities = replace(MemoryEngine.capabilities, schedules=False, ids=False, atomic_results=False, joins=False)
    schedules: Any = None
    fails = 0

    def publish(self, messages: Sequence[Message], **more: Any) -> None:
        if self.fails:
            self.fails -= 1
            raise EngineUnavailable("it is away")
        # It knows no ids: what is published twice is there twice.
        super().publish([replace(message, id=f"{message.id}#{self._storage.sequence}") for message in messages])

    def find(self, ids: Sequence[str]) -> dict[str, Any]:
        return {}


class TwoEngines(Lab):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.broker = Plain("memory://", clock=self.clock)
        self.app._broker = self.broker

    def published(self) -> list[str]:
        return [waiting.id.partition("#")[0] for waiting in self.broker.peek("celery", limit=10_000)]


@pytest.fixture
def two() -> Any:
    lab = TwoEngines()
    yield lab
    lab.close()


def ids(lab: Lab, name: str) -> list[str | None]:
    return [line.message_id for line in lab.ledger(name)]


def test_claims_are_made_in_the_engine_of_the_results(two: TwoEngines) -> None:
    two.app.schedules.put("tick", 10, two.job)
    two.let_pass(two.beat(), 35)
    assert two.published() == ids(two, "tick")
    assert [line.outcome for line in two.ledger("tick")] == ["sent"] * 3
    assert two.engine.peek("celery") == []
    assert two.broker.peek("celery")[0].message.headers["celeriac-again"] is True  # type: ignore[union-attr]


def test_several_beats_publish_each_once(two: TwoEngines) -> None:
    two.app.schedules.put("tick", 10, two.job)
    beats = [two.beat() for _ in range(3)]
    for _ in range(40):
        two.clock.advance(1)
        seen = [beat.store.due(10) for beat in beats]
        for beat, due in zip(beats, seen, strict=True):
            beat._fire(due.states, due.now)
    assert two.published() == ids(two, "tick")
    assert len(two.published()) == 4


def test_what_a_beat_claimed_and_could_not_publish_another_publishes(two: TwoEngines) -> None:
    two.app.schedules.put("tick", 10, two.job, max_runs=1)
    first, second = two.beat(), two.beat()
    two.broker.fails = 1
    two.clock.advance(10)
    with pytest.raises(EngineUnavailable):
        first.tick()
    assert [line.outcome for line in two.ledger("tick")] == ["kept"]
    two.let_pass(second, 1)
    assert two.published() == [], "it may be at it still"
    two.clock.advance(3)
    second._next_rescue = 0.0
    two.settle(second)
    assert two.published() == ids(two, "tick")
    assert [line.outcome for line in two.ledger("tick")] == ["sent"]


def test_one_that_wakes_up_after_that_does_not_publish_again(two: TwoEngines) -> None:
    two.app.schedules.put("tick", 10, two.job, max_runs=1)
    beat = two.beat()
    two.clock.advance(10)
    fire = two.engine.schedules.fire

    def fire_and_sleep(*args: Any, **options: Any) -> list[str]:
        refused = fire(*args, **options)
        two.clock.advance(5)
        other = two.beat()
        two.settle(other)
        return refused

    beat.store.fire = fire_and_sleep  # type: ignore[method-assign]
    try:
        two.settle(beat)
    finally:
        beat.store.fire = fire  # type: ignore[method-assign]
    assert two.published() == ids(two, "tick")


def test_overlaps_are_judged_by_the_records(two: TwoEngines) -> None:
    two.job.ignore_result = True
    two.app.schedules.put("job", 10, two.job, overlap="skip")
    beat = two.beat()
    two.let_pass(beat, 25)
    assert [line.outcome for line in two.ledger("job")] == ["sent", "skipped"]
    message = two.broker.peek("celery")[0].message
    assert message is not None and not message.ignore_result, "or nobody could tell"
    (id,) = [id for id in ids(two, "job") if id]
    two.engine.store([Record(task_id=id, status="SUCCESS")])
    two.let_pass(beat, 10)
    assert [line.outcome for line in two.ledger("job")] == ["sent", "skipped", "sent"]
    assert two.ledger("job")[-1].planned_at == NOON + 30


def test_run_by_hand(two: TwoEngines) -> None:
    two.app.schedules.put("job", 10, two.job)
    result = two.app.schedules.run("job")
    assert two.published() == [result.id]
