"""What people read and change by hand."""

from __future__ import annotations

import pytest
from msgspec import structs

from ...contracts.engine import Engine
from ...contracts.inspect import Depth
from ...core.message import Verdict
from ..clock import FakeClock
from .harness import EngineTests, ids, message, messages, settlement, start, state_of, take, take_one


class Inspection(EngineTests):
    """Reads change nothing."""

    def test_now_is_the_engines_clock(self, engine: Engine, clock: FakeClock) -> None:
        assert engine.now() == pytest.approx(clock.time(), abs=0.01)
        clock.advance(100)
        assert engine.now() == pytest.approx(clock.time(), abs=0.01)

    def test_queues_are_those_that_hold_something(self, engine: Engine) -> None:
        assert engine.queues() == []
        engine.publish(
            [
                message("a", queue="ready"),
                message("b", queue="leased"),
                message("c", queue="dead"),
                message("d", queue="later", delay_seconds=9),
            ]
        )
        holder = start(engine)
        take_one(engine, holder, "leased")
        engine.settle([settlement(take_one(engine, holder, "dead"), Verdict.DEAD, reason="x")])
        engine.pause(["paused"], by="anna")
        assert sorted(engine.queues()) == ["dead", "later", "leased", "paused", "ready"]

    def test_depth(self, engine: Engine, other: Engine) -> None:
        engine.publish([*messages(5), *messages(2, "later", delay_seconds=9), *messages(4, "b", queue="b")])
        first, *_ = take(engine, start(engine), limit=3)
        engine.settle([settlement(first, Verdict.DEAD, reason="x")])
        engine.pause(["b"], by="anna")
        assert other.depth() == {"celery": Depth(ready=2, scheduled=2, leased=2, dead=1), "b": Depth(ready=4, paused_by="anna")}
        assert other.depth(["b", "empty"]) == {"b": Depth(ready=4, paused_by="anna"), "empty": Depth()}

    def test_peek_shows_the_order_of_reservation(self, engine: Engine, clock: FakeClock) -> None:
        now = clock.time()
        engine.publish([message("a"), message("b", priority=5, argsrepr="é"), message("c"), message("later", delay_seconds=60)])
        expected = ["b", "a", "c"] if engine.capabilities.priorities else ["a", "b", "c"]
        assert ids(engine.peek("celery")) == expected
        assert ids(engine.peek("celery", limit=1, offset=1)) == expected[1:2]
        assert engine.peek("elsewhere") == engine.peek("celery", state="leased") == engine.peek("celery", state="dead") == []
        shown = {waiting.id: waiting for waiting in engine.peek("celery")}["b"]
        assert (shown.queue, shown.state, shown.node, shown.due_at) == ("celery", "ready", None, None)
        assert shown.message == message("b", priority=5, argsrepr="é")
        assert shown.waiting_since == pytest.approx(now, abs=0.01)
        (later,) = engine.peek("celery", state="scheduled")
        assert (later.id, later.state) == ("later", "scheduled")
        assert later.due_at == pytest.approx(now + 60, abs=0.01)
        assert ids(take(engine, start(engine))) == expected

    def test_peek_and_find_show_who_holds_it(self, engine: Engine) -> None:
        engine.publish([message("m")])
        take_one(engine, start(engine, "anna", 3))
        (leased,) = engine.peek("celery", state="leased")
        assert (leased.id, leased.state, leased.node, leased.process) == ("m", "leased", "anna", 3)
        assert engine.find(["m"])["m"].node == "anna"

    def test_find_counts_those_ahead(self, engine: Engine, clock: FakeClock) -> None:
        for number in range(5):
            engine.publish([message(f"m{number}"), message(f"elsewhere{number}", queue="b")])
            clock.advance(1)
        engine.publish([message("urgent", priority=9), message("later", delay_seconds=60)])
        before = 1 if engine.capabilities.priorities else 0
        found = engine.find([f"m{number}" for number in range(5)] + ["urgent", "later", "nothing"])
        assert [found[f"m{number}"].ahead for number in range(5)] == [number + before for number in range(5)]
        assert found["urgent"].ahead == (0 if engine.capabilities.priorities else 5)
        assert found["later"].state == "scheduled"
        assert "nothing" not in found

    def test_reading_changes_nothing(self, engine: Engine) -> None:
        engine.publish([*messages(3), message("later", delay_seconds=9)])
        for _ in range(2):
            engine.peek("celery")
            engine.find(["m0", "later"])
            engine.depth()
            engine.queues()
            engine.held("anna")
            engine.revoked()
        delivery = take_one(engine, start(engine))
        assert (delivery.id, delivery.lease.token, delivery.interruptions, delivery.crashes) == ("m0", 1, 0, 0)

    # -- purge -----------------------------------------------------------------------------------------------------------

    def test_purge_takes_what_waits(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([*messages(4), message("later", delay_seconds=9), message("other", queue="b"), message("c", queue="c")])
        dead, leased = take(engine, start(engine), limit=2)
        engine.settle([settlement(dead, Verdict.DEAD, reason="x")])
        assert engine.purge(["celery", "c", "nothing"]) == 4
        assert engine.purge(["celery"]) == 0
        assert depths(engine) == {"celery": Depth(leased=1, dead=1), "b": Depth(ready=1)}
        clock.advance(10)
        assert take(engine, start(engine), "celery", "c") == []
        assert engine.settle([settlement(leased)]) == []

    def test_what_was_purged_can_be_published_again(self, engine: Engine) -> None:
        engine.publish([message("m")])
        engine.purge(["celery"])
        engine.publish([message("m")])
        assert ids(take(engine, start(engine))) == ["m"]

    # -- pause -----------------------------------------------------------------------------------------------------------

    def test_a_paused_queue_gives_nothing(self, engine: Engine, other: Engine, clock: FakeClock) -> None:
        engine.publish([message("m"), message("later", delay_seconds=5), message("n", queue="b")])
        engine.pause(["celery"], by="anna")
        engine.publish([message("o")])
        clock.advance(6)
        holder = start(other)
        assert ids(take(other, holder, "celery", "b")) == ["n"]
        assert other.depth(["celery"])["celery"].paused_by == "anna"
        engine.pause(["celery"], by="bert")
        assert other.depth(["celery"])["celery"].paused_by == "bert"
        other.resume(["celery", "never paused"])
        assert engine.depth(["celery"])["celery"].paused_by is None
        assert ids(take(other, holder)) == ["m", "o", "later"]

    def test_a_paused_queue_takes_back(self, engine: Engine) -> None:
        engine.publish(messages(3))
        holder = start(engine)
        done, released, _ = take(engine, holder)
        engine.pause(["celery"], by="anna")
        assert engine.settle([settlement(done), settlement(released, Verdict.RELEASED)]) == []
        assert engine.reclaim(["anna"]) == ["m2"]
        assert depths(engine) == {"celery": Depth(ready=2, paused_by="anna")}
        assert state_of(engine, "m1") == "ready"


def depths(engine: Engine) -> dict[str, Depth]:
    """0 for what it says that it cannot say."""
    told = engine.depth()
    if engine.capabilities.counts:
        return told
    assert all(depth.scheduled is None for depth in told.values())
    return {name: structs.replace(depth, scheduled=0, leased=depth.leased or 0) for name, depth in told.items()}
