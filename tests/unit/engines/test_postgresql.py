"""What is special to the PostgreSQL engine; all else is in the contract. The server is the tests' own."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from celeriac.contracts.mailbox import Letter, Node
from celeriac.core.errors import EncodeError, EngineCorrupt, EngineUnavailable, EngineUnsure, ImproperlyConfigured, NodeLost
from celeriac.core.message import Arrival, Delivery, Holder, Join, Message, Record, Settlement, Verdict
from celeriac.engines import open_engine
from celeriac.engines.network import readable
from celeriac.testing.contract.harness import DEADLINE_SECONDS, eventually
from tests.support.postgresql import Server, SessionServer, free_port, missing, program

postgresql = pytest.importorskip("celeriac.engines.postgresql")
listen = pytest.importorskip("celeriac.engines.postgresql_listen")
schema = pytest.importorskip("celeriac.engines.postgresql_schema")
pytest.importorskip("psycopg")
PostgreSQLEngine = postgresql.PostgreSQLEngine

HOLDER = Holder("node", 1)


def message(id: str, **fields: Any) -> Message:
    return Message(id=id, task="shop.tasks.charge", body=Raw(b"[[], {}, {}]"), **fields)


def done(delivery: Delivery, **fields: Any) -> Settlement:
    return Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, **fields)


@pytest.fixture(scope="module")
def server() -> Iterator[SessionServer]:
    server = SessionServer()
    yield server
    server.close()


@pytest.fixture
def url(server: SessionServer) -> Iterator[str]:
    """Of a schema of this test's own."""
    import uuid

    import psycopg

    schema = f"celeriac_{uuid.uuid4().hex}"
    plain = server.url()
    yield f"{plain}{'&' if '?' in plain else '?'}schema={schema}"
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")  # type: ignore[call-overload]


@pytest.fixture
def engine(url: str) -> Iterator[Any]:
    engine = PostgreSQLEngine(url)
    yield engine
    engine.close()


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that the test may stop and kill. Its parameter: further settings."""
    if program("postgres") is None:
        missing("PostgreSQL is not installed")
    directory = Path(tempfile.mkdtemp(prefix="celeriac-postgresql-"))
    server = Server(directory, options={"shared_buffers": "16MB", "max_connections": "20", **getattr(request, "param", {})})
    server.make()
    server.start()
    yield server
    server.stop(signal.SIGQUIT)
    shutil.rmtree(directory)


class Proxy:
    """Stands between us and the server, and can go silent, or cut."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.silent = False
        self.deaf_to_answers = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [client, upstream]
                threading.Thread(target=self._copy, args=(client, upstream, False), daemon=True).start()
                threading.Thread(target=self._copy, args=(upstream, client, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.silent and not (answers and self.deaf_to_answers):
                    sink.sendall(data)

    def cut(self) -> None:
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()


def through(proxy: Proxy, url: str) -> str:
    head, _, tail = url.partition("@")
    return f"{head}@127.0.0.1:{proxy.port}/{tail.partition('/')[2]}"


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    port = int(url.partition("@")[2].partition("/")[0].partition(":")[2] or 5432)
    proxy = Proxy(port)
    yield proxy
    proxy.close()


# -- configuration ----------------------------------------------------------------------------------------------------


def test_both_schemes_are_known() -> None:
    for scheme in ("postgresql", "postgres"):
        assert open_engine(f"{scheme}://localhost/x").capabilities.engine == "postgresql"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://h/d?schema=Not-A-Name", "schema"),
        ("postgresql://h/d?pool_size=0", "pool_size"),
        ("postgresql://h/d?listen=perhaps", "listen"),
        ("postgresql://h/d?no_such_thing=1", "no_such_thing"),
        ("postgresql://h:port/d?[", "URL"),
    ],
)
def test_what_is_wrong_is_named(url: str, says: str) -> None:
    with pytest.raises((ImproperlyConfigured, EngineUnavailable), match=says):
        PostgreSQLEngine(url).queues()


def test_unknown_transport_options_are_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="It has schema, pool_size"):
        PostgreSQLEngine("postgresql://h/d", visibility_timeout=3)


# -- the schema ---------------------------------------------------------------------------------------------------------


def test_many_at_once_make_one_schema(url: str) -> None:
    engines = [PostgreSQLEngine(url) for _ in range(6)]
    troubles: list[BaseException] = []

    def use(engine: Any) -> None:
        try:
            engine.publish([message("m")])
        except BaseException as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=use, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    assert engines[0].depth()["celery"].ready == 1
    for engine in engines:
        engine.close()


def test_a_caller_waits_for_the_making_of_the_schema_no_longer_than_he_gives(engine: Any, url: str) -> None:
    """Somebody else is at it, and takes his time. Afterwards it is there, without anybody asking again."""
    import psycopg

    with psycopg.connect(url.partition("?")[0]) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [schema.seed(engine._schema)])
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable, match="is being made"):
            engine.publish([message("m")], timeout_seconds=0.5)
        assert time.monotonic() - begin < 5
        other.commit()
        there = "SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = %s AND tablename = 'version'"
        eventually(lambda: other.execute(there, [engine._schema]).fetchone() == (1,))
    eventually(lambda: not _fails(lambda: engine.publish([message("m")])))
    assert [one.id for one in engine.peek("celery")] == ["m"]


def test_a_newer_schema_is_left_alone(engine: Any, url: str) -> None:
    engine.queues()
    engine._database.run("UPDATE {s}.version SET version = 99", ())
    with pytest.raises(EngineCorrupt, match="newer Celeriac"):
        PostgreSQLEngine(url).queues()


