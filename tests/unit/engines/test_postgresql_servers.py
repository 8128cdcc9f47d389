"""What befalls servers: a standby takes over, passwords change, certificates are wrong, disks are full. Each test has a server of its own, or several."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from celeriac.contracts.mailbox import Node
from celeriac.core.errors import EngineUnavailable, NodeLost
from celeriac.core.message import Holder, Message, Record, Settlement, Verdict
from tests.support.postgresql import Server, missing, program
from tests.support.workers import PATIENCE_SECONDS, until

pytest.importorskip("psycopg")
PostgreSQLEngine = pytest.importorskip("celeriac.engines.postgresql").PostgreSQLEngine

HOLDER = Holder("node", 1)
SMALL = {"shared_buffers": "16MB", "max_connections": "20"}


def message(id: str, **fields: Any) -> Message:
    return Message(**{"id": id, "task": "shop.tasks.charge", "body": Raw(b"[[], {}, {}]"), **fields})


def works(call: Callable[[], object]) -> bool:
    with suppress(EngineUnavailable):
        call()
        return True
    return False


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, since sockets live in it, and open to the server's user."""
    if program("postgres") is None:
        missing("PostgreSQL is not installed (apt-get install postgresql)")
    path = Path(tempfile.mkdtemp(prefix="celeriac-postgresql-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_server(directory: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(name: str = "server", *, of: Server | None = None, **options: str) -> Server:
        path = directory / name
        path.mkdir()
        if of is None:
            server = Server(path, options={**SMALL, **options})
            server.make()
        else:
            server = of.replicate(path)
            server.options.update(options)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.stop(signal.SIGQUIT)


class Load:
    """A producer and a worker, each a thread with an engine of its own, that go on whatever happens."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.accepted: list[str] = []
        self.done: list[str] = []
        self.slowest_seconds = 0.0
        self.refusals = 0
        self._enough = threading.Event()
        self._empty = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._produce, self._work)]
        for thread in self._threads:
            thread.start()

    def more(self, number: int) -> None:
        begun = len(self.done)
        until(lambda: len(self.done) >= begun + number, f"{number} more messages are done")

    def end(self) -> None:
        """Until all is done."""
        self._enough.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

    def _produce(self) -> None:
        engine = PostgreSQLEngine(self.url)
        number = 0
        while not self._enough.is_set():
            id = f"m{number}"
            begin = time.monotonic()
            try:
                engine.publish([message(id)], timeout_seconds=1.0)
            except EngineUnavailable:
                self.refusals += 1
            else:
                self.accepted.append(id)
                number += 1
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begin)
        engine.close()
        self._empty.set()

    def _work(self) -> None:
        engine = PostgreSQLEngine(f"{self.url}{'&' if '?' in self.url else '?'}timeout_seconds=2")
        settlements: list[Settlement] = []
        node = Node(id=HOLDER.node, name="n")
        registered = False
        while True:
            last = self._empty.is_set()
            try:
                if not registered:
                    engine.register(node, lease_seconds=60)
                    registered = True
                refused, deliveries = engine.exchange(settlements, ["celery"], limit=8, holder=HOLDER)
                self.done += [one.id for one in settlements if one.id not in refused]
                settlements = [
                    Settlement(id=one.id, verdict=Verdict.DONE, lease=one.lease, record=Record(task_id=one.id, status="SUCCESS"))
                    for one in deliveries
                ]
                if not deliveries:
                    held = engine.held(HOLDER.node, HOLDER.process)  # taken, and the answer was lost
                    settlements = [Settlement(id=one.id, verdict=Verdict.DONE, lease=one.lease) for one in held]
                    if last and not held:
                        break
                    if not held:
                        engine.wait(["celery"], 0.05)
            except NodeLost:
                registered = False
            except EngineUnavailable:
                time.sleep(0.02)
        engine.close()


# -- failover -----------------------------------------------------------------------------------------------------------


def test_a_standby_takes_over_under_load(make_server: Callable[..., Server]) -> None:
    """The primary dies at a blow; the standby that publishing waits for is promoted. Both are named in the URL, and nothing accepted is lost."""
    primary = make_server("primary", synchronous_standby_names="standby", synchronous_commit="local")
    primary.start()
    standby = make_server("standby", of=primary)
    standby.options["synchronous_standby_names"] = ""
    standby.start()
    primary.execute("ALTER ROLE celeriac SET synchronous_commit = on")
    url = f"postgresql://celeriac@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres"
    load = Load(url)
    load.more(100)
    with pytest.raises(EngineUnavailable, match="replica"):
        PostgreSQLEngine(standby.url).publish([message("nowhere")])
    primary.stop(signal.SIGQUIT)
    until(lambda: load.refusals > 5, "calls are refused while there is no primary")
    standby.execute("SELECT pg_promote()")
    load.more(100)
    load.end()
    assert load.slowest_seconds < 10
    engine = PostgreSQLEngine(url)
    assert engine.depth() == {}
    assert set(load.accepted) <= set(engine.fetch(load.accepted)) | set(load.done), "lost"
    engine.close()


def test_a_server_that_turns_read_only_and_back(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.start()
    load = Load(server.url)
    load.more(50)
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    until(lambda: load.refusals > 5, "calls are refused")
    with pytest.raises(EngineUnavailable, match="read-only"):
        PostgreSQLEngine(server.url).publish([message("nowhere")])
    server.execute("ALTER SYSTEM RESET default_transaction_read_only")
    server.execute("SELECT pg_reload_conf()")
    load.more(50)
    load.end()
    assert load.slowest_seconds < 10
    assert set(load.accepted) <= set(load.done)


# -- who may come in -----------------------------------------------------------------------------------------------------


def test_a_password_that_is_changed_meanwhile(make_server: Callable[..., Server]) -> None:
    server = make_server()
    hba = server.data / "pg_hba.conf"
    open_to_all = hba.read_text()
    server.start()
    server.execute("CREATE ROLE shop LOGIN PASSWORD 'old'")
    server.execute("CREATE SCHEMA celeriac AUTHORIZATION shop")
    hba.write_text("host all shop 127.0.0.1/32 scram-sha-256\n" + open_to_all)
    server.execute("SELECT pg_reload_conf()")
    engine = PostgreSQLEngine(f"postgresql://shop:old@127.0.0.1:{server.port}/postgres")
    until(lambda: works(lambda: engine.publish([message("before")])), "the first message")
    server.execute("ALTER ROLE shop PASSWORD 'new'")
    server.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'shop'")
    said: list[str] = []

    def refused_for_it() -> bool:
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable) as caught:
            engine.publish([message("m")], timeout_seconds=1.0)
        assert time.monotonic() - begin < 10
        said.append(str(caught.value))
        return "user and password" in said[-1]

    until(refused_for_it, "the old password is refused")  # the connection that was ended may be found dead first
    assert not any("shop:old" in one or "'old'" in one for one in said)
    server.execute("ALTER ROLE shop PASSWORD 'old'")
    until(lambda: works(lambda: engine.publish([message("after")], timeout_seconds=1.0)), "it is let in again")
    engine.close()


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait(PATIENCE_SECONDS))
    engine = PostgreSQLEngine("postgresql://db.internal/shop")
    for _ in range(3):
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable, match="cannot be resolved"):
            engine.publish([message("m")], timeout_seconds=0.3)
        assert time.monotonic() - begin < 5
    monkeypatch.setattr(engine._database._breaker, "_probe_at", math.inf)  # a busy machine may be slower than the next probe
    with pytest.raises(EngineUnavailable, match="cannot be resolved") as caught:
        engine.publish([message("m")], timeout_seconds=0.3)
    assert not caught.value.tried
    never.set()


# -- TLS --------------------------------------------------------------------------------------------------------------------


class Authority:
    """Signs certificates."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.certificate = directory / "ca.crt"
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=ca"
        )

    def sign(self, name: str, alternative: str) -> tuple[Path, Path]:
        (self.directory / "names").write_text(f"subjectAltName={alternative}\n")
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", f"{name}.crt",
        )  # fmt: skip
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)


