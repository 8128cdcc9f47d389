"""How a worker stops, starts again, and refuses to start."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time

import pytest

from tests.support.fixtures import MakeProject
from tests.support.workers import Project, until

POOLS = ["prefork", "threads", "solo", "asyncio", "gevent", "eventlet"]


def assert_nothing_is_left(project: Project) -> None:
    """No process, no registration, nothing held."""
    until(lambda: not project.processes(), "its processes are gone")
    assert not project.broker.nodes()
    depth = project.broker.depth(["celery"])["celery"]
    assert depth.leased == 0


@pytest.mark.parametrize("pool", POOLS)
def test_term_lets_what_runs_end_and_takes_nothing_new(project: Project, pool: str) -> None:
    worker = project.worker("-P", pool, "-c", "1") if pool != "solo" else project.worker("-P", "solo")
    running = project.tasks.work.delay("running", gate="go")
    project.wait_started("running")
    worker.signal(signal.SIGTERM)
    until(lambda: "Stopping" in worker.log(), "it has noticed")
    waiting = project.tasks.work.delay("waiting")
    project.open_gate("go")
    assert worker.wait() == 0
    assert project.state(running.id) == "SUCCESS"
    assert project.state(waiting.id) == "PENDING" and not project.starts("waiting")
    assert project.broker.find([waiting.id])[waiting.id].state == "ready"
    assert_nothing_is_left(project)


@pytest.mark.parametrize("pool", POOLS)
def test_after_the_soft_shutdown_timeout_what_runs_is_given_back(project: Project, pool: str) -> None:
    """Interrupted: no crash, no retry; exit code 0, since that is how a deploy ends."""
    worker = project.worker("-P", pool, "--soft-shutdown-timeout", "0.5")
    result = project.tasks.work.delay("long", gate="go")
    project.wait_started("long")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    waiting = project.broker.find([result.id])[result.id]
    assert (waiting.state, waiting.crashes, waiting.interruptions) == ("ready", 0, 1)
    assert waiting.message.retries == 0
    assert_nothing_is_left(project)
    project.open_gate("go")
    project.worker("-c", "1")
    project.wait_state(result.id, "SUCCESS")
    assert len(project.starts("long")) == 2


@pytest.mark.parametrize("signals", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGQUIT]])
def test_a_second_signal_and_quit_give_everything_back_at_once(project: Project, signals: list[signal.Signals]) -> None:
    worker = project.worker("-c", "2")
    project.make_gate("never")
    results = [project.tasks.block.delay(f"blocks-{number}", "never") for number in range(2)]
    for number in range(2):
        project.wait_started(f"blocks-{number}")
    for signum in signals:
        before = worker.log().count("Stopping")
        worker.signal(signum)
        until(lambda before=before: worker.log().count("Stopping") > before, "it has noticed")  # type: ignore[misc]
    assert worker.wait() == 0
    for waiting in project.broker.find([result.id for result in results]).values():
        assert (waiting.state, waiting.crashes, waiting.interruptions) == ("ready", 0, 1)
    assert_nothing_is_left(project)


def test_ctrl_c_on_a_terminal_reaches_the_whole_group_and_stops_warmly(project: Project) -> None:
    """The processes leave it to their supervisor."""
    worker = project.worker("-c", "2")
    result = project.tasks.work.delay("running", gate="go")
    project.wait_started("running")
    worker.signal_all(signal.SIGINT)
    until(lambda: "Stopping" in worker.log(), "it has noticed")
    project.open_gate("go")
    assert worker.wait() == 0
    assert project.state(result.id) == "SUCCESS"
    assert len(project.starts("running")) == 1


def test_a_busy_worker_that_stops_gives_back_the_rest_of_its_batch(project: Project) -> None:
    project.broker.pause(["celery"], by="the test")
    results = [project.tasks.work.delay(f"task-{number}") for number in range(3000)]
    worker = project.worker("-c", "2")
    project.broker.resume(["celery"])
    until(lambda: len(project.journal("end")) > 300, "it is at full speed")
    assert worker.stop() == 0
    assert_nothing_is_left(project)
    done = {entry.id for entry in project.journal("end")}
    records = project.backend.fetch([result.id for result in results])
    assert {id for id, record in records.items() if record.status == "SUCCESS"} == done, "what ran is settled, what did not is not"
    assert project.broker.depth(["celery"])["celery"].ready == 3000 - len(done)


def test_term_at_any_moment_of_the_start_ends_the_worker(project: Project) -> None:
    """Also in the middle of a fork, and to the whole group, as systemd sends it."""
    dice = random.Random(7)
    for number in range(10):
        worker = project.worker("-c", "2", ready=False)
        if number % 2:
            until(lambda worker=worker: "[tasks]" in worker.log() or worker.children(), "it is about to start")  # type: ignore[misc]
            time.sleep(dice.random() * 0.05)  # the random moment
        else:
            time.sleep(dice.random() * 0.4)
        (worker.signal_all if number % 4 < 2 else worker.signal)(signal.SIGTERM)
        assert worker.wait() in (0, -signal.SIGTERM)
    until(lambda: not project.processes(), "nothing is left of them")
    project.worker("-c", "1")
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    assert len(project.broker.nodes()) == 1


def test_hup_starts_the_worker_again_with_new_code(project: Project) -> None:
    worker = project.worker("-c", "1", name="w")
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    before = project.node(worker)
    with (project.directory / "proj.py").open("a") as file:
        file.write("\n\n@app.task\ndef fresh() -> str:\n    return 'new'\n")
    worker.signal(signal.SIGHUP)
    fresh = until(lambda: (node := project.node(worker)) and node.id != before.id and node, "it is registered anew")
    assert fresh.name == before.name
    assert project.app.send_task("proj.fresh").get(timeout=40) == "new"
    assert worker.stop() == 0
    assert_nothing_is_left(project)


def test_nothing_is_left_of_a_worker_but_what_the_engine_keeps(project: Project) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    worker = project.worker("-c", "2")
    for number in range(50):
        project.tasks.add.delay(number, 1)
    project.wait_empty()
    assert worker.stop() == 0
    assert_nothing_is_left(project)
    with sqlite3.connect(project.directory / "celeriac.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 10


# -- starting --------------------------------------------------------------------------------------------------------


def test_a_second_worker_of_the_same_name_is_refused(project: Project) -> None:
    first = project.worker("-c", "1", name="same")
    second = project.worker("-c", "1", name="same", ready=False)
    assert second.wait() not in (0, 70)
    assert "runs already" in second.log() and str(first.pid) in second.log() and "-n" in second.log()
    assert "Traceback" not in second.log()
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    first.stop()
    project.worker("-c", "1", name="same")


def test_a_broken_import_in_the_users_module_shows_the_real_reason(project: Project) -> None:
    (project.directory / "proj.py").write_text("import nothing_of_that_name\n")
    worker = project.worker(ready=False)
    assert worker.wait() != 0
    assert "nothing_of_that_name" in worker.log() and "proj.py" in worker.log()


def test_a_module_that_raises_shows_the_real_reason(project: Project) -> None:
    with (project.directory / "proj.py").open("a") as file:
        file.write("\n1 / 0\n")
    worker = project.worker(ready=False)
    assert worker.wait() != 0
    assert "ZeroDivisionError" in worker.log() and "proj.py" in worker.log()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task_time_limt": 5}, ["task_time_limt", "task_time_limit"]),
        ({"task_time_limit": "soon"}, ["task_time_limit", "soon"]),
        ({"broker_url": "sqlit:///x.db"}, ["sqlit"]),
        ({"worker_heartbeat_interval": 10, "worker_lease_duration": 5}, ["worker_lease_duration", "worker_heartbeat_interval"]),
    ],
)
def test_broken_settings_are_a_clear_error(make_project: MakeProject, settings: dict[str, object], words: list[str]) -> None:
    project = make_project(**settings)
    worker = project.worker(ready=False)
    assert worker.wait() != 0
    for word in words:
        assert word in worker.log()


def test_a_database_that_cannot_be_used_is_a_clear_error(make_project: MakeProject) -> None:
    project = make_project(broker_url="sqlite:////proc/nowhere/celeriac.db")
    worker = project.worker(ready=False)
    assert worker.wait() not in (0, 70)
    assert "/proc/nowhere" in worker.log()
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize(
    "arguments", [["-P", "threads", "--autoscale", "4,1"], ["-P", "nonsense"], ["-c", "minus one"], ["--time-limit", "-1"]]
)
def test_impossible_options_are_a_clear_error(project: Project, arguments: list[str]) -> None:
    worker = project.worker(*arguments, ready=False)
    assert worker.wait() not in (0, 70)
    assert "Traceback" not in worker.log()


def test_purge_at_the_start_throws_away_what_waits(project: Project) -> None:
    for number in range(10):
        project.tasks.work.delay(f"old-{number}")
    project.worker("-c", "1", "--purge")
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    assert not project.journal()


# -- tasks that nobody here knows --------------------------------------------------------------------------------------


def test_an_unknown_task_waits_for_a_worker_that_knows_it(project: Project) -> None:
    """As in a rolling deploy: the old workers give it back, the new ones run it."""
    old = project.worker("-c", "1")
    result = project.app.send_task("proj.fresh", task_id="fresh")
    until(lambda: "not registered" in old.log(), "the old worker has met it")
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    with (project.directory / "proj.py").open("a") as file:
        file.write("\n\n@app.task\ndef fresh() -> str:\n    return 'new'\n")
    project.worker("-c", "1")
    assert old.stop() == 0  # while both run, chance says who takes it, every five seconds
    assert result.get(timeout=40) == "new"
    assert not project.dead()
    assert "Traceback" not in old.log()


def test_an_unknown_task_is_a_dead_letter_in_the_end(make_project: MakeProject) -> None:
    project = make_project(task_unknown_expires=0.5)
    project.worker("-c", "1")
    sent = time.monotonic()
    project.app.send_task("proj.nobody_knows", task_id="unknown")
    record = project.wait_state("unknown", "FAILURE")
    assert time.monotonic() - sent > 0.5
    assert b"NotRegistered" in bytes(record.result)
    letter = project.dead()["unknown"]
    assert "proj.nobody_knows" in letter.reason and "not registered" in letter.reason
    project.wait_empty()
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
