"""What is published is held: whole, once, and as it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from msgspec import Raw

from ...contracts.engine import Engine
from ...core.message import Attempt, Message, Verdict
from ..clock import FakeClock
from .harness import EngineMaker, EngineTests, ids, message, messages, settlement, start, state_of, take, take_one

STRANGE = [
    "é ñ 漢字 🎉",
    "a/b\\c:d",
    "'; DROP TABLE messages; --",
    '"{}[]"',
    "%_*?",
    "line\nbreak\ttab",
    " ",
    "nul\0byte",
    "x" * 5000,
    "-1",
    "None",
]
FULL = Message(
    id="full",
    task="shop.tasks.charge",
    body=Raw('[[1, "é", 123456789012345678901234567890], {"ключ": [null, 1.5]}, {"callbacks": null}]'.encode()),
    queue="celery",
    priority=7,
    content_type="application/json",
    delay_seconds=0.0,
    eta=datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2))),
    expires=datetime(2999, 1, 1, tzinfo=UTC),
    root_id="root",
    parent_id="parent",
    group="group",
    group_index=3,
    retries=2,
    time_limit=10.5,
    soft_time_limit=9.5,
    shadow="shadow",
    argsrepr="(1,)",
    kwargsrepr="{}",
    origin="gen1@host",
    reply_to="reply",
    ignore_result=True,
    replaced_task_nesting=1,
    stamped_headers=["stamp"],
    stamps={"stamp": ["é"]},
    headers={"deep": {"list": [1, None, "x"]}},
    exchange="exchange",
    routing_key="key.é",
    attempts=[Attempt(worker="w", started_at=datetime(2020, 1, 1, tzinfo=UTC), runtime_seconds=0.25, state="RETRY", error="ValueError: é")],
)


class Publishing(EngineTests):
    """→ ready, or scheduled."""

    def test_what_was_published_arrives_as_it_was(self, engine: Engine) -> None:
        engine.publish([FULL])
        delivery = take_one(engine, start(engine))
        assert delivery.message == FULL
        assert (delivery.id, delivery.queue) == ("full", "celery")
        assert (delivery.crashes, delivery.interruptions, delivery.expired, delivery.revoked, delivery.error) == (0, 0, False, False, "")

    def test_a_body_of_another_format_travels_as_text(self, engine: Engine) -> None:
        engine.publish([message("m", body=Raw(b'"gAJ9cQAu"'), content_type="application/x-python-serialize")])
        delivered = take_one(engine, start(engine)).message
        assert delivered is not None
        assert bytes(delivered.body) == b'"gAJ9cQAu"'
        assert delivered.content_type == "application/x-python-serialize"

    def test_nothing_is_a_list_too(self, engine: Engine) -> None:
        holder = start(engine)
        engine.publish([])
        assert engine.settle([]) == []
        assert engine.exchange([], [], limit=5, holder=holder) == ([], [])
        assert take(engine, holder) == []
        assert engine.revoke([]) == {}
        assert engine.find([]) == {}
        assert engine.fetch([]) == {}

    @pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
    def test_any_string_is_an_id_and_a_queue(self, engine: Engine, other: Engine, text: str) -> None:
        engine.publish([message(text, queue=text), message(f"{text}2", queue=f"{text}2")])
        assert set(other.queues()) == {text, f"{text}2"}
        assert state_of(other, text) == "ready"
        delivery = take_one(other, start(other, node=f"node {text}"), text)
        assert (delivery.id, delivery.queue) == (text, text)
        assert ids(engine.held(f"node {text}")) == [text]
        assert engine.settle([settlement(delivery)]) == []
        assert engine.depth([text, f"{text}2"])[f"{text}2"].ready == 1
        assert ids(take(engine, start(engine), text, f"{text}2")) == [f"{text}2"]

    def test_ten_megabytes(self, engine: Engine) -> None:
        body = Raw(b'[["' + "é".encode() * 5_000_000 + b'"],{},{}]')
        engine.publish([message("small"), message("large", body=body), message("small2")])
        small, large, small2 = take(engine, start(engine))
        assert [small.id, large.id, small2.id] == ["small", "large", "small2"]
        assert large.message is not None
        assert bytes(large.message.body) == bytes(body)
        assert engine.settle([settlement(large, Verdict.DEAD, reason="too large")]) == []
        assert state_of(engine, "large") == "dead"

    # -- once ------------------------------------------------------------------------------------------------------

    def test_a_repeat_changes_nothing_while_it_waits(self, engine: Engine, other: Engine) -> None:
        engine.publish([message("m", argsrepr="first")])
        other.publish([message("m", argsrepr="second", queue="elsewhere", priority=9), message("n")])
        assert engine.queues() == ["celery"]
        first, second = take(engine, start(engine))
        assert (first.id, second.id) == ("m", "n")
        assert first.message is not None
        assert first.message.argsrepr == "first"

    def test_a_repeat_changes_nothing_while_it_is_scheduled(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([message("m", delay_seconds=100)])
        engine.publish([message("m")])
        holder = start(engine)
        assert take(engine, holder) == []
        clock.advance(101)
        assert ids(take(engine, holder)) == ["m"]

    def test_a_repeat_changes_nothing_while_it_is_leased(self, engine: Engine) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        engine.publish([message("m")])
        assert take(engine, holder) == []
        assert engine.settle([settlement(delivery)]) == []
        assert take(engine, holder) == []

    def test_a_repeat_within_one_list(self, engine: Engine) -> None:
        engine.publish([message("m", argsrepr="first"), message("m", argsrepr="second")])
        (delivery,) = take(engine, start(engine))
        assert delivery.message is not None
        assert delivery.message.argsrepr == "first"

    def test_when_it_is_done_the_id_is_free_again(self, engine: Engine) -> None:
        holder = start(engine)
        for _ in range(3):
            engine.publish([message("m")])
            assert engine.settle([settlement(take_one(engine, holder))]) == []
            assert state_of(engine, "m") is None

    def test_a_dead_letter_does_not_count_as_held(self, engine: Engine) -> None:
        holder = start(engine)
        engine.publish([message("m")])
        engine.settle([settlement(take_one(engine, holder), Verdict.DEAD, reason="poison")])
        engine.publish([message("m")])
        assert state_of(engine, "m") == "ready"
        assert engine.replay(["m"]) == []
        assert ids(take(engine, holder)) == ["m"]
        assert take(engine, holder) == []

    # -- all or none -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("position", [0, 1, 4])
    def test_one_that_cannot_be_stored_stops_all(self, engine: Engine, position: int) -> None:
        batch = messages(4)
        batch.insert(position, message("bad", headers={"no JSON": object()}))
        with pytest.raises(Exception, match=r".+"):
            engine.publish(batch)
        assert engine.queues() == []
        assert take(engine, start(engine)) == []
        engine.publish(messages(4))
        assert ids(engine.peek("celery")) == ["m0", "m1", "m2", "m3"]

    def test_a_large_list(self, engine: Engine) -> None:
        engine.publish(messages(3000))
        assert engine.depth()["celery"].ready == 3000
        holder = start(engine)
        batch = take(engine, holder, limit=3000)
        assert ids(batch) == ids(messages(3000))
        assert engine.settle([settlement(delivery) for delivery in batch]) == []
        assert engine.queues() == []

    # -- what cannot be decoded ------------------------------------------------------------------------------------

    def test_a_corrupt_message_is_delivered_as_such_and_stops_nobody(self, engine: Engine, make_engine: EngineMaker) -> None:
        engine.publish([message("before"), message("corrupt"), message("after")])
        make_engine.corrupt(engine, "corrupt")
        assert ids(engine.peek("celery")) == ["before", "corrupt", "after"]
        assert engine.find(["corrupt"])["corrupt"].message is None
        holder = start(engine)
        before, corrupt, after = take(engine, holder)
        assert (corrupt.id, corrupt.queue, corrupt.message) == ("corrupt", "celery", None)
        assert corrupt.error
        assert corrupt.raw_message
        assert before.error == after.error == ""
        assert engine.held(holder.node)[1].error
        assert engine.settle([settlement(corrupt, Verdict.DEAD, reason=corrupt.error), settlement(before), settlement(after)]) == []
        (dead,) = engine.peek("celery", state="dead")
        assert (dead.id, dead.message, dead.reason) == ("corrupt", None, corrupt.error)

    @pytest.mark.parametrize("verdict", [Verdict.RELEASED, Verdict.CRASHED])
    def test_a_corrupt_message_can_be_given_back(self, engine: Engine, make_engine: EngineMaker, verdict: Verdict) -> None:
        engine.publish([message("corrupt")])
        make_engine.corrupt(engine, "corrupt")
        holder = start(engine)
        assert engine.settle([settlement(take_one(engine, holder), verdict)]) == []
        again = take_one(engine, holder)
        assert again.error
        assert engine.settle([settlement(again, Verdict.DEAD, reason="corrupt")]) == []
        assert engine.replay(["corrupt"]) == ["corrupt"]
        assert take_one(engine, holder).error

    # -- what outlives -----------------------------------------------------------------------------------------------

    def test_closed_engines_open_again(self, engine: Engine, other: Engine) -> None:
        engine.publish([message("m")])
        engine.close()
        engine.close()
        engine.publish([message("n")])
        assert ids(take(other, start(other))) == ["m", "n"]

    def test_it_is_durable(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        if not make_engine.capabilities.durable:
            pytest.skip("this engine is not durable")
        engine = make_engine(clock=clock)
        engine.publish([FULL, *messages(3), message("later", delay_seconds=100)])
        engine.pause(["paused"], by="anna")
        engine.close()
        again = make_engine(clock=clock)
        assert ids(take(again, start(again))) == ["full", "m0", "m1", "m2"]
        assert again.depth()["paused"].paused_by == "anna"
        assert state_of(again, "later") == "scheduled"
        again.close()

    def test_engines_know_their_url_and_capabilities(self, engine: Engine, make_engine: EngineMaker) -> None:
        capabilities: Any = engine.capabilities
        assert capabilities == make_engine.capabilities
        assert "://" in engine.url
