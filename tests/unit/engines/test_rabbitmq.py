"""What RabbitMQ alone does: custody, delays in the server, exchanges, results by message, and its troubles."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celeriac.contracts.mailbox import Letter
from celeriac.core.errors import EngineCorrupt, EngineUnavailable
from celeriac.core.message import Delivery, Holder, Verdict
from celeriac.core.routing import queues_from
from celeriac.engines import rabbitmq_desk, rabbitmq_intake
from celeriac.engines import rabbitmq_wire as wire
from celeriac.engines.rabbitmq import RabbitMQEngine
from celeriac.engines.rabbitmq_intake import MAILBOXES
from celeriac.testing.contract.harness import eventually, ids, message, messages, record, settlement, start, take, take_one
from tests.support.rabbitmq import Server, young

pytestmark = young

QUEUE_DELETE, QUEUE_DELETE_OK = 0x00320028, 0x00320029


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid4()}."


@pytest.fixture
def engine(server: Server, prefix: str) -> Iterator[RabbitMQEngine]:
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as engine:
        yield engine


def taken(engine: RabbitMQEngine, holder: Holder, *queues: str) -> Any:
    """The next message, as soon as there is one."""
    found: list[Any] = []

    def look() -> bool:
        with suppress(EngineUnavailable):  # a queue may be slow to answer whose readers come and go
            found.extend(take(engine, holder, *queues, limit=1))
        return bool(found)

    eventually(look, 40.0)
    return found[0]


# -- delays ------------------------------------------------------------------------------------------------------------


def test_a_delay_is_kept_by_the_server(server: Server, engine: RabbitMQEngine, prefix: str) -> None:
    engine.publish([message("m", delay_seconds=1.3)])
    published_at = time.monotonic()
    engine.close()  # nobody is there who could wait for it
    holder = start(engine)
    delivery = taken(engine, holder)
    assert time.monotonic() - published_at >= 1.25
    assert delivery.message == message("m", delay_seconds=1.3)
    engine.settle([settlement(delivery)])


def delete_queue(engine: RabbitMQEngine, name: str) -> None:
    """As an administrator does."""
    deadline = time.monotonic() + 8.0
    with engine._sender.link(deadline) as link:
        link.risk(wire.frame(2, QUEUE_DELETE, b"\0\0" + wire.shortstr(engine._topology.queue(name)) + b"\0"), QUEUE_DELETE_OK, deadline)


def all_come(engine: RabbitMQEngine, holder: Holder, queue: str, expected: list[str]) -> None:
    found: list[str] = []
    eventually(lambda: (found.extend(ids(take(engine, holder, queue))), len(found) >= len(expected))[1], 20.0)
    assert sorted(found) == sorted(expected)


def test_what_waits_for_a_deleted_queue_holds_up_nobody_and_is_taken_where_it_is_read(engine: RabbitMQEngine) -> None:
    """RabbitMQ moves 32 at a time of each queue in which messages wait, and would try them again and again."""
    engine.publish(gone := messages(40, queue="gone", delay_seconds=1.5))
    engine.publish([message("behind", delay_seconds=1.5)])
    delete_queue(engine, "gone")
    holder = start(engine)
    assert taken(engine, holder).id == "behind"
    all_come(engine, holder, "gone", ids(gone))


def test_delays_that_were_made_before_there_was_another_way_are_used_as_they_are(
    server: Server, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """RabbitMQ refuses to change what is there. A policy gives it the other way."""
    server.control("add_vhost", prefix)
    server.control("set_permissions", "-p", prefix, "guest", ".*", ".*", ".*")
    url = f"{server.url.removesuffix('//')}/{prefix}"
    plain = wire.declare_exchange
    with monkeypatch.context() as patch, closing(RabbitMQEngine(url)) as older:
        patch.setattr(wire, "declare_exchange", lambda channel, name, kind, arguments=None: plain(channel, name, kind))
        older.publish([message("made", delay_seconds=0.05)])
    with closing(RabbitMQEngine(url)) as engine:
        holder = start(engine)
        assert taken(engine, holder).id == "made"
        policy = '{"alternate-exchange": "celeriac.stray"}'
        server.control("set_policy", "-p", prefix, "celeriac", r"^celeriac\.due$", policy, "--apply-to", "exchanges")
        engine.publish(gone := messages(40, queue="gone", delay_seconds=1.0))
        delete_queue(engine, "gone")
        all_come(engine, holder, "gone", ids(gone))


def test_who_may_not_make_the_other_way_is_told_which_rights_are_missing(server: Server, prefix: str) -> None:
    server.control("add_user", prefix, "secret")
    server.control("set_permissions", "-p", "/", prefix, *[rf"^({prefix}.*|celeriac\.(delay\.\d+|due))$"] * 3)
    url = server.url.replace("guest:guest", f"{prefix}:secret")
    with closing(RabbitMQEngine(url, name_prefix=prefix)) as engine:
        with pytest.raises(EngineUnavailable, match=r"'celeriac\.stray'.*rights to configure, write and read"):
            engine.publish([message("m", delay_seconds=60.0)])
        server.control("set_permissions", "-p", "/", prefix, *[rf"^({prefix}.*|celeriac\.(delay\.\d+|due|stray))$"] * 3)
        engine.publish([message("m", delay_seconds=60.0)])


def test_what_is_further_off_than_the_levels_reach_goes_round_again(engine: RabbitMQEngine) -> None:
    exchange, key, left = engine._topology.delayed("q", 400 * 86400.0)
    assert exchange == engine._topology.level(27)
    assert key == ".".join("1" * 28) + ".q"
    assert 400 * 86400.0 - left == pytest.approx(0.05 * (2**28 - 1))


def test_an_eta_of_a_foreign_producer_waits_in_the_server_too(server: Server, engine: RabbitMQEngine) -> None:
    """Celery writes the moment into a header, and leaves it to the worker."""
    holder = start(engine)
    engine.publish([message("first")])
    assert taken(engine, holder).id == "first"
    eta = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 3))
    properties = wire.properties(
        {"lang": "py", "task": "tests.task", "id": "m", "eta": eta}, content_type="application/json", content_encoding="utf-8", priority=0, correlation_id="m"
    )  # fmt: skip
    link = wire.Connection(wire.Address.parse(server.url)[0], time.monotonic() + 10)
    link.open_channel(1, time.monotonic() + 10)
    queue = wire.shortstr(engine._topology.queue("celery"))
    link.send(wire.publication(1, b"\x00", queue, properties, b"[[],{},{}]"), time.monotonic() + 10)
    link.close()
    begin = time.time()
    delivery = taken(engine, holder)
    assert delivery.id == "m"
    assert time.time() >= int(begin) + 2
    engine.settle([settlement(delivery)])


# -- custody -------------------------------------------------------------------------------------------------------------


def test_a_long_task_is_taken_into_custody(server: Server, prefix: str) -> None:
    """The broker has its acknowledgement long before the task's end, so its consumer_timeout does not begin to run out."""
    with closing(RabbitMQEngine(server.url, name_prefix=prefix, custody_seconds=0.05)) as engine:
        engine.publish([message("m")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        held = engine._intake.ledger.held["m"]
        first = held.tag
        engine._intake._custody_at = 0.0
        eventually(lambda: engine.collect("anna", 0.05) == [] and held.tag not in (None, first))
        assert ids(engine.held("anna")) == ["m"]
        assert engine.settle([settlement(delivery)]) == []
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as other:
        assert take(other, start(other, "bert")) == []


def test_what_was_in_custody_comes_back_when_its_worker_is_gone(server: Server, prefix: str) -> None:
    engine = RabbitMQEngine(server.url, name_prefix=prefix, custody_seconds=0.05)
    engine.publish([message("m")])
    take_one(engine, start(engine))
    held = engine._intake.ledger.held["m"]
    first = held.tag
    engine._intake._custody_at = 0.0
    eventually(lambda: engine.collect("anna", 0.05) == [] and held.tag not in (None, first))
    engine._intake.forget()  # as SIGKILL does
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as other:
        delivery = taken(other, start(other, "bert"))
        assert (delivery.id, delivery.crashes) == ("m", 1)
        assert other.settle([settlement(delivery)]) == []


def into_custody(engine: RabbitMQEngine, id: str) -> None:
    """Whoever runs it is slow."""
    held = engine._intake.ledger.held[id]
    first = held.tag
    engine._intake._custody_at = 0.0
    eventually(lambda: collected(engine) and held.tag not in (None, first))


def collected(engine: RabbitMQEngine) -> bool:
    with suppress(EngineUnavailable):
        return engine.collect("anna", 0.05) == []
    return False


@pytest.mark.parametrize("noticed", [True, False])
def test_a_queue_of_custody_that_is_deleted_is_made_anew_with_what_was_in_it(server: Server, prefix: str, noticed: bool) -> None:
    """RabbitMQ says that the queue is gone; or it refuses a copy first, and closes the channel over it."""
    with closing(RabbitMQEngine(server.url, name_prefix=prefix, custody_seconds=0.05)) as engine:
        engine.publish(messages(2))
        holder = start(engine)
        first, second = taken(engine, holder), taken(engine, holder)
        into_custody(engine, first.id)
        intake = engine._intake
        connection, tag = intake.lines.connection, intake.ledger.held[first.id].tag
        delete_queue(engine, intake._custody.removeprefix(prefix))
        if not noticed:
            intake._copy_into_custody([intake.ledger.held[second.id]])
        eventually(lambda: collected(engine) and intake.ledger.held[first.id].tag not in (None, tag))
        assert (intake.lines.connection is connection) == noticed
        assert ids(engine.held("anna")) == [first.id, second.id]
        into_custody(engine, second.id)
        assert engine.settle([settlement(first)]) == []
        intake.forget()  # as SIGKILL does
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as other:
        delivery = taken(other, start(other, "bert"))
        assert (delivery.id, delivery.crashes) == (second.id, 1)
        assert other.settle([settlement(delivery)]) == []
        assert take(other, delivery.lease.holder) == []


def test_what_only_came_back_is_no_crash_and_from_then_on_the_death_of_its_holder_is(server: Server, prefix: str) -> None:
    engine = RabbitMQEngine(server.url, name_prefix=prefix)
    engine.publish([message("m")])
    holder = start(engine)
    engine.settle([settlement(take_one(engine, holder), Verdict.RELEASED)])
    take_one(engine, holder)
    engine._intake.forget()
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as other:
        delivery = taken(other, start(other, "bert"))
        assert (delivery.crashes, delivery.interruptions) == (0, 2)
        held = other._intake.ledger.held["m"]
        eventually(lambda: other.collect("bert", 0.05) == [] and held.tag is not None)
        other._intake.forget()
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as third:
        delivery = taken(third, start(third, "carl"))
        assert delivery.crashes == 1
        assert delivery.interruptions >= 2, "one more when the server has counted the copy's return too"
        assert third.settle([settlement(delivery)]) == []


def test_what_was_only_buffered_is_no_crash_however_often(server: Server, prefix: str) -> None:
    """Connections are lost, and subscriptions begun and ended, with messages on their way that nobody has started."""
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as producer:
        producer.publish(messages(300))
    for name in ("a", "b", "c", "d"):
        engine = RabbitMQEngine(server.url, name_prefix=prefix)
        start(engine, name)
        assert engine.wait(["celery"], 40.0)
        engine._intake._consume("celery", 300)
        for _ in range(20):
            engine._intake._pump()
        engine._intake.forget()  # as SIGKILL does
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as engine:
        holder = start(engine, "last")
        seen: dict[str, int] = {}

        def all_there() -> bool:
            batch = take(engine, holder, limit=64)
            seen.update({delivery.id: delivery.crashes for delivery in batch})
            engine.settle([settlement(delivery) for delivery in batch])
            return len(seen) == 300

        eventually(all_there, 120.0)
        assert set(seen.values()) == {0}


@pytest.fixture
def limited(engine: RabbitMQEngine) -> RabbitMQEngine:
    """Its queue has the delivery limit that RabbitMQ 4 gives to all: what has come back more often is dropped."""
    deadline = time.monotonic() + 20.0
    with engine._sender.link(deadline) as link:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 20}
        link.risk(wire.declare_queue(2, engine._topology.queue("celery"), arguments), wire.QUEUE_DECLARE_OK, deadline)
    return engine


def given(engine: RabbitMQEngine) -> bool:
    with suppress(EngineUnavailable):  # a queue may be slow to answer whose readers come and go
        return engine.wait(["celery"], 40.0)
    return False


def test_what_is_only_buffered_while_connections_are_lost_is_never_dropped(limited: RabbitMQEngine) -> None:
    holder = start(limited)
    limited.publish([message("m")])
    for _ in range(50):
        eventually(lambda: given(limited), 120.0)
        limited._intake.lines.disconnect()
    eventually(lambda: given(limited), 120.0)
    delivery = take_one(limited, holder)
    assert delivery.crashes == 0
    assert limited.settle([settlement(delivery)]) == []


def test_what_runs_while_connections_are_lost_is_never_dropped(limited: RabbitMQEngine) -> None:
    holder = start(limited)
    limited.publish([message("m")])
    delivery = taken(limited, holder)
    held = limited._intake.ledger.held["m"]
    for _ in range(50):
        limited._intake.lines.disconnect()
        limited._intake._consume("celery", 10)
        eventually(lambda: limited.collect(holder.node, 0.05) == [] and held.tag is not None, 40.0)
    assert limited.settle([settlement(delivery)]) == []


def test_a_retry_that_comes_before_the_acknowledgement_is_kept(engine: RabbitMQEngine) -> None:
    """The new message is confirmed first, so the supervisor may be given it while it still holds the old one, which has the same id."""
    engine.publish([message("m")])
    holder = start(engine)
    delivery = take_one(engine, holder)
    retry = settlement(delivery, Verdict.RETRY, message=message("m", retries=1))
    engine._follow_up([retry], engine._held_by_id(holder.node, None, engine._intake))  # and the acknowledgement is late
    engine._intake._consume("celery", 10)
    eventually(lambda: engine.collect(holder.node, 0.05) == [] and "m" in engine._intake.ledger._successors)
    assert engine._intake.acknowledge([("m", delivery.lease.token, holder.node, holder.process)]) == []
    again = taken(engine, holder)
    assert again.message is not None
    assert again.message.retries == 1
    assert engine.settle([settlement(again)]) == []


# -- exchanges -------------------------------------------------------------------------------------------------------------


def test_exchanges_of_task_queues(server: Server, prefix: str) -> None:
    queues = queues_from(
        {
            "reports": {"exchange": "x", "exchange_type": "topic", "routing_key": "report.#"},
            "all": {"exchange": "x", "exchange_type": "topic", "routing_key": "#"},
            "one": {"exchange": "news", "exchange_type": "fanout"},
            "two": {"exchange": "news", "exchange_type": "fanout"},
            "mail": {"exchange": "post", "routing_key": "letter"},
        }
    )
    with closing(RabbitMQEngine(server.url, name_prefix=prefix, task_queues=queues)) as engine:
        holder = start(engine)
        for queue in queues:
            assert take(engine, holder, queue.name) == []  # declares it
        engine.publish(
            [
                message("r", queue="reports", exchange="x", routing_key="report.daily"),
                message("o", queue="all", exchange="x", routing_key="other"),
                message("n", queue="one", exchange="news"),
                message("l", queue="mail", exchange="post", routing_key="letter"),
            ]
        )
        found = {}
        for queue in queues:
            batch = take(engine, holder, queue.name)
            found[queue.name] = ids(batch)
            engine.settle([settlement(delivery) for delivery in batch])
        assert found == {"reports": ["r"], "all": ["r", "o"], "one": ["n"], "two": ["n"], "mail": ["l"]}


def test_priorities_where_the_queue_has_them(server: Server, prefix: str) -> None:
    with closing(RabbitMQEngine(server.url, name_prefix=prefix, task_queues=queues_from({"urgent": {"max_priority": 9}}))) as engine:
        engine.publish([message(f"m{priority}", queue="urgent", priority=priority) for priority in (0, 5, 9, 3)])
        assert ids(take(engine, start(engine), "urgent")) == ["m9", "m5", "m3", "m0"]


def test_a_queue_that_is_otherwise_is_an_error_that_names_it(server: Server, engine: RabbitMQEngine, prefix: str) -> None:
    engine.publish([message("m", queue="urgent")])
    with closing(RabbitMQEngine(server.url, name_prefix=prefix, task_queues=queues_from({"urgent": {"max_priority": 9}}))) as other:
        with pytest.raises(EngineCorrupt, match=r"urgent.*is not as it is to be.*task_queues"):
            other.publish([message("n", queue="urgent")])


# -- results by message ------------------------------------------------------------------------------------------------------


def test_results_come_back_to_who_called(server: Server, prefix: str) -> None:
    caller = RabbitMQEngine(server.url, name_prefix=prefix, replies=True)
    worker = RabbitMQEngine(server.url, name_prefix=prefix)
    with closing(caller), closing(worker):
        results, answers = caller.replies(), worker.replies()
        caller.publish(messages(2))
        batch = take(worker, start(worker))
        assert ids(batch) == ["m0", "m1"]
        answers.expect(batch)  # type: ignore[attr-defined]
        with closing(results.subscribe(["m1"])) as subscription:
            assert results.fetch(["m1"]) == {}
            answers.store([record("m0"), record("m1", "STARTED"), record("m1", "FAILURE")])
            assert subscription.changed(20.0)
            eventually(lambda: results.fetch(["m1"])["m1"].status == "FAILURE")
        results.forget(["m1"])
        assert list(results.fetch(["m0", "m1"])) == ["m0"]
        worker.settle([settlement(delivery) for delivery in batch])


def test_whoever_asks_often_does_not_go_on_listening_for_each_answer(server: Server, engine: RabbitMQEngine, prefix: str) -> None:
    for number in range(MAILBOXES + 5):
        assert engine.collect(f"reply.{number}") == []

    def heard() -> list[str]:
        rows = server.control("list_consumers", "queue_name", "--quiet", "--no-table-headers").splitlines()
        return sorted(row for row in rows if row.startswith(f"{prefix}celeriac.letters."))

    eventually(lambda: engine.collect("reply.9") == [] and len(heard()) == MAILBOXES, 40.0)


# -- trouble -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["amqp://guest:wrong@127.0.0.1:{port}//", "amqp://guest:guest@127.0.0.1:{port}/nowhere", "amqps://127.0.0.1:{port}//"]
)
def test_who_is_not_let_in_hears_why(server: Server, url: str) -> None:
    with closing(RabbitMQEngine(url.format(port=server.port))) as engine:
        with pytest.raises(EngineUnavailable, match=r"(?i)access_refused|refused|not found|not_allowed|ssl|cannot be reached"):
            engine.publish([message("m")], timeout_seconds=10.0)