def test_a_schema_that_somebody_dropped_is_made_anew(engine: Any) -> None:
    engine.publish([message("m")])
    engine._database.run(f"DROP SCHEMA {engine._schema} CASCADE", ())
    with pytest.raises(EngineUnavailable, match="made anew"):
        engine.publish([message("n")])
    engine.publish([message("n")])
    assert [waiting.id for waiting in engine.peek("celery")] == ["n"]


def test_ids_that_no_index_takes_are_refused_in_words(engine: Any) -> None:
    with pytest.raises(EncodeError, match="length"):
        engine.publish([message(os.urandom(20_000).hex())])
    assert engine.queues() == []


# -- plans ----------------------------------------------------------------------------------------------------------------


HOT = {
    "take": "SELECT m.ctid FROM {s}.messages m WHERE m.state = 0 AND m.queue = $1 ORDER BY m.priority DESC, m.at, m.n LIMIT 16 FOR UPDATE SKIP LOCKED",
    "take from a floor": "SELECT m.ctid FROM {s}.messages m WHERE m.state = 0 AND m.queue = $1 AND m.priority = 0 AND m.at >= 5 ORDER BY m.at, m.n LIMIT 16",
    "due": "SELECT m.ctid FROM {s}.messages m WHERE m.state = 1 AND m.queue = $1 AND m.due <= 5 ORDER BY m.due LIMIT 1000 FOR UPDATE SKIP LOCKED",
    "any due": "SELECT 1 FROM {s}.messages m WHERE m.state = 1 AND m.queue = $1 AND m.due <= 5 LIMIT 1",
    "held": "SELECT m.id FROM {s}.messages m WHERE m.state = 2 AND m.node = $1 ORDER BY m.taken",
    "settle": "DELETE FROM {s}.messages m USING unnest(ARRAY[$1]) u (id) WHERE m.id = u.id AND m.token = 1 AND m.node = $1 AND m.process = 1",
    "fetch": "SELECT record FROM {s}.results WHERE task_id = ANY (ARRAY[$1])",
    "prune": "SELECT r.task_id FROM {s}.results r WHERE r.stored < 5 AND $1 <> '' ORDER BY r.stored LIMIT 1000",
}


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("name", HOT)
def test_no_hot_statement_reads_or_sorts_a_whole_table(engine: Any, name: str, analyzed: bool) -> None:
    """Also when the statistics are those of an empty table, or of one full of another queue."""
    engine.queues()
    if analyzed:
        engine.publish([message(f"m{number}", queue=f"q{number % 3}") for number in range(3000)])
        engine._database.run("ANALYZE {s}.messages", ())
    with engine._database.transaction() as run:
        run("SELECT {s}.steered()")
        plan = "\n".join(line for (line,) in run("EXPLAIN " + HOT[name].replace("$1", "'x'::text")))
    assert "Seq Scan" not in plan, plan
    assert "Index" in plan, plan
    if name == "settle":
        assert "messages_pkey" in plan, plan
    if name != "prune" or analyzed:
        assert "Sort" not in plan, plan


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_message_of_a_workflow_reads_no_whole_table(engine: Any, analyzed: bool) -> None:
    """As the server itself counts, of what its functions really did; the tables are full of others, and the plans may be those of empty ones."""
    tables = ("messages", "results", "joins", "arrivals", "thens", "endings")

    def scans() -> dict[str, int]:
        engine._database.run("SELECT pg_stat_force_next_flush()")
        sql = "SELECT relname::text, seq_scan, idx_scan FROM pg_stat_user_tables WHERE schemaname = $1 AND relname::text = ANY ($2::text[])"
        names = postgresql.texts(tables)
        return {name: seq for name, seq, _ in engine._database.rows(sql, (engine._schema, names))}

    def life(number: int) -> None:
        join = Join(id=f"j{number}", size=2, then=[message(f"body{number}", queue="bodies")])
        engine.publish([message(f"a{number}-{index}", queue="members") for index in range(2)], joins=[join])
        arrivals = [Arrival(join=join.id, index=index, task_id="t") for index in range(2)]
        members = engine.reserve(["members"], limit=2, holder=HOLDER)
        engine.settle(
            [
                done(one, arrival=arrival, record=Record(task_id=one.id, status="SUCCESS"))
                for one, arrival in zip(members, arrivals, strict=True)
            ]
        )
        (body,) = engine.reserve(["bodies"], limit=1, holder=HOLDER)
        engine.settle([done(body, leaves=join.id)])
        engine.arrive(arrivals)
        engine.fetch([one.id for one in members])

    engine.register(Node(id="node", name="n"), lease_seconds=60)
    life(0)
    engine.publish([message(f"m{number}") for number in range(3000)], joins=[Join(id=f"other{number}") for number in range(3000)])
    engine.arrive([Arrival(join=f"other{number}", index=0, task_id="t") for number in range(3000)])
    engine.store([Record(task_id=f"r{number}", status="SUCCESS") for number in range(3000)])
    if analyzed:
        for table in tables:
            engine._database.run(f"ANALYZE {{s}}.{table}")
    before = scans()
    for number in range(1, 20):
        life(number)
    assert scans() == before


