"""P6: waiting costs nothing."""

from __future__ import annotations

import signal
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.engines import every_engine
from tests.support.workers import Project, WorkerProcess, until

pytestmark = [pytest.mark.promise(6), every_engine(always=("sqlite", "redis", "rabbitmq"))]


def test_p6_what_waits_for_its_time_waits_in_the_engine_and_survives_every_restart(project: Project) -> None:
    worker = project.worker("-c", "2", name="w")
    begun = time.time()
    delays = [6.0 + number * 0.2 for number in range(6)]
    results = [project.tasks.work.apply_async([f"task-{number}"], countdown=delay) for number, delay in enumerate(delays)]
    retried = project.tasks.flaky.delay("retried", failures=1, countdown=6.0)
    months = project.tasks.work.apply_async(["months"], countdown=200 * 86400)
    retry_asked = project.wait_state(retried.id, "RETRY").date_done  # not ready, so it has none
    assert retry_asked is None
    assert not project.broker.depth(["celery"])["celery"].leased, "a worker holds what has to wait"
    assert_scheduled(project, len(delays) + 2)
    worker.signal_all(signal.SIGKILL)
    worker.wait()
    project.worker("-c", "2", name="w")
    ready = time.time() - begun
    for result in (*results, retried):
        project.wait_state(result.id, "SUCCESS")
    starts = [project.starts(f"task-{number}")[0].wall - begun for number in range(len(delays))]
    assert min(start - delay for start, delay in zip(starts, delays, strict=True)) >= 0.0, "nothing starts before its time"
    lateness = [start - max(delay, ready) for start, delay in zip(starts, delays, strict=True)]
    assert statistics.median(lateness) < 1.0, lateness
    # Where results live elsewhere, who was killed may have stored RETRY and not yet settled: then the first try is made again, and its retry may come twice.
    first, *others = project.starts("retried")
    assert next(entry for entry in others if entry.retries == 1).wall - first.wall >= 6.0
    if project.broker.capabilities.ids:
        assert project.broker.find([months.id])[months.id].state == "scheduled"
    assert not project.starts("months")


def test_p6_an_idle_worker_wakes_up_in_time(project: Project) -> None:
    """Nobody publishes and nothing ends at the moment when a task comes due."""
    project.worker("-c", "1")
    lateness = []
    for number in range(3):
        sent = time.time()
        project.tasks.work.apply_async([f"task-{number}"], countdown=0.5)
        lateness.append(project.wait_started(f"task-{number}").wall - sent - 0.5)
    assert min(lateness) >= 0.0
    assert statistics.median(lateness) < 1.0, lateness


def assert_scheduled(project: Project, count: int) -> None:
    """So many wait for their time. An engine that cannot say so says that."""
    assert project.broker.depth(["celery"])["celery"].scheduled == (count if project.broker.capabilities.counts else None)


def private_bytes(worker: WorkerProcess) -> int:
    """What the supervisor and its processes have for themselves."""
    total = 0
    for pid in (worker.pid, *worker.children()):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


def is_warm(project: Project, worker: WorkerProcess) -> bool:
    """Sends some tasks, and says whether each process has run a hundred by now: the first ones cost it megabytes, which it shared with its supervisor until then."""
    for _ in range(200):
        project.tasks.work.delay("warm", seconds=0.001)
    project.wait_empty()
    runs = Counter(entry.pid for entry in project.starts("warm"))
    return all(runs[pid] >= 100 for pid in worker.children())


def test_p6_waiting_tasks_cost_a_worker_no_memory(project: Project) -> None:
    """20,000 of them, less than 2 MB in all: a hundred bytes each, which no worker that held them could do with."""
    worker = project.worker("-c", "2")
    until(lambda: is_warm(project, worker), "each process has run some tasks")
    before = private_bytes(worker)
    message = project.app.producer.message("proj.work", ("later",), {}, task=project.tasks.work, options={"countdown": 3600}, parent=None)
    from msgspec import structs

    for start in range(0, 20_000, 2000):
        project.broker.publish([structs.replace(message, id=f"waiting-{number}") for number in range(start, start + 2000)])
    for _ in range(200):
        project.tasks.add.delay(1, 1)
    until(lambda: project.broker.depth(["celery"])["celery"].ready == 0, "the short ones have run")
    assert project.tasks.add.delay(1, 2).get(timeout=40) == 3
    assert_scheduled(project, 20_000)
    assert private_bytes(worker) - before < 2_000_000