def test_connections_that_the_server_closes_are_opened_again(server: Server, engine: RabbitMQEngine) -> None:
    engine.publish(messages(3))
    holder = start(engine)
    first = take_one(engine, holder)
    server.control("close_all_connections", "maintenance")
    eventually(lambda: published(engine, "after"))
    seen: list[str] = []

    def all_there() -> bool:
        try:
            seen.extend(ids(take(engine, holder)))
        except EngineUnavailable:
            return False
        return {"m1", "m2", "after"} <= set(seen)

    eventually(all_there)
    assert "m0" not in seen, "what runs is taken back, and not given again"
    assert engine.settle([settlement(first)]) == []


def published(engine: RabbitMQEngine, id: str) -> bool:
    try:
        engine.publish([message(id)], timeout_seconds=10.0)
    except EngineUnavailable:
        return False
    return True


def test_without_memory_a_call_ends_in_time_and_goes_on_afterwards(server: Server, engine: RabbitMQEngine) -> None:
    engine.publish([message("before")])
    server.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable, match=r"takes no messages|did not confirm|did not answer|is gone"):
            for number in range(5):
                engine.publish([message(f"m{number}")], timeout_seconds=1.0)
        assert time.monotonic() - begin < 15
    finally:
        server.control("set_vm_memory_high_watermark", "0.4")
    eventually(lambda: published(engine, "after"))