def test_batches_that_count_towards_the_same_joins_lock_them_in_one_order(engine: Any, url: str) -> None:
    """Whatever the order of the batch: who waits for the first join holds none of the others, so no two can wait for each other."""
    import psycopg

    joins = [Join(id=f"j{number}", size=1) for number in range(3)]
    engine.publish([message(f"m{number}", join=f"j{number}") for number in range(3)], joins=joins)
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    batch = [
        done(one, arrival=Arrival(join=one.message.join, index=0, task_id=one.id))
        for one in engine.reserve(["celery"], limit=3, holder=HOLDER)
    ]
    look = f"SELECT id FROM {engine._schema}.joins WHERE id = ANY (%s) FOR UPDATE NOWAIT"
    refused: list[list[str]] = []
    settling = threading.Thread(target=lambda: refused.append(engine.settle(batch[::-1])))
    plain = url.partition("?")[0]
    with psycopg.connect(plain) as first, psycopg.connect(plain, autocommit=True) as others:
        first.execute(look, [["j0"]])  # type: ignore[call-overload]
        settling.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
        eventually(lambda: others.execute(waiting, [f"%{engine._schema}.exchange%"]).fetchone() == (1,))
        assert len(others.execute(look, [["j1", "j2"]]).fetchall()) == 2  # type: ignore[call-overload]
    settling.join(DEADLINE_SECONDS)
    assert refused == [[]]
    assert [one.arrived for one in engine.joins(["j0", "j1", "j2"]).values()] == [1, 1, 1]


def test_an_older_schema_is_brought_up_to_date_without_waiting_for_anybody(engine: Any, url: str) -> None:
    """An older program has a transaction open that has read and written what it has; it goes on, and so does the upgrade."""
    engine.publish([message("m")])
    for table in ("joins", "arrivals", "thens", "endings", "schedules", "ledger", "steps", "events", "seats"):
        engine._database.run(f"DROP TABLE {{s}}.{table}")
    engine._database.run("DROP FUNCTION {s}.schedules_changed_by_hand, {s}.schedules_made_by_hand")
    engine._database.run("UPDATE {s}.version SET version = 1")
    with engine._database.transaction() as run:
        run("UPDATE {s}.messages SET priority = 5 WHERE id = 'm'")
        run("SELECT record FROM {s}.results LIMIT 1")
        newer = PostgreSQLEngine(url)
        newer.publish([message("n")], joins=[Join(id="j", size=1)])
        assert sorted(newer.joins(["j"])) == ["j"]
        newer.close()
    assert engine._database.rows("SELECT version FROM {s}.version") == [(len(schema.MIGRATIONS),)]
    assert [one.id for one in engine.peek("celery")] == ["m", "n"]


# -- trouble ----------------------------------------------------------------------------------------------------------------


def test_nobody_there_is_said_at_once_and_in_words() -> None:
    engine = PostgreSQLEngine(f"postgresql://u:secret@127.0.0.1:{free_port()}/d")
    with pytest.raises(EngineUnavailable, match="Does it run there") as caught:
        engine.publish([message("m")])
    assert "secret" not in str(caught.value)


def test_an_unknown_host_is_said_in_time() -> None:
    engine = PostgreSQLEngine("postgresql://no-such-host.invalid/d")
    begin = time.monotonic()
    with pytest.raises(EngineUnavailable, match="cannot be resolved"):
        engine.publish([message("m")], timeout_seconds=1.0)
    assert time.monotonic() - begin < 5


def test_a_database_that_does_not_exist(server: SessionServer) -> None:
    base = server.url().partition("?")[0].rpartition("/")[0]
    with pytest.raises(EngineUnavailable, match="Create it"):
        PostgreSQLEngine(f"{base}/nowhere").queues()


def test_a_user_who_is_not_let_in(server: SessionServer) -> None:
    host = server.url().partition("@")[2]
    with pytest.raises(EngineUnavailable, match="user and password"):
        PostgreSQLEngine(f"postgresql://nobody_known@{host}").queues()


def test_tls_that_the_server_does_not_speak(server: SessionServer) -> None:
    with pytest.raises(EngineUnavailable, match="sslmode"):
        PostgreSQLEngine(server.url().partition("?")[0] + "?sslmode=require").queues()


def test_silence_ends_with_the_timeout_and_then_it_fails_at_once_until_a_probe_succeeds(
    proxy: Proxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PostgreSQLEngine(through(proxy, url))
    engine.publish([message("before")])
    proxy.silent = True
    for number in range(3):
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable):
            engine.publish([message(f"m{number}")], timeout_seconds=0.3)
        assert time.monotonic() - begin < 5
    with monkeypatch.context() as patch:
        patch.setattr(engine._database._breaker, "_probe_at", math.inf)  # a busy machine may be slower than the next probe
        with pytest.raises(EngineUnavailable, match="Not tried again now") as caught:
            engine.publish([message("m")], timeout_seconds=0.3)
    assert not caught.value.tried
    proxy.silent = False
    proxy.cut()

    def published() -> bool:
        with suppress(EngineUnavailable):
            engine.publish([message("after")], timeout_seconds=1.0)
            return True
        return False

    eventually(published)
    engine.publish([message("at once")])
    engine.close()