def test_tls_with_the_whole_certificate_checked(make_server: Callable[..., Server], directory: Path) -> None:
    """verify-full works with the right authority, and is refused in words with another authority or another host name."""
    if shutil.which("openssl") is None:
        missing("openssl is not installed")
    authority, stranger = Authority(directory / "ca"), Authority(directory / "stranger")
    certificate, key = authority.sign("localhost", "DNS:localhost")
    server = make_server(ssl="on", ssl_cert_file=str(certificate), ssl_key_file=str(key))
    if os.geteuid() == 0:
        shutil.chown(key, server.data.owner())
    key.chmod(0o600)
    server.start()

    def url(host: str, trusted: Authority) -> str:
        return f"postgresql://celeriac@{host}:{server.port}/postgres?sslmode=verify-full&sslrootcert={trusted.certificate}"

    engine = PostgreSQLEngine(url("localhost", authority))
    engine.publish([message("m")])
    assert engine._database.rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
    assert [one.id for one in engine.peek("celery")] == ["m"]
    engine.close()
    for wrong in (url("localhost", stranger), url("127.0.0.1", authority)):
        begin = time.monotonic()
        with pytest.raises(EngineUnavailable, match="Check sslmode, sslrootcert"):
            PostgreSQLEngine(wrong).publish([message("m")])
        assert time.monotonic() - begin < 5


# -- a full disk ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(directory: Path) -> Iterator[Path]:
    path = directory / "disk"
    path.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=0777", "tmpfs", str(path)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("file systems cannot be mounted here, so no disk can be filled")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_under_load(tiny_disk: Path, make_server: Callable[..., Server]) -> None:
    """What was accepted before stays; calls say in words that the disk is full; with room made, all goes on."""
    server = make_server()
    server.start()
    tables = tiny_disk / "tables"
    tables.mkdir()
    if os.geteuid() == 0:
        shutil.chown(tables, server.data.owner())
    server.execute(f"CREATE TABLESPACE tiny LOCATION '{tables}'")
    server.execute("ALTER ROLE celeriac SET default_tablespace = tiny")
    load = Load(server.url)
    load.more(50)
    junk = tiny_disk / "junk"
    with pytest.raises(OSError, match="No space"), open(junk, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    producer = PostgreSQLEngine(server.url)
    accepted: list[str] = []
    trouble = ""
    big = Raw(b'["' + b"".join(os.urandom(24).hex().encode() for _ in range(80)) + b'"]')
    for number in range(2000):
        try:
            producer.publish([message(f"big{number}", queue="other", body=big)], timeout_seconds=1.0)
            accepted.append(f"big{number}")
        except EngineUnavailable as error:
            trouble = str(error)
            if "disk is full" in trouble:  # and not only slow
                break
    assert "disk is full" in trouble
    junk.unlink()
    until(lambda: works(lambda: producer.publish([message("after", queue="other")])), "there is room")
    load.more(50)
    load.end()
    assert set(load.accepted) <= set(load.done)
    assert load.slowest_seconds < 10
    assert sorted(producer.find(accepted)) == sorted(accepted)
    assert "after" in producer.find(["after"])
    producer.close()
