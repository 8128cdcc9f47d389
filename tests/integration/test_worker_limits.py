"""Time limits, revokes and limits of processes, with real workers."""

from __future__ import annotations

import time

import pytest
from msgspec import json

from tests.support.fixtures import MakeProject
from tests.support.workers import Project, until


def error_of(record: object) -> str:
    """The kind of exception that a record holds."""
    return str(json.decode(record.result)["exc_type"])  # type: ignore[attr-defined]


# -- time limits -----------------------------------------------------------------------------------------------------


def test_a_hard_time_limit_kills_the_task_and_nothing_else(project: Project) -> None:
    worker = project.worker("-c", "2")
    project.make_gate("pipe")
    results = [
        project.tasks.work.apply_async(["sleeps", "never"], time_limit=0.5),
        project.tasks.block.apply_async(["blocks", "pipe"], time_limit=0.5),
    ]
    others = [project.tasks.add.delay(number, 1) for number in range(50)]
    for result in results:
        assert error_of(project.wait_state(result.id, "FAILURE")) == "TimeLimitExceeded"
    for other in others:
        project.wait_state(other.id, "SUCCESS")
    project.wait_empty()
    until(lambda: len(worker.children()) == 2, "killed processes are replaced")
    assert not project.dead(), "a time limit is no crash"
    assert len(project.starts("sleeps")) <= 1 and len(project.starts("blocks")) <= 1, "no second try"
    assert "Hard time limit (0.5s) exceeded" in worker.log()


def test_a_soft_time_limit_is_an_exception_that_a_task_may_catch(project: Project) -> None:
    worker = project.worker("-c", "1")
    child = worker.children()
    polite = project.tasks.polite.apply_async(["polite"], soft_time_limit=1.0)
    assert json.decode(project.wait_state(polite.id, "SUCCESS").result) == "tidied up"
    rude = project.tasks.work.apply_async(["rude", "never"], soft_time_limit=0.3)
    assert error_of(project.wait_state(rude.id, "FAILURE")) == "SoftTimeLimitExceeded"
    assert worker.children() == child, "the process lives on"


def test_limits_of_the_command_line_and_of_the_call(project: Project) -> None:
    project.worker("-c", "2", "--time-limit", "0.5")
    limited = project.tasks.work.apply_async(["limited", "never"])
    longer = project.tasks.work.apply_async(["longer"], {"seconds": 1.0}, time_limit=60)
    assert error_of(project.wait_state(limited.id, "FAILURE")) == "TimeLimitExceeded"
    project.wait_state(longer.id, "SUCCESS")


def test_limits_of_the_settings(make_project: MakeProject) -> None:
    project = make_project(task_soft_time_limit=1.0, task_time_limit=60)
    project.worker("-c", "1")
    polite = project.tasks.polite.delay("polite")
    assert json.decode(project.wait_state(polite.id, "SUCCESS").result) == "tidied up"


def test_a_hard_limit_follows_a_soft_one_that_is_not_heeded(project: Project) -> None:
    project.worker("-c", "1")
    result = project.tasks.deaf.apply_async(["deaf"], soft_time_limit=1.0, time_limit=5.0)
    assert error_of(project.wait_state(result.id, "FAILURE")) == "TimeLimitExceeded"
    assert len(project.journal("soft")) == 1


@pytest.mark.parametrize("pool", ["asyncio", "gevent", "eventlet"])
def test_limits_cancel_coroutines_and_greenlets(project: Project, pool: str) -> None:
    worker = project.worker("-c", "10", "-P", pool)
    task = project.tasks.dawdle if pool == "asyncio" else project.tasks.work
    child = worker.children()
    soft = task.apply_async(["soft", "never"], soft_time_limit=0.3)
    hard = task.apply_async(["hard", "never"], time_limit=0.3)
    assert error_of(project.wait_state(soft.id, "FAILURE")) == "SoftTimeLimitExceeded"
    assert error_of(project.wait_state(hard.id, "FAILURE")) == "TimeLimitExceeded"
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    assert worker.children() == child


def test_a_soft_limit_that_comes_as_the_task_ends_harms_nobody(project: Project) -> None:
    """Each task runs for about as long as it may, so the signal comes just before, just after, or in between."""
    worker = project.worker("-c", "2")
    child = worker.children()
    near = [project.tasks.work.apply_async([f"near-{number}"], {"seconds": 0.04}, soft_time_limit=0.04) for number in range(60)]
    others = [project.tasks.work.delay(f"other-{number}") for number in range(60)]
    for result in near:
        until(lambda result=result: project.state(result.id) in ("SUCCESS", "FAILURE"), "it has ended")  # type: ignore[misc]
        record = project.backend.fetch([result.id])[result.id]
        assert record.status == "SUCCESS" or error_of(record) == "SoftTimeLimitExceeded"
    for result in others:
        project.wait_state(result.id, "SUCCESS")
    project.wait_empty()
    assert worker.children() == child
    labels = [entry.label for entry in project.journal("start")]
    assert len(labels) == len(set(labels))