def test_a_lost_answer_does_not_double_what_was_done_meanwhile(proxy: Proxy, url: str, engine: Any) -> None:
    """The message was published, run and forgotten before the caller tried again."""
    producer = PostgreSQLEngine(through(proxy, url))
    producer.publish([message("warm")])
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    engine.settle([done(delivery) for delivery in engine.reserve(["celery"], limit=9, holder=HOLDER)])
    for number, record in enumerate([None, Record(task_id="m1", status="SUCCESS")]):
        one = message(f"m{number}")
        producer.publish([message(f"other{number}")])  # connects
        proxy.deaf_to_answers = True
        with pytest.raises(EngineUnavailable):
            producer.publish([one], timeout_seconds=0.3)
        proxy.deaf_to_answers = False
        proxy.cut()
        eventually(lambda one=one: engine.find([one.id]))
        deliveries = {delivery.id: delivery for delivery in engine.reserve(["celery"], limit=9, holder=HOLDER)}
        assert engine.settle([done(deliveries.pop(one.id), record=record), *(done(other) for other in deliveries.values())]) == []
        producer.publish([one])
        assert engine.find([one.id]) == {}, "it would run twice"
        producer.publish([one])
        assert list(engine.find([one.id])) == [one.id], "with the answer heard, there is no doubt any more"
        engine.purge(["celery"])
    producer.close()


def test_a_session_that_was_ended_is_not_noticed(engine: Any) -> None:
    engine.publish([message("m")])
    with closing(engine.subscribe(["m"])) as subscription:
        engine._database.run(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'celeriac' AND datname = current_database() AND pid <> pg_backend_pid()",
            (),
        )
        engine.store([Record(task_id="m", status="SUCCESS")])
        assert subscription.changed(DEADLINE_SECONDS)
    engine.publish([message("n")])
    assert len(engine.peek("celery")) == 2


def test_a_connection_that_died_while_nobody_used_it_is_no_trouble(engine: Any) -> None:
    assert engine.wait(["celery"], 0.01) is False
    listening = engine._listener._connection._pgconn.backend_pid
    assert engine._database.rows("SELECT pg_terminate_backend($1::int)", (listening,)) == [(True,)]
    assert engine.wait(["celery"], 0.01) is False
    engine.publish([message("m")])
    assert engine.wait(["celery"], DEADLINE_SECONDS)


def test_the_server_restarts_under_idle_and_waiting_clients(own_server: Server) -> None:
    engine = PostgreSQLEngine(own_server.url)
    engine.publish([message("m")])
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    own_server.stop()
    with pytest.raises(EngineUnavailable):
        engine.publish([message("n")], timeout_seconds=0.5)
    own_server.start()
    eventually(lambda: not _fails(lambda: engine.queues()))
    engine.publish([message("n")])
    assert [delivery.id for delivery in engine.reserve(["celery"], limit=9, holder=HOLDER)] == ["m", "n"]
    engine.close()


def test_who_waits_for_a_result_makes_no_trip_but_to_begin(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PostgreSQLEngine(url)
    other.store([Record(task_id="m", status="STARTED")])
    asked: list[str] = []
    run = engine._database.run
    monkeypatch.setattr(engine._database, "run", lambda sql, *rest: (asked.append(sql), run(sql, *rest))[1])
    monkeypatch.setattr(postgresql, "HEARD_SECONDS", 3600.0)  # a busy machine is to take its time
    with closing(engine.subscribe(["m"])) as subscription:
        subscription._look_at = math.inf
        assert engine.fetch(["m"])["m"].status == "STARTED"
        other.store([Record(task_id="m", status="SUCCESS", result=Raw(b"1"), worker="w" * 200)])
        assert subscription.changed(DEADLINE_SECONDS)
        found = engine.fetch(["m"])["m"]
        assert (found.status, bytes(found.result), found.worker) == ("SUCCESS", b"1", "w" * 200)
        assert asked == []
        other.store([Record(task_id="m", status="FAILURE", result=Raw(b'"' + b"x" * 10_000 + b'"'))])
        assert subscription.changed(DEADLINE_SECONDS)
        assert len(engine.fetch(["m"])["m"].result) == 10_002, "what is too long for the news is fetched"
        assert len(asked) == 1
        other.forget(["m"])
        assert engine.fetch(["m"]) == {}
    other.close()


def test_news_that_comes_while_a_wait_begins_is_not_lost(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "LOOKS_SECONDS", (DEADLINE_SECONDS * 2,))
    other = PostgreSQLEngine(url)
    engine.subscribe(["another"]).close()
    rows_of = listen.rows_of

    def told_meanwhile(answer: Any) -> Any:
        rows = rows_of(answer)
        other.store([Record(task_id="m", status="SUCCESS")])
        assert readable((engine._listener._connection.socket,), DEADLINE_SECONDS)
        return rows

    monkeypatch.setattr(listen, "rows_of", told_meanwhile)
    subscription = engine.subscribe(["m"])
    assert subscription.changed(DEADLINE_SECONDS)
    assert engine.fetch(["m"])["m"].status == "SUCCESS"
    subscription.close()
    other.close()


def attending(engine: PostgreSQLEngine, queue: str = "celery") -> int:
    """How many wait for messages of this queue."""
    sql = (
        "SELECT count(*) FROM pg_locks l, (SELECT {s}.key('q' || $1) AS key) k WHERE l.locktype = 'advisory' AND l.objsubid = 1"
        " AND l.classid = ((k.key >> 32) & 4294967295)::oid AND l.objid = (k.key & 4294967295)::oid"
    )
    return int(engine._database.rows(sql, (queue,))[0][0])


def test_a_worker_attends_while_it_has_nothing_to_do(engine: Any, url: str) -> None:
    """From before its settlement can be seen until it is given something, and as long as there is more to do it does not."""
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    other = PostgreSQLEngine(url)

    def reserve(seconds: float = 0.0) -> list[Delivery]:
        return engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=seconds)

    assert reserve(0.01) == [] and attending(other) == 1
    for number in range(3):
        other.publish([message(f"m{number}")])
        (delivery,) = reserve(DEADLINE_SECONDS)
        assert attending(other) == 0, "it has something to do"
        assert engine.exchange([done(delivery)], ["celery"], limit=2, holder=HOLDER) == ([], [])
        assert attending(other) == 1
    other.publish([message(name) for name in "abc"])
    (delivery,) = reserve(DEADLINE_SECONDS)
    refused, more = engine.exchange([done(delivery)], ["celery"], limit=2, holder=HOLDER)
    assert (refused, len(more)) == ([], 2)
    eventually(lambda: attending(other) == 0)
    assert engine.exchange([done(one) for one in more], ["celery"], limit=4, holder=HOLDER) == ([], [])
    assert attending(other) == 0, "one that was busy looks before it waits"
    assert reserve(0.01) == [] and attending(other) == 1
    assert engine.held("node", HOLDER.process) == []
    eventually(lambda: attending(other) == 0)
    assert reserve(0.01) == []
    other.publish([message("retried")])
    (delivery,) = reserve(DEADLINE_SECONDS)
    again = Settlement(id="retried", verdict=Verdict.RETRY, lease=delivery.lease, message=message("retried", retries=1))
    refused, (delivery,) = engine.exchange([again], ["celery"], limit=2, holder=HOLDER)
    assert (refused, delivery.id) == ([], "retried")
    eventually(lambda: attending(other) == 0)
    engine.settle([done(delivery)])
    engine.close()
    eventually(lambda: attending(other) == 0)
    other.close()


