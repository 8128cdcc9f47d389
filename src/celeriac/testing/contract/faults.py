"""Fail the N-th operation, for every N, before and after it took effect: a client that repeats what it asked loses nothing and does nothing twice."""

from __future__ import annotations

from itertools import count

import pytest

from ...contracts.engine import Engine
from ...core.errors import EngineUnavailable, NodeLost
from ...core.message import Delivery, Holder, Revocation, Settlement, Verdict
from ..clock import FakeClock
from ..faulty import FaultyEngine, When
from .harness import LEASE_SECONDS, EngineMaker, EngineTests, ids, message, messages, record, settlement, start, state_of, take


class Client:
    """Uses an engine as a careful worker does: what failed is asked again, and what a lost answer said is read from `held`."""

    def __init__(self, engine: FaultyEngine) -> None:
        self.engine = engine
        self.holder = Holder("anna")

    def publish(self, count_: int) -> None:
        try:
            self.engine.publish(messages(count_))
        except EngineUnavailable:
            self.engine.publish(messages(count_))

    def work(self) -> None:
        self.register()
        settlements: list[Settlement] = []
        while True:
            batch = self.exchange(settlements)
            if not batch:
                return
            settlements = [self.outcome(delivery) for delivery in batch]

    def work_without_repeating(self) -> None:
        start(self.engine, self.holder.node)
        settlements: list[Settlement] = []
        while batch := self.engine.exchange(settlements, ["celery"], limit=2, holder=self.holder)[1]:
            settlements = [self.outcome(delivery) for delivery in batch]

    def register(self) -> None:
        try:
            start(self.engine, self.holder.node)
        except EngineUnavailable:
            start(self.engine, self.holder.node)

    def exchange(self, settlements: list[Settlement]) -> list[Delivery]:
        try:
            return self.engine.exchange(settlements, ["celery"], limit=2, holder=self.holder)[1]
        except EngineUnavailable:
            refused = self.engine.settle(settlements)
            assert refused in ([], [one.id for one in settlements]), "it took effect whole, or not at all"
            return self.engine.held(self.holder.node) or self.engine.reserve(["celery"], limit=2, holder=self.holder)

    def outcome(self, delivery: Delivery) -> Settlement:
        assert delivery.message is not None
        follow_ups = [message(f"{delivery.id}+", queue="next")]
        if delivery.id == "m1" and delivery.message.retries == 0:
            return settlement(delivery, Verdict.RETRY, message=message("m1", retries=1), record=record("m1", "RETRY"))
        if delivery.id == "m2":
            return settlement(delivery, Verdict.DEAD, reason="poison", record=record("m2", "FAILURE"), follow_ups=follow_ups)
        return settlement(delivery, record=record(delivery.id), follow_ups=follow_ups)


class Faults(EngineTests):
    """The same scenario, with one fault at every place where one can be."""

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_client_that_repeats_loses_nothing(self, make_engine: EngineMaker, clock: FakeClock, when: When) -> None:
        plain = make_engine(clock=clock)
        for number in count(1):
            faulty = FaultyEngine(plain, fail_at=number, when=when)
            client = Client(faulty)
            client.publish(5)
            client.work()
            statuses = {id: found.status for id, found in plain.fetch([f"m{number}" for number in range(5)]).items()}
            assert statuses == {"m0": "SUCCESS", "m1": "SUCCESS", "m2": "FAILURE", "m3": "SUCCESS", "m4": "SUCCESS"}, faulty.failures
            assert sorted(ids(plain.peek("next"))) == ["m0+", "m1+", "m2+", "m3+", "m4+"], faulty.failures
            assert ids(plain.peek("celery", state="dead")) == ["m2"]
            assert plain.held("anna") == []
            assert plain.peek("celery") == []
            if not faulty.failed:
                assert number > 4
                break
            self.clean(plain)
        plain.close()

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_client_that_dies_of_it_leaves_all_to_its_heir(self, make_engine: EngineMaker, clock: FakeClock, when: When) -> None:
        plain = make_engine(clock=clock)
        for number in count(1):
            faulty = FaultyEngine(plain, fail_at=number, when=when, verbs=["exchange"])
            plain.publish(messages(5))
            try:
                Client(faulty).work_without_repeating()
            except EngineUnavailable:
                clock.advance(LEASE_SECONDS + 1)
                plain.reclaim()
            Client(FaultyEngine(plain, fail_at=0)).work()
            assert len(plain.fetch([f"m{number}" for number in range(5)])) == 5
            assert sorted(ids(plain.peek("next"))) == ["m0+", "m1+", "m2+", "m3+", "m4+"], faulty.failures
            assert plain.depth(["celery"])["celery"].ready == plain.depth(["celery"])["celery"].leased == 0
            if not faulty.failed:
                break
            self.clean(plain)
        plain.close()

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_verbs_for_people_may_be_repeated(self, make_engine: EngineMaker, clock: FakeClock, when: When) -> None:
        for number in count(1):
            plain = make_engine(clock=clock)
            faulty = FaultyEngine(plain, fail_at=number, when=when)

            def again(verb: str, *arguments: object, faulty: FaultyEngine = faulty, **options: object) -> object:
                try:
                    return getattr(faulty, verb)(*arguments, **options)
                except EngineUnavailable:
                    return getattr(faulty, verb)(*arguments, **options)

            plain.publish(messages(4))
            again("revoke", [Revocation(id="m0", record=record("m0", "REVOKED"))])
            again("pause", ["celery"], by="anna")
            again("resume", ["celery"])
            again("store", [record("other")])
            again("forget", ["other"])
            holder = start(plain)
            dead = take(plain, holder, limit=2)
            assert ids(dead) == ["m1", "m2"]
            plain.settle([settlement(delivery, Verdict.DEAD, reason="x") for delivery in dead])
            again("replay", ["m1"])
            again("discard", ["m2"])
            again("reclaim", ["anna"])
            assert again("heartbeat", "anna", lease_seconds=1.0) is False
            with pytest.raises(NodeLost):
                again("reserve", ["celery"], limit=1, holder=holder)
            assert {id: state_of(plain, id) for id in ids(messages(4))} == {"m0": None, "m1": "ready", "m2": None, "m3": "ready"}
            assert plain.fetch(["m0"])["m0"].status == "REVOKED"
            assert plain.fetch(["other"]) == {}
            again("purge", ["celery"])
            assert plain.queues() == []
            self.clean(plain)
            plain.close()
            if not faulty.failed:
                break

    def clean(self, engine: Engine) -> None:
        engine.purge(["celery", "next"])
        engine.discard([letter.id for letter in engine.peek("celery", state="dead")])
        engine.forget([f"m{number}" for number in range(5)])
        for node in engine.nodes():
            engine.unregister(node.id)
        assert engine.queues() == []
