"""What is special to the engine of one SQLite file; all else is in the contract."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from celeriac.contracts.mailbox import Letter, Node
from celeriac.core.errors import EngineCorrupt, EngineUnavailable, ImproperlyConfigured
from celeriac.core.message import Holder, Message, Record, Revocation, Settlement, Verdict
from celeriac.engines import open_engine, sqlite, sqlite_schema
from celeriac.engines.sqlite import SQLiteEngine
from celeriac.engines.sqlite_schema import MIGRATIONS
from celeriac.testing.contract.harness import DEADLINE_SECONDS, eventually

HOLDER = Holder("node", 1)


def message(id: str, **fields: Any) -> Message:
    return Message(id=id, task="shop.tasks.charge", body=Raw(b"[[], {}, {}]"), **fields)


def in_child(work: Callable[[], None]) -> int:
    """Forks; the child's exit code tells whether `work` went through."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_free(engine: SQLiteEngine) -> bool:
    if engine._mutex.acquire(blocking=False):
        engine._mutex.release()
        return True
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "celeriac.db"


@pytest.fixture
def open_(path: Path) -> Iterator[Callable[..., SQLiteEngine]]:
    engines: list[SQLiteEngine] = []

    def open_one(**options: Any) -> SQLiteEngine:
        engines.append(SQLiteEngine(f"sqlite:///{path}", **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(open_: Callable[..., SQLiteEngine]) -> SQLiteEngine:
    engine = open_()
    engine.register(Node(id=HOLDER.node, name="worker@host"), lease_seconds=60)
    return engine


class TestURL:
    def test_three_slashes_are_relative_and_four_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for url in ("sqlite:///a%20b.db", f"sqlite:///{tmp_path}/c.db"):
            engine = open_engine(url)
            engine.publish([message("a")])
            engine.close()
        assert (tmp_path / "a b.db").exists()
        assert (tmp_path / "c.db").exists()

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///directory/", "sqlite://relative.db"])
    def test_a_url_without_a_file_says_how_to_write_one(self, url: str) -> None:
        with pytest.raises(ImproperlyConfigured, match="sqlite:///relative.db"):
            open_engine(url)

    @pytest.mark.parametrize("url", ["nosuch://host", "nonsense"])
    def test_an_unknown_scheme_lists_the_known_ones(self, url: str) -> None:
        with pytest.raises(ImproperlyConfigured, match="sqlite:///relative.db"):
            open_engine(url)

    def test_options_stand_in_the_query_too(self, path: Path) -> None:
        engine = SQLiteEngine(f"sqlite:///{path}?synchronous=full")
        assert engine._query("PRAGMA synchronous") == [(2,)]
        engine.close()

    @pytest.mark.parametrize("options", [{"synchronous": "OFF"}, {"busy_timeout_seconds": "long"}, {"colour": "red"}])
    def test_wrong_options_are_refused(self, path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(ImproperlyConfigured):
            SQLiteEngine(f"sqlite:///{path}", **options)


class TestFiles:
    def test_opening_makes_no_file_until_the_first_verb(self, path: Path, open_: Callable[..., SQLiteEngine]) -> None:
        open_()
        assert not path.exists()

    def test_a_newer_schema_is_left_alone(self, path: Path, engine: SQLiteEngine, open_: Callable[..., SQLiteEngine]) -> None:
        engine.close()
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        db.close()
        with pytest.raises(EngineCorrupt, match="newer Celeriac"):
            open_().publish([message("a")])

    def test_a_database_of_another_program_is_left_alone(self, path: Path, open_: Callable[..., SQLiteEngine]) -> None:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE auth_user (id INTEGER)")
        db.close()
        before = path.read_bytes()
        with pytest.raises(EngineCorrupt, match="another program"):
            open_().publish([message("a")])
        assert path.read_bytes() == before

    def test_what_is_no_database_is_left_alone(self, path: Path, open_: Callable[..., SQLiteEngine]) -> None:
        path.write_bytes(b"name;price\n" * 1000)
        with pytest.raises(EngineCorrupt, match="damaged, or is not an SQLite database"):
            open_().publish([message("a")])
        assert path.read_bytes() == b"name;price\n" * 1000

    def test_a_damaged_database_says_so(self, path: Path, engine: SQLiteEngine, open_: Callable[..., SQLiteEngine]) -> None:
        engine.publish([message(f"m{number}") for number in range(500)])
        engine.close()
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xa5" * (len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(EngineCorrupt, match="damaged"):
            open_().publish([message("a")])

    def test_a_lost_table_says_so(self, path: Path, engine: SQLiteEngine) -> None:
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE messages")
        db.close()
        with pytest.raises(EngineCorrupt, match="no such table"):
            engine.publish([message("a")])

    def test_a_missing_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(EngineUnavailable, match="does not exist. Create it"):
            SQLiteEngine(f"sqlite:///{tmp_path}/none/celeriac.db").publish([message("a")])

    def test_a_directory_in_place_of_the_file_is_named(self, path: Path, open_: Callable[..., SQLiteEngine]) -> None:
        path.mkdir()
        with pytest.raises(EngineUnavailable, match="is a directory"):
            open_().publish([message("a")])

    @pytest.mark.parametrize("directory_mode", [0o555, 0o777])
    def test_a_read_only_file_says_what_is_needed(self, directory_mode: int) -> None:
        directory = Path(tempfile.mkdtemp())  # not below tmp_path: another user must be able to get there
        try:
            engine = SQLiteEngine(f"sqlite:///{directory}/celeriac.db")
            engine.publish([message("a")])
            engine.close()
            shutil.rmtree(directory / "celeriac.db.wake")
            (directory / "celeriac.db").chmod(0o444)
            directory.chmod(directory_mode)

            def publish_as_nobody() -> None:
                if os.geteuid() == 0:
                    os.setuid(65534)
                with pytest.raises(EngineUnavailable, match="permission"):
                    engine.publish([message("b")])

            assert exit_code(in_child(publish_as_nobody)) == 0
        finally:
            directory.chmod(0o700)
            shutil.rmtree(directory)

    def test_a_full_disk_changes_nothing_and_heals(self, engine: SQLiteEngine) -> None:
        engine.publish([message("a")])
        ((pages,),) = engine._query("PRAGMA page_count")
        engine._query(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(EngineUnavailable, match="is full"):
            engine.publish([message(f"m{number}") for number in range(1000)])
        assert engine.depth()["celery"].ready == 1
        engine._query("PRAGMA max_page_count = 100000")
        engine.publish([message("b")])
        assert engine.depth()["celery"].ready == 2

    def test_a_removed_file_is_made_anew(self, path: Path, engine: SQLiteEngine, open_: Callable[..., SQLiteEngine]) -> None:
        engine.publish([message("old")])
        path.unlink()
        engine._look_at = 0.0  # else it would notice within a second
        engine.publish([message("new")])
        assert set(open_().find(["old", "new"])) == {"new"}

    def test_eight_processes_make_the_file_together(self, path: Path, open_: Callable[..., SQLiteEngine]) -> None:
        gate_read, gate_write = os.pipe()

        def publish() -> None:
            os.close(gate_write)
            os.read(gate_read, 1)
            SQLiteEngine(f"sqlite:///{path}").publish([message(f"m{os.getpid()}")])

        children = [in_child(publish) for _ in range(8)]
        os.close(gate_write)
        assert [exit_code(pid) for pid in children] == [0] * 8
        os.close(gate_read)
        assert open_().depth()["celery"].ready == 8

    def test_who_looks_while_the_file_is_made_sees_all_or_nothing_of_it(self, path: Path) -> None:
        """Between "no version yet" and "there are tables" somebody else may have made them: that is no stranger's database."""
        started = threading.Barrier(4)
        failures: list[Exception] = []

        def open_one(number: int) -> None:
            engine = SQLiteEngine(f"sqlite:///{path}{number}")
            started.wait(DEADLINE_SECONDS)
            try:
                engine.queues()
            except Exception as error:
                failures.append(error)
            engine.close()

        for number in range(40):
            threads = [threading.Thread(target=open_one, args=(number,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE_SECONDS)
        assert not failures

    def test_the_write_ahead_log_does_not_grow_without_bound(self, path: Path, engine: SQLiteEngine) -> None:
        for number in range(60):
            engine.publish([message(f"{number}-{other}", argsrepr="x" * 5000) for other in range(100)])
            engine.purge(["celery"])
        assert os.path.getsize(f"{path}-wal") < 40_000_000


class TestLocks:
    def hold_lock(self, path: Path, then: Callable[[], None]) -> int:
        """A process that holds the writers' lock, and does `then`."""
        ready_read, ready_write = os.pipe()

        def hold() -> None:
            fd = os.open(f"{path}.wake/lock", os.O_RDWR)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(ready_write, b"!")
            then()

        pid = in_child(hold)
        os.read(ready_read, 1)
        os.close(ready_read)
        os.close(ready_write)
        return pid

    def test_publish_keeps_its_timeout_when_the_holder_is_stopped(self, path: Path, engine: SQLiteEngine) -> None:
        pid = self.hold_lock(path, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        try:
            started = time.monotonic()
            with pytest.raises(EngineUnavailable, match=f"process {pid}") as caught:
                engine.publish([message("a")], timeout_seconds=0.3)
            assert 0.29 < time.monotonic() - started < 5
            assert "locked" not in str(caught.value)
            assert engine.fetch(["a"]) == {}, "reading waits for nobody"
            newcomer = SQLiteEngine(engine.url)
            assert newcomer.depth() == {}, "nor does opening"
            newcomer.close()
        finally:
            os.kill(pid, signal.SIGKILL)
            exit_code(pid)
        engine.publish([message("a")], timeout_seconds=1.0)

    def test_another_thread_keeps_its_timeout_too(self, path: Path, engine: SQLiteEngine) -> None:
        pid = self.hold_lock(path, signal.pause)
        try:
            first = threading.Thread(target=lambda: engine.pause(["other"], by="anna"))
            first.start()
            eventually(lambda: not is_free(engine))
            started = time.monotonic()
            with pytest.raises(EngineUnavailable, match="busy"):
                engine.publish([message("a")], timeout_seconds=0.2)
            assert time.monotonic() - started < 5
        finally:
            os.kill(pid, signal.SIGKILL)
            exit_code(pid)
        first.join(DEADLINE_SECONDS)
        assert engine.depth()["other"].paused_by == "anna"

    def test_a_stranger_who_writes_is_waited_for(self, path: Path, engine: SQLiteEngine) -> None:
        stranger = sqlite3.connect(path, isolation_level=None)
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(EngineUnavailable, match="another program") as caught:
            engine.publish([message("a")], timeout_seconds=0.2)
        assert "locked" not in str(caught.value)
        publisher = threading.Thread(target=lambda: engine.publish([message("a")], timeout_seconds=DEADLINE_SECONDS))
        publisher.start()
        eventually(lambda: not is_free(engine))
        stranger.execute("COMMIT")
        publisher.join(DEADLINE_SECONDS)
        stranger.close()
        assert "a" in engine.find(["a"])

    def test_what_fails_inside_leaves_no_lock_and_no_trace(self, engine: SQLiteEngine, open_: Callable[..., SQLiteEngine]) -> None:
        with pytest.raises(KeyboardInterrupt), sqlite._Transaction(engine) as db:
            db.execute("INSERT INTO paused (queue, by) VALUES ('q', 'anna')")
            raise KeyboardInterrupt
        other = open_()
        other.publish([message("a")], timeout_seconds=0.5)
        engine.publish([message("b")], timeout_seconds=0.5)
        assert other.queues() == ["celery"]

    def test_a_signal_handler_in_the_midst_of_a_verb_is_told_so(self, engine: SQLiteEngine) -> None:
        with sqlite._Transaction(engine) as db:
            db.execute("INSERT INTO paused (queue, by) VALUES ('q', 'anna')")
            with pytest.raises(EngineUnavailable, match="signal handler"):
                engine.publish([message("a")])
            with pytest.raises(EngineUnavailable, match="signal handler"):
                engine.queues()
        assert engine.queues() == ["q"]

    def test_four_busy_processes_starve_nobody(self, path: Path, engine: SQLiteEngine) -> None:
        """The busy handler of SQLite alone lets one of them wait for most of a second, each time; a machine that stands still does it once."""
        told_read, told_write = os.pipe()

        def work() -> None:
            mine = SQLiteEngine(f"sqlite:///{path}")
            worst = 0.0
            for number in range(400):
                started = time.monotonic()
                mine.publish([message(f"{os.getpid()}-{number}")])
                worst = max(worst, time.monotonic() - started)
            os.write(told_write, f"{worst}\n".encode())

        def worst_of_all() -> float:
            children = [in_child(work) for _ in range(4)]
            assert [exit_code(pid) for pid in children] == [0] * 4
            assert engine.purge(["celery"]) == 1600
            return max(map(float, os.read(told_read, 1000).split()))

        waits: list[float] = []
        while not waits or waits[-1] >= 0.8:
            assert len(waits) < 5, f"one publish waited for {min(waits):.3f} s"
            waits.append(worst_of_all())
        os.close(told_read)
        os.close(told_write)


class TestForks:
    def test_parent_and_child_each_have_a_connection_of_their_own(self, engine: SQLiteEngine, open_: Callable[..., SQLiteEngine]) -> None:
        """An inherited connection would make the child believe in locks that only its parent has; the parent's
        closing would then remove the write-ahead log with all that the child writes from then on."""
        engine.publish([message("before")])
        go_read, go_write = os.pipe()

        def write() -> None:
            assert engine._db is None
            engine.publish([message("early")])
            os.read(go_read, 1)
            engine.publish([message("late")])

        pid = in_child(write)
        eventually(lambda: engine.find(["early"]))
        engine.publish([message("parent")])
        engine.close()
        os.write(go_write, b"!")
        assert exit_code(pid) == 0
        os.close(go_read)
        os.close(go_write)
        later = open_()
        assert set(later.find(["before", "early", "parent", "late"])) == {"before", "early", "parent", "late"}
        assert later._query("PRAGMA integrity_check") == [("ok",)]

    def test_a_fork_waits_for_the_other_threads_transactions(self, engine: SQLiteEngine) -> None:
        stop = threading.Event()
        published: list[str] = []

        def publish() -> None:
            while not stop.is_set():
                id = f"m{len(published)}"
                engine.publish([message(id)])
                published.append(id)

        threads = [threading.Thread(target=publish)]
        threads[0].start()
        try:
            for number in range(20):
                assert exit_code(in_child(lambda number=number: engine.publish([message(f"child{number}")]))) == 0  # type: ignore[misc]
        finally:
            stop.set()
            threads[0].join(DEADLINE_SECONDS)
        assert engine.depth()["celery"].ready == len(published) + 20

    def test_two_threads_may_fork_at_once(self, engine: SQLiteEngine, open_: Callable[..., SQLiteEngine]) -> None:
        other = open_()
        other.queues()
        codes: list[int] = []

        def fork_often() -> None:
            for _ in range(10):
                codes.append(exit_code(in_child(lambda: other.publish([message(str(os.getpid()))]))))

        threads = [threading.Thread(target=fork_often) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert codes == [0] * 20
        engine.publish([message("after")], timeout_seconds=1.0)

    def test_a_childs_copy_of_a_subscription_leaves_the_parents_alone(self, engine: SQLiteEngine) -> None:
        subscription = engine.subscribe(["a"])
        assert exit_code(in_child(subscription.close)) == 0
        engine.store([Record(task_id="a", status="SUCCESS")])
        assert subscription.changed(DEADLINE_SECONDS)
        subscription.close()

    def test_a_connection_that_came_along_unasked_is_used_no_more(self, engine: SQLiteEngine) -> None:
        """A server written in C forks without asking Python before, and tells it only afterwards."""
        engine.publish([message("a")])
        inherited = engine._db
        engine._after_fork_in_child()
        engine.publish([message("b")])
        assert engine._db is not inherited


class TestWaking:
    def test_another_process_wakes_a_waiter_long_before_the_net(self, engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite, "NET_SECONDS", 60.0)
        ask_read, ask_write = os.pipe()

        def publish() -> None:
            while number := os.read(ask_read, 1):
                engine.publish([message(f"m{number[0]}")])

        pid = in_child(publish)
        waits = []
        for number in range(1, 11):
            assert not engine.wait(["celery"], 0.0)
            os.write(ask_write, bytes([number]))
            started = time.monotonic()
            assert engine.wait(["celery"], DEADLINE_SECONDS)
            waits.append(time.monotonic() - started)
            assert len(engine.reserve(["celery"], limit=5, holder=HOLDER)) == 1
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
        os.close(ask_read)
        os.close(ask_write)
        assert sorted(waits)[5] < 0.1

    def test_a_token_that_somebody_took_with_him_is_made_good_by_the_net(self, engine: SQLiteEngine) -> None:
        (fd,) = engine._pipes.listen(["celery"])
        assert fd is not None
        woken: list[bool] = []
        waiter = threading.Thread(target=lambda: woken.append(engine.wait(["celery"], DEADLINE_SECONDS)))
        waiter.start()
        rows = [sqlite._row(message("a"), time.time())]
        with sqlite._Transaction(engine) as db:
            db.executemany(sqlite_schema.PUBLISH, rows)
        waiter.join(DEADLINE_SECONDS)
        assert woken == [True]

    def test_who_leaves_work_behind_puts_the_token_back(self, engine: SQLiteEngine) -> None:
        fds = engine._pipes.listen(["a", "b"])
        engine.publish([message("1", queue="a"), message("2", queue="b", priority=5), message("3", queue="b")])
        assert sqlite._poll(fds, 0.0)
        assert [delivery.id for delivery in engine.reserve(["a", "b"], limit=1, holder=HOLDER)] == ["2"]
        assert sqlite._poll(fds[:1], 0.0)
        assert sqlite._poll(fds[1:], 0.0)
        assert len(engine.reserve(["a", "b"], limit=5, holder=HOLDER)) == 2
        assert not sqlite._poll(fds, 0.0)

    def test_a_removed_directory_costs_a_second_and_is_made_anew(self, path: Path, engine: SQLiteEngine) -> None:
        assert not engine.wait(["celery"], 0.0)
        shutil.rmtree(f"{path}.wake")
        other = SQLiteEngine(f"sqlite:///{path}")
        threading.Timer(0.1, lambda: other.publish([message("a")])).start()
        assert engine.wait(["celery"], DEADLINE_SECONDS)
        assert len(engine.reserve(["celery"], limit=1, holder=HOLDER)) == 1
        eventually(lambda: not engine.wait(["celery"], 1.2) and os.path.exists(f"{path}.wake/queue.celery"))
        assert stat.S_ISFIFO(os.stat(f"{path}.wake/queue.celery").st_mode)
        other.close()

    def test_without_named_pipes_it_polls(self, engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError("no named pipes here")

        monkeypatch.setattr(os, "mkfifo", refuse)
        subscription = engine.subscribe(["a"])
        assert not subscription.changed(0.05)
        threading.Timer(0.05, lambda: engine.publish([message("a")])).start()
        assert engine.wait(["celery"], DEADLINE_SECONDS)
        (delivery,) = engine.reserve(["celery"], limit=1, holder=HOLDER)
        threading.Timer(0.05, lambda: engine.store([Record(task_id="a", status="SUCCESS")])).start()
        subscription.fileno()
        eventually(lambda: subscription.changed(0.1) and engine.fetch(["a"]))
        subscription.close()
        threading.Timer(0.05, lambda: engine.post(["anna"], Letter(method="hello"))).start()
        assert [letter.method for letter in engine.collect("anna", DEADLINE_SECONDS)] == ["hello"]
        assert delivery.id == "a"

    def test_any_name_has_its_pipe(self, engine: SQLiteEngine) -> None:
        for name in ("../up", "über", "a/b", "", ".", "..", "x" * 500, "a~1"):
            engine.publish([message(f"m{name}", queue=name)])
            subscription = engine.subscribe([f"m{name}"])
            assert engine.wait([name], 1.0)
            (delivery,) = engine.reserve([name], limit=9, holder=HOLDER)
            settlement = Settlement(
                id=delivery.id,
                verdict=Verdict.DONE,
                lease=delivery.lease,
                receipt=delivery.receipt,
                record=Record(task_id=delivery.id, status="SUCCESS"),
            )
            assert engine.settle([settlement]) == []
            assert subscription.changed(0.5), name
            subscription.close()

    def test_a_publisher_to_many_queues_keeps_few_files_open(self, engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite, "OPEN_PIPES", 5)
        before = len(os.listdir("/dev/fd"))
        engine.publish([message(f"m{number}", queue=f"q{number}") for number in range(50)])
        assert len(os.listdir("/dev/fd")) <= before + 5


GREEN = """
import sys, time
if sys.argv[1] == "gevent":
    from gevent import monkey, sleep, spawn
    monkey.patch_all()
else:
    import eventlet
    from eventlet import sleep, spawn
    eventlet.monkey_patch()
from msgspec import Raw
from celeriac.core.message import Message, Record
from celeriac.engines import sqlite
from celeriac.engines.sqlite import SQLiteEngine

sqlite.NET_SECONDS = 60.0
engine = SQLiteEngine(sys.argv[2])
assert engine.collect("nobody") == []

def later():
    sleep(0.05)
    engine.publish([Message(id="a", task="t", body=Raw(b"[[], {}, {}]"))])
    sleep(0.05)
    engine.store([Record(task_id="a", status="SUCCESS")])

subscription = engine.subscribe(["a"])
spawn(later)
started = time.monotonic()
assert engine.wait(["celery"], 20)
assert subscription.changed(20)
assert not subscription.changed()
assert time.monotonic() - started < 10, "it was the clock that woke it"
"""


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets_go_on_while_one_waits(library: str, path: Path) -> None:
    if importlib.util.find_spec(library) is None:  # importing it here would change how the other tests fork
        pytest.skip(f"{library} is not installed")
    source = Path(sqlite.__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", GREEN, library, f"sqlite:///{path}"]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(source)})


class TestTidiness:
    def test_a_closed_subscription_leaves_nothing(self, path: Path, engine: SQLiteEngine) -> None:
        for ids in (["a"], ["a", "b", "c"], [f"m{number}" for number in range(1000)]):
            subscription = engine.subscribe(ids)
            assert os.listdir(f"{path}.wake/results")
            engine.store([Record(task_id=ids[-1], status="STARTED")])
            assert subscription.changed(0.5)
            assert not subscription.changed(0.0)
            subscription.close()
            subscription.close()
            assert all(name.startswith(".~") for name in os.listdir(f"{path}.wake/results")), "only a spare one is kept"
        engine.subscribe([]).close()
        engine.close()
        assert os.listdir(f"{path}.wake/results") == []

    def test_what_a_dead_process_left_is_swept_out(self, path: Path, engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = engine.subscribe(["mine"])
        engine.collect("my box")

        def die_untidily() -> None:
            left = engine.subscribe(["a", "b"])
            engine.collect("box")
            os._exit(0 if left else 1)

        assert exit_code(in_child(die_untidily)) == 0
        assert len(os.listdir(f"{path}.wake/results")) == 3
        engine.prune()
        assert len(os.listdir(f"{path}.wake/results")) == 3, "a young one may be about to be opened"
        monkeypatch.setattr(sqlite, "STALE_SECONDS", -60.0)
        engine.prune()
        assert len(os.listdir(f"{path}.wake/results")) == 1
        assert not os.path.exists(f"{path}.wake/box.box")
        mine.close()

    def test_revocations_are_forgotten_in_the_end(self, open_: Callable[..., SQLiteEngine]) -> None:
        engine = open_(revokes_expire_seconds=-1)
        engine.revoke([Revocation(id="a")])
        engine.prune()
        assert engine._query("SELECT count(*) FROM revokes") == [(0,)]


class TestTime:
    def test_a_reboot_ends_every_lease(self, engine: SQLiteEngine, open_: Callable[..., SQLiteEngine]) -> None:
        engine.publish([message("a")])
        assert engine.reserve(["celery"], limit=1, holder=HOLDER)
        after = open_()
        after._boot = "another"
        assert after.nodes()[0].lease_left_seconds < 0
        assert after.reclaim() == ["a"]
        assert after.nodes() == []

    def test_records_from_a_time_to_come_are_pruned_in_the_end(self, open_: Callable[..., SQLiteEngine]) -> None:
        engine = open_(result_expires=100)
        engine.store([Record(task_id="a", status="SUCCESS")])
        with sqlite._Transaction(engine) as db:
            db.execute("UPDATE results SET stored = stored + 1e9")
        assert engine.prune() == 0
        ((stored,),) = engine._query("SELECT stored FROM results")
        assert stored <= time.time()


HOT = {
    "PROMOTE": ("q", 0.0),
    "FIRST_DUE": ("q",),
    "READY_KEYS": ("q", 5),
    "READY_ROWS": ("q", 5),
    "ROW": (1,),
    "GATE": ("q", "n"),
    "LEASE": ("n", 1, 1, 1, 2),
    "REVOKED": ("a", 0.0),
    "HELD": ("n",),
    "OUTLOOK": {"queue": "q"},
    "REMOVE": (1, "a", "n", 1, 1),
    "FENCED": ("a", "n", 1, 1),
    "GIVE_BACK": (0, None, 0, 0, 1),
    "STORED_STATUS": ("a",),
    "PRUNE": (0.0, 5),
    "PRUNE_FUTURE": (0.0, 0.0, 5),
}


@pytest.mark.parametrize("name", HOT)
def test_no_hot_statement_reads_or_sorts_a_whole_table(engine: SQLiteEngine, name: str) -> None:
    plan = [row[3] for row in engine._query(f"EXPLAIN QUERY PLAN {getattr(sqlite_schema, name).format('?, ?')}", HOT[name])]
    # Oldest first by row number, up to a LIMIT, is a scan by name only. What one node holds is little, and may be sorted.
    # EXISTS ends at the first row.
    ends_early = ("SCAN results", "SCAN paused", "SCAN revokes", "SCAN CONSTANT ROW")
    wrong = [step for step in plan if "SCAN" in step and step not in ends_early]
    wrong += [step for step in plan if "TEMP B-TREE" in step and name != "HELD"]
    assert not wrong, plan


@pytest.mark.parametrize("state", ["ready", "scheduled"])
def test_peeking_does_not_sort_the_queue(engine: SQLiteEngine, state: str) -> None:
    given = {"queue": "q", "now": 0.0, "limit": 5, "offset": 0, "stop": 5}
    plan = [row[3] for row in engine._query(f"EXPLAIN QUERY PLAN {sqlite_schema.PEEK[state]}", given)]
    assert any(f"USING INDEX messages_{state}" in step for step in plan), plan


def test_the_places_of_many_are_the_places_of_each(engine: SQLiteEngine) -> None:
    names = [f"m{number}" for number in range(40)]
    engine.publish([message(name, priority=number % 3) for number, name in enumerate(names)])
    engine.publish(
        [message("due", delay_seconds=0.001, priority=1), message("elsewhere", queue="other"), message("later", delay_seconds=60)]
    )
    eventually(lambda: engine.find(["due"])["due"].state == "ready")
    together = {id: waiting.ahead for id, waiting in engine.find([*names, "due", "elsewhere", "later"]).items()}
    assert together == {id: engine.find([id])[id].ahead for id in together}
    assert together["elsewhere"] == 0
    assert together["later"] is None
    assert sorted(place for id, place in together.items() if place is not None and id != "elsewhere") == list(range(41))