def test_a_result_is_told_before_the_worker_takes_more(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settlement is a transaction of its own. What it finds then it takes, with the connection on which it waits."""
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    other = PostgreSQLEngine(url)
    assert engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=0.01) == []
    other.publish([message("m")])
    (delivery,) = engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)
    other.publish([message("n")])
    there: list[bool] = []
    run_on = engine._database.run_on

    def run(connection: Any, sql: str, parameters: Any) -> Any:
        there.append("m" in other.fetch(["m"]))
        return run_on(connection, sql, parameters)

    monkeypatch.setattr(engine._database, "run_on", run)
    ended = done(delivery, record=Record(task_id="m", status="SUCCESS"))
    refused, more = engine.exchange([ended], ["celery"], limit=2, holder=HOLDER)
    assert (refused, [one.id for one in more]) == ([], ["n"])
    assert there == [False, True], "it settles and looks, and takes"
    other.close()


@pytest.mark.parametrize("more", [0, 1])
def test_who_is_told_that_the_node_is_lost_has_settled_nothing(engine: Any, url: str, more: int) -> None:
    """The trip that settles does not ask for the node, and the one that takes comes after it: so that one does not say so."""
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    other = PostgreSQLEngine(url)
    assert engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=0.01) == []
    other.publish([message("m")])
    (delivery,) = engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)
    other._database.run("DELETE FROM {s}.nodes")
    other.publish([message(f"n{number}") for number in range(more)])
    assert engine.exchange([done(delivery)], ["celery"], limit=2, holder=HOLDER) == ([], [])
    assert other.held("node") == []
    other.publish([message("o")])
    with pytest.raises(NodeLost):
        engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)
    other.close()


def test_nobody_listens_for_letters(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens is woken by every notification in the database. A supervisor, which waits for nothing but letters, looks for them instead, and not at each of its ticks."""
    other = PostgreSQLEngine(url)
    asked: list[str] = []
    run = engine._database.run
    monkeypatch.setattr(engine._database, "run", lambda sql, *rest: (asked.append(sql), run(sql, *rest))[1])
    monkeypatch.setattr(engine, "_poll_seconds", 3600.0)
    assert engine.collect("anna", 0.01) == engine.collect("anna", 0.01) == engine.collect("anna", 0.01) == []
    assert len(asked) == 1
    other.post(["anna"], Letter(method="hello", arguments={}))
    assert [letter.method for letter in engine.collect("anna")] == ["hello"], "who does not wait is told what is there"
    monkeypatch.setattr(engine, "_poll_seconds", 0.02)
    other.post(["anna"], Letter(method="again", arguments={}))
    assert [letter.method for letter in engine.collect("anna", DEADLINE_SECONDS)] == ["again"]
    assert engine._listener._connection is None
    monkeypatch.setattr(engine, "_poll_seconds", 3600.0)
    monkeypatch.setattr(engine._database, "run", away)
    for _ in range(3):
        with pytest.raises(EngineUnavailable):  # a tick that asks nothing must not look like one that was answered
            engine.collect("bert", 0.01)
    other.close()


def away(*_: Any) -> Any:
    raise EngineUnavailable("The server is away.")


def test_a_worker_whose_connection_ends_while_it_waits_waits_on_another(engine: Any, url: str) -> None:
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    other = PostgreSQLEngine(url)
    taken: list[Any] = []

    def work() -> None:
        while not taken:
            try:
                taken.extend(engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS))
            except EngineUnavailable as error:
                assert "in doubt" in str(error)
                taken.extend(engine.held("node", HOLDER.process))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    eventually(lambda: attending(other) == 1)
    ended = "SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l WHERE l.locktype = 'advisory' AND l.mode = 'ShareLock' AND l.pid <> pg_backend_pid()"
    assert other._database.rows(ended)[0][0] >= 1
    eventually(lambda: attending(other) == 1)
    other.publish([message("m")])
    worker.join(DEADLINE_SECONDS)
    assert [delivery.id for delivery in taken] == ["m"]
    other.close()


