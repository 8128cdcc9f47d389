"""Who comes first, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ...contracts.engine import Engine
from ...core.message import Message, Verdict
from ..clock import FakeClock
from .harness import EngineTests, ids, message, messages, settlement, start, state_of, take, take_one


def at(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)


class Ordering(EngineTests):
    """Best priority first, then those that have waited longest; nothing before its time."""

    def test_first_in_first_out(self, engine: Engine, other: Engine) -> None:
        engine.publish(messages(3, "a"))
        other.publish(messages(3, "b"))
        engine.publish(messages(3, "c"))
        holder = start(engine)
        assert ids(take(engine, holder, limit=4)) == ["a0", "a1", "a2", "b0"]
        assert ids(take(other, holder, limit=4)) == ["b1", "b2", "c0", "c1"]
        assert ids(take(engine, holder, limit=4)) == ["c2"]
        assert take(engine, holder, limit=4) == []

    def test_a_limit_is_kept(self, engine: Engine) -> None:
        engine.publish(messages(3))
        holder = start(engine)
        assert take(engine, holder, limit=0) == []
        assert ids(take(engine, holder, limit=2)) == ["m0", "m1"]

    def test_nine_comes_first(self, engine: Engine, clock: FakeClock) -> None:
        if not engine.capabilities.priorities:
            pytest.skip("this engine has no priorities")
        for priority in (3, 0, 9, 5, 1, 7, 2, 8, 6, 4):
            engine.publish([message(f"{priority}a", priority=priority), message(f"{priority}b", priority=priority)])
            clock.advance(1)
        expected = [f"{priority}{letter}" for priority in range(9, -1, -1) for letter in "ab"]
        assert ids(engine.peek("celery")) == expected
        holder = start(engine)
        assert ids(take(engine, holder, limit=5)) + ids(take(engine, holder)) == expected

    def test_several_queues_are_one_line(self, engine: Engine, clock: FakeClock) -> None:
        for number, queue in enumerate("abcabc"):
            engine.publish([message(f"{queue}{number}", queue=queue)])
            clock.advance(1)
        engine.publish([message("first", queue="c", priority=5)])
        holder = start(engine)
        expected = ["first", "a0", "c2", "a3", "c5"] if engine.capabilities.priorities else ["a0", "c2", "a3", "c5", "first"]
        assert ids(take(engine, holder, "c", "a")) == expected
        assert ids(take(engine, holder, "b", "c", "a")) == ["b1", "b4"]

    def test_a_queue_named_twice_gives_each_message_once(self, engine: Engine) -> None:
        engine.publish(messages(3))
        assert ids(take(engine, start(engine), "celery", "celery")) == ["m0", "m1", "m2"]

    def test_only_the_named_queues_give(self, engine: Engine) -> None:
        engine.publish([message("m", queue="a"), message("n", queue="A"), message("o", queue="aa")])
        holder = start(engine)
        assert take(engine, holder, "b") == []
        assert ids(take(engine, holder, "a")) == ["m"]

    # -- due times ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("by_eta", [True, False])
    def test_nothing_starts_before_its_time(self, engine: Engine, clock: FakeClock, by_eta: bool) -> None:
        later = message("later", eta=at(clock.time() + 10)) if by_eta else message("later", delay_seconds=10)
        engine.publish([later, message("now")])
        holder = start(engine)
        assert ids(take(engine, holder)) == ["now"]
        assert state_of(engine, "later") == "scheduled"
        clock.advance(9.5)
        assert take(engine, holder) == []
        clock.advance(0.6)
        assert ids(take(engine, holder)) == ["later"]
        assert take(engine, holder) == []

    def test_due_messages_come_in_the_order_of_their_times(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([message("c", delay_seconds=30), message("a", delay_seconds=10), message("b", eta=at(clock.time() + 20))])
        assert ids(engine.peek("celery", state="scheduled")) == ["a", "b", "c"]
        clock.advance(31)
        assert ids(take(engine, start(engine))) == ["a", "b", "c"]

    def test_a_due_message_has_waited_since_it_came_due(self, engine: Engine, clock: FakeClock) -> None:
        now = clock.time()
        engine.publish([message("scheduled", delay_seconds=10)])
        clock.advance(5)
        engine.publish([message("older")])
        clock.advance(10)
        engine.publish([message("younger")])
        older, scheduled, younger = take(engine, start(engine))
        assert [older.id, scheduled.id, younger.id] == ["older", "scheduled", "younger"]
        assert [older.waiting_since, scheduled.waiting_since, younger.waiting_since] == pytest.approx(
            [now + 5, now + 10, now + 15], abs=0.01
        )

    def test_a_due_message_of_high_priority_comes_first(self, engine: Engine, clock: FakeClock) -> None:
        if not engine.capabilities.priorities:
            pytest.skip("this engine has no priorities")
        engine.publish([message("urgent", priority=9, delay_seconds=10), message("normal")])
        clock.advance(11)
        assert ids(take(engine, start(engine), limit=1)) == ["urgent"]

    def test_the_delay_is_measured_by_the_engine(self, engine: Engine, clock: FakeClock) -> None:
        """The caller's estimate is wrong by an hour in either direction; `delay_seconds` counts."""
        now = clock.time()
        engine.publish(
            [message("slow caller", delay_seconds=10, eta=at(now - 3600)), message("fast caller", delay_seconds=10, eta=at(now + 3600))]
        )
        holder = start(engine)
        clock.advance(9.5)
        assert take(engine, holder) == []
        clock.advance(1)
        assert ids(take(engine, holder)) == ["slow caller", "fast caller"]

    @pytest.mark.parametrize("zone", [-11, 0, 14])
    def test_an_eta_is_a_moment_in_any_zone(self, engine: Engine, clock: FakeClock, zone: int) -> None:
        from datetime import timezone

        engine.publish([message("m", eta=datetime.fromtimestamp(clock.time() + 10, timezone(timedelta(hours=zone))))])
        holder = start(engine)
        clock.advance(9)
        assert take(engine, holder) == []
        clock.advance(2)
        assert ids(take(engine, holder)) == ["m"]

    @pytest.mark.parametrize(
        "early", [message("m", delay_seconds=0), message("m", delay_seconds=-5), message("m", eta=datetime(1990, 1, 1, tzinfo=UTC))]
    )
    def test_a_time_gone_by_is_now(self, engine: Engine, clock: FakeClock, early: Message) -> None:
        engine.publish([message("before"), early])
        clock.advance(1)
        engine.publish([message("after")])
        assert ids(take(engine, start(engine))) == ["before", "m", "after"]

    def test_months_and_centuries_ahead(self, engine: Engine, clock: FakeClock) -> None:
        year = 365 * 86400.0
        engine.publish([message("year", delay_seconds=year), message("century", eta=datetime(2300, 1, 1, tzinfo=UTC))])
        holder = start(engine)
        assert take(engine, holder) == []
        clock.advance(year + 1)
        assert ids(take(engine, holder)) == ["year"]
        assert state_of(engine, "century") == "scheduled"

    def test_many_come_due_at_once(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish(messages(2500, delay_seconds=60))
        clock.advance(61)
        holder = start(engine)
        seen: list[str] = []
        while batch := take(engine, holder, limit=700):
            seen += ids(batch)
        assert sorted(seen) == sorted(ids(messages(2500)))

    # -- its own time is over ----------------------------------------------------------------------------------------

    def test_expired_is_told_by_the_engines_clock(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([message("m", expires=at(clock.time() + 10))])
        holder = start(engine)
        delivery = take_one(engine, holder)
        assert not delivery.expired
        engine.settle([settlement(delivery, Verdict.RELEASED)])
        clock.advance(11)
        assert take_one(engine, holder).expired

    # -- those that come back ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("verdict", [Verdict.RELEASED, Verdict.CRASHED])
    def test_what_was_given_back_keeps_its_place(self, engine: Engine, clock: FakeClock, verdict: Verdict) -> None:
        now = clock.time()
        holder = start(engine)
        engine.publish(messages(2, "old"))
        clock.advance(1)
        first, second = take(engine, holder)
        engine.publish([message("young")])
        clock.advance(1)
        engine.settle([settlement(second, verdict), settlement(first, verdict)])
        again = take(engine, holder)
        assert ids(again) == ["old0", "old1", "young"]
        assert again[0].waiting_since == pytest.approx(now, abs=0.01)

    def test_what_was_reclaimed_keeps_its_place(self, engine: Engine, clock: FakeClock) -> None:
        anna = start(engine, "anna")
        engine.publish(messages(3, "old"))
        take(engine, anna)
        clock.advance(1)
        engine.publish([message("young")])
        engine.reclaim(["anna"])
        assert ids(take(engine, start(engine, "bert"))) == ["old0", "old1", "old2", "young"]
