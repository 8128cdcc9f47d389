"""What a task has finished is not done again, and what it waits for costs nothing meanwhile."""

from __future__ import annotations

import multiprocessing
import os
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, Protocol

import pytest
from msgspec import Raw

from ...contracts.engine import Engine
from ...contracts.steps import Step, Steps
from ...core.errors import EngineUnavailable
from ...core.message import Arrival, Delivery, Join, Pause, Revocation, Settlement, Verdict
from ..clock import FakeClock
from ..faulty import FaultyEngine, When
from .harness import (
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    EngineMaker,
    EngineTests,
    ids,
    message,
    messages,
    record,
    settlement,
    start,
    state_of,
    take,
    take_one,
)
from .processes import running
from .publishing import STRANGE

ONE, TWO = Raw(b'{"one":1}'), Raw(b'"\xc3\xa9"')


class SteppingEngine(Engine, Steps, Protocol):
    """An engine that keeps steps."""


def paused(delivery: Delivery, step: str = "wait", event: str | None = None, seconds: float | None = None, **fields: Any) -> Settlement:
    return settlement(delivery, Verdict.RETRY, pause=Pause(step=step, event=event, seconds=seconds), **fields)


def results(engine: Steps, task_id: str) -> dict[str, bytes | None]:
    return {name: None if step.result is None else bytes(step.result) for name, step in engine.recall(task_id).items()}


class StepTests(EngineTests):
    @pytest.fixture(autouse=True)
    def keeps_steps(self, request: pytest.FixtureRequest, make_engine: EngineMaker) -> None:
        """For the tests of this file alone, though the whole suite inherits it."""
        if request.function.__module__ == __name__ and not make_engine.capabilities.steps:
            pytest.skip("this engine keeps no steps")