def test_after_a_crash_an_exchange_is_in_doubt_until_it_is_asked_what_is_held(own_server: Server) -> None:
    """The server may have forgotten a settlement, and think that the message is still ours: nobody else would ever get it."""
    engine = PostgreSQLEngine(own_server.url)
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    engine.publish([message("m"), message("n")])
    (first,) = engine.reserve(["celery"], limit=1, holder=HOLDER)
    own_server.stop(signal.SIGQUIT)
    own_server.start()
    eventually(lambda: not _fails(lambda: engine.queues()))
    with pytest.raises(EngineUnavailable, match="in doubt"):
        engine.exchange([done(first)], ["celery"], limit=1, holder=HOLDER)
    held = engine.held("node", HOLDER.process)
    assert len(held) == 1, "what the exchange has taken: n, or m when its first lease was forgotten"
    assert engine.settle([done(delivery) for delivery in held]) == []
    assert engine.exchange((), ["celery"], limit=9, holder=HOLDER)[0] == []
    engine.close()


def test_what_was_settled_alone_is_settled_when_the_server_crashes(own_server: Server) -> None:
    """So a message that is acknowledged before it runs, runs once at most. (An `exchange` may be undone.)"""
    engine = PostgreSQLEngine(own_server.url)
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    engine.publish([message("m"), message("n")])
    first, second = engine.reserve(["celery"], limit=2, holder=HOLDER)
    assert engine.settle([done(first)]) == []
    assert engine.settle([done(second, follow_ups=[message("o")])]) == []
    own_server.stop(signal.SIGQUIT)
    own_server.start()
    eventually(lambda: not _fails(lambda: engine.queues()))
    assert list(engine.find(["m", "n", "o"])) == ["o"]
    engine.close()


@pytest.mark.parametrize("own_server", [{"synchronous_standby_names": "nobody"}], indirect=True)
def test_a_call_that_is_cut_off_while_it_waits_for_a_replica_may_have_arrived(own_server: Server) -> None:
    carefree = PostgreSQLEngine(f"{own_server.url}?options=-c%20synchronous_commit%3Dlocal")
    carefree.queues()
    caller = PostgreSQLEngine(own_server.url)
    problems: list[EngineUnavailable] = []

    def call() -> None:
        try:
            caller.publish([message("m")])
        except EngineUnavailable as problem:
            problems.append(problem)

    calling = threading.Thread(target=call)
    calling.start()
    eventually(
        lambda: (
            carefree._database.rows("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == [(1,)]
        )
    )
    calling.join(DEADLINE_SECONDS)
    assert isinstance(problems[0], EngineUnsure)
    assert [one.id for one in carefree.peek("celery")] == ["m"]
    for engine in (carefree, caller):
        engine.close()


def test_what_was_published_survives_a_crash_of_the_server(own_server: Server) -> None:
    """Also when somebody waited for it. And what was settled in the last moment may run again, whole: no half of a settlement is there."""
    engine = PostgreSQLEngine(own_server.url)
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    ids = [f"m{number}" for number in range(200)]
    for id in ids[:-100]:
        engine.publish([message(id)])
    engine.settle(
        [done(one, record=Record(task_id=one.id, status="SUCCESS")) for one in engine.reserve(["celery"], limit=50, holder=HOLDER)]
    )
    waiting = PostgreSQLEngine(own_server.url)
    with waiting._listener.attending(["celery"]):
        for id in ids[-100:]:
            engine.publish([message(id)])
        own_server.stop(signal.SIGQUIT)
    own_server.start()
    eventually(lambda: not _fails(lambda: engine.queues()))
    kept = set(engine.fetch(ids))
    unsettled = {found.id for state in ("ready", "leased") for found in engine.peek("celery", state=state, limit=1000)}
    assert kept | unsettled == set(ids)
    assert kept & unsettled == set()
    engine.close()
    waiting.close()


def test_a_replica_is_named_as_one(engine: Any, url: str) -> None:
    engine.queues()
    with pytest.raises(EngineUnavailable, match="replica, or set read-only"):
        PostgreSQLEngine(f"{url}&options=-c%20default_transaction_read_only%3Don").publish([message("m")])


def test_a_statement_timeout_is_named_as_one(engine: Any, url: str) -> None:
    import psycopg

    engine.publish([message("m")])
    hasty = PostgreSQLEngine(f"{url}&options=-c%20statement_timeout%3D200")
    with psycopg.connect(url.partition("?")[0]) as blocker:
        blocker.execute(f"LOCK TABLE {engine._schema}.messages")  # type: ignore[call-overload]
        with pytest.raises(EngineUnavailable, match="statement_timeout"):
            hasty.peek("celery")
        with pytest.raises(EngineUnsure, match="statement_timeout"):
            hasty.publish([message("n")])
    assert len(engine.peek("celery")) == 1
    eventually(lambda: not _fails(lambda: hasty.publish([message("n")])))  # what a busy machine does may take as long
    assert len(engine.peek("celery")) == 2
    hasty.close()


def test_a_lock_does_not_hold_a_caller_longer_than_he_gives(engine: Any, url: str) -> None:
    import psycopg

    engine.publish([message("m")])
    with psycopg.connect(url.partition("?")[0]) as blocker:
        blocker.execute(f"LOCK TABLE {engine._schema}.messages")  # type: ignore[call-overload]
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable, match="lock"):
            engine.publish([message("n")], timeout_seconds=0.5)
        assert time.monotonic() - begin < 5
    assert list(engine.find(["m", "n"])) == ["m"], "nor is it published later"


def _fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except EngineUnavailable:
        return True
    return False