def test_a_hard_limit_that_comes_as_the_task_ends_hits_nobody_else(project: Project) -> None:
    worker = project.worker("-c", "2")
    project.broker.pause(["celery"], by="the test")
    near, others = [], []
    for number in range(40):
        near.append(project.tasks.work.apply_async([f"near-{number}"], {"seconds": 0.04}, time_limit=0.04))
        others += [project.tasks.work.delay(f"other-{number}-{index}", seconds=0.001) for index in range(5)]
    project.broker.resume(["celery"])
    for result in others:
        project.wait_state(result.id, "SUCCESS")
    for result in near:
        until(lambda result=result: project.state(result.id) in ("SUCCESS", "FAILURE"), "it has ended")  # type: ignore[misc]
        record = project.backend.fetch([result.id])[result.id]
        assert record.status == "SUCCESS" or error_of(record) == "TimeLimitExceeded"
    project.wait_empty()
    assert not project.dead()
    near_labels = [entry.label for entry in project.journal("start") if entry.label.startswith("near")]
    assert len(near_labels) == len(set(near_labels)), "a task that was over its limit ran again"
    assert worker.stop() == 0


def test_a_termination_that_comes_as_the_task_ends_hits_nobody_else(project: Project) -> None:
    project.worker("-c", "2")
    project.broker.pause(["celery"], by="the test")
    ending = [project.tasks.work.apply_async([f"ending-{number}"], {"seconds": 0.02}) for number in range(40)]
    others = [project.tasks.work.delay(f"other-{number}", seconds=0.002) for number in range(200)]
    project.broker.resume(["celery"])
    for number, result in enumerate(ending):
        project.wait_started(f"ending-{number}")
        result.revoke(terminate=True)
    for result in ending:
        until(lambda result=result: project.state(result.id) in ("SUCCESS", "REVOKED"), "it has ended")  # type: ignore[misc]
    for result in others:
        project.wait_state(result.id, "SUCCESS")
    project.wait_empty()
    assert not project.dead()
    labels = [entry.label for entry in project.journal("start") if entry.label.startswith("ending")]
    assert len(labels) == len(set(labels))


# -- revoke ------------------------------------------------------------------------------------------------------------


def test_a_waiting_task_that_is_revoked_never_runs(project: Project) -> None:
    """With no worker running, and over the restart of every worker."""
    result = project.tasks.work.delay("revoked")
    later = project.tasks.work.apply_async(["scheduled"], countdown=1)
    result.revoke()
    later.revoke()
    assert project.state(result.id) == project.state(later.id) == "REVOKED"
    project.worker("-c", "1")
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    project.wait_empty()
    assert not project.journal()


def test_an_id_may_be_revoked_before_it_is_sent(project: Project) -> None:
    project.app.control.revoke("not-yet")
    project.worker("-c", "1")
    project.tasks.work.apply_async(["revoked"], task_id="not-yet")
    project.wait_state("not-yet", "REVOKED")
    assert not project.journal()


def test_a_running_task_that_is_revoked_goes_on_but_is_not_tried_again(project: Project) -> None:
    project.worker("-c", "1")
    goes_on = project.tasks.work.delay("goes on", gate="go")
    project.wait_started("goes on")
    goes_on.revoke()
    project.open_gate("go")
    project.wait_state(goes_on.id, "SUCCESS")
    retried = project.tasks.flaky.delay("flaky", failures=3, gate="try")
    project.wait_started("flaky")
    retried.revoke()
    project.open_gate("try-0")
    project.wait_state(retried.id, "REVOKED")
    project.wait_empty()
    assert len(project.starts("flaky")) == 1


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL", "SIGUSR2"])
def test_a_running_task_is_terminated_in_its_process(project: Project, signal_name: str) -> None:
    worker = project.worker("-c", "2")
    project.make_gate("never")
    result = project.tasks.block.delay("blocks", "never")
    pid = project.wait_started("blocks").pid
    other = project.tasks.work.delay("other", gate="go")
    project.wait_started("other")
    result.revoke(terminate=True, signal=signal_name)
    assert error_of(project.wait_state(result.id, "REVOKED")) == "TaskRevokedError"
    until(lambda: pid not in worker.children() and len(worker.children()) == 2, "its process has been replaced")
    project.open_gate("go")
    project.wait_state(other.id, "SUCCESS")
    project.wait_empty()
    assert len(project.starts("blocks")) == len(project.starts("other")) == 1
    assert not project.dead()


