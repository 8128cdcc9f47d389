"""What is special to the engine of a Redis server; all else is in the contract."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw

from tests.support.redis import DEADLINE_SECONDS, Proxy, Servers, free_port, redis  # isort: skip  (skips all where redis-py is missing)

from celeriac.contracts.mailbox import Letter, Node
from celeriac.core.errors import EngineUnavailable, ImproperlyConfigured, NodeLost
from celeriac.core.message import Delivery, Holder, Message, Record, Revocation, Settlement, Verdict
from celeriac.engines import open_engine
from celeriac.engines import redis as redis_engine
from celeriac.testing.contract.harness import eventually

from celeriac.engines.redis import RedisEngine, _read_record  # isort: skip
from celeriac.engines.redis_wire import Place  # isort: skip

HOLDER = Holder("node", 1)


def message(id: str, **fields: Any) -> Message:
    return Message(id=id, task="shop.tasks.charge", body=Raw(b"[[], {}, {}]"), **fields)


def done(delivery: Delivery, **fields: Any) -> Settlement:
    return Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, **fields)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(scope="module")
def port(servers: Servers) -> int:
    return servers.start()


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4()}:"


@pytest.fixture
def engine(port: int, prefix: str) -> Iterator[RedisEngine]:
    engine = RedisEngine(f"redis://127.0.0.1:{port}/0", key_prefix=prefix)
    engine.register(Node(id="node", name="celeriac@host"), lease_seconds=60)
    yield engine
    engine.close()


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with redis.Redis(port=port, decode_responses=True) as client:
        yield client


@pytest.fixture
def proxy(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    yield proxy
    proxy.close()


@pytest.fixture
def far(proxy: Proxy, prefix: str, engine: RedisEngine) -> Iterator[RedisEngine]:
    """The same storage, over a network that may fail."""
    far = RedisEngine(f"redis://127.0.0.1:{proxy.port}/0", key_prefix=prefix, socket_timeout=DEADLINE_SECONDS)
    far.now()
    yield far
    far.close()


def run_all(engine: RedisEngine) -> list[str]:
    """Somebody else is quick: takes what is there, and finishes it."""
    holder = Holder("node", 99)
    batch = engine.reserve(["celery"], limit=100, holder=holder)
    assert engine.settle([done(delivery) for delivery in batch]) == []
    return [delivery.id for delivery in batch]


# -- answers that were lost --------------------------------------------------------------------------------------


def test_a_publish_whose_answer_was_lost_happens_once(engine: RedisEngine, far: RedisEngine, proxy: Proxy) -> None:
    ran: list[str] = []
    proxy.lose_answers = 1
    proxy.before_losing = lambda: ran.extend(run_all(engine))
    far.publish([message("a"), message("b")])
    assert ran == ["a", "b"]
    assert run_all(engine) == [], "published again by the retry"


def test_a_caller_who_repeats_a_publish_publishes_once(engine: RedisEngine, far: RedisEngine, proxy: Proxy) -> None:
    ran: list[str] = []
    proxy.lose_answers = 3
    proxy.before_losing = lambda: ran.extend(run_all(engine))
    with pytest.raises(EngineUnavailable):
        far.publish([message("a")])
    proxy.lose_answers = 0
    far.publish([message("b")])
    far.publish([message("a")])
    assert ran + run_all(engine) == ["a", "b"]


def test_an_id_that_is_done_may_be_sent_again_after_a_lost_answer(engine: RedisEngine, far: RedisEngine, proxy: Proxy) -> None:
    proxy.lose_answers = 1
    far.publish([message("a")])
    assert run_all(engine) == ["a"]
    far.publish([message("a")])
    assert run_all(engine) == ["a"]


def test_an_exchange_whose_answer_was_lost_happens_once(engine: RedisEngine, far: RedisEngine, proxy: Proxy) -> None:
    engine.publish([message(id) for id in "abcd"])
    first = far.reserve(["celery"], limit=2, holder=HOLDER)
    proxy.lose_answers = 1
    refused, second = far.exchange(
        [done(one, record=Record(task_id=one.id, status="SUCCESS")) for one in first], ["celery"], limit=2, holder=HOLDER
    )
    assert refused == []
    assert [delivery.id for delivery in second] == ["c", "d"]
    assert [delivery.lease.token for delivery in second] == [1, 1]
    assert sorted(engine.fetch(["a", "b"])) == ["a", "b"]
    assert engine.settle([done(delivery) for delivery in second]) == []
    assert engine.queues() == []


def test_a_worker_that_repeats_an_exchange_later_gets_what_it_was_given(engine: RedisEngine, far: RedisEngine, proxy: Proxy) -> None:
    engine.publish([message(id) for id in "abcd"])
    settlements = [done(delivery) for delivery in far.reserve(["celery"], limit=2, holder=HOLDER)]
    proxy.lose_answers = 3
    with pytest.raises(EngineUnavailable):
        far.exchange(settlements, ["celery"], limit=1, holder=HOLDER)
    proxy.lose_answers = 0
    refused, second = far.exchange(settlements, ["celery"], limit=1, holder=HOLDER)
    assert (refused, [delivery.id for delivery in second]) == ([], ["c"])
    assert [delivery.id for delivery in engine.held("node")] == ["c"]


@pytest.mark.parametrize("settles", [True, False])
def test_who_asked_what_is_held_gets_something_else_next(engine: RedisEngine, far: RedisEngine, proxy: Proxy, settles: bool) -> None:
    engine.publish([message(id) for id in "ab"])
    proxy.lose_answers = 3
    with pytest.raises(EngineUnavailable):
        far.exchange([], ["celery"], limit=1, holder=HOLDER)
    proxy.lose_answers = 0
    (delivery,) = far.held("node", 1)
    assert delivery.id == "a"
    refused, batch = far.exchange([done(delivery)] if settles else [], ["celery"], limit=1, holder=HOLDER)
    assert (refused, [delivery.id for delivery in batch]) == ([], ["b"])


def test_what_arrives_when_its_sender_has_asked_again_comes_too_late(engine: RedisEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.publish([message("a")])
    on_its_way: list[bytes] = []

    def lose(request: bytes, *arguments: Any, **options: Any) -> Any:
        on_its_way.append(request)
        raise EngineUnavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(engine._server, "ask", lose)
        for verb in (lambda: engine.exchange([], ["celery"], limit=1, holder=HOLDER), lambda: engine.publish([message("b")])):
            with pytest.raises(EngineUnavailable):
                verb()
    assert engine.held("node") == []
    engine.publish([message("b")])
    assert run_all(engine) == ["a", "b"]
    engine.publish([message("c")])
    with pytest.raises(EngineUnavailable, match="LATE"):
        engine._server.ask(on_its_way[0], 5.0)
    engine._server.ask(on_its_way[1], 5.0)
    assert run_all(engine) == ["c"]


def test_a_settlement_whose_answer_was_lost_is_not_refused(engine: RedisEngine, far: RedisEngine, proxy: Proxy) -> None:
    engine.publish([message("a"), message("b")])
    batch = far.reserve(["celery"], limit=2, holder=HOLDER)
    engine.reclaim(["node"])
    engine.register(Node(id="node", name="celeriac@host"), lease_seconds=60)
    (second,) = far.reserve(["celery"], limit=1, holder=HOLDER)
    assert second.id == "a"
    proxy.lose_answers = 1
    assert far.settle([done(second), done(batch[1])]) == ["b"], "the stale one, and only that"


# -- trouble -----------------------------------------------------------------------------------------------------


def test_a_connection_that_was_closed_meanwhile_is_no_trouble(far: RedisEngine, proxy: Proxy) -> None:
    for number in range(5):
        far.publish([message(f"m{number}")])
        proxy.cut()
    assert far.depth()["celery"].ready == 5


@pytest.mark.parametrize("how", ["killed", "answer lost"])
def test_a_reservation_that_waits_outlives_its_connection(
    engine: RedisEngine, far: RedisEngine, proxy: Proxy, client: Any, how: str
) -> None:
    """And what it was given with an answer that was lost it gets again, once."""
    assert far.reserve(["celery"], limit=1, holder=HOLDER) == []
    taken: list[Delivery] = []
    waiter = threading.Thread(
        target=lambda: taken.extend(far.reserve(["celery"], limit=1, holder=HOLDER, wait_seconds=DEADLINE_SECONDS)), daemon=True
    )
    waiter.start()
    eventually(lambda: client.info("clients")["blocked_clients"] == 1)
    proxy.lose_answers = int(how == "answer lost")
    if how == "killed":
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        eventually(lambda: client.info("clients")["blocked_clients"] == 1)
    engine.publish([message("a")])
    waiter.join(DEADLINE_SECONDS)
    assert [delivery.id for delivery in taken] == ["a"]
    assert [delivery.id for delivery in far.held("node")] == ["a"]


def test_a_killed_client_comes_back(engine: RedisEngine, client: Any) -> None:
    engine.publish([message("a")])
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    engine.publish([message("b")])
    assert engine.depth()["celery"].ready == 2


def test_a_black_hole_is_bounded_then_fails_at_once_and_ends(far: RedisEngine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.silent = True
    for _ in range(3):
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable, match="did not answer in time"):
            far.publish([message("a")], timeout_seconds=0.3)
        assert time.monotonic() - begin < 5
    with monkeypatch.context() as patch:
        patch.setattr(far._server._breaker, "_probe_at", math.inf)  # a busy machine may be slower than the next probe
        for _ in range(20):
            with pytest.raises(EngineUnavailable, match="Not tried again now") as caught:
                far.publish([message("a")], timeout_seconds=0.3)
            assert not caught.value.tried
    proxy.silent = False
    proxy.cut()

    def back() -> bool:
        try:
            far.publish([message("a")], timeout_seconds=0.5)
        except EngineUnavailable:
            return False
        return True

    eventually(back)
    assert far.depth()["celery"].ready == 1


def test_nobody_listens(prefix: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = RedisEngine(f"redis://:secret@127.0.0.1:{port}/0")
    begin = time.monotonic()
    for _ in range(4):
        with pytest.raises(EngineUnavailable, match="Start the server, or correct the URL") as caught:
            engine.publish([message("a")], timeout_seconds=DEADLINE_SECONDS)
        assert "secret" not in str(caught.value)
    assert time.monotonic() - begin < DEADLINE_SECONDS / 2


def test_a_name_that_nobody_resolves_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: asleep.wait(DEADLINE_SECONDS) and [])
    begin = time.monotonic()
    with pytest.raises(EngineUnavailable, match="did not answer in time"):
        RedisEngine("redis://queue.example:6379/0").publish([message("a")], timeout_seconds=0.3)
    assert time.monotonic() - begin < 5
    asleep.set()


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(EngineUnavailable, match=r"nowhere\.invalid.*(name|timeout|in time)"):
        RedisEngine("redis://nowhere.invalid:6379/0").publish([message("a")], timeout_seconds=2.0)


@pytest.mark.parametrize(
    ("options", "login", "expected"),
    [
        (["--requirepass", "right"], "", "wants a password"),
        (["--requirepass", "right"], ":wrong@", "password in the URL is wrong"),
        (["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"], "", "maxmemory"),
        (["--replicaof", "127.0.0.1", "1"], "", "replica"),
        (["--min-replicas-to-write", "1"], "", "Too few replicas"),
    ],
)
def test_what_the_server_refuses_is_said_with_what_to_do(servers: Servers, options: list[str], login: str, expected: str) -> None:
    port = servers.start(*options, ready=False)
    engine = RedisEngine(f"redis://{login}127.0.0.1:{port}/0")
    for _ in range(5):
        with pytest.raises(EngineUnavailable, match=expected):
            engine.publish([message("a", argsrepr="x" * 2_000_000)])
    engine.close()


def test_a_password_that_is_missing_is_not_called_a_wrong_one(servers: Servers) -> None:
    """Also where the server says so before we ask for anything: when redis-py chooses the database, or tells its own name (from Redis 7.2 on)."""
    port = servers.start("--requirepass", "right", ready=False)
    for database in (0, 1):
        with pytest.raises(EngineUnavailable, match="wants a password"):
            RedisEngine(f"redis://127.0.0.1:{port}/{database}").publish([message("a")])


def test_a_server_that_cannot_save_is_named(servers: Servers) -> None:
    port = servers.start("--save", "3600", "1000", "--dbfilename", "in-the-way")
    (servers.directory / str(port) / "in-the-way").mkdir()
    engine = RedisEngine(f"redis://127.0.0.1:{port}/0")
    engine.publish([message("before")])
    with redis.Redis(port=port) as client:
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    with pytest.raises(EngineUnavailable, match="cannot save to its disk"):
        engine.publish([message("refused")])
    assert engine.find(["before", "refused"]).keys() == {"before"}
    engine.close()


def test_without_memory_new_tasks_are_refused_and_the_others_worked_off(servers: Servers) -> None:
    port = servers.start("--maxmemory-policy", "noeviction")
    engine = RedisEngine(f"redis://127.0.0.1:{port}/0")
    engine.register(Node(id="node", name="celeriac@host"), lease_seconds=60)
    engine.publish([message(id) for id in "abc"])
    engine.publish([message("later", delay_seconds=0.05)])
    first = engine.reserve(["celery"], limit=1, holder=HOLDER)
    with redis.Redis(port=port) as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(EngineUnavailable, match="maxmemory"):
        engine.publish([message("new")])
    assert engine.heartbeat("node", lease_seconds=60) is True
    outcome = done(first[0], record=Record(task_id="a", status="SUCCESS"), follow_ups=[message("follows")])
    assert engine.settle([outcome]) == []
    eventually(lambda: engine.now() > engine.find(["follows"])["follows"].waiting_since + 0.06)
    batch = engine.reserve(["celery"], limit=1, holder=HOLDER)
    refused, rest = engine.exchange(
        [done(one, record=Record(task_id=one.id, status="SUCCESS")) for one in batch], ["celery"], limit=9, holder=HOLDER
    )
    assert (refused, sorted(one.id for one in [*batch, *rest])) == ([], ["b", "c", "follows", "later"])
    assert engine.settle([done(one) for one in rest]) == []
    engine.register(Node(id="another", name="celeriac@host"), lease_seconds=60)
    assert engine.queues() == []
    engine.close()


def test_tls_to_a_port_that_speaks_none(port: int) -> None:
    with pytest.raises(EngineUnavailable, match=r"TLS|in time"):
        RedisEngine(f"rediss://127.0.0.1:{port}/0").publish([message("a")], timeout_seconds=1.0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_tls(servers: Servers) -> None:
    key, certificate = servers.directory / "key.pem", servers.directory / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1".split()
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    port = free_port()
    options = [
        "--tls-port",
        str(port),
        "--tls-cert-file",
        str(certificate),
        "--tls-key-file",
        str(key),
        "--tls-ca-cert-file",
        str(certificate),
    ]
    try:
        servers.start(*options, "--tls-auth-clients", "no")
    except AssertionError as error:
        if "'tls-port" in str(error):
            pytest.skip("this server was built without TLS")
        raise
    with pytest.raises(EngineUnavailable, match="TLS"):
        RedisEngine(f"rediss://127.0.0.1:{port}/0").publish([message("a")])
    engine = RedisEngine(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
    engine.register(Node(id="node", name="celeriac@host"), lease_seconds=60)
    with closing(engine.subscribe(["a"])) as subscription:
        assert subscription.changed(0.05) is False
        engine.publish([message("a", argsrepr="x" * 3_000_000)])
        (delivery,) = engine.reserve(["celery"], limit=5, holder=HOLDER)
        engine.settle([done(delivery, record=Record(task_id="a", status="SUCCESS", result=Raw(b'"' + b"x" * 300_000 + b'"')))])
        assert subscription.changed(DEADLINE_SECONDS) is True
        while subscription.changed():
            pass
        assert subscription.changed(0.05) is False
    assert list(engine.fetch(["a"])) == ["a"]
    engine.close()


def test_a_server_that_starts_again_with_its_memory_gone(servers: Servers) -> None:
    port = servers.start()
    engine = RedisEngine(f"redis://127.0.0.1:{port}/0")
    engine.register(Node(id="node", name="celeriac@host"), lease_seconds=60)
    engine.publish([message("lost")])
    servers.stop_one(port)
    with pytest.raises(EngineUnavailable):
        engine.publish([message("refused")])
    servers.start(port=port)
    eventually(lambda: _works(engine))
    with pytest.raises(NodeLost):
        engine.exchange([], ["celery"], limit=1, holder=HOLDER)
    assert engine.heartbeat("node", lease_seconds=60) is False
    assert list(engine.depth()) == ["celery"]
    engine.close()


def _works(engine: RedisEngine) -> bool:
    try:
        engine.publish([message("a")])
    except EngineUnavailable:
        return False
    return True


def test_failover_by_sentinel(servers: Servers) -> None:
    primary = servers.start()
    replica = servers.start("--replicaof", "127.0.0.1", str(primary))
    sentinel = servers.start_sentinel(primary)
    engine = RedisEngine(f"sentinel://127.0.0.1:1,127.0.0.1:{sentinel}/0?master_name=shop", socket_timeout=1.0)
    engine.publish([message("before")])
    with redis.Redis(port=replica) as other, redis.Redis(port=sentinel) as watcher:
        eventually(lambda: other.exists("celeriac:body"))
        eventually(lambda: watcher.execute_command("SENTINEL", "REPLICAS", "shop"))
    servers.stop_one(primary)
    eventually(lambda: _works(engine), 90.0)  # a sentinel that was stopped for two seconds does nothing for the next thirty
    assert engine._server.place.sentinels
    assert engine.find(["before", "a"]).keys() == {"before", "a"}
    engine.close()


def test_a_signal_that_raises_in_the_middle_leaves_no_answer_behind(engine: RedisEngine) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(5):
            with pytest.raises(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                engine.wait(["nothing"], 5.0)
            engine.publish([message("m")])
            assert run_all(engine) == ["m"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_subscription_outlives_its_connection(engine: RedisEngine, client: Any) -> None:
    with closing(engine.subscribe(["a"])) as subscription:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert subscription.changed(DEADLINE_SECONDS) is True, "what came meanwhile was not told"
        while subscription.changed():
            pass
        engine.store([Record(task_id="a", status="SUCCESS")])
        assert subscription.changed(DEADLINE_SECONDS) is True


def test_a_child_of_a_fork_leaves_its_parents_connections_alone(engine: RedisEngine) -> None:
    with closing(engine.subscribe(["a"])) as subscription:
        engine.publish([message("m")])
        child = os.fork()
        if child == 0:
            code = 1
            try:
                subscription.close()
                engine.store([Record(task_id="a", status="SUCCESS")])
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert subscription.changed(DEADLINE_SECONDS) is True
        assert run_all(engine) == ["m"]


# -- what lies in the server ---------------------------------------------------------------------------------------


def test_celerys_clients_can_read_a_result(engine: RedisEngine, client: Any, prefix: str) -> None:
    """As `celery.backends.redis` does: the key, or the message of the channel of the same name."""
    name = f"{prefix}celery-task-meta-a"
    with closing(client.pubsub(ignore_subscribe_messages=True)) as channel:
        channel.subscribe(name)
        channel.get_message(timeout=DEADLINE_SECONDS)
        record = Record(task_id="a", status="SUCCESS", result=Raw(b'{"x":1}'), date_done=datetime(2026, 1, 2, tzinfo=UTC), worker="w")
        engine.store([record])
        told = None
        while told is None:
            told = channel.get_message(timeout=DEADLINE_SECONDS)
    stored = client.get(name)
    assert told["data"] == stored
    meta = json.loads(stored)
    expected = {"task_id": "a", "status": "SUCCESS", "result": {"x": 1}, "traceback": None, "children": [], "worker": "w"}
    assert {key: meta[key] for key in expected} == expected
    assert datetime.fromisoformat(meta["date_done"]) == record.date_done
    assert 86300 < client.ttl(name) <= 86400
    assert engine.fetch(["a"])["a"] == record


def test_results_that_a_celery_worker_wrote_are_read() -> None:
    body = {
        "status": "FAILURE", "result": {"exc_type": "ValueError", "exc_message": ["é", 1], "exc_module": "builtins"}, "traceback": "Traceback",
        "children": [], "date_done": "2026-01-02T03:04:05.678901+00:00", "group_id": None, "name": "t", "args": [1], "kwargs": {"a": 2},
        "worker": "celery@h", "retries": None, "queue": None, "task_id": "a", "stamps": {},
    }  # fmt: skip
    record = _read_record("a", json.dumps(body).encode())
    assert (record.task_id, record.status, record.args, record.kwargs, record.retries) == ("a", "FAILURE", "[1]", "{'a': 2}", 0)
    assert json.loads(bytes(record.result)) == body["result"]
    assert record.date_done == datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def test_nothing_remains_but_what_is_bounded(engine: RedisEngine, client: Any, prefix: str) -> None:
    engine.publish([message("a"), message("b", delay_seconds=3600), message("c"), message("d")])
    a, c, _ = engine.reserve(["celery"], limit=5, holder=HOLDER)
    engine.settle(
        [done(a, record=Record(task_id="a", status="SUCCESS")), Settlement(id="c", verdict=Verdict.DEAD, lease=c.lease, reason="x")]
    )
    engine.revoke([Revocation(id="unknown"), Revocation(id="b")])
    engine.post(["node", "elsewhere"], Letter(method="ping"))
    engine.pause(["celery"], by="anna")
    engine.resume(["celery"])
    engine.unregister("node")
    engine.purge(["celery"])
    engine.discard(["c"])
    forever = {key.removeprefix(f"{prefix}celeriac:") for key in client.keys(f"{prefix}*") if client.ttl(key) == -1}
    assert forever <= {"n", "taken", "deaths", "queues", "revokes", "w:celery"}


def test_what_an_acl_forbids_is_said(servers: Servers, port: int, prefix: str) -> None:
    """That it allows enough is seen by the contract suite, which runs as such a user."""
    servers.allow(port, prefix)
    url = f"redis://shop:secret@127.0.0.1:{port}/0"
    with closing(RedisEngine(url, key_prefix=prefix)) as allowed, closing(RedisEngine(url, key_prefix="other:")) as stranger:
        allowed.publish([message("a")])
        with pytest.raises(EngineUnavailable, match="ACL"):
            stranger.publish([message("b")])


def test_what_is_scheduled_stands_in_nobodys_way(engine: RedisEngine) -> None:
    for batch in range(20):
        engine.publish([message(f"later{batch}-{number}", delay_seconds=3600) for number in range(1000)])
    seconds = []
    for _ in range(5):
        engine.publish([message("now")])
        begin = time.monotonic()
        assert run_all(engine) == ["now"]
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.5


# -- URLs and options --------------------------------------------------------------------------------------------


def test_urls() -> None:
    assert Place("redis://h", {}).addresses == [("h", 6379)]
    place = Place("rediss://u:p%40@[::1]:7000/3?ssl_cert_reqs=CERT_NONE", {})
    assert place.addresses == [("::1", 7000)]
    assert place.connection_options == {"username": "u", "password": "p@", "db": 3, "ssl_cert_reqs": "none"}
    place = Place("redis+socket:///run/redis.sock?virtual_host=2", {})
    assert (place.addresses, place.connection_options) == ([("/run/redis.sock", None)], {"db": 2})
    for url in ("sentinel://:pw@a:1,b/0?master_name=m", "sentinel://:pw@a:1/0;sentinel://:pw@b/0?master_name=m"):
        place = Place(url, {} if "," in url else {"master_name": "m"})
        assert (place.sentinels, place.master_name) == ([("a", 1), ("b", 26379)], "m")
    place = Place("redis+cluster://a:1,b:2", {})
    assert (place.cluster, place.addresses, place.key_prefix) == (True, [("a", 1), ("b", 2)], "{celeriac}:")
    assert Place("redis://a", {"cluster": True, "key_prefix": "shop"}).key_prefix == "{shop}:"
    assert Place("redis://a", {"global_keyprefix": "shop", "visibility_timeout": 3600}).key_prefix == "shop_"


@pytest.mark.parametrize("url", ["redis://h?polish=1", "redis://h:port", "redis://h?socket_timeout=0", "redis://h?socket_timeout=soon"])
def test_what_is_wrong_is_said_at_once(url: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        open_engine(url)


def test_a_unix_socket(servers: Servers) -> None:
    path = servers.directory / "redis.sock"
    servers.start("--unixsocket", str(path))
    engine = open_engine(f"redis+socket://{path}")
    engine.publish([message("a")])
    assert engine.depth()["celery"].ready == 1
    engine.close()


def test_the_news_of_a_result_bears_it_but_only_once(engine: RedisEngine, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_engine, "HEARD_SECONDS", 3600.0)  # a busy machine is to take its time
    engine.subscribe(["other"]).close()
    subscription = engine.subscribe(["m"])
    try:
        assert engine.fetch(["m"]) == {}
        # As another process does.
        with closing(RedisEngine(engine.url, key_prefix=engine._results.decode().removesuffix("celery-task-meta-"))) as other:
            other.store([Record(task_id="m", status="SUCCESS", result=Raw(b"1"))])
        eventually(lambda: subscription.changed(0.1))
        trips = reads(client)
        assert bytes(engine.fetch(["m"])["m"].result) == b"1"
        assert reads(client) == trips
        client.delete(engine._results.decode() + "m")
        assert engine.fetch(["m"]) == {}
        assert reads(client) == trips + 1
        assert engine.fetch(["m", "n"]) == {}
    finally:
        subscription.close()


def reads(client: Any) -> int:
    """How often results were asked for."""
    return int(client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])


def test_a_message_that_somebody_removed_from_under_its_lease_harms_nobody(engine: RedisEngine, client: Any, prefix: str) -> None:
    engine.publish([message(id) for id in "abcde"])
    engine.reserve(["celery"], limit=5, holder=HOLDER)
    client.hdel(f"{prefix}celeriac:body", *"abcd")
    a, b, c, d, e = engine.held("node")
    assert (a.message, a.error != "", e.message is not None) == (None, True, True)
    verdicts = [(a, Verdict.DEAD), (b, Verdict.RETRY), (c, Verdict.RELEASED), (d, Verdict.DONE), (e, Verdict.DONE)]
    settlements = [Settlement(id=one.id, verdict=verdict, lease=one.lease, receipt=one.receipt, reason="gone") for one, verdict in verdicts]
    assert engine.settle(settlements) == []
    again = engine.reserve(["celery"], limit=5, holder=HOLDER)
    assert [delivery.message for delivery in again] == [None] * len(again)
    assert engine.settle([Settlement(id=one.id, verdict=Verdict.DEAD, lease=one.lease, reason="gone") for one in again]) == []
    assert engine.reserve(["celery"], limit=5, holder=HOLDER) == []