class DurableSteps(StepTests):
    """remembered → recalled → forgotten; leased → scheduled → ready."""

    # -- finished steps --------------------------------------------------------------------------------------------------

    def test_what_is_remembered_is_recalled_in_order(self, engine: SteppingEngine, other: SteppingEngine) -> None:
        engine.publish([message("m")])
        lease = take_one(engine, start(engine)).lease
        assert engine.recall("m") == {}
        assert engine.remember("m", "é z", ONE, lease=lease) == Step(name="é z", result=ONE)
        assert engine.remember("m", "a", TWO, failed=True, lease=lease) == Step(name="a", result=TWO, failed=True)
        recalled = other.recall("m")
        assert list(recalled) == ["é z", "a"]
        assert recalled == {"é z": Step(name="é z", result=ONE), "a": Step(name="a", result=TWO, failed=True)}
        assert other.recall("n") == {}

    def test_the_first_outcome_stays(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        lease = take_one(engine, start(engine)).lease
        engine.remember("m", "a", ONE, lease=lease)
        assert engine.remember("m", "a", TWO, failed=True, lease=lease) == Step(name="a", result=ONE)
        assert results(engine, "m") == {"a": bytes(ONE)}

    def test_null_is_an_outcome(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        lease = take_one(engine, start(engine)).lease
        engine.remember("m", "a", Raw(b"null"), lease=lease)
        assert engine.remember("m", "a", ONE, lease=lease) == Step(name="a", result=Raw(b"null"))

    def test_a_zombie_remembers_nothing(self, engine: SteppingEngine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        zombie = take_one(engine, start(engine, "anna"))
        engine.remember("m", "a", ONE, lease=zombie.lease)
        clock.advance(LEASE_SECONDS + 1)
        engine.reclaim()
        assert engine.remember("m", "b", ONE, lease=zombie.lease) is None
        heir = take_one(engine, start(engine, "bert"))
        assert engine.remember("m", "b", ONE, lease=zombie.lease) is None
        assert results(engine, "m") == {"a": bytes(ONE)}
        assert engine.remember("m", "b", TWO, lease=heir.lease) == Step(name="b", result=TWO)
        engine.settle([settlement(heir)])
        assert engine.remember("m", "c", ONE, lease=heir.lease) is None

    def test_without_a_lease_it_is_remembered_in_any_case(self, engine: SteppingEngine) -> None:
        assert engine.remember("m", "a", ONE) == Step(name="a", result=ONE)
        assert results(engine, "m") == {"a": bytes(ONE)}

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RELEASED, Verdict.CRASHED])
    def test_who_runs_again_recalls(self, engine: SteppingEngine, verdict: Verdict) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        engine.remember("m", "a", ONE, lease=delivery.lease)
        engine.settle([settlement(delivery, verdict)])
        again = take_one(engine, holder)
        assert results(engine, "m") == {"a": bytes(ONE)}
        assert engine.remember("m", "b", TWO, lease=again.lease) is not None

    def test_a_replayed_dead_letter_recalls(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        engine.remember("m", "a", ONE, lease=delivery.lease)
        engine.settle([settlement(delivery, Verdict.DEAD, reason="poison")])
        engine.replay(["m"])
        take_one(engine, holder)
        assert results(engine, "m") == {"a": bytes(ONE)}

    @pytest.mark.parametrize("id", STRANGE)
    def test_any_text_is_a_name(self, engine: SteppingEngine, id: str) -> None:
        engine.publish([message(id)])
        holder = start(engine)
        delivery = take_one(engine, holder)
        engine.remember(id, id, ONE, lease=delivery.lease)
        engine.settle([paused(delivery, f"{id} waits", id)])
        assert results(engine, id) == {id: bytes(ONE), f"{id} waits": None}
        assert engine.occur(id, TWO) == [id]
        assert results(engine, id) == {id: bytes(ONE), f"{id} waits": bytes(TWO)}
        assert ids(take(engine, holder)) == [id]

    # -- forgetting ------------------------------------------------------------------------------------------------------

    def test_the_end_forgets(self, engine: SteppingEngine) -> None:
        engine.publish(messages(3))
        deliveries = take(engine, start(engine))
        for delivery in deliveries:
            engine.remember(delivery.id, "a", ONE, lease=delivery.lease)
        engine.settle([settlement(deliveries[0], forgets=True, record=record("m0")), settlement(deliveries[1])])
        assert [results(engine, f"m{number}") for number in range(3)] == [{}, {"a": bytes(ONE)}, {"a": bytes(ONE)}]
        engine.settle([settlement(deliveries[2], Verdict.RETRY, forgets=True)])
        assert engine.recall("m2") == {}

    def test_a_zombie_forgets_nothing_and_pauses_nothing(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        stale = take_one(engine, start(engine))
        engine.remember("m", "a", ONE, lease=stale.lease)
        engine.settle([settlement(stale, Verdict.RELEASED)])
        take_one(engine, start(engine, "bert"))
        assert engine.settle([settlement(stale, forgets=True)]) == ["m"]
        assert engine.settle([paused(stale, event="e")]) == ["m"]
        assert results(engine, "m") == {"a": bytes(ONE)}
        assert state_of(engine, "m") == "leased"

    def test_without_a_lease_it_forgets_too(self, engine: SteppingEngine) -> None:
        engine.remember("m", "a", ONE)
        engine.settle([Settlement(id="m", verdict=Verdict.DONE, lease=None, forgets=True)])
        assert engine.recall("m") == {}

    def test_a_revoked_waiting_one_is_forgotten(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        engine.settle([paused(delivery, event="e")])
        assert engine.revoke([Revocation(id="m", record=record("m", "REVOKED"))]) == {"m": "waiting"}
        assert engine.recall("m") == {}
        assert engine.occur("e", ONE) == []
        assert state_of(engine, "m") is None

    def test_a_revoked_running_one_does_not_wait(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        engine.remember("m", "a", ONE, lease=delivery.lease)
        end = Arrival(join="j", index=0, task_id="m", failed=True)
        engine.publish([], joins=[Join(id="j", size=1)])
        engine.revoke([Revocation(id="m", record=record("m", "REVOKED"), arrival=end)])
        assert engine.settle([paused(delivery, event="e")]) == []
        assert state_of(engine, "m") is None
        assert engine.fetch(["m"])["m"].status == "REVOKED"
        assert engine.joins(["j"])["j"].arrived == 1
        assert engine.recall("m") == {}

    def test_old_ones_are_pruned(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        engine: Any = make_engine(clock=clock, result_expires=100)
        engine.publish([*messages(4), message("sleeping"), message("dead")])
        deliveries = {delivery.id: delivery for delivery in take(engine, start(engine))}
        for id, delivery in deliveries.items():
            engine.remember(id, "a", ONE, lease=delivery.lease)
        engine.settle([settlement(deliveries["m0"]), settlement(deliveries["dead"], Verdict.DEAD, reason="x")])
        engine.settle([paused(deliveries["sleeping"], seconds=10_000)])
        engine.occur("old", ONE)
        clock.advance(101)
        engine.occur("new", ONE)
        engine.settle([settlement(deliveries["m1"])])
        engine.remember("fresh", "a", ONE)
        for _ in range(3):
            engine.prune()
        kept = {id: bool(engine.recall(id)) for id in [*deliveries, "fresh"]}
        assert kept.pop("m1") in (True, False)  # whether its end counts is the engine's affair
        assert kept == {"m0": False, "m2": True, "m3": True, "sleeping": True, "dead": True, "fresh": True}
        engine.settle([paused(deliveries["m2"], "waits", "old"), paused(deliveries["m3"], "waits", "new")])
        assert (state_of(engine, "m2"), state_of(engine, "m3")) == ("scheduled", "ready")
        engine.close()

    # -- waiting for a time ------------------------------------------------------------------------------------------------

    def test_a_pause_gives_the_place_back_until_its_time(self, engine: SteppingEngine, clock: FakeClock) -> None:
        original = message("m", argsrepr="é", priority=4)
        engine.publish([original])
        holder = start(engine)
        delivery = take_one(engine, holder)
        until = clock.time() + 3600
        assert engine.settle([paused(delivery, seconds=3600, record=record("m", "STARTED"))]) == []
        assert engine.held("anna") == []
        assert state_of(engine, "m") == "scheduled"
        assert engine.find(["m"])["m"].due_at == pytest.approx(until, abs=0.01)
        assert engine.fetch(["m"])["m"].status == "STARTED"
        step = engine.recall("m")["wait"]
        assert (step.result, step.event) == (None, None)
        assert step.until == pytest.approx(until, abs=0.01)
        clock.advance(3599)
        assert take(engine, holder) == []
        clock.advance(2)
        again = take_one(engine, holder)
        assert again.message == original
        assert again.lease.token > delivery.lease.token
        assert (again.crashes, again.interruptions) == (0, 0)
        assert again.waiting_since == pytest.approx(until, abs=0.01)
        assert engine.remember("m", "wait", Raw(b"null"), lease=again.lease) == Step(name="wait", result=Raw(b"null"), until=step.until)

    def test_the_delay_of_its_message_does_not_count_again(self, engine: SteppingEngine, clock: FakeClock) -> None:
        engine.publish([message("m", delay_seconds=1000)])
        clock.advance(1001)
        holder = start(engine)
        engine.settle([paused(take_one(engine, holder), seconds=10)])
        clock.advance(11)
        assert take_one(engine, holder).id == "m"

    def test_a_wait_begins_once(self, engine: SteppingEngine, clock: FakeClock) -> None:
        """Whoever comes to it again, since he was interrupted behind it, waits for what is left."""
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([paused(take_one(engine, holder), seconds=10)])
        until = engine.recall("m")["wait"].until
        clock.advance(11)
        engine.settle([paused(take_one(engine, holder), seconds=10)])
        assert engine.recall("m")["wait"].until == until
        assert state_of(engine, "m") == "ready"

    def test_a_pause_at_a_finished_step_is_none(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        engine.remember("m", "wait", ONE, lease=delivery.lease)
        engine.settle([paused(delivery, seconds=1000)])
        assert take_one(engine, holder).id == "m"
        assert results(engine, "m") == {"wait": bytes(ONE)}

    def test_a_changed_message_waits(self, engine: SteppingEngine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        changed = message("m", queue="slow", argsrepr="changed")
        engine.settle([paused(take_one(engine, holder), seconds=10, message=changed)])
        clock.advance(11)
        assert take_one(engine, holder, "slow").message == changed

    # -- waiting for an event ------------------------------------------------------------------------------------------------

    def test_an_event_makes_ready(self, engine: SteppingEngine, other: SteppingEngine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([paused(take_one(engine, holder), event="paid é")])
        assert state_of(engine, "m") == "scheduled"
        assert engine.find(["m"])["m"].due_at is None
        assert engine.recall("m") == {"wait": Step(name="wait", event="paid é")}
        assert engine.depth(["celery"])["celery"].scheduled == 1
        assert ids(engine.peek("celery", state="scheduled")) == ["m"]
        clock.advance(10_000_000)
        assert take(engine, holder) == []
        holder = start(engine)
        assert other.occur("unpaid", ONE) == []
        assert other.occur("paid é", TWO) == ["m"]
        assert engine.recall("m") == {"wait": Step(name="wait", result=TWO, event="paid é")}
        again = take_one(engine, holder)
        assert again.waiting_since == pytest.approx(clock.time(), abs=0.01)
        assert engine.occur("paid é", ONE) == []
        assert results(engine, "m") == {"wait": bytes(TWO)}

    def test_an_event_wakes_who_waits(self, live: SteppingEngine, live_other: SteppingEngine, threads: Any) -> None:
        live.publish([message("m")])
        holder = start(live)
        live.settle([paused(take_one(live, holder), event="e")])
        assert take(live_other, holder) == []
        waiting = threads.submit(live_other.wait, ["celery"], DEADLINE_SECONDS)
        live.occur("e", ONE)
        assert waiting.result(DEADLINE_SECONDS) is True

    def test_all_who_wait_are_ready(self, engine: SteppingEngine) -> None:
        engine.publish([*messages(50), *messages(50, "b", queue="b")])
        holder = start(engine)
        for delivery in take(engine, holder, "celery", "b"):
            engine.settle([paused(delivery, event="e" if delivery.id != "m7" else "another")])
        assert sorted(engine.occur("e", ONE)) == sorted(
            f"{queue}{number}" for queue in "mb" for number in range(50) if queue + str(number) != "m7"
        )
        assert len(take(engine, holder, "celery", "b")) == 99

    def test_an_event_that_occurred_before_is_not_waited_for(self, engine: SteppingEngine) -> None:
        engine.occur("e", ONE)
        engine.occur("e", TWO)
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([paused(take_one(engine, holder), event="e", seconds=10)])
        assert take_one(engine, holder).id == "m"
        assert results(engine, "m") == {"wait": bytes(TWO)}

    def test_an_event_that_does_not_come_in_time(self, engine: SteppingEngine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([paused(take_one(engine, holder), event="e", seconds=10)])
        clock.advance(11)
        delivery = take_one(engine, holder)
        assert engine.recall("m")["wait"].result is None
        remembered = engine.remember("m", "wait", ONE, failed=True, lease=delivery.lease)
        assert remembered is not None
        assert (bytes(remembered.result or b""), remembered.failed) == (bytes(ONE), True)
        assert engine.occur("e", TWO) == []
        assert results(engine, "m") == {"wait": bytes(ONE)}

    def test_an_event_that_comes_as_the_time_is_over(self, engine: SteppingEngine, clock: FakeClock) -> None:
        """The task runs again already: it is told, if it has not decided otherwise."""
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([paused(take_one(engine, holder), event="e", seconds=10)])
        clock.advance(11)
        delivery = take_one(engine, holder)
        assert engine.occur("e", TWO) == ["m"]
        assert state_of(engine, "m") == "leased"
        remembered = engine.remember("m", "wait", ONE, failed=True, lease=delivery.lease)
        assert remembered is not None
        assert (bytes(remembered.result or b""), remembered.failed) == (bytes(TWO), False)

    def test_an_event_does_not_shorten_another_delay(self, engine: SteppingEngine, clock: FakeClock) -> None:
        """The task runs again, and asks for a retry before it has looked at its wait."""
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([paused(take_one(engine, holder), event="e", seconds=10)])
        clock.advance(11)
        engine.settle([settlement(take_one(engine, holder), Verdict.RETRY, message=message("m", delay_seconds=100))])
        assert engine.occur("e", ONE) == ["m"]
        assert state_of(engine, "m") == "scheduled"
        assert results(engine, "m") == {"wait": bytes(ONE)}
        clock.advance(101)
        assert take_one(engine, holder).id == "m"

    def test_one_wait_after_another(self, engine: SteppingEngine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        for number in range(5):
            engine.settle([paused(take_one(engine, holder), f"wait{number}", f"e{number}", 50)])
            clock.advance(5)
            assert take(engine, holder) == []
            assert engine.occur(f"e{number}", Raw(str(number).encode())) == ["m"]
        assert results(engine, "m") == {f"wait{number}": str(number).encode() for number in range(5)}
        engine.settle([settlement(take_one(engine, holder), forgets=True)])
        assert engine.recall("m") == {}
        clock.advance(100)
        assert take(engine, holder) == []

    def test_a_purged_one_does_not_come_back(self, engine: SteppingEngine) -> None:
        engine.publish([message("m")])
        engine.settle([paused(take_one(engine, start(engine)), event="e")])
        assert engine.purge(["celery"]) == 1
        engine.occur("e", ONE)
        assert engine.find(["m"]) == {}

    def test_waits_survive_a_restart(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        if not make_engine.capabilities.durable:
            pytest.skip("this engine is not durable")
        engine: Any = make_engine(clock=clock)
        engine.publish(messages(2))
        first, second = take(engine, start(engine))
        engine.remember("m0", "a", ONE, lease=first.lease)
        engine.settle([paused(first, event="e"), paused(second, seconds=10)])
        engine.close()
        again: Any = make_engine(clock=clock)
        clock.advance(11)
        assert ids(take(again, start(again))) == ["m1"]
        assert again.occur("e", TWO) == ["m0"]
        assert ids(take(again, start(again))) == ["m0"]
        assert results(again, "m0") == {"a": bytes(ONE), "wait": bytes(TWO)}
        again.close()

    # -- many at once, and faults ----------------------------------------------------------------------------------------------

    def test_events_and_pauses_at_once_from_processes(self, make_engine: EngineMaker, live: SteppingEngine) -> None:
        """Whether the event occurs just before or just after the wait begins: nobody waits for ever."""
        if not make_engine.capabilities.processes:
            pytest.skip("this engine lives in one process")
        live.publish(messages(200))
        context: Any = multiprocessing.get_context("fork")
        reader, writer = context.Pipe()
        child = context.Process(target=run_pausing, args=(make_engine, writer), daemon=True)
        with running([child]):
            assert reader.poll(DEADLINE_SECONDS), "the process has not begun"
            reader.recv()
            reader.send("go")
            for number in range(200):
                live.occur(f"e{number}", Raw(str(number).encode()))
            child.join(DEADLINE_SECONDS)
            assert child.exitcode == 0
        assert live.depth(["celery"])["celery"].scheduled == 0
        assert len(take(live, start(live), limit=1000)) == 200
        assert [results(live, f"m{number}") for number in range(200)] == [{"wait": str(number).encode()} for number in range(200)]

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_task_whose_operations_fail(self, make_engine: EngineMaker, clock: FakeClock, when: When) -> None:
        """Each step is done once for each time that its outcome could not be kept, and in the end all is forgotten."""
        for number in count(1):
            plain: Any = make_engine(clock=clock)
            faulty = FaultyEngine(plain, fail_at=number, when=when, verbs=["remember", "recall", "occur", "settle"])

            def again(verb: str, *arguments: Any, faulty: Any = faulty, **options: Any) -> Any:
                try:
                    return getattr(faulty, verb)(*arguments, **options)
                except EngineUnavailable:
                    return getattr(faulty, verb)(*arguments, **options)

            plain.publish([message("m")])
            holder = start(plain)
            delivery = take_one(plain, holder)
            assert again("recall", "m") == {}
            assert again("remember", "m", "a", ONE, lease=delivery.lease) == Step(name="a", result=ONE)
            again("settle", [paused(delivery, event="e")])
            again("occur", "e", TWO)
            delivery = take_one(plain, holder)
            assert {name: bytes(step.result) for name, step in again("recall", "m").items()} == {"a": bytes(ONE), "wait": bytes(TWO)}
            again("settle", [settlement(delivery, forgets=True)])
            assert plain.recall("m") == {}
            assert plain.queues() == []
            plain.close()
            if not faulty.failed:
                assert number == 7
                break


def run_pausing(make_engine: EngineMaker, partner: Connection) -> None:
    engine = make_engine()
    deliveries = take(engine, start(engine, "child", os.getpid()), limit=1000)
    partner.send("ready")
    partner.recv()
    for delivery in deliveries:
        assert engine.settle([paused(delivery, event=f"e{delivery.id[1:]}")]) == []
    engine.close()
