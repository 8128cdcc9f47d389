"""P3: a worker that lost its lease changes nothing."""

from __future__ import annotations

import os
import signal

import pytest
from msgspec import json

from tests.support.engines import every_engine
from tests.support.fixtures import MakeProject
from tests.support.workers import SHORT_LEASE, Project, WorkerProcess, until

pytestmark = [pytest.mark.promise(3), every_engine(always=("sqlite", "postgresql", "rabbitmq"))]


def stopped_past_its_lease(project: Project) -> tuple[WorkerProcess, WorkerProcess, str]:
    """(a worker that was stopped in the middle of a task until its lease was over, the one that runs the task now, the task's id)."""
    zombie = project.worker("-c", "1")
    result = project.tasks.progress.apply_async(["task"], {"gate": "go"}, link=project.tasks.after.s("follow-up"))
    until(lambda: project.journal("halfway"), "the task is under way")
    project.freeze(zombie)
    holder = project.worker("-c", "1")
    until(lambda: len(project.journal("halfway")) == 2, "the other worker has taken over")
    return zombie, holder, result.id


def first_pid(project: Project) -> int:
    return project.starts("task")[0].pid


def let_the_task_end(project: Project, pid: int, ends: int) -> None:
    """Lets one stopped process go on, its supervisor still stopped, until it has tried to settle."""
    os.kill(pid, signal.SIGCONT)
    until(lambda: len(project.ends("task")) == ends, "the zombie's task has come to its end")


def test_p3_a_zombie_changes_nothing_after_the_new_holder_has_finished(make_project: MakeProject) -> None:
    project = make_project(**SHORT_LEASE)
    zombie, holder, task_id = stopped_past_its_lease(project)
    project.open_gate("go")
    record = project.wait_state(task_id, "SUCCESS")
    assert record.worker == project.node(holder).name
    until(lambda: project.starts("follow-up"), "the follow-up has run")
    let_the_task_end(project, first_pid(project), ends=2)
    until(lambda: not zombie.children(), "the zombie's process has noticed and ended")
    assert project.backend.fetch([task_id])[task_id] == record
    project.wait_empty()
    assert len(project.starts("follow-up")) == 1


def test_p3_a_zombie_changes_nothing_while_the_new_holder_still_runs(make_project: MakeProject) -> None:
    project = make_project(**SHORT_LEASE)
    zombie, holder, task_id = stopped_past_its_lease(project)
    holder_pid = project.starts("task")[1].pid
    os.kill(holder_pid, signal.SIGSTOP)  # its supervisor goes on, so its lease lasts
    before = project.backend.fetch([task_id])[task_id]
    project.open_gate("go")
    let_the_task_end(project, first_pid(project), ends=1)
    until(lambda: not zombie.children(), "the zombie's process has noticed and ended")
    assert project.backend.fetch([task_id])[task_id] == before, "neither its state nor its result was stored"
    assert not project.starts("follow-up")
    os.kill(holder_pid, signal.SIGCONT)
    record = project.wait_state(task_id, "SUCCESS")
    assert record.worker == project.node(holder).name
    assert json.decode(record.result) == "task"
    until(lambda: project.starts("follow-up"), "the follow-up has run")
    project.wait_empty()
    assert len(project.starts("follow-up")) == 1
    assert [attempt.worker for attempt in record.attempts] == [record.worker]


def test_p3_a_worker_that_wakes_up_begins_again_under_a_new_lease(make_project: MakeProject) -> None:
    project = make_project(**SHORT_LEASE)
    zombie = project.worker("-c", "1")
    old = project.node(zombie)
    project.tasks.progress.delay("task", gate="go")
    until(lambda: project.journal("halfway"), "the task is under way")
    project.freeze(zombie)
    holder = project.worker("-c", "1")
    until(lambda: len(project.journal("halfway")) == 2, "the other worker has taken over")
    zombie.signal_all(signal.SIGCONT)
    fresh = until(lambda: (node := project.node(zombie)) and node.id != old.id and node, "it is registered anew")
    assert fresh.name == old.name
    until(zombie.children, "it has a process again")
    project.open_gate("go")
    project.wait_empty()
    holder.stop()
    assert project.tasks.add.delay(2, 3).get(timeout=40) == 5
    assert zombie.stop() == 0


def test_p3_a_worker_whose_processes_all_noticed_first_begins_again(make_project: MakeProject) -> None:
    """They end by themselves, with their supervisor still stopped; it then finds several dead at once."""
    project = make_project(**SHORT_LEASE)
    zombie = project.worker("-c", "3")
    old = project.node(zombie)
    children = until(lambda: len(zombie.children()) == 3 and zombie.children(), "it has its processes")
    project.freeze(zombie)
    holder = project.worker("-c", "1")
    until(lambda: all(node.id != old.id for node in project.broker.nodes()), "its lease has been reclaimed")
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not zombie.children(), "its processes have noticed and ended")
    zombie.signal(signal.SIGCONT)
    until(lambda: len(zombie.children()) == 3, "it has processes again")
    assert project.node(zombie).id != old.id
    holder.stop()
    assert project.tasks.add.delay(2, 3).get(timeout=40) == 5
    assert zombie.stop() == 0


def test_p3_a_worker_that_was_declared_dead_between_two_heartbeats_begins_again(project: Project) -> None:
    """Its processes notice first, several at once."""
    worker = project.worker("-c", "4")
    for _ in range(3):
        old = project.node(worker)
        until(lambda: len(worker.children()) == 4, "it has its processes")
        project.broker.reclaim([old.id])
        until(lambda old=old: (node := project.node(worker)) and node.id != old.id, "it is registered anew")  # type: ignore[misc]
    assert project.tasks.add.delay(2, 3).get(timeout=40) == 5
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_p3_a_zombie_of_many_tasks_changes_nothing(make_project: MakeProject, pool: str) -> None:
    project = make_project(**SHORT_LEASE)
    labels = [f"task-{number}" for number in range(5)]
    zombie = project.worker("-c", "5", "-P", pool)
    results = [project.tasks.dawdle.delay(label, gate="go") for label in labels]
    pids = {project.wait_started(label).pid for label in labels}
    project.freeze(zombie)
    holder = project.worker("-c", "5", "-P", pool)
    until(lambda: len(project.journal("start")) > len(labels), "the other worker has taken over")
    project.open_gate("go")
    records = [project.wait_state(result.id, "SUCCESS") for result in results]
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    until(lambda: all(len(project.ends(label)) == 2 for label in labels) or not zombie.children(), "the zombie is through")
    zombie.signal_all(signal.SIGCONT)
    until(lambda: (node := project.node(zombie)) and node.lease_left_seconds > 0 and zombie.children(), "it works again")
    assert [project.backend.fetch([result.id])[result.id] for result in results] == records
    assert {record.worker for record in records} == {project.node(holder).name}
    project.wait_empty()
