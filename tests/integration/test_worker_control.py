"""Remote control of real workers, in the shapes of Celery's answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fixtures import MakeProject
from tests.support.workers import Project, WorkerProcess, until


def ask(project: Project) -> Any:
    return project.app.control.inspect(timeout=20)


def name_of(project: Project, worker: WorkerProcess) -> str:
    return str(project.node(worker).name)


def test_ping_is_answered_by_all_and_over_as_soon_as_all_have(project: Project) -> None:
    workers = [project.worker("-c", "1", name=f"w{number}") for number in range(2)]
    names = {name_of(project, worker) for worker in workers}
    replies = project.app.control.ping(timeout=60)
    assert {name: reply for answer in replies for name, reply in answer.items()} == dict.fromkeys(names, {"ok": "pong"})
    first = sorted(names)[0]
    assert project.app.control.ping(destination=[first], timeout=60) == [{first: {"ok": "pong"}}]


def test_active_reserved_and_scheduled_say_where_tasks_are(project: Project) -> None:
    worker = project.worker("-c", "1")
    name = name_of(project, worker)
    active = project.tasks.work.delay("active", gate="go")
    start = project.wait_started("active")
    later = project.tasks.work.apply_async(["later"], countdown=3600)
    (running,) = ask(project).active()[name]
    assert running["id"] == active.id and running["name"] == "proj.work"
    assert running["args"] == ["active"] and running["kwargs"] == {"gate": "go"}
    assert running["hostname"] == name and running["worker_pid"] == start.pid
    assert running["delivery_info"]["routing_key"] == "celery" and not running["delivery_info"]["redelivered"]
    assert abs(running["time_start"] - start.wall) < 30
    assert ask(project).reserved() == {name: []}
    (scheduled,) = ask(project).scheduled()[name]
    assert scheduled["request"]["id"] == later.id and scheduled["eta"]
    assert ask(project).query_task([active.id])[name][active.id][0] == "active"
    project.open_gate("go")
    project.wait_state(active.id, "SUCCESS")
    until(lambda: ask(project).active() == {name: []}, "nothing is active")


def test_stats_registered_queues_and_conf(project: Project) -> None:
    worker = project.worker("-c", "2", "-Q", "celery,mail")
    name = name_of(project, worker)
    for number in range(20):
        project.tasks.add.delay(number, 1)
    project.wait_empty()
    until(lambda: ask(project).stats()[name]["total"]["all tasks"] == 20, "it has counted them")
    stats = ask(project).stats()[name]
    assert stats["pid"] == worker.pid and sorted(stats["pool"]["processes"]) == sorted(worker.children())
    assert stats["pool"]["max-concurrency"] == 2
    assert stats["broker"]["transport"] == "sqlite"
    registered = ask(project).registered()[name]
    assert "proj.add" in registered and "proj.limited [rate_limit=2/s]" in registered
    assert [queue["name"] for queue in ask(project).active_queues()[name]] == ["celery", "mail"]
    assert "celeriac.db" in ask(project).conf()[name]["broker_url"]
    assert name in ask(project).report()[name]["ok"]


def test_an_unknown_command_is_an_answer_and_no_accident(project: Project) -> None:
    worker = project.worker("-c", "1")
    name = name_of(project, worker)
    (reply,) = project.app.control.broadcast("make_coffee", reply=True, timeout=20)
    assert "error" in reply[name] and "make_coffee" in reply[name]["error"]
    worker.may_complain = True
    (reply,) = project.app.control.broadcast("rate_limit", {"nonsense": 1}, reply=True, timeout=20)
    assert "error" in reply[name]
    assert project.app.control.ping(timeout=20)


def test_the_pool_grows_and_shrinks(project: Project) -> None:
    worker = project.worker("-c", "1")
    project.tasks.work.delay("one", gate="go")
    project.wait_started("one")
    project.app.control.pool_grow(2, reply=True, timeout=20)
    until(lambda: len(worker.children()) == 3, "it has grown")
    for label in ("two", "three"):
        project.tasks.work.delay(label, gate="go")
    for label in ("two", "three"):
        project.wait_started(label)
    project.app.control.pool_shrink(2, reply=True, timeout=20)
    project.open_gate("go")
    until(lambda: len(worker.children()) == 1, "it has shrunk")
    project.wait_empty()
    assert len(project.journal("end")) == 3, "what ran was let to its end"
    assert ask(project).stats()[name_of(project, worker)]["pool"]["max-concurrency"] == 1


def test_the_pool_restarts(project: Project) -> None:
    worker = project.worker("-c", "2")
    before = set(worker.children())
    project.app.control.pool_restart(reply=True, timeout=20)
    until(lambda: len(worker.children()) == 2 and not before & set(worker.children()), "all processes are new")
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3


def test_rate_limits_can_be_set_and_lifted(project: Project) -> None:
    worker = project.worker("-c", "1")
    name = name_of(project, worker)
    (reply,) = project.app.control.rate_limit("proj.work", "1/h", reply=True, timeout=20)
    assert reply == {name: {"ok": "new rate limit set successfully"}}
    for number in range(3):
        project.tasks.work.delay(f"task-{number}")
    until(lambda: project.journal("start"), "the first has run")
    for _ in range(3):
        assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    assert len(project.journal("start")) == 1
    assert "proj.work [rate_limit=1/h]" in ask(project).registered()[name]
    (reply,) = project.app.control.rate_limit("proj.nothing", "1/h", reply=True, timeout=20)
    assert reply == {name: {"error": "unknown task"}}
    (reply,) = project.app.control.rate_limit("proj.work", "often", reply=True, timeout=20)
    assert "error" in reply[name]


def test_time_limits_can_be_set(project: Project) -> None:
    worker = project.worker("-c", "1")
    name = name_of(project, worker)
    (reply,) = project.app.control.time_limit("proj.work", soft=None, hard=0.4, reply=True, timeout=20)
    assert reply == {name: {"ok": "time limits set successfully"}}
    until(lambda: b"TimeLimitExceeded" in killed_or_not(project), "a task is killed for it")


def killed_or_not(project: Project) -> bytes:
    """The result of a task that runs as long as it may; the first one may still run in a process of before."""
    result = project.tasks.work.delay("endless", gate="never", seconds=0)
    until(lambda: project.state(result.id) != "PENDING", "it has ended")
    return bytes(project.backend.fetch([result.id])[result.id].result)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_queues_can_be_added_and_cancelled(project: Project, pool: str) -> None:
    worker = project.worker("-c", "1", "-P", pool)
    name = name_of(project, worker)
    waiting = project.tasks.work.apply_async(["mail"], queue="mail")
    project.app.control.add_consumer("mail", reply=True, timeout=20)
    project.wait_state(waiting.id, "SUCCESS")
    assert [queue["name"] for queue in ask(project).active_queues()[name]] == ["celery", "mail"]
    assert project.node(worker).queues == ["celery", "mail"]
    project.app.control.cancel_consumer("celery", reply=True, timeout=20)
    until(lambda: project.node(worker).queues == ["mail"], "it says so")
    assert project.tasks.work.apply_async(["again"], queue="mail").get(timeout=40) == "again"
    lonely = project.tasks.work.delay("lonely")
    assert project.tasks.work.apply_async(["third"], queue="mail").get(timeout=40) == "third"
    assert project.state(lonely.id) == "PENDING"


def test_a_worker_can_be_shut_down(project: Project) -> None:
    workers = [project.worker("-c", "1", name=f"w{number}") for number in range(2)]
    name = name_of(project, workers[0])
    result = project.tasks.work.delay("running", gate="go")
    project.wait_started("running")
    project.app.control.shutdown(destination=[name])
    until(lambda: "Stopping" in workers[0].log(), "it has noticed")
    project.open_gate("go")
    assert workers[0].wait() == 0
    assert workers[1].popen.poll() is None
    project.wait_state(result.id, "SUCCESS")


def test_the_command_line_asks_and_tells(project: Project) -> None:
    worker = project.worker("-c", "1")
    name = name_of(project, worker)
    for arguments, words in (
        (["status"], [name, "1 node online"]),
        (["inspect", "ping"], [name, "pong"]),
        (["inspect", "stats"], [name, str(worker.pid)]),
        (["control", "pool_grow", "1"], [name, "pool will grow"]),
    ):
        done = project.command(*arguments, "--timeout", "20")
        assert done.returncode == 0, done.stderr
        for word in words:
            assert word in done.stdout
    until(lambda: len(worker.children()) == 2, "it has grown")
    assert project.command("control", "shutdown").returncode in (0, 69)
    assert worker.wait() == 0


# -- autoscale ---------------------------------------------------------------------------------------------------------


def test_autoscale_starts_processes_when_there_is_work_and_ends_them_when_there_is_none(make_project: MakeProject) -> None:
    project = make_project(worker_autoscale_keepalive=0.2)
    worker = project.worker("--autoscale", "4,1")
    assert len(worker.children()) == 1
    for number in range(8):
        project.tasks.work.delay(f"task-{number}", gate="go")
    until(lambda: len(worker.children()) == 4 and len(project.journal("start")) == 4, "it has grown to the most")
    name = name_of(project, worker)
    assert ask(project).stats()[name]["autoscaler"] == {"max": 4, "min": 1, "current": 4}
    (reply,) = project.app.control.pool_grow(1, reply=True, timeout=20)
    assert "error" in reply[name]
    project.open_gate("go")
    project.wait_empty()
    until(lambda: len(worker.children()) == 1, "it has shrunk to the fewest")
    assert len(project.journal("end")) == 8 and len(project.journal("start")) == 8
    assert worker.stop() == 0
