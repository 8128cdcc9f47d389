"""Each pool runs, settles and recovers; and a worker does the same as an eager call."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from msgspec import json

from tests.support.fixtures import MakeProject
from tests.support.workers import Project, until

POOLS = ["prefork", "threads", "solo", "asyncio", "gevent", "eventlet"]


def arguments_of(pool: str, places: int) -> list[str]:
    return ["-P", pool] if pool == "solo" else ["-P", pool, "-c", str(places)]


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_runs_and_settles_every_kind_of_task(project: Project, pool: str) -> None:
    worker = project.worker(*arguments_of(pool, 4))
    sums = [project.tasks.add.delay(number, 1) for number in range(100)]
    work = project.tasks.work.apply_async(["work"], link=project.tasks.after.s("linked"))
    coroutine = project.tasks.dawdle.delay("coroutine")
    retried = project.tasks.flaky.delay("flaky", failures=2)
    failing = project.tasks.fail.delay("failing")
    once = project.tasks.once.delay("once")
    ignored = project.tasks.work.apply_async(["ignored"], ignore_result=True)
    assert [result.get(timeout=40) for result in sums] == list(range(1, 101))
    assert work.get(timeout=40) == "work"
    assert coroutine.get(timeout=40) == "coroutine"
    assert retried.get(timeout=40) == "flaky"
    assert once.get(timeout=40) == "once"
    with pytest.raises(ValueError, match="as asked"):
        failing.get(timeout=40)
    assert "ValueError: as asked" in failing.traceback and "proj.py" in failing.traceback
    until(lambda: project.starts("linked"), "the callback has run")
    assert project.starts("linked")[0].arguments == ["work", "linked"]
    project.wait_empty()
    assert project.ends("ignored") and project.state(ignored.id) == "PENDING"
    assert not project.dead()
    record = project.backend.fetch([retried.id])[retried.id]
    assert [attempt.state for attempt in record.attempts] == ["RETRY", "RETRY", "SUCCESS"]
    assert worker.stop() == 0
    assert not project.broker.nodes()


@pytest.mark.parametrize("pool", ["threads", "asyncio", "gevent", "eventlet", "prefork"])
def test_a_pool_runs_as_many_at_once_as_it_may(project: Project, pool: str) -> None:
    project.worker(*arguments_of(pool, 5))
    task = project.tasks.dawdle if pool == "asyncio" else project.tasks.work
    results = [task.delay(f"task-{number}", gate="go") for number in range(7)]
    until(lambda: len(project.journal("start")) == 5, "five have started")
    assert project.broker.depth(["celery"])["celery"].leased == 5
    assert project.broker.depth(["celery"])["celery"].ready == 2
    assert len({entry.pid for entry in project.journal("start")}) == (5 if pool == "prefork" else 1)
    project.open_gate("go")
    for result in results:
        project.wait_state(result.id, "SUCCESS")


def test_plain_functions_do_not_hold_up_coroutines(project: Project) -> None:
    """In the asyncio pool they run in threads beside the loop."""
    project.worker("-P", "asyncio", "-c", "10")
    plain = project.tasks.work.delay("plain", gate="go")
    project.wait_started("plain")
    assert project.tasks.dawdle.delay("coroutine").get(timeout=40) == "coroutine"
    project.open_gate("go")
    assert plain.get(timeout=40) == "plain"


@pytest.mark.parametrize("pool", ["threads", "asyncio", "gevent"])
def test_several_processes_of_a_pool_share_the_work(project: Project, pool: str) -> None:
    worker = project.worker("-P", pool, "-c", "2", "--processes", "2")
    until(lambda: len(worker.children()) == 2, "both processes run")
    task = project.tasks.dawdle if pool == "asyncio" else project.tasks.work
    results = [task.delay(f"task-{number}", gate="go") for number in range(4)]
    until(lambda: len(project.journal("start")) == 4, "all have started")
    assert len({entry.pid for entry in project.journal("start")}) == 2
    project.open_gate("go")
    for result in results:
        project.wait_state(result.id, "SUCCESS")


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_processes_that_are_spawned_instead_of_forked(project: Project, pool: str) -> None:
    worker = project.worker("-P", pool, "-c", "2", "--pool-start-method", "spawn")
    assert [project.tasks.add.delay(number, 1).get(timeout=40) for number in range(5)] == [1, 2, 3, 4, 5]
    victim = project.tasks.work.delay("victim", gate="go")
    os.kill(project.wait_started("victim").pid, signal.SIGKILL)
    project.wait_started("victim", times=2)
    project.open_gate("go")
    assert victim.get(timeout=40) == "victim"
    assert worker.stop() == 0
    assert not project.processes()


def test_a_process_that_dies_at_once_is_not_started_in_a_circle(project: Project) -> None:
    """A module that fails only in children: the worker says so, and tries again at a walk."""
    with (project.directory / "proj.py").open("a") as file:
        file.write(
            "\n\nfrom celeriac.signals import worker_process_init\n\n\n@worker_process_init.connect\ndef fail(**_):\n"
            "    write('init', 'child')\n    os._exit(9)\n"
        )
    worker = project.worker("-c", "1", ready=False)
    worker.may_complain = True
    until(lambda: len(project.journal("init")) >= 3, "it has tried three times")
    first, _, third, *_ = project.journal("init")
    assert third.at - first.at > 1.0
    assert worker.popen.poll() is None
    assert worker.stop() == 0


def test_results_of_ten_megabytes_pass_through_a_worker(project: Project) -> None:
    """Larger than what a process can keep for its supervisor, so it is settled at once."""
    project.worker("-c", "1")
    text = "ä" * 5_000_000
    small = [project.tasks.work.delay(f"task-{number}") for number in range(20)]
    large = project.tasks.work.delay(text)
    assert large.get(timeout=40) == text
    for result in small:
        project.wait_state(result.id, "SUCCESS")
    project.wait_empty()


def test_the_state_started_is_recorded_when_asked_for(make_project: MakeProject) -> None:
    project = make_project(task_track_started=True)
    worker = project.worker("-c", "1")
    result = project.tasks.work.delay("task", gate="go")
    record = project.wait_state(result.id, "STARTED")
    assert json.decode(record.result) == {"pid": project.wait_started("task").pid, "hostname": project.node(worker).name}
    project.open_gate("go")
    project.wait_state(result.id, "SUCCESS")


def test_progress_can_be_seen(project: Project) -> None:
    project.worker("-c", "1")
    result = project.tasks.progress.delay("task", gate="go")
    until(lambda: result.state == "HALFWAY", "it is halfway")
    assert result.info == {"percent": 50}
    project.open_gate("go")
    assert result.get(timeout=40) == "task"


def test_results_in_another_engine(make_project: MakeProject) -> None:
    """Stored before the message is acknowledged; a killed process repeats its task and nothing else."""
    project = make_project()
    other = f"sqlite:///{project.directory / 'results.db'}"
    settings = json.decode((project.directory / "settings.json").read_bytes())
    (project.directory / "settings.json").write_bytes(json.encode({**settings, "result_backend": other}))
    project.worker("-c", "2")
    results = [project.tasks.add.delay(number, 1) for number in range(50)]
    victim = project.tasks.work.delay("victim", gate="go")
    os.kill(project.wait_started("victim").pid, signal.SIGKILL)
    project.wait_started("victim", times=2)
    project.open_gate("go")
    assert [result.get(timeout=40) for result in results] == list(range(1, 51))
    assert victim.get(timeout=40) == "victim"
    assert project.app.backend is not project.broker
    assert not project.broker.fetch([victim.id])
    project.wait_empty()


# -- eager ---------------------------------------------------------------------------------------------------------------

CALLS: list[tuple[str, list[Any]]] = [
    ("add", [1, 2]),
    ("work", ["work"]),
    ("dawdle", ["dawdle"]),
    ("fail", ["fail"]),
    ("strange", []),
    ("flaky", ["flaky", 2]),
    ("stubborn", ["stubborn"]),
    ("leave", ["exit", "exit"]),
    ("leave", ["ignore", "ignore"]),
    ("leave", ["reject", "reject"]),
    ("add", [1, "one"]),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CALLS)])
def test_an_eager_call_comes_to_the_same_as_a_worker(make_project: MakeProject, name: str, arguments: list[Any]) -> None:
    real = make_project()
    real.worker("-c", "1")
    result = getattr(real.tasks, name).delay(*arguments)
    real.wait_empty()
    if name == "leave" and arguments[1] in ("ignore", "reject"):
        assert result.state in ("PENDING", "FAILURE", "REJECTED")
        return
    until(result.ready, "the worker's result is there")
    seen_by_worker = (result.state, repr(result.result), [(entry.what, entry.label, entry.retries) for entry in real.journal()])

    eager = make_project(task_always_eager=True)
    result = getattr(eager.tasks, name).delay(*arguments)
    seen_eagerly = (result.state, repr(result.result), [(entry.what, entry.label, entry.retries) for entry in eager.journal()])
    assert seen_eagerly == seen_by_worker


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_may_have_processes_of_its_own(project: Project, pool: str) -> None:
    """They obey signals as processes do, though those of the worker leave them to their supervisor."""
    worker = project.worker("-P", pool, "-c", "1")
    assert project.tasks.fan_out.delay("fan out").get(timeout=40) == [[0, 1, 4, 9, 16], -signal.SIGTERM, -signal.SIGTERM]
    project.wait_empty()
    assert len(project.starts("fan out")) == 1
    assert worker.stop() == 0