# -- in the caller's own transaction -------------------------------------------------------------------------------------


def test_publishing_with_the_callers_transaction(engine: Any, url: str) -> None:
    import psycopg

    with psycopg.connect(url.partition("?")[0]) as connection:
        engine.publish_in(connection, [message("rolled back"), message("nul\0byte", delay_seconds=5)])
        connection.rollback()
        assert engine.queues() == []
        woken: list[bool] = []
        waiter = threading.Thread(target=lambda: woken.append(engine.wait(["celery"], DEADLINE_SECONDS)))
        waiter.start()
        engine.publish_in(connection, [message("m"), message("nul\0byte", delay_seconds=500)])
        assert engine.queues() == []
        eventually(lambda: engine._listener._places)
        connection.commit()
        begin = time.monotonic()
        waiter.join(DEADLINE_SECONDS)
        assert woken == [True]
        assert time.monotonic() - begin < DEADLINE_SECONDS / 2
        assert {found.id: found.state for found in engine.find(["m", "nul\0byte"]).values()} == {"m": "ready", "nul\0byte": "scheduled"}
        engine.publish_in(connection, [])


# -- without LISTEN and without prepared statements ------------------------------------------------------------------------


def test_behind_pgbouncer_it_looks(url: str) -> None:
    engine = PostgreSQLEngine(f"{url}&listen=false&prepare=false&poll_seconds=0.02")
    woken: list[bool] = []
    engine.queues()
    waiter = threading.Thread(target=lambda: woken.append(engine.wait(["celery"], DEADLINE_SECONDS)))
    waiter.start()
    engine.publish([message("m")])
    waiter.join(DEADLINE_SECONDS)
    assert woken == [True]
    with closing(engine.subscribe(["m"])) as subscription:
        assert subscription.changed() is False
        engine.store([Record(task_id="m", status="SUCCESS")])
        assert subscription.changed(DEADLINE_SECONDS)
    assert engine._database.rows("SELECT count(*) FROM pg_prepared_statements") == [(0,)]
    assert engine._listener._connection is None
    engine.close()


# -- waking -------------------------------------------------------------------------------------------------------------------


def test_nobody_is_notified_when_nobody_waits(engine: Any) -> None:
    """NOTIFY makes commits stand in line; a busy queue does without."""
    engine.publish([message("m")])
    with engine._database.transaction() as run:
        before = run("SELECT pg_notification_queue_usage()")
        run(postgresql.PUBLISH, *postgresql._Rows([message("n")]).parameters(), None, 1000, None)
        assert run(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_database'::regclass AND mode = 'AccessExclusiveLock'"
        ) == [(0,)]
        assert before == run("SELECT pg_notification_queue_usage()")


def test_who_publishes_does_not_take_another_who_does_for_one_who_waits(engine: Any, url: str) -> None:
    """Both try the same lock, one of them in vain."""
    import psycopg

    engine.queues()
    with psycopg.connect(url.partition("?")[0]) as other:
        other.execute(f"SELECT pg_advisory_lock({engine._schema}.key('qcelery'))")  # type: ignore[call-overload]
        engine.publish([message("m")])
        engine.publish([message(name) for name in "no"])
    assert [one.id for one in engine.peek("celery")] == ["m", "n", "o"]


@pytest.mark.parametrize("messages", [1, 4])
def test_each_message_wakes_another(url: str, messages: int) -> None:
    """Of several processes that wait, the others sleep on; and who was told a moment ago is not told of the next, which would wait until he is free."""
    engines = [PostgreSQLEngine(url) for _ in range(4)]
    publisher = PostgreSQLEngine(url)
    publisher.queues()
    places = []
    for engine in engines:
        place = engine._listener.attending(["celery"])
        places.append(place.__enter__())
    for number in range(messages):
        publisher.publish([message(f"m{number}")])
    woken: list[int] = []

    def look() -> bool:
        woken.extend(number for number, place in enumerate(places) if place.rest(0.0))
        return len(woken) >= messages

    eventually(look)
    assert not any(place.rest(time.monotonic() + 0.1) for place in places)
    assert len({*woken}) == len(woken) == messages
    for place in places:
        place.close()
    for engine in [*engines, publisher]:
        engine.close()


def test_who_waits_is_found_among_others_who_do_not(url: str) -> None:
    """Of three that have a seat one does not wait now, and one is gone; its row is swept out by the next who sits down."""
    publisher, busy, waiting, late = (PostgreSQLEngine(url) for _ in range(4))
    for engine in (busy, waiting):
        with engine._listener.attending(["celery", "other"]):
            pass
    publisher._database.run("INSERT INTO {s}.seats (queue, pid) VALUES ('celery', 1)")
    assert len(rows_of_seats(publisher)) == 5
    for number in range(4):
        with waiting._listener.attending(["celery"]) as place:
            publisher.publish([message(f"m{number}")])
            assert place.rest(time.monotonic() + DEADLINE_SECONDS)
    with late._listener.attending(["celery"]):
        assert ("celery", 1) not in rows_of_seats(publisher)
        assert len(rows_of_seats(publisher)) == 5
    for engine in (publisher, busy, waiting, late):
        engine.close()


def test_a_session_that_was_cancelled_is_not_used_again(engine: Any, url: str) -> None:
    """It may have been about to give an advisory lock back, on which all who wait for a queue would wait."""
    other = PostgreSQLEngine(url)
    problems: list[BaseException] = []

    def sleep() -> None:
        try:
            engine._database.run("SELECT pg_sleep(60)", (), time.monotonic() + 60)
        except EngineUnavailable as problem:
            problems.append(problem)

    thread = threading.Thread(target=sleep)
    thread.start()
    cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    eventually(lambda: other._database.rows(cancel) == [(1,)])
    thread.join()
    assert "refused an operation" in str(problems[0])
    assert not engine._database._used and not engine._database._idle
    engine.publish([message("m")])
    other.close()


