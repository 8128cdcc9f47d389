"""P4: a poison message stops, and nothing else is taken for one."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.engines import every_engine
from tests.support.fixtures import MakeProject
from tests.support.workers import Project, until

pytestmark = [pytest.mark.promise(4), every_engine(always=("sqlite", "postgresql", "rabbitmq"))]


@pytest.mark.parametrize("how", ["kill", "exit", "segfault"])
def test_p4_a_task_that_kills_its_process_stops_after_three_starts(project: Project, how: str) -> None:
    project.broker.pause(["celery"], by="the test")  # so that the poison lies in the middle of a batch
    before = [project.tasks.work.delay(f"before-{number}").id for number in range(60)]
    poison = project.tasks.die.delay("poison", how)
    after = [project.tasks.work.delay(f"after-{number}").id for number in range(30)]
    project.worker("-c", "2")
    project.broker.resume(["celery"])
    record = project.wait_state(poison.id, "FAILURE")
    project.wait_empty()
    assert len(project.starts("poison")) == 3
    assert b"WorkerLostError" in bytes(record.result) and b"died 3 times" in bytes(record.result)
    letter = until(lambda: project.dead().get(poison.id), "it is a dead letter")
    assert letter.crashes == 3 and "died 3 times" in letter.reason and "proj.die" in letter.reason
    for task_id in before + after:
        project.wait_state(task_id, "SUCCESS")
    labels = [entry.label for entry in project.journal("start") if entry.label != "poison"]
    assert sorted(labels) == sorted(set(labels)), "a neighbour ran twice"
    assert project.tasks.add.delay(1, 1).get(timeout=40) == 2
    assert len(project.starts("poison")) == 3


def test_p4_a_dead_letter_can_be_replayed(project: Project) -> None:
    project.worker("-c", "1")
    poison = project.tasks.die.delay("poison", unless="mended")
    project.wait_state(poison.id, "FAILURE")
    until(lambda: project.dead(), "it is a dead letter")
    project.open_gate("mended")
    done = project.command("dead", "replay", poison.id)
    assert done.returncode == 0, done.stderr
    project.wait_state(poison.id, "SUCCESS")
    assert len(project.starts("poison")) == 4
    assert not project.dead()


def test_p4_the_number_of_crashes_is_a_setting(make_project: MakeProject) -> None:
    project = make_project(task_max_crashes=1)
    project.worker("-c", "1")
    poison = project.tasks.die.delay("poison")
    project.wait_state(poison.id, "FAILURE")
    assert len(project.starts("poison")) == 1
    assert until(lambda: project.dead().get(poison.id), "it is a dead letter").crashes == 1


def test_p4_a_task_may_ask_not_to_be_repeated_at_all(project: Project) -> None:
    """reject_on_worker_lost=False: no second start after a crash."""
    project.worker("-c", "1")
    poison = project.tasks.die_once.delay("once")
    project.wait_state(poison.id, "FAILURE")
    assert len(project.starts("once")) == 1
    until(lambda: poison.id in project.dead(), "it is a dead letter")


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_p4_poison_among_threads_does_not_take_its_neighbours_along(project: Project, pool: str) -> None:
    """The process dies with all it runs; each suspect then runs alone, so only the poison goes on to kill."""
    project.worker("-c", "6", "-P", pool)
    neighbours = [project.tasks.work.delay(f"neighbour-{number}", gate="go") for number in range(5)]
    for number in range(5):
        project.wait_started(f"neighbour-{number}")
    poison = project.tasks.die.delay("poison")
    project.wait_started("poison")
    project.open_gate("go")
    project.wait_state(poison.id, "FAILURE")
    for neighbour in neighbours:
        project.wait_state(neighbour.id, "SUCCESS")
    project.wait_empty()
    until(lambda: list(project.dead()) == [poison.id], "it is the dead letter")
    assert len(project.starts("poison")) == 3
    assert all(len(project.starts(f"neighbour-{number}")) <= 2 for number in range(5)), "a neighbour was killed twice"


def test_p4_interruptions_by_deploys_are_no_crashes(project: Project) -> None:
    """However often a worker is stopped and started: it is neither a crash nor a retry."""
    project.prepare()
    result = project.tasks.work.delay("long", gate="go")
    for times in range(1, 6):
        worker = project.worker("-c", "1", name="w")
        project.wait_started("long", times=times)
        worker.signal(signal.SIGTERM)
        until(lambda worker=worker: "Stopping" in worker.log(), "it has noticed")  # type: ignore[misc]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        if project.broker.capabilities.ids:
            waiting = project.broker.find([result.id])[result.id]
            assert (waiting.state, waiting.crashes, waiting.interruptions) == ("ready", 0, times)
    project.open_gate("go")
    project.worker("-c", "1", name="w")
    record = project.wait_state(result.id, "SUCCESS")
    assert record.retries == 0


def test_p4_retries_and_crashes_are_counted_apart(project: Project) -> None:
    """Two crashes, a retry, two crashes more: never three of a kind."""
    project.worker("-c", "1")
    result = project.tasks.flaky.delay("flaky", failures=1, gate="try")
    starts = 0
    for retries in range(2):
        for _ in range(2):
            starts += 1
            entry = project.wait_started("flaky", times=starts)
            assert entry.retries == retries
            os.kill(entry.pid, signal.SIGKILL)
        starts += 1
        project.wait_started("flaky", times=starts)
        project.open_gate(f"try-{retries}")
    record = project.wait_state(result.id, "SUCCESS")
    assert record.retries == 1
    assert len(project.starts("flaky")) == 6
    assert not project.dead()


def test_p4_failures_are_no_crashes(project: Project) -> None:
    """An exception, SystemExit among them, fails the task and leaves its process alone."""
    worker = project.worker("-c", "1")
    pid = worker.children()[0]
    results = [
        project.tasks.fail.delay("fail"),
        project.tasks.leave.delay("exit", "exit"),
        project.tasks.leave.delay("interrupt", "interrupt"),
        project.tasks.leave.delay("unserializable", "unserializable"),
    ]
    kinds = [b"ValueError", b"SystemExit", b"KeyboardInterrupt", b"EncodeError"]
    for result, kind in zip(results, kinds, strict=True):
        assert kind in bytes(project.wait_state(result.id, "FAILURE").result)
    project.wait_empty()
    assert not project.dead()
    assert worker.children() == [pid]
    assert all(len(project.starts(label)) == 1 for label in ("fail", "exit", "interrupt", "unserializable"))
