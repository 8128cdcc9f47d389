"""Every verdict, and that one settlement is one step."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec import Raw

from ...contracts.engine import Engine
from ...core.message import Settlement, Verdict
from ..clock import FakeClock
from .harness import DEADLINE_SECONDS, EngineTests, ids, message, messages, record, settlement, start, state_of, take, take_one


class Settling(EngineTests):
    """leased → gone · scheduled · ready · dead."""

    def test_done(self, engine: Engine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        assert engine.settle([settlement(take_one(engine, holder))]) == []
        assert engine.find(["m"]) == {}
        assert engine.held("anna") == []
        assert engine.queues() == []
        assert engine.reclaim(["anna"]) == []

    def test_done_with_its_record_and_its_follow_ups(self, engine: Engine, other: Engine) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        follow_ups = [message("n", queue="next"), message("o", queue="next", delay_seconds=10)]
        assert engine.settle([settlement(delivery, record=record("m", result=Raw(b'{"a":1}')), follow_ups=follow_ups)]) == []
        assert other.find(["m"]) == {}
        assert bytes(other.fetch(["m"])["m"].result) == b'{"a":1}'
        assert (state_of(other, "n"), state_of(other, "o")) == ("ready", "scheduled")

    def test_a_follow_up_that_is_held_already_changes_nothing(self, engine: Engine) -> None:
        engine.publish([message("m"), message("n", argsrepr="first")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        assert engine.settle([settlement(delivery, follow_ups=[message("n", argsrepr="second")])]) == []
        again = take_one(engine, holder)
        assert again.message is not None
        assert again.message.argsrepr == "first"
        assert take(engine, holder) == []

    def test_a_follow_up_may_bear_the_id_of_the_settled(self, engine: Engine) -> None:
        """A task that replaces itself."""
        engine.publish([message("m", task="old")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        assert engine.settle([settlement(delivery, follow_ups=[message("m", task="new")])]) == []
        again = take_one(engine, holder)
        assert again.message is not None
        assert again.message.task == "new"

    def test_what_cannot_be_stored_settles_nothing(self, engine: Engine) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        bad = message("bad", headers={"no JSON": object()})
        with pytest.raises(Exception, match=r".+"):
            engine.settle([settlement(delivery, record=record("m"), follow_ups=[message("n"), bad])])
        assert engine.fetch(["m"]) == {}
        assert engine.find(["n", "bad"]) == {}
        assert engine.settle([settlement(delivery)]) == []

    # -- results of others -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("verdict", [Verdict.DONE, Verdict.DEAD, Verdict.RETRY])
    def test_results_of_others_are_stored_in_the_same_step(self, engine: Engine, other: Engine, verdict: Verdict) -> None:
        """A step of a chain fails; those after it will never come."""
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        others = [record(f"é{number}", "FAILURE", result=Raw(b'{"exc_type":"ValueError"}')) for number in range(3)]
        subscription = other.subscribe(["é2"])
        assert engine.settle([settlement(delivery, verdict, reason="x", record=record("m", "FAILURE"), more_records=others)]) == []
        assert subscription.changed(DEADLINE_SECONDS) is True
        subscription.close()
        assert {id: found.status for id, found in other.fetch(["m", "é0", "é1", "é2"]).items()} == dict.fromkeys(
            ["m", "é0", "é1", "é2"], "FAILURE"
        )
        assert bytes(other.fetch(["é1"])["é1"].result) == b'{"exc_type":"ValueError"}'

    def test_of_results_of_others_a_ready_one_stays(self, engine: Engine) -> None:
        engine.publish(messages(2))
        engine.store([record("n", "SUCCESS")])
        first, second = take(engine, start(engine))
        assert engine.settle([settlement(first, more_records=[record("n", "PENDING"), record("o", "PENDING")])]) == []
        assert {id: found.status for id, found in engine.fetch(["n", "o"]).items()} == {"n": "SUCCESS", "o": "PENDING"}
        assert engine.settle([settlement(second, more_records=[record("n", "FAILURE")])]) == []
        assert engine.fetch(["n"])["n"].status == "FAILURE"

    def test_results_of_others_without_a_lease(self, engine: Engine) -> None:
        outcome = Settlement(id="m", verdict=Verdict.DONE, lease=None, more_records=[record("n")])
        assert engine.settle([outcome]) == []
        assert engine.fetch(["m", "n"]).keys() == {"n"}

    def test_a_refused_one_stores_no_results_of_others(self, engine: Engine) -> None:
        engine.publish(messages(2))
        stale, fresh = take(engine, start(engine))
        engine.settle([settlement(stale, Verdict.RELEASED)])
        attempts = [settlement(delivery, more_records=[record(f"of {delivery.id}")]) for delivery in (stale, fresh)]
        assert engine.settle(attempts) == ["m0"]
        assert engine.fetch(["of m0", "of m1"]).keys() == {"of m1"}

    # -- acknowledged before it ran --------------------------------------------------------------------------------------

    def test_without_a_lease_only_the_outcome_is_stored(self, engine: Engine) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        assert engine.settle([settlement(delivery, early=True)]) == []  # acknowledged; then it runs
        process = delivery.lease.holder.process
        assert (engine.held("anna", process), engine.lost("anna", process)) == ([], [])
        outcome = Settlement(id="m", verdict=Verdict.DONE, lease=None, record=record("m"), follow_ups=[message("n")])
        assert engine.settle([outcome]) == []
        assert engine.fetch(["m"])["m"].status == "SUCCESS"
        assert state_of(engine, "n") == "ready"

    def test_without_a_lease_nothing_is_removed(self, engine: Engine) -> None:
        engine.publish([message("m")])
        assert engine.settle([Settlement(id="m", verdict=Verdict.DONE, lease=None, record=record("m"))]) == []
        assert state_of(engine, "m") == "ready"

    # -- retry -----------------------------------------------------------------------------------------------------------

    def test_retry_waits_again_as_its_message_says(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        retried = message("m", retries=1, delay_seconds=30, argsrepr="changed", queue="slow", priority=3)
        assert engine.settle([settlement(take_one(engine, holder), Verdict.RETRY, message=retried, record=record("m", "RETRY"))]) == []
        assert state_of(engine, "m") == "scheduled"
        assert engine.queues() == ["slow"]
        assert engine.fetch(["m"])["m"].status == "RETRY"
        assert engine.held("anna") == []
        clock.advance(29)
        assert take(engine, holder, "slow") == []
        clock.advance(2)
        again = take_one(engine, holder, "celery", "slow")
        assert again.message == retried
        assert again.queue == "slow"

    def test_retry_by_eta_and_at_once(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish(messages(2))
        holder = start(engine)
        first, second = take(engine, holder)
        eta = datetime.fromtimestamp(clock.time() + 10, UTC)
        engine.settle(
            [
                settlement(first, Verdict.RETRY, message=message("m0", eta=eta)),
                settlement(second, Verdict.RETRY, message=message("m1", retries=1)),
            ]
        )
        assert ids(take(engine, holder)) == ["m1"]
        clock.advance(11)
        assert ids(take(engine, holder)) == ["m0"]

    def test_retry_counts_anew(self, engine: Engine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        for verdict in (Verdict.CRASHED, Verdict.RELEASED, Verdict.RETRY):
            engine.settle([settlement(take_one(engine, holder), verdict)])
        again = take_one(engine, holder)
        assert (again.crashes, again.interruptions) == (0, 0)

    def test_retry_with_follow_ups(self, engine: Engine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder), Verdict.RETRY, follow_ups=[message("n")])])
        assert sorted(ids(take(engine, holder))) == ["m", "n"]

    # -- released and crashed --------------------------------------------------------------------------------------------

    def test_interruptions_and_crashes_are_counted_apart(self, engine: Engine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        counts = []
        for verdict in (Verdict.RELEASED, Verdict.CRASHED, Verdict.RELEASED, Verdict.RELEASED, Verdict.CRASHED):
            delivery = take_one(engine, holder)
            counts.append((delivery.interruptions, delivery.crashes))
            assert engine.settle([settlement(delivery, verdict)]) == []
            assert state_of(engine, "m") == "ready"
        assert counts == [(0, 0), (1, 0), (1, 1), (2, 1), (3, 1)]
        found = engine.find(["m"])["m"]
        assert (found.interruptions, found.crashes) == (3, 2)

    def test_released_with_a_delay(self, engine: Engine, clock: FakeClock) -> None:
        published_at = clock.time()
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder), Verdict.RELEASED, delay_seconds=10)])
        assert state_of(engine, "m") == "scheduled"
        clock.advance(9.5)
        assert take(engine, holder) == []
        clock.advance(1)
        again = take_one(engine, holder)
        assert (again.interruptions, again.crashes) == (1, 0)
        assert again.waiting_since == pytest.approx(published_at, abs=0.01)

    @pytest.mark.parametrize("verdict", [Verdict.RELEASED, Verdict.CRASHED])
    def test_given_back_as_it_was(self, engine: Engine, clock: FakeClock, verdict: Verdict) -> None:
        """Its delay was served; it is ready at once."""
        original = message("m", delay_seconds=10, argsrepr="é")
        engine.publish([original])
        clock.advance(11)
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder), verdict)])
        assert take_one(engine, holder).message == original

    @pytest.mark.parametrize("verdict", [Verdict.RELEASED, Verdict.CRASHED])
    def test_given_back_changed(self, engine: Engine, verdict: Verdict) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        changed = message("m", doom={"exc_type": "TimeLimitExceeded", "exc_message": [10], "exc_module": "celery.exceptions"})
        engine.settle([settlement(take_one(engine, holder), verdict, message=changed)])
        assert take_one(engine, holder).message == changed

    def test_given_back_with_a_record(self, engine: Engine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder), Verdict.RELEASED, record=record("m", "PENDING"))])
        assert engine.fetch(["m"])["m"].status == "PENDING"

    # -- dead letters ----------------------------------------------------------------------------------------------------

    def test_dead(self, engine: Engine, other: Engine, clock: FakeClock) -> None:
        now = clock.time()
        original = message("m", argsrepr="é")
        engine.publish([original])
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder), Verdict.CRASHED)])
        verdict = settlement(
            take_one(engine, holder), Verdict.DEAD, reason="died é times", record=record("m", "FAILURE"), follow_ups=[message("n")]
        )
        assert engine.settle([verdict]) == []
        assert engine.fetch(["m"])["m"].status == "FAILURE"
        assert ids(take(engine, holder)) == ["n"]
        assert engine.depth()["celery"].dead == 1
        (dead,) = other.peek("celery", state="dead")
        assert other.find(["m"])["m"] == dead
        assert (dead.id, dead.queue, dead.state, dead.reason, dead.crashes) == ("m", "celery", "dead", "died é times", 1)
        assert dead.message == original
        assert dead.died_at == pytest.approx(now, abs=0.01)
        assert engine.reclaim(["anna"]) == ["n"]

    def test_dead_letters_are_shown_latest_first(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([*messages(4), message("elsewhere", queue="b")])
        for delivery in take(engine, start(engine), "celery", "b"):
            engine.settle([settlement(delivery, Verdict.DEAD, reason=delivery.id)])
            clock.advance(1)
        assert ids(engine.peek("celery", state="dead")) == ["m3", "m2", "m1", "m0"]
        assert ids(engine.peek("celery", state="dead", limit=2, offset=1)) == ["m2", "m1"]

    def test_replay(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish(messages(2))
        holder = start(engine)
        for delivery in take(engine, holder):
            engine.settle([settlement(delivery, Verdict.CRASHED)])
        old = take(engine, holder)
        engine.settle([settlement(delivery, Verdict.DEAD, reason="poison") for delivery in old])
        clock.advance(10)
        engine.publish([message("waiting")])
        assert engine.replay(["m1", "nothing", "waiting"]) == ["m1"]
        assert engine.replay(["m1"]) == []
        assert (state_of(engine, "m0"), state_of(engine, "m1")) == ("dead", "ready")
        again = {delivery.id: delivery for delivery in take(engine, holder)}
        assert sorted(again) == ["m1", "waiting"]
        assert again["m1"].crashes == 0
        assert engine.settle([settlement(old[1])]) == ["m1"]
        assert engine.settle([settlement(again["m1"])]) == []

    def test_discard(self, engine: Engine) -> None:
        engine.publish(messages(3))
        first, second, _ = take(engine, start(engine))
        engine.settle([settlement(first, Verdict.DEAD, reason="x"), settlement(second, Verdict.DEAD, reason="x")])
        assert engine.discard(["m0", "m2", "nothing"]) == ["m0"]
        assert engine.discard(["m0"]) == []
        assert (state_of(engine, "m0"), state_of(engine, "m1"), state_of(engine, "m2")) == (None, "dead", "leased")

    def test_dying_again_replaces_the_older_letter(self, engine: Engine) -> None:
        holder = start(engine)
        for reason in ("first", "second"):
            engine.publish([message("m")])
            engine.settle([settlement(take_one(engine, holder), Verdict.DEAD, reason=reason)])
        assert [letter.reason for letter in engine.peek("celery", state="dead")] == ["second"]

    # -- exchange --------------------------------------------------------------------------------------------------------

    def test_exchange_settles_first_and_then_reserves(self, engine: Engine) -> None:
        engine.publish(messages(3))
        holder = start(engine)
        first, second = take(engine, holder, limit=2)
        given_back = settlement(second, Verdict.RELEASED)
        done = settlement(first, record=record("m0"), follow_ups=[message("n")])
        refused, taken = engine.exchange([done, given_back], ["celery"], limit=10, holder=holder)
        assert refused == []
        assert ids(taken) == ["m1", "m2", "n"]
        assert ids(engine.held("anna")) == ["m1", "m2", "n"]
        assert engine.fetch(["m0"])["m0"].status == "SUCCESS"

    def test_exchange_without_room_only_settles(self, engine: Engine) -> None:
        engine.publish(messages(2))
        holder = start(engine)
        delivery = take_one(engine, holder)
        assert engine.exchange([settlement(delivery)], ["celery"], limit=0, holder=holder) == ([], [])
        assert (state_of(engine, "m0"), state_of(engine, "m1")) == (None, "ready")

    def test_a_batch_of_every_verdict(self, engine: Engine) -> None:
        engine.publish([message(verdict.value) for verdict in Verdict])
        holder = start(engine)
        batch = take(engine, holder)
        settlements = [
            settlement(
                delivery,
                Verdict(delivery.id),
                reason="r",
                record=record(delivery.id, "STARTED"),
                follow_ups=[message(f"{delivery.id}+", queue="next")],
            )
            for delivery in batch
        ]
        assert engine.settle(settlements) == []
        assert {verdict.value: state_of(engine, verdict.value) for verdict in Verdict} == {
            "done": None,
            "retry": "ready",
            "released": "ready",
            "crashed": "ready",
            "dead": "dead",
        }
        assert len(engine.fetch([verdict.value for verdict in Verdict])) == len(Verdict)
        assert ids(engine.peek("next")) == [f"{verdict.value}+" for verdict in Verdict]