def test_a_server_that_is_killed_keeps_what_it_confirmed(server: Server, engine: RabbitMQEngine) -> None:
    engine.publish([*messages(20), message("later", delay_seconds=0.2)])
    server.kill()
    begin = time.monotonic()
    with pytest.raises(EngineUnavailable):
        engine.publish([message("n")], timeout_seconds=1.0)
    assert time.monotonic() - begin < 5
    server.start()
    eventually(lambda: published(engine, "after"), 150.0)
    holder = start(engine)
    seen: set[str] = set()

    def all_there() -> bool:
        with suppress(EngineUnavailable):  # its streams may need some ten seconds
            batch = take(engine, holder)
            seen.update(ids(batch))
            engine.settle([settlement(delivery) for delivery in batch])
        return {*ids(messages(20)), "later", "after"} <= seen

    eventually(all_there, 150.0)


def test_what_cannot_be_given_back_at_once_is_given_back_later(engine: RabbitMQEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that holds it lives, so RabbitMQ would not give it to anybody else."""
    holder = start(engine)
    engine.publish([message("m")])
    intake = engine._intake
    intake._consume("celery", 10)
    eventually(lambda: (intake._pump(), intake.ledger.buffer.get("celery"))[1])

    def fails(needs: Any) -> None:
        raise EngineUnavailable("The queue cannot be declared just now.")

    with monkeypatch.context() as patch:
        patch.setattr(intake.lines, "declare", fails)
        with pytest.raises(EngineUnavailable):
            intake._give_back_buffer()
    assert not intake.ledger.buffer
    eventually(lambda: engine.collect(holder.node, 0.05) == [] and not intake.lines.posting())
    assert taken(engine, holder).id == "m"


def test_a_subscription_belongs_to_the_connection_over_which_it_is_begun(engine: RabbitMQEngine) -> None:
    """A connection that is found to be lost is replaced, and what comes over the new one has somebody who knows it."""
    engine.publish([message("m")])
    engine.settle([settlement(take_one(engine, start(engine)), Verdict.RELEASED)])  # the subscription to what was given back is begun first
    intake = engine._intake
    assert intake.lines.connection is not None
    intake.lines.connection.drop("It is cut.")
    intake._consume("celery", 10)
    eventually(lambda: (intake._pump(), intake.ledger.buffer.get("celery"))[1])


def test_what_follows_a_second_copy_may_be_a_second_copy(engine: RabbitMQEngine) -> None:
    """When both copies of a try were run, there are two of each later one."""
    engine.publish([message("m")])
    holder = start(engine)
    engine.settle([settlement(take_one(engine, holder), Verdict.CRASHED)])
    delivery = taken(engine, holder)
    for retries in (1, 2):
        engine.settle([settlement(delivery, Verdict.RETRY, message=message("m", retries=retries))])
        delivery = taken(engine, holder)
        assert (delivery.repeated, delivery.crashes, delivery.interruptions) == (True, 0, 0)


def test_a_dead_letter_that_is_replayed_is_nobodys_second_copy(engine: RabbitMQEngine) -> None:
    """Its failure is stored: as a copy of it, it would be taken for done."""
    engine.publish([message("m")])
    holder = start(engine)
    engine.settle([settlement(take_one(engine, holder), Verdict.CRASHED)])
    engine.settle([settlement(taken(engine, holder), Verdict.RETRY, message=message("m", retries=1))])
    retry = taken(engine, holder)
    assert retry.repeated, "it may have been published before the crash, too"
    engine.settle([settlement(retry, Verdict.DEAD, reason="poison")])
    assert engine.replay(["m"]) == ["m"]
    assert not taken(engine, holder).repeated


def test_a_queue_that_is_read_and_deleted_is_made_anew(engine: RabbitMQEngine) -> None:
    """What this process knows to be there, somebody else may delete."""
    engine.publish([message("m", queue="gone")])
    holder = start(engine)
    engine.settle([settlement(take_one(engine, holder, "gone"))])
    lines = engine._intake.lines
    engine._intake._consume("gone", 1)
    eventually(lambda: (engine.collect(holder.node, 0.05), lines.open["gone", "queue"].begun)[1])
    delete_queue(engine, "gone")
    eventually(lambda: (engine.collect(holder.node, 0.05), ("gone", "queue") not in lines.open)[1])
    assert take(engine, holder, "gone") == []
    engine.publish([message("n", queue="gone")])
    assert taken(engine, holder, "gone").id == "n"


def lose_unnoticed(engine: RabbitMQEngine, monkeypatch: pytest.MonkeyPatch) -> wire.Connection:
    """The connection that gives; RabbitMQ learns of its end when it is dropped."""
    lost = engine._intake.lines.connection
    assert lost is not None
    with monkeypatch.context() as patch:
        patch.setattr(lost, "drop", lambda reason: None)
        engine._intake.lines.disconnect()
    return lost


def test_what_was_acknowledged_early_comes_back_to_nobody_when_its_connection_breaks(
    server: Server, engine: RabbitMQEngine, prefix: str
) -> None:
    """Broken off, with the last of it unread: RabbitMQ gives the messages of such to others."""
    engine.publish(messages(200))
    engine.publish([message("last")])
    holder = start(engine)
    held: list[Delivery] = []
    eventually(lambda: (held.extend(take(engine, holder, limit=200 - len(held))), len(held) == 200)[1])
    for delivery in held:
        assert engine.settle([settlement(delivery, early=True)]) == []
    connection = engine._intake.lines.connection
    assert connection is not None
    connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    engine._intake.forget()
    with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as other:
        delivery = taken(other, start(other, "bert"))
        assert delivery.id == "last"
        other.settle([settlement(delivery)])
        assert take(other, delivery.lease.holder) == []


def test_an_answer_that_comes_with_the_end_of_its_connection_is_heard(engine: RabbitMQEngine) -> None:
    """Nobody else begins the task whose acknowledgement it follows."""
    engine.publish([message("m")])
    holder = start(engine)
    delivery = take_one(engine, holder)
    leases = [("m", delivery.lease.token, holder.node, holder.process)]
    lines = engine._intake.lines
    connection = lines.connection
    assert connection is not None
    with pytest.raises(EngineUnavailable):
        engine._intake.ledger.leave(leases, lines.ask)
    eventually(lambda: (connection.read(0.0), any(one.method == wire.CHANNEL_FLOW_OK for one in connection.arrived))[1])
    connection.drop("It is cut.")
    with suppress(EngineUnavailable):
        engine._intake._pump()
    assert lines.connection is not connection
    assert engine._intake.leave(leases) == []


def test_there_is_room_for_what_a_lost_connection_held(engine: RabbitMQEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ may notice late that it is lost, and give others first."""
    monkeypatch.setattr(rabbitmq_intake, "RETURN_SECONDS", 60.0)
    engine.publish([message("m")])
    holder = start(engine)
    delivery = take_one(engine, holder)
    engine.publish([message("n")])
    intake = engine._intake
    lost = lose_unnoticed(engine, monkeypatch)
    intake._windows["celery"] = 1
    eventually(lambda: (intake._pump(), intake.ledger.buffer.get("celery"))[1])
    lost.drop("Now RabbitMQ notices it.")
    eventually(lambda: engine.collect(holder.node, 0.05) == [] and not intake.ledger.held["m"].lost)
    assert engine.settle([settlement(delivery)]) == []


def test_room_is_made_once(engine: RabbitMQEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker that waits for what does not come back takes hold of the whole queue. RabbitMQ 3.10 that was killed then had lost a part of it."""
    monkeypatch.setattr(rabbitmq_intake, "RETURN_SECONDS", 60.0)
    monkeypatch.setattr(rabbitmq_intake, "ROOM_SECONDS", 0.0)
    engine.publish([message("m")])
    holder = start(engine)
    take_one(engine, holder)
    engine.publish(messages(50))
    intake = engine._intake
    lost = lose_unnoticed(engine, monkeypatch)
    intake._windows["celery"] = 1
    eventually(lambda: engine.collect(holder.node, 0.05) == [] and intake.ledger.count(["celery"]) > 1)
    for _ in range(20):
        assert engine.collect(holder.node, 0.05) == []
    assert intake.ledger.count(["celery"]) <= 3
    lost.drop("")


def test_what_its_holder_was_refused_is_run_anew_however_late_it_comes_back(engine: RabbitMQEngine) -> None:
    """A server that has just been started may need longer than we wait for what it gives back."""
    engine.publish([message("m")])
    holder = start(engine)
    delivery = take_one(engine, holder)
    engine._intake.lines.disconnect()
    engine._intake.ledger.lost_until = time.monotonic()
    assert engine.settle([settlement(delivery, Verdict.RETRY, message=message("m", retries=1))]) == ["m"]
    again = taken(engine, holder)
    assert again.message == message("m")
    assert engine.settle([settlement(again)]) == []


def test_what_comes_back_late_is_its_holders_again(engine: RabbitMQEngine) -> None:
    """It may have been told that it holds nothing, or another process has its number by now: so workers ask now and then (`Capabilities.forgets`)."""
    engine.publish([message("m")])
    holder = start(engine)
    take_one(engine, holder)
    intake = engine._intake
    intake.lines.disconnect()
    intake.ledger.lost_until = time.monotonic()
    assert engine.held(holder.node, holder.process) == []
    intake._consume("celery", 10)
    eventually(lambda: (intake._pump(), engine.held(holder.node, holder.process))[1])
    (delivery,) = engine.held(holder.node, holder.process)
    assert (delivery.id, delivery.crashes) == ("m", 0) and engine.capabilities.forgets
    assert engine.settle([settlement(delivery)]) == []


def test_a_mailbox_that_two_make_in_one_moment(server: Server, prefix: str) -> None:
    """RabbitMQ ends a connection that reads a queue which somebody else is just making. It is not the one over which messages are held."""

    def ask(place: int) -> None:
        with (
            closing(RabbitMQEngine(server.url, name_prefix=prefix)) as reader,
            closing(RabbitMQEngine(server.url, name_prefix=prefix)) as writer,
        ):
            reader.collect("first")
            connection = reader._intake.lines.connection
            with ThreadPoolExecutor(1) as thread:
                for number in range(100):
                    posted = thread.submit(writer.post, [f"{place}-{number}"], Letter(method="m"))
                    assert [letter.method for letter in reader.collect(f"{place}-{number}", 10.0)] == ["m"]
                    posted.result(10.0)
            assert reader._intake.lines.connection is connection

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))


def test_a_supervisor_sleeps_while_a_process_waits_for_custody(engine: RabbitMQEngine) -> None:
    """What it has asked for may be overdue by then: it is answered when the copy is there, not by looking all the time."""
    ours, other = socket.socketpair()
    with ours, other:
        client = rabbitmq_desk.Client(ours)
        overdue = time.monotonic() - 1.0
        client.asks, client.promised = rabbitmq_desk.Wish(["celery"], 1, [], overdue, overdue), ([], [])
        engine._intake.reception.clients[ours.fileno()] = client
        assert engine._intake._pause_seconds() >= rabbitmq_intake.LINGER_SECONDS
        del engine._intake.reception.clients[ours.fileno()]


STREAMS_GO_AWAY = (
    "sys:suspend(rabbit_stream_coordinator),"
    "[supervisor:terminate_child(osiris_server_sup, Id) || {Id, _, _, _} <- supervisor:which_children(osiris_server_sup)]."
)


def test_calls_and_workers_go_on_while_streams_are_away(server: Server, engine: RabbitMQEngine, prefix: str) -> None:
    """As for some seconds after a server was killed. What a worker knows of pauses holds; it reads on when they are back."""
    holder = start(engine)
    intake = engine._intake
    engine.publish([message("m")])
    engine.pause(["other"], by="us")
    eventually(lambda: engine.collect(holder.node, 0.05) == [] and "other" in intake.paused)
    server.control("eval", STREAMS_GO_AWAY)
    try:
        with closing(RabbitMQEngine(server.url, name_prefix=prefix)) as caller:
            caller.publish([message("n"), message("in a new queue", queue="new")], timeout_seconds=10.0)
        assert intake.lines.connection is not None
        intake.lines.connection.drop("It is cut.")
        intake._windows["new"] = 10
        intake._asked_at = time.monotonic() + 60.0  # as if processes asked: nothing is given back
        eventually(lambda: engine.collect(holder.node, 0.05) == [] and "new" in intake.ledger.buffer)
        assert "other" in intake.paused
        assert engine.heartbeat(holder.node, lease_seconds=15.0)
        assert [node.id for node in engine.nodes()] == [holder.node]
        with pytest.raises(EngineUnavailable):
            engine.pause(["new"], by="us")
    finally:
        server.control("eval", "sys:resume(rabbit_stream_coordinator).")
    eventually(lambda: engine.collect(holder.node, 0.05) == [] and "new" in intake._named, 40.0)
    assert "new" in engine.queues()
    engine.resume(["other"])
    eventually(lambda: engine.collect(holder.node, 0.05) == [] and "other" not in intake.paused)


def test_a_queue_without_a_leader_is_an_error_that_names_it(
    server: Server, engine: RabbitMQEngine, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a server leaves it that was killed too early."""
    holder = start(engine)
    engine.publish([message("m")])
    queue = f'element(1, amqqueue:get_pid(element(2, rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{prefix}celery">>)))))'
    server.control("eval", f"sys:suspend({queue}).")
    try:
        monkeypatch.setattr(rabbitmq_intake, "BEGIN_SECONDS", 0.5)
        engine._intake._consume("celery", 10)
        with pytest.raises(EngineUnavailable, match=f"does not begin to give of '{prefix}celery"):
            eventually(lambda: engine.collect(holder.node, 0.05))
    finally:
        server.control("eval", f"sys:resume({queue}).")


def test_a_server_for_tests_ends_with_them_however_they_end() -> None:
    tests = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tests.support.rabbitmq import Server; s = Server(); print(s.names.pid, s.node.pid, s.directory, flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert tests.stdout is not None
    names, node, directory = tests.stdout.readline().split()
    assert Path(directory).exists()
    tests.kill()
    tests.wait()
    eventually(lambda: not (_lives(int(names)) or _lives(int(node)) or Path(directory).exists()), 40.0)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