def test_a_running_coroutine_is_cancelled(project: Project) -> None:
    worker = project.worker("-c", "10", "-P", "asyncio")
    child = worker.children()
    result = project.tasks.dawdle.delay("cancelled", gate="never")
    other = project.tasks.dawdle.delay("other", gate="go")
    project.wait_started("cancelled")
    project.wait_started("other")
    result.revoke(terminate=True)
    assert error_of(project.wait_state(result.id, "REVOKED")) == "TaskRevokedError"
    assert project.journal("broken off", "cancelled")[0].error == "CancelledError"
    project.open_gate("go")
    project.wait_state(other.id, "SUCCESS")
    assert worker.children() == child
    assert not project.journal("broken off", "other")


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_running_greenlet_is_ended(project: Project, pool: str) -> None:
    worker = project.worker("-c", "10", "-P", pool)
    child = worker.children()
    result = project.tasks.work.delay("ended", gate="never")
    other = project.tasks.work.delay("other", gate="go")
    project.wait_started("ended")
    project.wait_started("other")
    result.revoke(terminate=True)
    assert error_of(project.wait_state(result.id, "REVOKED")) == "TaskRevokedError"
    project.open_gate("go")
    project.wait_state(other.id, "SUCCESS")
    assert worker.children() == child


def test_a_running_thread_is_asked(project: Project) -> None:
    """It cannot be killed; it ends when it asks (`self.is_aborted`-like) or is done, and its neighbours are left alone."""
    worker = project.worker("-c", "4", "-P", "threads")
    child = worker.children()
    result = project.tasks.work.delay("asked", gate="go")
    project.wait_started("asked")
    result.revoke(terminate=True)
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    project.open_gate("go")
    until(lambda: project.state(result.id) in ("SUCCESS", "REVOKED"), "it has come to its end")
    project.wait_empty()
    assert worker.children() == child
    assert len(project.starts("asked")) == 1


def test_what_has_expired_does_not_run(project: Project) -> None:
    result = project.tasks.work.apply_async(["expired"], expires=0.1)
    until(lambda: project.broker.now() > 0 and _expired(project, result.id), "its time is over")
    project.worker("-c", "1")
    project.wait_state(result.id, "REVOKED")
    assert not project.journal()


def _expired(project: Project, task_id: str) -> bool:
    message = project.broker.find([task_id])[task_id].message
    return message.expires.timestamp() < project.broker.now()  # type: ignore[no-any-return]


# -- limits of processes ---------------------------------------------------------------------------------------------


def test_max_tasks_per_child_replaces_processes(project: Project) -> None:
    worker = project.worker("-c", "1", "--max-tasks-per-child", "5")
    results = [project.tasks.whoami.delay() for _ in range(23)]
    pids = [result.get(timeout=40) for result in results]
    assert max(pids.count(pid) for pid in pids) == 5
    assert len(set(pids)) == 5
    project.wait_empty()
    assert worker.stop() == 0
    assert "ended with exit code" not in worker.log(), "that is no accident"


@pytest.mark.parametrize("pool", ["threads", "asyncio", "gevent"])
def test_max_tasks_per_child_in_other_pools(project: Project, pool: str) -> None:
    worker = project.worker("-c", "4", "-P", pool, "--max-tasks-per-child", "10")
    results = [project.tasks.whoami.delay() for _ in range(60)]
    pids = [result.get(timeout=40) for result in results]
    assert len(set(pids)) >= 4
    project.wait_empty()
    assert worker.stop() == 0


def test_max_memory_per_child_replaces_a_process_that_has_grown(project: Project) -> None:
    project.worker("-c", "1", "--max-memory-per-child", "120000")
    pids = [project.tasks.hoard.delay(f"task-{number}", 100).get(timeout=40) for number in range(2)]
    until(lambda: project.tasks.whoami.delay().get(timeout=40) not in pids, "the grown processes have been replaced")
    project.wait_empty()
    assert not project.dead()


def test_rate_limits_spread_starts(project: Project) -> None:
    """2 a second: the fourth starts one and a half after the first, which starts after it was sent."""
    project.worker("-c", "1")
    sent_at = time.monotonic()
    limited = [project.tasks.limited.delay(f"limited-{number}") for number in range(4)]
    for result in limited:
        project.wait_state(result.id, "SUCCESS")
    assert max(entry.at for entry in project.journal("start")) - sent_at >= 1.5


def test_rate_limits_hold_up_no_others(project: Project) -> None:
    project.worker("-c", "1")
    for number in range(4):
        project.tasks.hourly.delay(f"hourly-{number}")
    others = [project.tasks.add.delay(number, 1) for number in range(50)]
    for other in others:
        project.wait_state(other.id, "SUCCESS")
    assert len(project.journal("start")) == 1, "the others still wait"
