"""When the last of many has ended, what comes then comes: once, in the same step, however they ended and wherever."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from ...contracts.engine import Engine
from ...contracts.joins import JoinState
from ...core.errors import EngineUnavailable, NodeLost
from ...core.message import Arrival, Delivery, Holder, Join, Lease, Message, Revocation, Settlement, Verdict
from ..clock import FakeClock
from ..faulty import FaultyEngine, When
from .harness import (
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    EngineMaker,
    EngineTests,
    ids,
    message,
    record,
    settlement,
    start,
    state_of,
    take,
    take_one,
)
from .processes import running
from .publishing import STRANGE

MANY = 10_000


def join(id: str = "j", size: int | None = None, then: Sequence[Message] | None = None) -> Join:
    """One whose body is `<id>-body`, in the queue `bodies`, lest the members' workers take it."""
    return Join(id=id, size=size, then=[body(id)] if then is None else list(then))


def body(id: str = "j", name: str = "body", **fields: Any) -> Message:
    return message(f"{id}-{name}", queue="bodies", joined=id, **fields)


def members(size: int, id: str = "j", first: int = 0, **fields: Any) -> list[Message]:
    return [message(f"{id}-{index}", join=id, join_index=index, **fields) for index in range(first, first + size)]


def arrival_of(delivery: Delivery, *, failed: bool = False) -> Arrival:
    member = delivery.message
    assert member is not None
    assert member.join is not None
    return Arrival(
        join=member.join,
        index=member.join_index,
        task_id=member.id,
        failed=failed,
        result=Raw(msgspec.json.encode(f"result of {member.id}")),
    )


def ended(delivery: Delivery, verdict: Verdict = Verdict.DONE, *, failed: bool = False, **fields: Any) -> Settlement:
    """The end of a member."""
    return settlement(delivery, verdict, arrival=arrival_of(delivery, failed=failed), **fields)


def arrival(index: int, id: str = "j", **fields: Any) -> Arrival:
    """From a message that lives elsewhere."""
    return Arrival(join=id, index=index, task_id=f"{id}-{index}", **fields)


def bodies(engine: Engine) -> list[str]:
    """What the joins have published."""
    return ids(engine.peek("bodies", limit=1000))


def state(engine: Engine, id: str = "j") -> JoinState | None:
    return engine.joins([id]).get(id)


class JoinTests(EngineTests):
    @pytest.fixture(autouse=True)
    def keeps_joins(self, request: pytest.FixtureRequest, make_engine: EngineMaker) -> None:
        """For the tests of this file alone, though the whole suite inherits it."""
        if request.function.__module__ == __name__ and not make_engine.capabilities.joins:
            pytest.skip("this engine keeps no joins")


