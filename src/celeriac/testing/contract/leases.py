"""A live node never loses what it holds; a silent one loses all of it, and can change nothing afterwards."""

from __future__ import annotations

import pytest

from ...contracts.engine import Engine
from ...contracts.mailbox import Node
from ...core.errors import NodeLost
from ...core.message import Delivery, Holder, Lease, Record, Settlement, Verdict
from ..clock import FakeClock
from .harness import LEASE_SECONDS, EngineMaker, EngineTests, ids, message, messages, record, settlement, start, state_of, take, take_one


def full_settlement(delivery: Delivery, verdict: Verdict) -> Settlement:
    """One that would leave traces everywhere."""
    return settlement(
        delivery, verdict, reason="zombie", record=record(delivery.id), follow_ups=[message(f"{delivery.id} follows", queue="next")]
    )


def traces(engine: Engine, *task_ids: str) -> tuple[dict[str, Record], list[str], list[str]]:
    """Records, follow-ups and dead letters."""
    return engine.fetch(task_ids), ids(engine.peek("next")), ids(engine.peek("celery", state="dead"))


class Leases(EngineTests):
    """ready → leased → reclaimed."""

    def test_what_is_leased_nobody_else_gets(self, engine: Engine, other: Engine) -> None:
        engine.publish([message("m")])
        anna, bert = start(engine, "anna"), start(other, "bert")
        delivery = take_one(engine, anna)
        assert delivery.lease.holder == anna
        assert take(other, bert) == []
        assert take(engine, anna) == []
        assert state_of(other, "m") == "leased"

    def test_an_unregistered_node_reserves_nothing(self, engine: Engine) -> None:
        engine.publish([message("m")])
        with pytest.raises(NodeLost) as caught:
            take(engine, Holder("nobody"))
        assert caught.value.node == "nobody"
        assert state_of(engine, "m") == "ready"

    def test_an_unregistered_node_exchanges_nothing(self, engine: Engine) -> None:
        """Even what it still could settle stays as it is: it asks again with its new registration."""
        engine.publish([message("m"), message("n")])
        anna = start(engine)
        delivery = take_one(engine, anna)
        with pytest.raises(NodeLost):
            engine.exchange([full_settlement(delivery, Verdict.DONE)], ["celery"], limit=1, holder=Holder("nobody"))
        assert traces(engine, "m") == ({}, [], [])
        assert ids(engine.held("anna")) == ["m"]
        assert state_of(engine, "n") == "ready"

    # -- heartbeats ----------------------------------------------------------------------------------------------------

    def test_a_heartbeat_renews_everything(self, engine: Engine, other: Engine, clock: FakeClock) -> None:
        engine.publish(messages(50))
        for process in range(5):
            take(engine, start(engine, "anna", process), limit=10)
        for _ in range(10):
            clock.advance(LEASE_SECONDS - 1)
            assert other.heartbeat("anna", lease_seconds=LEASE_SECONDS) is True
            assert other.reclaim() == []
        assert len(engine.held("anna")) == 50

    def test_a_heartbeat_renews_nobody_else(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish(messages(2))
        anna, bert = start(engine, "anna"), start(engine, "bert")
        take_one(engine, anna)
        take_one(engine, bert)
        clock.advance(LEASE_SECONDS - 1)
        engine.heartbeat("anna", lease_seconds=LEASE_SECONDS)
        clock.advance(2)
        assert engine.reclaim() == ["m1"]

    def test_the_heartbeat_of_a_stranger_is_refused(self, engine: Engine) -> None:
        assert engine.heartbeat("nobody", lease_seconds=LEASE_SECONDS) is False
        assert engine.nodes() == []

    def test_a_lease_that_ran_out_holds_until_it_is_reclaimed(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish(messages(2))
        first, _ = take(engine, start(engine))
        clock.advance(LEASE_SECONDS + 1)
        assert engine.settle([settlement(first)]) == []
        assert engine.heartbeat("anna", lease_seconds=LEASE_SECONDS) is True
        assert engine.reclaim() == []
        assert ids(engine.held("anna")) == ["m1"]

    # -- reclaim -------------------------------------------------------------------------------------------------------

    def test_a_silent_node_loses_what_it_holds(self, engine: Engine, other: Engine, clock: FakeClock) -> None:
        engine.publish(messages(3))
        anna = start(engine, "anna")
        take(engine, anna)
        clock.advance(LEASE_SECONDS + 1)
        assert sorted(other.reclaim()) == ["m0", "m1", "m2"]
        assert other.reclaim() == []
        assert engine.nodes() == []
        assert engine.held("anna") == []
        assert engine.heartbeat("anna", lease_seconds=LEASE_SECONDS) is False
        with pytest.raises(NodeLost):
            take(engine, anna)
        again = take(other, start(other, "bert"))
        assert [(delivery.crashes, delivery.interruptions) for delivery in again] == [(1, 0)] * 3

    def test_crashes_add_up(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        tokens = []
        for crashes in range(4):
            delivery = take_one(engine, start(engine, f"node{crashes}"))
            assert delivery.crashes == crashes
            tokens.append(delivery.lease.token)
            clock.advance(LEASE_SECONDS + 1)
            assert engine.reclaim() == ["m"]
        assert tokens == [1, 2, 3, 4]

    def test_a_named_node_is_reclaimed_at_once(self, engine: Engine) -> None:
        engine.publish(messages(2))
        take_one(engine, start(engine, "anna"))
        take_one(engine, start(engine, "bert"))
        assert engine.reclaim(["anna", "nobody"]) == ["m0"]
        assert [node.id for node in engine.nodes()] == ["bert"]
        assert take_one(engine, start(engine, "carl")).crashes == 1

    def test_what_an_unregistered_node_holds_is_found(self, engine: Engine, make_engine: EngineMaker) -> None:
        engine.publish(messages(2))
        take_one(engine, start(engine, "anna"))
        take_one(engine, start(engine, "bert"))
        make_engine.lose_registration(engine, "anna")
        assert [node.id for node in engine.nodes()] == ["bert"]
        assert engine.heartbeat("anna", lease_seconds=LEASE_SECONDS) is False
        assert engine.reclaim() == ["m0"]
        assert ids(engine.held("bert")) == ["m1"]

    def test_a_second_registration_keeps_what_is_held(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine, "anna"))
        clock.advance(LEASE_SECONDS - 1)
        engine.register(Node(id="anna", name="renamed"), lease_seconds=LEASE_SECONDS)
        clock.advance(2)
        assert [node.name for node in engine.nodes()] == ["renamed"]
        assert engine.reclaim() == []
        assert engine.settle([settlement(delivery)]) == []

    def test_a_node_that_leaves_gives_back_without_a_crash(self, engine: Engine) -> None:
        engine.publish(messages(2))
        take(engine, start(engine, "anna"))
        engine.unregister("anna")
        engine.unregister("anna")
        assert engine.nodes() == []
        assert engine.reclaim() == []
        again = take(engine, start(engine, "bert"))
        assert [(delivery.crashes, delivery.interruptions) for delivery in again] == [(0, 1), (0, 1)]

    # -- clocks that jump ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("jump", [-400 * 86400.0, -3600.0, 3600.0, 400 * 86400.0])
    def test_setting_the_wall_clock_ends_no_lease(self, engine: Engine, clock: FakeClock, jump: float) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        clock.jump_wall(jump)
        assert engine.reclaim() == []
        clock.advance(LEASE_SECONDS - 1)
        assert engine.reclaim() == []
        assert engine.heartbeat("anna", lease_seconds=LEASE_SECONDS) is True
        clock.advance(LEASE_SECONDS - 1)
        assert engine.reclaim() == []
        assert engine.settle([settlement(delivery)]) == []

    @pytest.mark.parametrize("jump", [-3600.0, 3600.0])
    def test_setting_the_wall_clock_keeps_no_lease(self, engine: Engine, clock: FakeClock, jump: float) -> None:
        engine.publish([message("m")])
        take_one(engine, start(engine))
        clock.jump_wall(jump)
        clock.advance(LEASE_SECONDS + 1)
        assert engine.reclaim() == ["m"]

    # -- held ------------------------------------------------------------------------------------------------------------

    def test_held_tells_by_process_and_in_order(self, engine: Engine, other: Engine) -> None:
        engine.publish([*messages(4), message("urgent", queue="b")])
        one, two = start(engine, "anna", 1), start(engine, "anna", 2)
        given = [*take(engine, one, limit=2), *take(engine, two, limit=1), *take(engine, one, "b"), *take(engine, one)]
        assert ids(given) == ["m0", "m1", "m2", "urgent", "m3"]
        assert ids(other.held("anna")) == ids(given)
        assert ids(other.held("anna", 1)) == ["m0", "m1", "urgent", "m3"]
        assert ids(other.held("anna", 2)) == ["m2"]
        assert other.held("anna", 3) == other.held("bert") == []
        by_id = {delivery.id: delivery for delivery in other.held("anna")}
        for delivery in given:
            assert by_id[delivery.id].lease == delivery.lease
            assert by_id[delivery.id].message == delivery.message
        assert other.settle([settlement(by_id["m2"])]) == []

    def test_held_follows_the_last_reservation(self, engine: Engine) -> None:
        engine.publish(messages(2))
        holder = start(engine)
        first, _ = take(engine, holder)
        engine.settle([settlement(first, Verdict.RELEASED)])
        take(engine, holder)
        assert ids(engine.held("anna")) == ["m1", "m0"]

    # -- fencing ---------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_a_zombie_changes_nothing(self, engine: Engine, clock: FakeClock, verdict: Verdict) -> None:
        engine.publish([message("m")])
        zombie = take_one(engine, start(engine, "anna"))
        clock.advance(LEASE_SECONDS + 1)
        engine.reclaim()
        assert engine.settle([full_settlement(zombie, verdict)]) == ["m"]  # nobody holds it
        assert traces(engine, "m") == ({}, [], [])
        heir = take_one(engine, start(engine, "bert"))
        assert (heir.crashes, heir.interruptions) == (1, 0)
        assert engine.settle([full_settlement(zombie, verdict)]) == ["m"]  # another one holds it
        assert traces(engine, "m") == ({}, [], [])
        assert ids(engine.held("bert")) == ["m"]
        assert engine.settle([settlement(heir)]) == []
        assert engine.settle([full_settlement(zombie, verdict)]) == ["m"]  # it is gone
        assert traces(engine, "m") == ({}, [], [])
        assert state_of(engine, "m") is None

    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_a_zombie_that_reserves_again_does_not_pass_with_its_old_token(
        self, engine: Engine, clock: FakeClock, verdict: Verdict
    ) -> None:
        engine.publish([message("m")])
        old = take_one(engine, start(engine, "anna"))
        clock.advance(LEASE_SECONDS + 1)
        engine.reclaim()
        new = take_one(engine, start(engine, "anna"))
        assert new.lease.holder == old.lease.holder
        assert new.lease.token > old.lease.token
        assert engine.settle([full_settlement(old, verdict)]) == ["m"]
        assert traces(engine, "m") == ({}, [], [])
        assert ids(engine.held("anna")) == ["m"]
        assert engine.settle([settlement(new)]) == []

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RELEASED, Verdict.CRASHED])
    def test_no_two_holdings_share_a_token(self, engine: Engine, verdict: Verdict) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        first = take_one(engine, holder)
        engine.settle([settlement(first, verdict)])
        second = take_one(engine, holder)
        assert second.lease.token > first.lease.token
        assert engine.settle([settlement(first)]) == ["m"]
        assert engine.settle([settlement(second)]) == []

    @pytest.mark.parametrize(
        "forged",
        [Lease(Holder("anna", 0), 2), Lease(Holder("anna", 0), 0), Lease(Holder("anna", 1), 1), Lease(Holder("bert", 0), 1)],
    )
    def test_every_part_of_a_lease_counts(self, engine: Engine, forged: Lease) -> None:
        engine.publish([message("m")])
        start(engine, "bert")
        delivery = take_one(engine, start(engine, "anna", 0))
        assert delivery.lease == Lease(Holder("anna", 0), 1)
        attempt = Settlement(id="m", verdict=Verdict.DONE, lease=forged, receipt=delivery.receipt, record=record("m"))
        assert engine.settle([attempt]) == ["m"]
        assert engine.fetch(["m"]) == {}
        assert engine.settle([settlement(delivery)]) == []

    def test_of_a_batch_only_the_stale_ones_are_refused(self, engine: Engine) -> None:
        engine.publish(messages(4))
        batch = take(engine, start(engine, "anna"))
        lost, kept = batch[1], [batch[0], batch[2], batch[3]]
        engine.settle([settlement(lost, Verdict.RELEASED)])
        take(engine, start(engine, "bert"))
        refused = engine.settle([full_settlement(delivery, Verdict.DONE) for delivery in batch])
        assert refused == ["m1"]
        records, follow_ups, _ = traces(engine, *ids(batch))
        assert sorted(records) == ids(kept)
        assert sorted(follow_ups) == [f"{delivery.id} follows" for delivery in kept]
        assert ids(engine.held("bert")) == ["m1"]

    def test_a_message_is_settled_once(self, engine: Engine) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        assert engine.settle([full_settlement(delivery, Verdict.DONE), settlement(delivery, Verdict.DEAD, reason="again")]) == ["m"]
        assert engine.settle([settlement(delivery, Verdict.DEAD, reason="again")]) == ["m"]
        assert engine.peek("celery", state="dead") == []

    def test_a_zombies_exchange_is_refused_id_by_id(self, engine: Engine) -> None:
        engine.publish(messages(2))
        anna = start(engine, "anna")
        zombie = take_one(engine, anna)
        engine.reclaim(["anna"])
        anna = start(engine, "anna")
        refused, taken = engine.exchange([full_settlement(zombie, Verdict.DONE)], ["celery"], limit=10, holder=anna)
        assert refused == ["m0"]
        assert ids(taken) == ["m0", "m1"]
        assert traces(engine, "m0") == ({}, [], [])
