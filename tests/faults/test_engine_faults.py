"""The N-th operation of the engine fails under a real worker, for N = 1, 2, 3 …: nothing is lost, doubled or stuck, and the worker goes on."""

from __future__ import annotations

import json
import resource
import sqlite3
from collections import Counter

import pytest

from tests.support.workers import Project, until

pytestmark = pytest.mark.promise(1)


def fault(where: str, when: str, fail_at: int, *, times: int = 1, verbs: tuple[str, ...] = ()) -> dict[str, str]:
    return {"PROJ_FAULT": json.dumps({"where": where, "fail_at": fail_at, "when": when, "times": times, "verbs": verbs})}


LOOP = ("exchange", "reserve", "settle", "wait")
"""What a process does of itself. (A task whose own update_state fails may well fail.)"""


def work_through(project: Project, name: str) -> None:
    """A bit of everything, to its end; nothing is lost, doubled or stuck."""
    labels = [f"{name}-short-{number}" for number in range(30)]
    ids = [project.tasks.work.delay(label).id for label in labels]
    ids.append(project.tasks.work.delay(f"{name}-long", seconds=0.1).id)
    ids += [project.tasks.work.delay(f"{name}-behind-{number}").id for number in range(10)]
    ids.append(project.tasks.flaky.delay(f"{name}-flaky", failures=1).id)
    ids.append(project.tasks.work.apply_async([f"{name}-parent"], link=project.tasks.after.s(f"{name}-child")).id)
    ids.append(project.tasks.progress.delay(f"{name}-progress", gate="open").id)
    for id in ids:
        project.wait_state(id, "SUCCESS")
    until(lambda: project.starts(f"{name}-child"), "the follow-up has run")
    project.wait_empty()
    starts = Counter((entry.label, entry.retries) for entry in project.journal("start") if entry.label.startswith(f"{name}-"))
    assert not [label for label, times in starts.items() if times > 1]
    assert not project.dead()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("where", "numbers"), [("processes", range(1, 9)), ("supervisor", range(6, 13))])
def test_p1_one_failing_operation_loses_nothing(project: Project, where: str, numbers: range, when: str) -> None:
    project.open_gate("open")
    for number in numbers:
        verbs = LOOP if where == "processes" else ()
        worker = project.worker("-c", "2", env=fault(where, when, number, verbs=verbs))
        work_through(project, f"n{number}")
        if where == "processes":  # a supervisor passes over a failure to free hostages
            until(lambda log=worker.log: "fails on purpose" in log(), "the operation has failed, if only an idle one")
        assert worker.stop() == 0
        assert "Traceback" not in worker.log()
        assert not project.broker.nodes()


@pytest.mark.parametrize("pool", ["threads", "asyncio", "gevent"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_p1_one_failing_operation_loses_nothing_in_other_pools(project: Project, pool: str, when: str) -> None:
    project.open_gate("open")
    for number in (1, 2, 3, 5, 8):
        worker = project.worker("-c", "4", "-P", pool, env=fault("processes", when, number, verbs=LOOP))
        work_through(project, f"n{number}")
        until(lambda log=worker.log: "fails on purpose" in log(), "the operation has failed, if only an idle one")
        assert worker.stop() == 0
        assert "Traceback" not in worker.log()


@pytest.mark.parametrize("verb", ["held", "settle", "reclaim", "heartbeat", "collect", "unregister"])
def test_p1_a_failing_verb_of_the_supervisor_loses_nothing(project: Project, verb: str) -> None:
    """Those that it needs to recover a dead process, to free hostages, to live and to sign off."""
    project.open_gate("open")
    number = 2 if verb in ("reclaim", "collect") else 1  # the first reclaim belongs to the start
    worker = project.worker("-c", "2", env=fault("supervisor", "before", number, verbs=(verb,)))
    poison = project.tasks.die.delay("poison")
    project.wait_state(poison.id, "FAILURE")
    assert len(project.starts("poison")) == 3
    project.broker.discard([poison.id])
    work_through(project, verb)
    assert worker.stop() == 0


@pytest.mark.parametrize("where", ["processes", "supervisor"])
def test_p1_an_engine_that_is_away_for_a_while_is_one_line_in_the_log(project: Project, where: str) -> None:
    project.open_gate("open")
    worker = project.worker("-c", "1", env=fault(where, "before", 9, times=8, verbs=LOOP if where == "processes" else ()))
    work_through(project, "away")
    until(lambda: "is back after" in worker.log(), "it says that the engine is back")
    assert worker.log().count("is in trouble") == 1
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0


def test_p1_a_locked_database_stops_a_worker_only_for_as_long(project: Project) -> None:
    project.open_gate("open")
    worker = project.worker("-c", "2")
    long = project.tasks.work.delay("long", gate="go")
    project.wait_started("long")
    with sqlite3.connect(project.directory / "celeriac.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        project.open_gate("go")
        until(lambda: project.ends("long"), "the task has ended")
        until(lambda: "is in trouble" in worker.log(), "the worker has met the lock", seconds=60)
        other.execute("ROLLBACK")
    other.close()
    project.wait_state(long.id, "SUCCESS")
    work_through(project, "then")
    assert len(project.starts("long")) == 1
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0


def test_p1_a_full_disk_stops_a_worker_only_for_as_long(project: Project) -> None:
    """A limit on the size of files stands for the disk; with it SQLite meets the same error."""
    project.open_gate("open")
    worker = project.worker("-c", "1")
    work_through(project, "before")
    long = project.tasks.bulk.delay("long", 5_000_000, "go")
    project.wait_started("long")
    (child,) = worker.children()
    before = resource.prlimit(child, resource.RLIMIT_FSIZE)
    resource.prlimit(child, resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    project.open_gate("go")
    until(lambda: "is in trouble" in worker.log(), "the process has met the limit")
    assert project.state(long.id) == "PENDING"
    resource.prlimit(child, resource.RLIMIT_FSIZE, before)
    project.wait_state(long.id, "SUCCESS")
    work_through(project, "after")
    assert len(project.starts("long")) == 1
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0


def test_p1_an_engine_that_is_away_at_the_start_is_a_clear_error(project: Project) -> None:
    worker = project.worker("-c", "1", ready=False, env=fault("supervisor", "before", 1, times=1000))
    assert worker.wait() not in (0, 70)
    assert "Traceback" not in worker.log()
    assert "Error" in worker.log() and "fails on purpose" in worker.log()