class Joins(JoinTests):
    """waiting → complete → forgotten."""

    # -- opening ---------------------------------------------------------------------------------------------------------

    def test_a_join_of_none_is_complete_at_once(self, engine: Engine, other: Engine) -> None:
        engine.publish([], joins=[join(size=0)])
        assert bodies(other) == ["j-body"]
        assert state(other) == JoinState(id="j", size=0)
        assert other.arrivals("j") == []

    @pytest.mark.parametrize("size", [1, 2, 50])
    def test_the_last_end_publishes_what_comes_then(self, engine: Engine, other: Engine, size: int) -> None:
        engine.publish(members(size), joins=[join(size=size)])
        deliveries = take(other, start(other))
        assert ids(deliveries) == [f"j-{index}" for index in range(size)]
        for arrived, delivery in enumerate(deliveries):
            assert bodies(engine) == []
            assert state(engine) == JoinState(id="j", size=size, arrived=arrived)
            assert other.settle([ended(delivery)]) == []
        assert bodies(engine) == ["j-body"]
        assert state(engine) == JoinState(id="j", size=size, arrived=size)

    def test_in_one_settlement_of_all(self, engine: Engine) -> None:
        engine.publish(members(20), joins=[join(size=20)])
        assert engine.settle([ended(delivery, record=record(delivery.id)) for delivery in take(engine, start(engine))]) == []
        assert bodies(engine) == ["j-body"]
        assert len(engine.fetch([f"j-{index}" for index in range(20)])) == 20

    def test_several_joins_in_one_settlement(self, engine: Engine) -> None:
        engine.publish(
            [*members(3, "a"), *members(1, "b"), *members(2, "c")], joins=[join("a", 3), join("b", 1), join("c", 3), join("d", 0)]
        )
        deliveries = take(engine, start(engine))
        dice = random.Random(1)
        dice.shuffle(deliveries)
        engine.settle([ended(delivery) for delivery in deliveries])
        assert sorted(bodies(engine)) == ["a-body", "b-body", "d-body"]
        assert engine.joins(["a", "b", "c", "d", "nothing"]) == {
            "a": JoinState(id="a", size=3, arrived=3),
            "b": JoinState(id="b", size=1, arrived=1),
            "c": JoinState(id="c", size=3, arrived=2),
            "d": JoinState(id="d", size=0),
        }

    def test_the_body_arrives_as_it_was(self, engine: Engine, clock: FakeClock) -> None:
        given = body(priority=9, argsrepr="é", headers={"deep": [1, None]}, delay_seconds=30)
        engine.publish(members(1), joins=[join(size=1, then=[given])])
        clock.advance(100)
        engine.settle([ended(take_one(engine, start(engine)))])
        clock.advance(29)
        assert take(engine, start(engine), "bodies") == []  # its delay began when it was published
        clock.advance(2)
        delivery = take_one(engine, start(engine), "bodies")
        assert delivery.message == given
        assert delivery.waiting_since == pytest.approx(clock.time() - 1, abs=0.01)

    def test_what_a_member_bears_arrives_as_it_was(self, engine: Engine) -> None:
        (given,) = members(1, "é/漢字", 7)
        engine.publish([given])
        assert take_one(engine, start(engine)).message == given

    def test_an_exchange_gets_the_body_it_has_published(self, engine: Engine) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        holder = start(engine)
        refused, taken = engine.exchange([ended(take_one(engine, holder))], ["bodies"], limit=10, holder=holder)
        assert (refused, ids(taken)) == ([], ["j-body"])

    def test_a_body_wakes_who_waits(self, live: Engine, live_other: Engine, threads: Any) -> None:
        live.publish(members(1), joins=[join(size=1)])
        holder = start(live)
        delivery = take_one(live, holder)
        assert live_other.reserve(["bodies"], limit=1, holder=holder) == []
        waiting = threads.submit(live_other.wait, ["bodies"], DEADLINE_SECONDS)
        live.settle([ended(delivery)])
        assert waiting.result(DEADLINE_SECONDS) is True

    def test_a_settlement_opens(self, engine: Engine) -> None:
        """As a chain does whose next step is a chord."""
        engine.publish([message("m")])
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder), opens=[join(size=2)], follow_ups=members(2))])
        assert state(engine) == JoinState(id="j", size=2)
        engine.settle([ended(delivery) for delivery in take(engine, holder)])
        assert bodies(engine) == ["j-body"]

    def test_a_settlement_opens_one_of_none(self, engine: Engine) -> None:
        engine.publish([message("m")])
        engine.settle([settlement(take_one(engine, start(engine)), opens=[join(size=0), join("k", 1)])])
        assert bodies(engine) == ["j-body"]

    def test_a_held_one_stays_as_it_is(self, engine: Engine) -> None:
        """A publish that is repeated since its answer was lost."""
        for _ in range(2):
            engine.publish(members(2), joins=[join(size=2)])
        first, second = take(engine, start(engine))
        engine.settle([ended(first)])
        engine.publish([], joins=[join(size=5, then=[]), join(size=0)])
        assert state(engine) == JoinState(id="j", size=2, arrived=1)
        engine.settle([ended(second, opens=[join(size=9)])])
        engine.publish([], joins=[join(size=2)])
        assert bodies(engine) == ["j-body"]

    def test_one_of_none_that_is_opened_again_publishes_nothing_again(self, engine: Engine) -> None:
        engine.publish([], joins=[join(size=0), join(size=0)])
        take(engine, start(engine), "bodies")
        engine.purge(["bodies"])
        engine.publish([], joins=[join(size=0)])
        assert bodies(engine) == []

    def test_what_cannot_be_stored_opens_nothing(self, engine: Engine) -> None:
        bad = body(headers={"no JSON": object()})
        with pytest.raises(Exception, match=r".+"):
            engine.publish(members(1), joins=[join("fine", 0), join(size=1, then=[bad])])
        with pytest.raises(Exception, match=r".+"):
            engine.publish([message("bad", headers={"no JSON": object()})], joins=[join("fine", 0), join(size=1)])
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        with pytest.raises(Exception, match=r".+"):
            engine.settle([settlement(delivery, opens=[join("fine", 0), join(size=1, then=[bad])])])
        assert engine.joins(["j", "fine"]) == {}
        assert engine.queues() == ["celery"]
        assert engine.settle([settlement(delivery)]) == []

    @pytest.mark.parametrize("id", STRANGE)
    def test_any_text_is_an_id(self, engine: Engine, id: str) -> None:
        engine.publish(members(2, id), joins=[join(id, 2), join(f"{id}2", 1)])
        engine.settle([ended(delivery) for delivery in take(engine, start(engine))])
        assert bodies(engine) == [f"{id}-body"]
        assert state(engine, id) == JoinState(id=id, size=2, arrived=2)
        assert [arrived.task_id for arrived in engine.arrivals(id)] == [f"{id}-0", f"{id}-1"]
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder, "bodies"), leaves=id)])
        assert engine.joins([id, f"{id}2"]).keys() == {f"{id}2"}

    # -- how members end -------------------------------------------------------------------------------------------------

    def test_results_come_in_the_order_of_their_indexes(self, engine: Engine, other: Engine) -> None:
        engine.publish(members(30), joins=[join(size=30)])
        deliveries = take(engine, start(engine))
        expected = [arrival_of(delivery, failed=number % 3 == 0) for number, delivery in enumerate(deliveries)]
        mixed = list(zip(deliveries, expected, strict=True))
        random.Random(2).shuffle(mixed)
        for delivery, given in mixed:
            engine.settle([settlement(delivery, arrival=given)])
        arrived = other.arrivals("j")
        assert [(one.index, one.task_id, one.failed, bytes(one.result)) for one in arrived] == [
            (one.index, one.task_id, one.failed, bytes(one.result)) for one in expected
        ]
        assert {one.join for one in arrived} == {"j"}

    def test_results_are_kept_as_they_are(self, engine: Engine) -> None:
        results = [
            "null",
            '"é 漢字 🎉 \\u0000"',
            "123456789012345678901234567890",
            '{"exc_type":"ValueError","exc_message":["é"],"exc_module":"builtins"}',
            '"' + "x" * 300_000 + '"',
        ]
        engine.publish(members(5), joins=[join(size=5)])
        for delivery, result in zip(take(engine, start(engine)), results, strict=True):
            given = arrival_of(delivery)
            engine.settle([settlement(delivery, arrival=Arrival(join="j", index=given.index, task_id="é", result=Raw(result.encode())))])
        assert [bytes(arrived.result).decode() for arrived in engine.arrivals("j")] == results
        assert {arrived.task_id for arrived in engine.arrivals("j")} == {"é"}
        assert bodies(engine) == ["j-body"]

    def test_indexes_may_be_large_and_far_apart(self, engine: Engine) -> None:
        """Those of members that are added later; a double holds them exactly."""
        indexes = [2**52, 0, 2**40 + 1, 2**52 - 1]
        engine.publish([message(f"m{index}", join="j", join_index=index) for index in indexes], joins=[join(size=4)])
        engine.settle([ended(delivery) for delivery in take(engine, start(engine))])
        assert [arrived.index for arrived in engine.arrivals("j")] == sorted(indexes)
        assert bodies(engine) == ["j-body"]

    def test_failed_ones_count_too(self, engine: Engine) -> None:
        engine.publish(members(4), joins=[join(size=4)])
        first, second, third, fourth = take(engine, start(engine))
        engine.settle([ended(first, failed=True), ended(second)])
        engine.settle([ended(third, Verdict.DEAD, failed=True, reason="poison")])
        assert state(engine) == JoinState(id="j", size=4, arrived=3, failed=2)
        engine.settle([ended(fourth, failed=True)])
        assert state(engine) == JoinState(id="j", size=4, arrived=4, failed=3)
        assert bodies(engine) == ["j-body"]

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RELEASED, Verdict.CRASHED])
    def test_who_waits_again_has_not_ended(self, engine: Engine, verdict: Verdict) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        holder = start(engine)
        engine.settle([settlement(take_one(engine, holder), verdict)])
        assert state(engine) == JoinState(id="j", size=1)
        engine.settle([ended(take_one(engine, holder))])
        assert bodies(engine) == ["j-body"]

    def test_the_place_is_handed_on(self, engine: Engine) -> None:
        """As in a chain that is a member: only its last step arrives."""
        engine.publish(members(1), joins=[join(size=1)])
        holder = start(engine)
        for step in range(3):
            engine.settle([settlement(take_one(engine, holder), follow_ups=[message(f"step{step}", join="j", join_index=0)])])
            assert bodies(engine) == []
        engine.settle([ended(take_one(engine, holder))])
        assert bodies(engine) == ["j-body"]

    def test_an_index_counts_once(self, engine: Engine) -> None:
        engine.publish(members(3), joins=[join(size=3)])
        first, second, third = take(engine, start(engine))
        engine.settle([ended(first)])
        engine.settle([settlement(second, arrival=Arrival(join="j", index=0, task_id="another", failed=True, result=Raw(b"2")))])
        assert state(engine) == JoinState(id="j", size=3, arrived=1)
        (arrived,) = engine.arrivals("j")
        assert (arrived.task_id, arrived.failed, bytes(arrived.result)) == ("j-0", False, b'"result of j-0"')
        engine.settle([ended(third)])
        assert bodies(engine) == []

    def test_an_index_counts_once_in_one_settlement_too(self, engine: Engine) -> None:
        engine.publish([*members(2), message("again", join="j", join_index=0)], joins=[join(size=3)])
        engine.settle([ended(delivery) for delivery in take(engine, start(engine))])
        assert state(engine) == JoinState(id="j", size=3, arrived=2)
        assert engine.arrivals("j")[0].task_id == "j-0"

    def test_a_replayed_dead_letter_counts_once(self, engine: Engine) -> None:
        engine.publish(members(2), joins=[join(size=2)])
        holder = start(engine)
        first, second = take(engine, holder)
        engine.settle([ended(first, Verdict.DEAD, failed=True, reason="poison")])
        engine.replay(["j-0"])
        engine.settle([ended(take_one(engine, holder))])
        assert state(engine) == JoinState(id="j", size=2, arrived=1, failed=1)
        engine.settle([ended(second)])
        assert bodies(engine) == ["j-body"]
        assert [arrived.failed for arrived in engine.arrivals("j")] == [True, False]

    def test_after_the_end_nothing_counts(self, engine: Engine) -> None:
        engine.publish(members(4), joins=[join(size=2)])
        deliveries = take(engine, start(engine))
        engine.settle([ended(delivery) for delivery in deliveries[:2]])
        engine.purge(["bodies"])
        engine.settle([ended(deliveries[2])])
        engine.settle([ended(deliveries[3], enlarges={"j": 5})])
        engine.publish([], joins=[join(size=2)])
        engine.seal("j", 2)
        assert bodies(engine) == []

    def test_an_unknown_join_is_ignored(self, engine: Engine) -> None:
        engine.publish([*members(2, "nothing"), *members(1)], joins=[join(size=1)])
        deliveries = take(engine, start(engine))
        assert engine.settle([ended(delivery, enlarges={"nothing": 1}, leaves="nothing") for delivery in deliveries]) == []
        assert engine.joins(["nothing"]) == {}
        assert engine.arrivals("nothing") == []
        assert bodies(engine) == ["j-body"]
        engine.seal("nothing", 0)
        engine.leave(["nothing"])
        assert engine.arrive([arrival(0, "nothing")], enlarges={"nothing": 1}, seals={"nothing": 0}) == []
        assert engine.joins(["nothing"]) == {}

    def test_together_with_all_the_rest(self, engine: Engine) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        one = ended(
            take_one(engine, start(engine)), record=record("j-0"), follow_ups=[message("linked", queue="next")], opens=[join("k", 0)]
        )
        assert engine.settle([one]) == []
        assert engine.fetch(["j-0"])["j-0"].status == "SUCCESS"
        assert ids(engine.peek("next")) == ["linked"]
        assert sorted(bodies(engine)) == ["j-body", "k-body"]

    def test_a_body_that_is_held_already_changes_nothing(self, engine: Engine) -> None:
        engine.publish([*members(1), body(argsrepr="first")], joins=[join(size=1, then=[body(argsrepr="second"), body(name="other")])])
        engine.settle([ended(take_one(engine, start(engine)))])
        found = engine.peek("bodies")
        assert [(one.id, one.message.argsrepr) for one in found if one.message] == [("j-body", "first"), ("j-other", "")]

    def test_one_acknowledged_before_it_ran_arrives_too(self, engine: Engine) -> None:
        engine.publish(members(2), joins=[join(size=2)])
        deliveries = take(engine, start(engine))
        engine.settle([settlement(delivery) for delivery in deliveries])
        assert bodies(engine) == []
        for delivery in deliveries:
            end = Settlement(
                id=delivery.id, verdict=Verdict.DONE, lease=None, arrival=arrival_of(delivery), opens=[join(f"of {delivery.id}", 0)]
            )
            assert engine.settle([end]) == []
        assert sorted(bodies(engine)) == ["j-body", "of j-0-body", "of j-1-body"]
        engine.settle([Settlement(id="j-body", verdict=Verdict.DONE, lease=None, leaves="j")])
        assert state(engine) is None

    # -- fences ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_a_zombie_counts_nothing(self, engine: Engine, clock: FakeClock, verdict: Verdict) -> None:
        engine.publish([*members(1), *members(1, "used")], joins=[join(size=1), join("used", 2)])
        zombie, other_zombie = take(engine, start(engine, "anna"))
        clock.advance(LEASE_SECONDS + 1)
        engine.reclaim()
        attempt = ended(zombie, verdict, reason="zombie", opens=[join("new", 0)], enlarges={"used": 7}, leaves="used")
        assert sorted(engine.settle([attempt, ended(other_zombie)])) == ["j-0", "used-0"]
        heir, _ = take(engine, start(engine, "bert"))
        assert engine.settle([attempt]) == ["j-0"]
        assert engine.joins(["j", "used", "new"]) == {"j": JoinState(id="j", size=1), "used": JoinState(id="used", size=2)}
        assert bodies(engine) == []
        assert engine.settle([ended(heir)]) == []
        assert engine.settle([attempt]) == ["j-0"]
        assert bodies(engine) == ["j-body"]

    def test_of_a_batch_only_the_stale_ones_do_not_count(self, engine: Engine) -> None:
        engine.publish(members(4), joins=[join(size=4)])
        batch = take(engine, start(engine, "anna"))
        engine.settle([settlement(batch[1], Verdict.RELEASED)])
        heir = take_one(engine, start(engine, "bert"))
        assert engine.settle([ended(delivery) for delivery in batch]) == ["j-1"]
        assert [arrived.index for arrived in engine.arrivals("j")] == [0, 2, 3]
        assert bodies(engine) == []
        engine.settle([ended(heir)])
        assert bodies(engine) == ["j-body"]

    @pytest.mark.parametrize(
        "forged",
        [Lease(Holder("anna", 0), 2), Lease(Holder("anna", 1), 1), Lease(Holder("bert", 0), 1)],
    )
    def test_every_part_of_a_lease_counts_here_too(self, engine: Engine, forged: Lease) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        delivery = take_one(engine, start(engine))
        attempt = Settlement(id="j-0", verdict=Verdict.DONE, lease=forged, receipt=delivery.receipt, arrival=arrival_of(delivery))
        assert engine.settle([attempt]) == ["j-0"]
        assert state(engine) == JoinState(id="j", size=1)

    def test_an_exchange_of_an_unregistered_node_counts_nothing(self, engine: Engine) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        delivery = take_one(engine, start(engine))
        with pytest.raises(NodeLost):
            engine.exchange([ended(delivery, opens=[join("k", 0)])], ["celery"], limit=1, holder=Holder("nobody"))
        assert engine.joins(["j", "k"]) == {"j": JoinState(id="j", size=1)}
        assert bodies(engine) == []
        assert engine.settle([ended(delivery)]) == []
        assert bodies(engine) == ["j-body"]

    # -- revoked members ---------------------------------------------------------------------------------------------------

    def revocation(self, index: int) -> Revocation:
        end = arrival(index, failed=True, result=Raw(b'{"exc_type":"TaskRevokedError"}'))
        return Revocation(id=f"j-{index}", record=record(f"j-{index}", "REVOKED"), arrival=end)

    def test_a_revoked_waiting_one_has_ended(self, engine: Engine, other: Engine) -> None:
        engine.publish([*members(2), *members(1, first=2, delay_seconds=100)], joins=[join(size=3)])
        assert other.revoke([self.revocation(0), self.revocation(2)]) == {"j-0": "waiting", "j-2": "waiting"}
        assert state(engine) == JoinState(id="j", size=3, arrived=2, failed=2)
        engine.settle([ended(take_one(engine, start(engine)))])
        assert bodies(engine) == ["j-body"]
        assert [(arrived.index, arrived.failed) for arrived in engine.arrivals("j")] == [(0, True), (1, False), (2, True)]

    def test_when_the_last_ones_are_revoked_the_body_comes(self, engine: Engine) -> None:
        engine.publish(members(50), joins=[join(size=50)])
        engine.revoke([self.revocation(index) for index in range(50)])
        assert bodies(engine) == ["j-body"]
        assert engine.depth(["celery"])["celery"].ready == 0

    def test_a_revoked_running_one_ends_as_it_does(self, engine: Engine) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        delivery = take_one(engine, start(engine))
        assert engine.revoke([self.revocation(0)]) == {"j-0": "running"}
        assert state(engine) == JoinState(id="j", size=1)
        engine.settle([ended(delivery)])
        assert state(engine) == JoinState(id="j", size=1, arrived=1)
        assert bodies(engine) == ["j-body"]

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RELEASED, Verdict.CRASHED])
    def test_a_revoked_running_one_that_does_not_wait_again_has_ended(self, engine: Engine, other: Engine, verdict: Verdict) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        delivery = take_one(engine, start(engine))
        other.revoke([self.revocation(0)])
        engine.settle([settlement(delivery, verdict)])
        assert state(engine) == JoinState(id="j", size=1, arrived=1, failed=1)
        assert bytes(engine.arrivals("j")[0].result) == b'{"exc_type":"TaskRevokedError"}'
        assert bodies(engine) == ["j-body"]

    @pytest.mark.parametrize("by", ["reclaim", "unregister"])
    def test_a_revoked_running_one_whose_node_is_gone_has_ended(self, engine: Engine, by: str) -> None:
        engine.publish(members(2), joins=[join(size=2)])
        take(engine, start(engine))
        engine.revoke([self.revocation(0), self.revocation(1)])
        engine.reclaim(["anna"]) if by == "reclaim" else engine.unregister("anna")
        assert state(engine) == JoinState(id="j", size=2, arrived=2, failed=2)
        assert bodies(engine) == ["j-body"]
        assert engine.find(["j-0", "j-1"]) == {}

    def test_an_unknown_revoked_one_has_not_ended(self, engine: Engine) -> None:
        engine.publish([], joins=[join(size=1)])
        assert engine.revoke([self.revocation(0)]) == {"j-0": "unknown"}
        assert state(engine) == JoinState(id="j", size=1)
        engine.publish(members(1))
        delivery = take_one(engine, start(engine))
        assert delivery.revoked
        engine.settle([ended(delivery, failed=True)])
        assert bodies(engine) == ["j-body"]

    # -- sealed later, enlarged ----------------------------------------------------------------------------------------------

    def test_sealed_later(self, engine: Engine, other: Engine) -> None:
        engine.publish(members(2), joins=[join()])
        first, second = take(engine, start(engine))
        engine.settle([ended(first)])
        assert state(engine) == JoinState(id="j", size=None, arrived=1)
        other.seal("j", 2)
        assert state(engine) == JoinState(id="j", size=2, arrived=1)
        assert bodies(engine) == []
        engine.settle([ended(second)])
        assert bodies(engine) == ["j-body"]

    @pytest.mark.parametrize("size", [0, 3])
    def test_sealed_when_all_have_arrived(self, engine: Engine, size: int) -> None:
        engine.publish(members(size), joins=[join()])
        engine.settle([ended(delivery) for delivery in take(engine, start(engine))])
        assert bodies(engine) == []
        engine.seal("j", size)
        assert bodies(engine) == ["j-body"]
        engine.purge(["bodies"])
        engine.seal("j", size)
        assert bodies(engine) == []

    def test_sealed_twice(self, engine: Engine) -> None:
        engine.publish(members(3), joins=[join(), join("k", 3)])
        engine.seal("j", 3)
        engine.seal("j", 1)
        engine.seal("k", 0)
        assert engine.joins(["j", "k"]) == {"j": JoinState(id="j", size=3), "k": JoinState(id="k", size=3)}
        deliveries = take(engine, start(engine))
        engine.settle([ended(delivery) for delivery in deliveries[:2]])
        assert bodies(engine) == []
        engine.settle([ended(deliveries[2])])
        assert bodies(engine) == ["j-body"]

    def test_sealing_wakes_who_waits(self, live: Engine, live_other: Engine, threads: Any) -> None:
        live.publish([], joins=[join()])
        assert live_other.reserve(["bodies"], limit=1, holder=start(live)) == []
        waiting = threads.submit(live_other.wait, ["bodies"], DEADLINE_SECONDS)
        live.seal("j", 0)
        assert waiting.result(DEADLINE_SECONDS) is True

    def test_enlarged(self, engine: Engine) -> None:
        """As `add_to_chord` does: by a member, before its own end counts."""
        engine.publish(members(1), joins=[join(size=1)])
        holder = start(engine)
        engine.settle([ended(take_one(engine, holder), enlarges={"j": 2}, follow_ups=members(2, first=1))])
        assert state(engine) == JoinState(id="j", size=3, arrived=1)
        assert bodies(engine) == []
        engine.settle([ended(delivery) for delivery in take(engine, holder)])
        assert bodies(engine) == ["j-body"]

    def test_enlarged_before_all_of_the_list_arrive(self, engine: Engine) -> None:
        engine.publish(members(3), joins=[join(size=2)])
        first, second, third = take(engine, start(engine))
        engine.settle([ended(first), ended(second, enlarges={"j": 1})])
        assert state(engine) == JoinState(id="j", size=3, arrived=2)
        assert bodies(engine) == []
        engine.settle([ended(third)])
        assert bodies(engine) == ["j-body"]

    def test_enlarged_by_one_that_has_not_ended(self, engine: Engine) -> None:
        """It adds a member, and is then replaced."""
        engine.publish(members(1), joins=[join(size=1)])
        holder = start(engine)
        settled = settlement(take_one(engine, holder), enlarges={"j": 1}, follow_ups=[*members(1), *members(1, first=1)])
        assert engine.settle([settled]) == []
        replacement, added = take(engine, holder)
        engine.settle([ended(added)])
        assert bodies(engine) == []
        engine.settle([ended(replacement)])
        assert bodies(engine) == ["j-body"]

    def test_enlarged_before_it_is_sealed(self, engine: Engine) -> None:
        engine.publish(members(2), joins=[join()])
        holder = start(engine)
        first, second = take(engine, holder)
        engine.settle([ended(first, enlarges={"j": 1}, follow_ups=members(1, first=2))])
        engine.settle([ended(second)])
        assert state(engine) == JoinState(id="j", size=None, arrived=2)
        engine.seal("j", 2)
        assert state(engine) == JoinState(id="j", size=3, arrived=2)
        assert bodies(engine) == []
        engine.settle([ended(take_one(engine, holder))])
        assert bodies(engine) == ["j-body"]

    # -- what comes then, and leaving ------------------------------------------------------------------------------------------

    def test_several_come_then(self, engine: Engine) -> None:
        """A body that is a group. The join is held until the last of them has used it."""
        then = [body(name=f"body{number}") for number in range(3)]
        engine.publish(members(1), joins=[join(size=1, then=then)])
        holder = start(engine)
        engine.settle([ended(take_one(engine, holder))])
        deliveries = take(engine, holder, "bodies")
        assert ids(deliveries) == ids(then)
        for delivery in deliveries:
            assert len(engine.arrivals("j")) == 1
            engine.settle([settlement(delivery, leaves="j")])
        assert engine.arrivals("j") == []
        assert engine.joins(["j"]) == {}

    def test_several_leave_at_once(self, engine: Engine) -> None:
        engine.publish([], joins=[join(size=0, then=[body(name=f"body{number}") for number in range(3)]), join("k", 0)])
        deliveries = take(engine, start(engine), "bodies")
        joined = [delivery.message.joined for delivery in deliveries if delivery.message]
        engine.settle([settlement(delivery, leaves=id) for delivery, id in zip(deliveries, joined, strict=True)])
        assert engine.joins(["j", "k"]) == {}

    def test_one_without_a_body_is_held_until_somebody_leaves(self, engine: Engine) -> None:
        engine.publish(members(1), joins=[join(size=1, then=[])])
        engine.settle([ended(take_one(engine, start(engine)))])
        assert state(engine) == JoinState(id="j", size=1, arrived=1)
        engine.leave(["j"])
        assert state(engine) is None

    def test_a_body_that_waits_again_has_not_left(self, engine: Engine) -> None:
        engine.publish(members(1), joins=[join(size=1)])
        holder = start(engine)
        engine.settle([ended(take_one(engine, holder))])
        for verdict in (Verdict.RETRY, Verdict.RELEASED, Verdict.CRASHED):
            engine.settle([settlement(take_one(engine, holder, "bodies"), verdict)])
            assert len(engine.arrivals("j")) == 1
        engine.settle([settlement(take_one(engine, holder, "bodies"), Verdict.DEAD, reason="poison")])
        assert len(engine.arrivals("j")) == 1
        engine.replay(["j-body"])
        engine.settle([settlement(take_one(engine, holder, "bodies"), leaves="j")])
        assert engine.joins(["j"]) == {}

    def test_forgotten_ones_count_nothing_and_may_come_again(self, engine: Engine) -> None:
        engine.publish(members(3), joins=[join(size=2)])
        holder = start(engine)
        first, second, late = take(engine, holder)
        engine.settle([ended(first), ended(second)])
        engine.settle([settlement(take_one(engine, holder, "bodies"), leaves="j")])
        engine.settle([ended(late)])
        assert engine.joins(["j"]) == {}
        engine.publish(members(1), joins=[join(size=1)])
        assert (state(engine), engine.arrivals("j")) == (JoinState(id="j", size=1), [])
        engine.settle([ended(take_one(engine, holder))])
        assert bodies(engine) == ["j-body"]
        assert len(engine.arrivals("j")) == 1

    def test_a_body_that_has_read_the_results_may_leave_and_wait_again(self, engine: Engine) -> None:
        """Its retry bears them as arguments."""
        engine.publish(members(1), joins=[join(size=1)])
        holder = start(engine)
        engine.settle([ended(take_one(engine, holder))])
        delivery = take_one(engine, holder, "bodies")
        retried = message("j-body", queue="bodies", retries=1, argsrepr="('result of j-0',)")
        engine.settle([settlement(delivery, Verdict.RETRY, message=retried, leaves="j")])
        assert engine.joins(["j"]) == {}
        assert take_one(engine, holder, "bodies").message == retried

    def test_a_body_may_be_a_member_of_an_outer_join(self, engine: Engine) -> None:
        """A chord in a chord: it leaves the inner one and arrives at the outer one in one step."""
        inner = body("inner", join="outer", join_index=1)
        engine.publish([*members(2, "inner"), *members(1, "outer")], joins=[join("outer", 2), join("inner", 2, [inner])])
        holder = start(engine)
        engine.settle([ended(delivery) for delivery in take(engine, holder)])
        assert bodies(engine) == ["inner-body"]
        engine.settle([ended(take_one(engine, holder, "bodies"), leaves="inner")])
        assert bodies(engine) == ["outer-body"]
        assert engine.joins(["inner", "outer"]) == {"outer": JoinState(id="outer", size=2, arrived=2)}
        engine.settle([settlement(take_one(engine, holder, "bodies"), leaves="outer")])
        assert engine.joins(["inner", "outer"]) == {}
        assert engine.queues() == []

    def test_a_join_may_wait_for_nothing_but_a_join(self, engine: Engine) -> None:
        """One of none completes another in the same step only by its body; nothing is lost between them."""
        engine.publish([], joins=[join("outer", 1), join("inner", 0, [body("inner", join="outer", join_index=0)])])
        holder = start(engine)
        engine.settle([ended(take_one(engine, holder, "bodies"), leaves="inner")])
        assert bodies(engine) == ["outer-body"]

    # -- members and bodies that live in another engine ------------------------------------------------------------------------

    def test_foreign_members_arrive(self, engine: Engine, other: Engine) -> None:
        then = [body(), body(name="other")]
        assert engine.arrive([], opens=[join(size=3, then=then)]) == []
        assert engine.arrive([arrival(2), arrival(0, failed=True)]) == []
        assert state(engine) == JoinState(id="j", size=3, arrived=2, failed=1)
        assert other.arrive([arrival(1, result=Raw(b"[1]"))]) == then
        assert [(one.index, one.failed, bytes(one.result)) for one in engine.arrivals("j")] == [
            (0, True, b"null"),
            (1, False, b"[1]"),
            (2, False, b"null"),
        ]
        assert engine.queues() == []  # they live elsewhere
        engine.leave(["j"])
        assert len(other.arrivals("j")) == 3
        other.leave(["j"])
        assert engine.joins(["j"]) == {}
        assert engine.arrive([arrival(1)]) == []

    def test_foreign_ones_repeated_after_a_death(self, engine: Engine) -> None:
        """Who completed the join and died before he published is made good by whoever does his work again; and by nobody else."""
        engine.arrive([], opens=[join(size=3)])
        engine.arrive([arrival(0)])
        assert engine.arrive([arrival(1), arrival(2)]) == [body()]
        for index in (0, 1):
            assert engine.arrive([arrival(index)]) == []
        assert engine.arrive([arrival(2, failed=True)]) == [body()]
        assert engine.arrive([arrival(0), arrival(1), arrival(2)]) == [body()]
        assert state(engine) == JoinState(id="j", size=3, arrived=3)
        assert engine.arrive([], opens=[join(size=3)]) == []

    def test_foreign_ones_of_none(self, engine: Engine) -> None:
        for _ in range(2):
            assert engine.arrive([], opens=[join(size=0), join("k", 1)]) == [body()]

    def test_foreign_ones_opened_and_arrived_in_one_step(self, engine: Engine) -> None:
        assert engine.arrive([arrival(0), arrival(1)], opens=[join(size=2), join("k", 0)]) in ([body("k"), body()], [body(), body("k")])

    def test_foreign_ones_sealed_later(self, engine: Engine) -> None:
        engine.arrive([], opens=[join()])
        assert engine.arrive([arrival(0), arrival(1)]) == []
        for _ in range(2):
            assert engine.arrive([], seals={"j": 2}) == [body()]
        assert engine.arrive([arrival(1)]) == []
        engine.arrive([], opens=[join("k")])
        assert engine.arrive([], seals={"k": 1}) == []
        for _ in range(2):
            assert engine.arrive([arrival(0, "k")]) == [body("k")]
        assert engine.arrive([], seals={"k": 1}) == []

    def test_foreign_ones_enlarged(self, engine: Engine) -> None:
        engine.arrive([], opens=[join(size=1)])
        for _ in range(3):
            assert engine.arrive([arrival(0)], enlarges={"j": 2}) == []
        assert state(engine) == JoinState(id="j", size=3, arrived=1)
        assert engine.arrive([arrival(1), arrival(2)]) == [body()]

    def test_foreign_ones_that_cannot_be_stored(self, engine: Engine) -> None:
        with pytest.raises(Exception, match=r".+"):
            engine.arrive([arrival(0, "fine")], opens=[join("fine", 1), join(then=[body(headers={"no JSON": object()})])])
        assert engine.joins(["j", "fine"]) == {}

    # -- how long they are kept --------------------------------------------------------------------------------------------------

    def test_those_that_nobody_touches_are_pruned(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        engine = make_engine(clock=clock, result_expires=100)
        engine.publish([*members(2, "idle"), *members(3, "busy")], joins=[join("idle", 3), join("busy", 4), join("never", 1)])
        deliveries = {delivery.id: delivery for delivery in take(engine, start(engine))}
        engine.settle([ended(deliveries["idle-0"]), ended(deliveries["busy-0"])])
        for index in (1, 2):
            clock.advance(60)
            engine.settle([ended(deliveries[f"busy-{index}"])])
        engine.prune()
        assert engine.joins(["idle", "busy", "never"]) == {"busy": JoinState(id="busy", size=4, arrived=3)}
        assert engine.arrivals("idle") == []
        engine.settle([ended(deliveries["idle-1"])])
        assert engine.joins(["idle"]) == {}
        engine.publish([], joins=[join("idle", 2)])
        assert engine.joins(["idle"]) == {"idle": JoinState(id="idle", size=2)}
        assert engine.arrivals("idle") == []
        engine.close()

    def test_they_are_kept_for_ever_when_results_are(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        engine = make_engine(clock=clock, result_expires=None)
        engine.publish(members(1), joins=[join(size=2)])
        engine.settle([ended(take_one(engine, start(engine)))])
        clock.advance(10_000_000)
        engine.prune()
        assert state(engine) == JoinState(id="j", size=2, arrived=1)
        assert len(engine.arrivals("j")) == 1
        engine.close()

    def test_they_survive_a_restart(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        if not make_engine.capabilities.durable:
            pytest.skip("this engine is not durable")
        engine = make_engine(clock=clock)
        engine.publish(members(3), joins=[join(size=3)])
        deliveries = take(engine, start(engine))
        engine.settle([ended(deliveries[0])])
        engine.revoke([self.revocation(1)])
        engine.close()
        again = make_engine(clock=clock)
        assert state(again) == JoinState(id="j", size=3, arrived=1)
        again.reclaim(["anna"])
        assert state(again) == JoinState(id="j", size=3, arrived=2, failed=1)
        again.settle([ended(take_one(again, start(again)))])
        again.close()
        last = make_engine(clock=clock)
        assert bodies(last) == ["j-body"]
        assert [arrived.index for arrived in last.arrivals("j")] == [0, 1, 2]
        last.close()

    # -- many --------------------------------------------------------------------------------------------------------------------

    def test_many_members(self, engine: Engine) -> None:
        engine.publish(members(MANY), joins=[join(size=MANY)])
        holder = start(engine)
        settlements: list[Settlement] = []
        while True:
            refused, batch = engine.exchange(settlements, ["celery"], limit=64, holder=holder)
            assert refused == []
            settlements = [ended(delivery, failed=delivery.id.endswith("7")) for delivery in batch]
            random.Random(3).shuffle(settlements)
            if not batch:
                break
        assert state(engine) == JoinState(id="j", size=MANY, arrived=MANY, failed=MANY // 10)
        assert bodies(engine) == ["j-body"]
        arrived = engine.arrivals("j")
        assert [one.index for one in arrived] == list(range(MANY))
        assert [one.failed for one in arrived] == [index % 10 == 7 for index in range(MANY)]
        engine.settle([settlement(take_one(engine, holder, "bodies"), leaves="j")])
        assert (engine.joins(["j"]), engine.arrivals("j"), engine.queues()) == ({}, [], [])
        engine.publish([], joins=[join(size=1)])
        assert engine.arrivals("j") == []

    def test_many_joins(self, engine: Engine) -> None:
        """Each settlement of the batch completes another."""
        names = [f"k{number}" for number in range(200)]
        engine.publish([member for name in names for member in members(2, name)], joins=[join(name, 2) for name in names])
        deliveries = take(engine, start(engine), limit=1000)
        engine.settle([ended(delivery) for delivery in deliveries[::2]])
        assert bodies(engine) == []
        engine.settle([ended(delivery) for delivery in deliveries[1::2]])
        assert sorted(bodies(engine)) == sorted(f"{name}-body" for name in names)

    # -- many at once ------------------------------------------------------------------------------------------------------------

    def test_the_last_ones_arrive_at_once_from_threads(self, live: Engine, live_other: Engine, threads: Any) -> None:
        names = [f"k{number}" for number in range(30)]
        live.publish([member for name in names for member in members(8, name)], joins=[join(name, 8) for name in names])
        deliveries = take(live, start(live), limit=1000)
        shares = [deliveries[number::8] for number in range(8)]

        def settle(number: int) -> None:
            for delivery in shares[number]:
                assert (live, live_other)[number % 2].settle([ended(delivery)]) == []

        for done in [threads.submit(settle, number) for number in range(8)]:
            done.result(DEADLINE_SECONDS)
        assert sorted(bodies(live)) == sorted(f"{name}-body" for name in names)

    @pytest.mark.parametrize("alike", [True, False])
    def test_the_last_ones_arrive_at_once_from_processes(self, make_engine: EngineMaker, live: Engine, alike: bool) -> None:
        """In pairs: the two last members of each of many joins, from two processes."""
        if not make_engine.capabilities.processes:
            pytest.skip("this engine lives in one process")
        names = [f"k{number}" for number in range(100)]
        live.publish([member for name in names for member in members(2, name)], joins=[join(name, 2) for name in names])
        context: Any = multiprocessing.get_context("fork")
        readers, children = [], []
        for number in range(2):
            reader, writer = context.Pipe()
            readers.append(reader)
            children.append(context.Process(target=run_arriving, args=(make_engine, f"node{number}", alike, writer), daemon=True))
        with running(children):
            for reader in readers:
                assert reader.poll(DEADLINE_SECONDS), "a process has not begun"
                reader.recv()
            for reader in readers:
                reader.send("go")
            for child in children:
                child.join(DEADLINE_SECONDS * 2)
            assert [child.exitcode for child in children] == [0, 0]
        assert sorted(bodies(live)) == sorted(f"{name}-body" for name in names)
        assert engine_is_done(live)

    def test_killed_while_they_arrive(self, make_engine: EngineMaker) -> None:
        """A member's record, follow-up and arrival are there together or not at all; every body comes once."""
        if not (make_engine.capabilities.processes and make_engine.capabilities.durable):
            pytest.skip("this engine does not outlive a process")
        engine = make_engine()
        names = [f"k{number}" for number in range(400)]
        engine.publish([member for name in names for member in members(3, name)], joins=[join(name, 3) for name in names])
        dice = random.Random(4)
        context: Any = multiprocessing.get_context("fork")
        for round_ in range(6):
            reader, writer = context.Pipe(duplex=False)
            child = context.Process(target=run_until_killed_arriving, args=(make_engine, f"node{round_}", writer), daemon=True)
            with running([child]):
                writer.close()
                settled = dice.randrange(1, 12)
                for _ in range(settled):
                    assert reader.poll(DEADLINE_SECONDS), "the process does not go on"
                    os.read(reader.fileno(), 1)
                child.kill()
                child.join(DEADLINE_SECONDS)
            reader.close()
            make_engine.after_kill()
            engine.reclaim([f"node{round_}"])
        done = {id for name in names for id in engine.fetch([f"{name}-{index}" for index in range(3)])}
        arrived = {one.task_id for name in names for one in engine.arrivals(name)}
        assert done == arrived
        assert len(done) > 0
        holder = start(engine, "last")
        while batch := take(engine, holder, limit=64):
            engine.settle([ended(delivery, record=record(delivery.id)) for delivery in batch])
        assert sorted(bodies(engine)) == sorted(f"{name}-body" for name in names)
        engine.close()


def engine_is_done(engine: Engine) -> bool:
    depth = engine.depth(["celery"])["celery"]
    return depth.ready == depth.leased == 0


def run_arriving(make_engine: EngineMaker, node: str, alike: bool, partner: Connection) -> None:
    """Takes members, one by one, and settles them; `alike` says whether in the order in which the other one does."""
    engine = make_engine()
    holder = start(engine, node, os.getpid())
    partner.send("ready")
    partner.recv()
    while batch := take(engine, holder, limit=2 if alike else 1):
        for delivery in batch if alike else reversed(batch):
            assert engine.settle([ended(delivery)]) == []
    engine.close()


def run_until_killed_arriving(make_engine: EngineMaker, node: str, progress: Connection) -> None:
    engine = make_engine()
    holder = start(engine, node)
    settlements: list[Settlement] = []
    while True:
        _, batch = engine.exchange(settlements, ["celery"], limit=5, holder=holder)
        settlements = [ended(delivery, record=record(delivery.id)) for delivery in batch]
        os.write(progress.fileno(), b".")


class JoinFaults(JoinTests):
    """The N-th operation of a workflow fails, for every N, before and after it took effect."""

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_workflow_whose_operations_fail(self, make_engine: EngineMaker, clock: FakeClock, when: When) -> None:
        """Two members of which one adds a third; a body that opens a join of its own; its body. Each comes to its end once."""
        plain = make_engine(clock=clock)
        for number in count(1):
            faulty = FaultyEngine(plain, fail_at=number, when=when)
            client = Workflow(faulty)
            client.run()
            assert client.ends == ["j-0", "j-1", "j-2", "j-body", "k-0", "k-body"], faulty.failures
            assert client.used == {"j-body": ["j-0", "j-1", "j-2"], "k-body": ["k-0"]}, faulty.failures
            assert sorted(plain.fetch(client.ends)) == client.ends
            assert plain.queues() == []
            assert plain.held("anna") == []
            assert plain.joins(["j", "k"]) == {}
            plain.forget(client.ends)
            plain.unregister("anna")
            if not faulty.failed:
                assert number > 8
                break
        plain.close()

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_foreign_workflow_whose_operations_fail(self, make_engine: EngineMaker, clock: FakeClock, when: When) -> None:
        """Every verb that fails is repeated, as after a death; each body is to be published at least once, and never by anybody else."""
        for number in count(1):
            plain = make_engine(clock=clock)
            faulty = FaultyEngine(plain, fail_at=number, when=when)

            def again(faulty: FaultyEngine = faulty, **options: Any) -> list[str]:
                arrived = options.pop("arrivals", [])
                try:
                    return ids(faulty.arrive(arrived, **options))
                except EngineUnavailable:
                    return ids(faulty.arrive(arrived, **options))

            assert again(opens=[join(), join("none", 0)]) == ["none-body"]
            assert again(arrivals=[arrival(0)], enlarges={"j": 1}) == []
            assert again(arrivals=[arrival(1)]) == []
            assert again(seals={"j": 2}) == []
            assert again(arrivals=[arrival(2)]) == ["j-body"]
            assert state(plain) == JoinState(id="j", size=3, arrived=3)
            plain.leave(["j", "none"])
            assert plain.joins(["j", "none"]) == {}
            plain.close()
            if not faulty.failed:
                assert number == 6
                break

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_opening_and_sealing_may_be_repeated(self, make_engine: EngineMaker, clock: FakeClock, when: When) -> None:
        plain = make_engine(clock=clock)
        for number in (1, 2, 3):
            faulty = FaultyEngine(plain, fail_at=number, when=when, verbs=["publish", "seal", "revoke"])
            revocations = [Revocation(id=f"j-{index}", arrival=arrival(index, failed=True)) for index in range(2)]
            attempts: list[Callable[[], object]] = [
                partial(faulty.publish, members(2), joins=[join()]),
                partial(faulty.seal, "j", 2),
                partial(faulty.revoke, revocations),
            ]
            for attempt in attempts:
                try:
                    attempt()
                except EngineUnavailable:
                    attempt()
            assert faulty.failed
            assert bodies(plain) == ["j-body"]
            assert state(plain) == JoinState(id="j", size=2, arrived=2, failed=2)
            plain.purge(["bodies"])
            plain.leave(["j"])
            assert state_of(plain, "j-0") is None
        plain.close()


class Workflow:
    """Runs it as a careful worker does: what failed is asked again, and what a lost answer said is read from `held`."""

    def __init__(self, engine: FaultyEngine) -> None:
        self.engine = engine
        self.ends: list[str] = []
        self.used: dict[str, list[str]] = {}
        """Whose results each body got."""

    def run(self) -> None:
        try:
            self.engine.publish(members(2), joins=[join(size=2)])
        except EngineUnavailable:
            self.engine.publish(members(2), joins=[join(size=2)])
        try:
            start(self.engine)
        except EngineUnavailable:
            start(self.engine)
        settlements: list[Settlement] = []
        while True:
            batch = self.exchange(settlements)
            if not batch:
                break
            settlements = [self.outcome(delivery) for delivery in batch]
        self.ends.sort()

    def exchange(self, settlements: list[Settlement]) -> list[Delivery]:
        holder = Holder("anna")
        try:
            return self.engine.exchange(settlements, ["celery", "bodies"], limit=2, holder=holder)[1]
        except EngineUnavailable:
            refused = self.engine.settle(settlements)
            assert sorted(refused) in ([], sorted(one.id for one in settlements)), "it took effect whole, or not at all"
            return self.engine.held("anna") or self.engine.reserve(["celery", "bodies"], limit=2, holder=holder)

    def outcome(self, delivery: Delivery) -> Settlement:
        assert delivery.message is not None
        self.ends.append(delivery.id)
        done = record(delivery.id)
        joined = delivery.message.joined
        if joined is not None:
            self.used[delivery.id] = [arrived.task_id for arrived in self.arrivals(joined)]
        if delivery.id == "j-0":
            return ended(delivery, record=done, enlarges={"j": 1}, follow_ups=members(1, first=2))
        if delivery.id == "j-body":
            return settlement(delivery, record=done, leaves="j", opens=[join("k", 1)], follow_ups=members(1, "k"))
        if joined is not None:
            return settlement(delivery, record=done, leaves=joined)
        return ended(delivery, record=done)

    def arrivals(self, id: str) -> list[Arrival]:
        try:
            return self.engine.arrivals(id)
        except EngineUnavailable:
            return self.engine.arrivals(id)