@pytest.mark.parametrize("ring", ["ring('celery', 1)", "ring_results(ARRAY['m'], NULL)"])
def test_who_is_cancelled_while_he_tries_a_lock_does_not_keep_it(engine: Any, url: str, ring: str) -> None:
    """Of a pooler's session nobody would take it away again, and all who want to wait would wait for it."""
    import psycopg

    engine.queues()
    plain = url.partition("schema=")[0].rstrip("?&")
    often = engine._database.statement(f"SELECT count({{s}}.{ring}) FROM (SELECT generate_series(1, 3000000)) n")
    with psycopg.connect(plain, autocommit=True) as connection:
        for milliseconds in range(10, 50):
            # In one message, so that the timeout ends with what it has cancelled, and cannot hit what follows.
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute(f"SET statement_timeout = {milliseconds}; {often}")  # type: ignore[call-overload]
            kept = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()").fetchone()
            assert kept == (0,)


def test_a_worker_that_was_cancelled_while_it_sat_down_does_not_keep_its_seat(engine: Any, url: str) -> None:
    """It had the lock of its seat, and waited for that of the queue. Who kept it would be told of messages while it has something to do, in the place of others."""
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    other = PostgreSQLEngine(url)
    assert engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=0.01) == []
    engine._waiter.leave()
    eventually(lambda: attending(other) == 0)
    cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with other._database.transaction() as run:
        run("SELECT pg_advisory_xact_lock({s}.key('qcelery'))")
        canceller = threading.Thread(target=eventually, args=(lambda: other._database.rows(cancel) == [(1,)],))
        canceller.start()
        with pytest.raises(EngineUnavailable, match="canceling statement"):
            engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)
        canceller.join()
    other.publish([message("m")])
    assert len(engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)) == 1
    seats = "SELECT count(*) FROM {s}.seats s JOIN pg_locks l ON l.pid = s.pid AND l.locktype = 'advisory'"
    eventually(lambda: other._database.rows(seats) == [(0,)])
    other.close()


def test_who_waits_for_more_queues_than_there_is_room_for_locks_is_told_what_to_do(own_server: Server) -> None:
    engine = PostgreSQLEngine(own_server.url)
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    with pytest.raises(EngineUnavailable, match="raise max_locks_per_transaction"):
        engine.reserve([f"q{number}" for number in range(20_000)], limit=1, holder=HOLDER, wait_seconds=0.01)
    eventually(
        lambda: not _fails(lambda: engine.publish([message("m")]))
    )  # what it had locked is free again, when the server has ended its session
    assert len(engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)) == 1
    engine.close()


@pytest.mark.parametrize("who", ["worker", "thread"])
def test_who_could_not_leave_is_not_taken_for_one_who_waits(engine: Any, url: str, who: str) -> None:
    """Nobody waits for the answer to that; when it is an error the session ends, and its locks with it."""
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    other = PostgreSQLEngine(url)

    def attend_and_leave() -> None:
        if who == "worker":
            assert engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=0.01) == []
            engine._waiter.leave()
        else:
            with engine._listener.attending(["celery"]):
                pass

    attend_and_leave()  # what is refused then is prepared already
    eventually(lambda: attending(other) == 0)
    other._database.run("ALTER FUNCTION {s}.leave_queues RENAME TO away")
    attend_and_leave()
    refused = "SELECT FROM pg_stat_activity WHERE state = 'idle' AND query LIKE '%{s}.leave_queues%' AND pid <> pg_backend_pid()"
    eventually(lambda: other._database.rows(refused))
    assert attending(other) == 1
    other._database.run("ALTER FUNCTION {s}.away RENAME TO leave_queues")
    attend_and_leave()
    eventually(lambda: attending(other) == 0)
    other.close()


def test_a_worker_whose_schema_was_dropped_sits_down_anew(engine: Any, url: str) -> None:
    """Its session goes on, but its row went with the table, and nobody would find it."""
    other = PostgreSQLEngine(url)
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    assert engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=0.01) == []
    other._database.run("DROP SCHEMA {s} CASCADE")
    with pytest.raises(EngineUnavailable):
        engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)
    engine.register(Node(id="node", name="n"), lease_seconds=60)
    assert engine.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=0.01) == []
    assert len(rows_of_seats(other)) == attending(other) == 1
    other.close()


def rows_of_seats(engine: PostgreSQLEngine) -> list[tuple[Any, ...]]:
    return engine._database.rows("SELECT queue, pid FROM {s}.seats ORDER BY pid, queue")


def test_threads_of_one_process_wait_on_one_connection(engine: Any, url: str) -> None:
    """Each has its pipe, which the next uses again; what one reads is for the other."""
    publisher = PostgreSQLEngine(url)
    woken: list[int] = []

    def wait(number: int) -> None:
        if engine.wait(["celery"], DEADLINE_SECONDS):
            woken.append(number)

    for round in range(3):
        threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: sum(len(places) for places in engine._listener._places.values()) == 3)
        publisher.publish([message(f"m{round}{number}") for number in range(3)])
        for thread in threads:
            thread.join()
        publisher.purge(["celery"])
    assert len(woken) == 9
    publisher.close()
